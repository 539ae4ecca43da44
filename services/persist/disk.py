"""The effects on stored files: the few system calls that can fail, behind a Protocol, and the directories of jobs.

Everything below a root is reached by descriptors and without following a symbolic link, so that nothing outside of
the store can be read, written or removed through it: openat(2), unlinkat(2), O_NOFOLLOW. What is written is the
business of segment.py and store.py.

A job is removed in three steps, so that a process that is killed in between leaves no half of it behind: its directory
of logs is set aside under a name of which readers know nothing, everything is removed, and last of all that name.
"""

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from common.identifiers import JobId

DIRECTORY_MODE: Final = 0o700
FILE_MODE: Final = 0o600
SET_ASIDE: Final = ".removed-"
"""Begins the name of a job's directory that is being removed; the job's id follows."""
_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_IN_THE_WAY: Final = frozenset({errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR, errno.ENOTDIR})


class Disk(Protocol):
    """What may fail while something is made durable."""

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        """pwrite(2): how many bytes were taken, which may be fewer than given."""

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        """ftruncate(2)."""

    def sync(self, descriptor: int) -> None:
        """fdatasync(2) of a file, fsync(2) of a directory: after this a power cut takes nothing."""


class Made(NamedTuple):
    """The directory of a job. `is_new`: it was made just now, and its entry in the root is not synchronized."""

    descriptor: int
    is_new: bool


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
def directory_of(root: Path) -> Iterator[int]:
    """A descriptor of `root`, which the operator may have made a link."""
    with _opened(root, _DIRECTORY_FLAGS & ~os.O_NOFOLLOW) as descriptor:
        yield descriptor


@contextlib.contextmanager
def directory_in(parent: int, name: str) -> Iterator[int]:
    """A descriptor of the directory `name` in `parent`. Raises OSError; NotADirectoryError for a link."""
    with _opened(name, _DIRECTORY_FLAGS, parent) as descriptor:
        yield descriptor


@contextlib.contextmanager
def job_directory(root: Path, job: JobId) -> Iterator[int]:
    """A descriptor of the job's directory below `root`. Raises FileNotFoundError when there is none."""
    with directory_of(root) as parent, directory_in(parent, job) as descriptor:
        yield descriptor


@contextlib.contextmanager
def made_job_directory(root: Path, job: JobId) -> Iterator[Made]:
    """The same, made where it is missing."""
    with directory_of(root) as parent:
        is_new = True
        try:
            os.mkdir(job, DIRECTORY_MODE, dir_fd=parent)
        except FileExistsError:
            is_new = False
        with directory_in(parent, job) as descriptor:
            yield Made(descriptor, is_new)


@contextlib.contextmanager
def stored_file(directory: int, name: str, *, flags: int = os.O_RDONLY) -> Iterator[int]:
    """A descriptor of the file `name` in `directory`. Raises OSError; FileNotFoundError when there is none."""
    with _opened(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, directory) as descriptor:
        yield descriptor


def write_all(descriptor: int, data: bytes | memoryview, offset: int, disk: Disk) -> None:
    """Write all of `data` at `offset`. Raises OSError, after which some of it may be there."""
    view, written = memoryview(data), 0
    while written < len(view):
        taken = disk.write(descriptor, view[written:], offset + written)
        if taken <= 0:
            raise OSError(errno.ENOSPC, "nothing more is taken")
        written += taken


def remove_file(directory: int, name: str) -> bool:
    """Remove the file `name` in `directory`. False: there is none."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return False
    return True


def remove_job_directory(root: Path, job: JobId) -> int:
    """Remove the job's directory below `root` and all in it; the bytes of the files. Nothing there: 0."""
    with directory_of(root) as parent:
        return _remove(parent, job)


def set_aside(root: Path, job: JobId) -> bool:
    """Take the job's directory below `root` out of its place, at once. False: there is none."""
    with directory_of(root) as parent:
        try:
            os.rename(job, SET_ASIDE + job, src_dir_fd=parent, dst_dir_fd=parent)
        except FileNotFoundError:
            return False
        except OSError as cause:
            if cause.errno not in _IN_THE_WAY:
                raise
            _remove(parent, SET_ASIDE + job)  # left by a process that was killed
            os.rename(job, SET_ASIDE + job, src_dir_fd=parent, dst_dir_fd=parent)
    return True


def empty_set_aside(root: Path, job: JobId) -> int:
    """Remove what is in the directory that was set aside; the bytes of the files. Nothing there: 0."""
    with directory_of(root) as parent:
        try:
            with directory_in(parent, SET_ASIDE + job) as directory:
                return _remove_entries(directory)
        except (FileNotFoundError, NotADirectoryError):
            return 0


def remove_set_aside(root: Path, job: JobId) -> None:
    """Remove what was set aside for good."""
    with directory_of(root) as parent:
        _remove(parent, SET_ASIDE + job)


def _remove(parent: int, name: str) -> int:
    try:
        with directory_in(parent, name) as directory:
            removed = _remove_entries(directory)
        os.rmdir(name, dir_fd=parent)
    except FileNotFoundError:
        return 0
    except NotADirectoryError:  # a file or a link in its place: the link goes, not what it points at
        os.unlink(name, dir_fd=parent)
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
