"""Copies of files, shared or whole, and holding a file system still while one is made.

Here: one file's content and its durable appearance under a name. Not here: trees (`copytree.py`), and which file is a
volume's image. References: ioctl_ficlone(2), copy_file_range(2), lseek(2) SEEK_DATA, fallocate(2).
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from common.errors import JobletError, exhausted
from common.linux import files
from common.messages.volumes import CopyMethod

NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_REFLINK: Final = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM, errno.ENOSYS})
_NO_RANGE_COPY: Final = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM})
_RANGE_BYTES: Final = 64 * 2**20
"""One call of copy_file_range(2): it cannot be interrupted."""
_PIECE_BYTES: Final = 256 * 1024
_SOURCE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_TARGET: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def copy_file(source: Path, target: Path, *, full: bool) -> CopyMethod:
    """Make `target` a durable copy of the file `source`, of mode 0600; what has that name is replaced by it at once.

    It is made as `<target>.new`, which an interrupted copy leaves and the next one removes; a failed one leaves
    nothing. Links are not followed. EXHAUSTED: the disk has no room for it.

    `full`: no write to the copy will need a block that the disk may not have. A copy has its blocks, all of them,
    before the first byte is copied. A reflink cannot keep that promise, neither for the copy nor, from then on, for
    `source`: a shared block gets a new place when either of them changes it. So it is made only where the disk has
    room for the whole at that moment, and has no hole; should others fill the disk later, a write into the volume
    fails with an input/output error and is told by fsync. Unsharing (FALLOC_FL_UNSHARE_RANGE) was rejected: it is a
    copy that calls itself a reflink, and XFS alone can do it. Whoever wants the promise kept has a file system
    without reflinks below, where a copy is what is made.
    """
    with contextlib.ExitStack() as opened:
        directory = _opened(opened, os.open(target.parent, _DIRECTORY))
        original = _opened(opened, os.open(source, _SOURCE))
        if not stat.S_ISREG(os.fstat(original).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(source))
        new = f"{target.name}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new, dir_fd=directory)
        copy = _opened(opened, os.open(new, _TARGET, 0o600, dir_fd=directory))
        try:
            os.fsync(original)  # what has no block on the disk yet is no hole, and not all file systems know
            os.fchmod(copy, 0o600)
            method = copy_content(original, copy, full=full)
            os.fsync(copy)
            os.rename(new, target.name, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError as cause:
            os.unlink(new, dir_fd=directory)
            if cause.errno in NO_SPACE:
                raise no_room(target) from cause
            raise
        os.fsync(directory)
        return method


def no_room(target: Path) -> JobletError:
    """The disk of `target` is full."""
    return exhausted(
        f"no room on the disk for the copy {target.name}", "remove snapshots or volumes, or make the disk larger"
    )


def copy_content(source: int, target: int, *, full: bool = False, reflink: bool = True) -> CopyMethod:
    """Make the empty file `target` the same as `source`. `full`: see copy_file; otherwise holes stay holes.

    `reflink` False: it is known that these file systems cannot.
    """
    if reflink and _share(source, target, full=full):
        return CopyMethod.REFLINK
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    allocated = full and size > 0 and _allocate(target, size)
    if full and size > 0 and not allocated:
        _copy_range(source, target, 0, size)
        return CopyMethod.COPY
    for start, end in _data(source, size):
        _copy_range(source, target, start, end)
    return CopyMethod.COPY


def freeze(directory: Path | str) -> None:
    """Hold every change to the file system of `directory` back until `thaw`, once all is written that was begun.

    It stays frozen when this process dies. Nothing when it is frozen already. OSError EOPNOTSUPP: it cannot be.
    """
    with _open_directory(directory) as descriptor:
        try:
            files.freeze(descriptor)
        except OSError as cause:
            if cause.errno != errno.EBUSY:
                raise


def thaw(directory: Path | str) -> None:
    """End a freeze. Nothing when there is none."""
    with _open_directory(directory) as descriptor:
        try:
            files.thaw(descriptor)
        except OSError as cause:
            if cause.errno not in {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY}:
                raise


@contextlib.contextmanager
def _open_directory(directory: Path | str) -> Iterator[int]:
    descriptor = os.open(directory, _DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _opened(stack: contextlib.ExitStack, descriptor: int) -> int:
    stack.callback(os.close, descriptor)
    return descriptor


def _share(source: int, target: int, *, full: bool) -> bool:
    """Whether the file system could."""
    try:
        files.share_blocks(source, target)
    except OSError as cause:
        if cause.errno in _NO_REFLINK:
            return False
        raise
    if full:
        status, disk = os.fstat(source), os.fstatvfs(target)
        if disk.f_bavail * disk.f_frsize < status.st_size:
            raise OSError(errno.ENOSPC, "a copy that changes would need more room than the disk has")
        if status.st_size and not _allocate(target, status.st_size):
            raise OSError(errno.EOPNOTSUPP, "the file system has reflinks, but no fallocate")
    return True


def _allocate(target: int, size: int) -> bool:
    """Whether the file system could."""
    try:
        files.allocate(target, size)
    except OSError as cause:
        if cause.errno not in {errno.EOPNOTSUPP, errno.ENOSYS}:
            raise
        return False
    return True


def _data(source: int, size: int) -> Iterator[tuple[int, int]]:
    """Ranges of the file that are no holes, or all of it where that is not known."""
    end = 0
    while end < size:
        try:
            start = os.lseek(source, end, os.SEEK_DATA)
        except OSError as cause:
            if cause.errno == errno.ENXIO:  # from here on there is only a hole
                return
            raise
        end = min(os.lseek(source, start, os.SEEK_HOLE), size)
        if start < end:
            yield start, end


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    """Copy these bytes. A source that is shorter by now ends it."""
    position = start
    try:
        while position < end:
            length = min(_RANGE_BYTES, end - position)
            copied = os.copy_file_range(source, target, length, position, position)
            if not copied:
                return
            position += copied
    except OSError as cause:
        if cause.errno not in _NO_RANGE_COPY:
            raise
        _copy_by_hand(source, target, position, end)


def _copy_by_hand(source: int, target: int, position: int, end: int) -> None:
    while position < end:
        piece = os.pread(source, min(_PIECE_BYTES, end - position), position)
        if not piece:
            return
        view = memoryview(piece)
        while view:
            written = os.pwrite(target, view, position)
            view = view[written:]
            position += written
