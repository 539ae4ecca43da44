"""What every program does with stdout and stderr: bytes to the last one, and one line for a person.

Here: writing to descriptors, and lines on stderr. Not here: formats (the packages of the programs), escaping
(`cli/client/escape.py`). Writing bypasses Python's text layer: output of jobs is bytes. See write(2), pipe(7).
"""

import os
import select
import sys
from typing import Final

import click

from cli.client.escape import escape_line

STDOUT: Final = 1
STDERR: Final = 2


def print_line(text: str) -> None:
    """One line of text on stdout that came from a node, or holds something that did."""
    click.echo(escape_line(text))


def tell(line: str) -> None:
    """`line` on stderr, escaped; nothing when stderr is gone."""
    try:
        sys.stderr.write(f"{escape_line(line)}\n")
        sys.stderr.flush()
    except (BrokenPipeError, ValueError):
        return  # nobody reads: there is no better place to say so


def write_all(descriptor: int, data: bytes) -> None:
    """All of `data`, also to a pipe that another program made non-blocking."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
