"""What every program does with stdout and stderr: bytes to the last one, and one line for a person.

Here: writing to descriptors, lines on stderr, and what to do when neither can be written. Not here: formats (the
packages of the programs), escaping (`cli/client/escape.py`). Writing bypasses Python's text layer: output of jobs is
bytes. See write(2), pipe(7).
"""

import errno
import io
import os
import select
import sys
from typing import Final

import click

from cli.client.escape import escape_line

STDIN: Final = 0
STDOUT: Final = 1
STDERR: Final = 2
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF})


def prepare_streams() -> None:
    """Call before anything else is opened: what the caller closed is taken, and every text can be printed.

    A descriptor that is closed goes to the next file or socket, which would then get what is meant for stdout. Opened
    the wrong way round its use fails with EBADF, as if it were closed. Characters that the locale's encoding does not
    have are shown as the control characters are; where Python itself sees to it that all have room, it stays so.
    """
    for descriptor, name, flags, mode in (
        (STDIN, "stdin", os.O_WRONLY, "r"),
        (STDOUT, "stdout", os.O_RDONLY, "w"),
        (STDERR, "stderr", os.O_RDONLY, "w"),
    ):
        if getattr(sys, name) is None:
            _take(descriptor, flags)
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115  # to the end
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and (stream.errors, stream.encoding) != ("surrogateescape", "utf-8"):
            stream.reconfigure(errors="backslashreplace")


def let_go(descriptor: int) -> None:
    """What is still buffered for `descriptor` goes nowhere, instead of failing again at the exit."""
    _take(descriptor, os.O_WRONLY)


def _take(descriptor: int, flags: int) -> None:
    nothing = os.open(os.devnull, flags | os.O_CLOEXEC)
    if nothing != descriptor:
        os.dup2(nothing, descriptor, inheritable=False)
        os.close(nothing)


def unwritable(error: OSError) -> str:
    """What `error` says of the output, when writing to it failed; empty when it is about something else."""
    if error.errno not in _FULL or error.filename is not None:
        return ""
    return f"cannot write the output: {error.strerror}"


def print_line(text: str) -> None:
    """One line of text on stdout that came from a node, or holds something that did."""
    click.echo(escape_line(text))


def tell(line: str) -> None:
    """`line` on stderr, escaped; nothing when stderr is gone."""
    try:
        sys.stderr.write(f"{escape_line(line)}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        let_go(STDERR)  # nobody reads, or it is full or closed: there is no better place to say so


def write_all(descriptor: int, data: bytes) -> None:
    """All of `data`, also to a pipe that another program made non-blocking."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
