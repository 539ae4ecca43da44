"""The effects on stored files: the few system calls that can fail, behind a Protocol, and the directories of jobs.

Everything below a root is reached by descriptors and without following a symbolic link, so that nothing outside of
the store can be read, written or removed through it: openat(2), unlinkat(2), O_NOFOLLOW. What is written is the
business of segment.py and store.py.
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

from common.identifiers import JobId

DIRECTORY_MODE: Final = 0o700
FILE_MODE: Final = 0o600
_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Disk(Protocol):
    """What may fail while something is made durable."""

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        """pwrite(2): how many bytes were taken, which may be fewer than given."""

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        """ftruncate(2)."""

    def sync(self, descriptor: int) -> None:
        """fdatasync(2) of a file, fsync(2) of a directory: after this a power cut takes nothing."""


class HostDisk:
    """The real one."""

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        """See Disk.write."""
        return os.pwrite(descriptor, data, offset)

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        """See Disk.truncate."""
        os.ftruncate(descriptor, size_bytes)

    def sync(self, descriptor: int) -> None:
        """See Disk.sync."""
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            os.fsync(descriptor)
        else:
            os.fdatasync(descriptor)


@contextlib.contextmanager
def job_directory(root: Path, job: JobId) -> Iterator[int]:
    """A descriptor of the job's directory below `root`. Raises FileNotFoundError when there is none."""
    with _opened(root, _DIRECTORY_FLAGS & ~os.O_NOFOLLOW) as parent, _opened(job, _DIRECTORY_FLAGS, parent) as fd:
        yield fd


@contextlib.contextmanager
def made_job_directory(root: Path, job: JobId, disk: Disk, *, durable: bool) -> Iterator[int]:
    """The same, made where it is missing; `durable`: its entry in `root` survives a power cut, then."""
    with _opened(root, _DIRECTORY_FLAGS & ~os.O_NOFOLLOW) as parent:
        try:
            os.mkdir(job, DIRECTORY_MODE, dir_fd=parent)
        except FileExistsError:
            pass
        else:
            if durable:
                disk.sync(parent)
        with _opened(job, _DIRECTORY_FLAGS, parent) as descriptor:
            yield descriptor


@contextlib.contextmanager
def stored_file(directory: int, name: str, *, flags: int = os.O_RDONLY) -> Iterator[int]:
    """A descriptor of the file `name` in `directory`. Raises OSError; FileNotFoundError when there is none."""
    with _opened(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, directory) as descriptor:
        yield descriptor


def remove_job_directory(root: Path, job: JobId) -> int:
    """Remove the job's directory below `root` and all in it; the bytes of the files. Nothing there: 0."""
    with _opened(root, _DIRECTORY_FLAGS & ~os.O_NOFOLLOW) as parent:
        try:
            with _opened(job, _DIRECTORY_FLAGS, parent) as directory:
                removed = _remove_entries(directory)
            os.rmdir(job, dir_fd=parent)
        except FileNotFoundError:
            return 0
        except NotADirectoryError:  # a file or a link in its place: the link goes, not what it points at
            os.unlink(job, dir_fd=parent)
            return 0
    return removed


def _remove_entries(directory: int) -> int:
    removed = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                shutil.rmtree(entry.name, dir_fd=directory)
            else:
                os.unlink(entry.name, dir_fd=directory)
                removed += status.st_size
    return removed


@contextlib.contextmanager
def _opened(path: str | Path, flags: int, directory: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, flags, FILE_MODE, dir_fd=directory)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
