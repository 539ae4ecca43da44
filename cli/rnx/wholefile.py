"""A file that is there when it is whole: written under a temporary name beside it, durable, and then renamed.

Here: that, and that nothing is overwritten unasked. Not here: what is written. link(2), rename(2).
"""

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from cli.front.output import write_all
from common.errors import JobletError, Reason


@contextmanager
def whole_file(path: Path, *, replace: bool) -> Iterator[Callable[[bytes], None]]:
    """Gives the function that writes; the file bears its name when the block ends, and never when that fails.

    JobletError(EXISTS) where there is one and `replace` is not given, or where it is no regular file.
    """
    target = path.resolve()
    _require_room(target, path, replace=replace)
    partial = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.partial")
    try:
        descriptor = _made(partial, path)
        try:
            yield lambda data: _write(descriptor, path, data)
            _publish(descriptor, partial, target, path, replace=replace)
        finally:
            os.close(descriptor)
    finally:
        with suppress(OSError):  # it was renamed, or never made
            partial.unlink()


def _made(partial: Path, path: Path) -> int:
    try:
        return os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as cause:
        raise _failed(path, cause) from cause


def _require_room(target: Path, path: Path, *, replace: bool) -> None:
    if not os.path.lexists(target):
        return
    if not target.is_file():
        raise JobletError(Reason.EXISTS, f"{path} is no regular file", detail="write to stdout instead: -")
    if not replace:
        raise _taken(path)


def _write(descriptor: int, path: Path, data: bytes) -> None:
    try:
        write_all(descriptor, data)
    except OSError as cause:
        raise _failed(path, cause) from cause


def _publish(descriptor: int, partial: Path, target: Path, path: Path, *, replace: bool) -> None:
    """What the archive holds may be somebody's secret: the umask decides who reads it, as of any file."""
    try:
        umask = os.umask(0o077)
        os.umask(umask)
        os.fchmod(descriptor, 0o666 & ~umask)
        os.fsync(descriptor)
        if replace:
            partial.replace(target)
        else:
            os.link(partial, target)  # unlike a rename it overwrites nothing, whoever made one meanwhile
    except FileExistsError as cause:
        raise _taken(path) from cause
    except OSError as cause:
        raise _failed(path, cause) from cause


def _taken(path: Path) -> JobletError:
    return JobletError(Reason.EXISTS, f"there is a file {path} already", detail="name another one, or give --force")


def _failed(path: Path, cause: OSError) -> click.ClickException:
    return click.ClickException(f"cannot write {path}: {cause.strerror}")
