"""Space and content of files: fallocate(2), ioctl_ficlone(2), FIFREEZE and FITHAW (linux/fs.h), syncfs(2).

Headers: linux/falloc.h, linux/fs.h. And the one way to write to files of the kernel.
"""

import ctypes
import fcntl
import os
from typing import Final

from common.linux.libc import declare, failed

_FALLOC_FL_KEEP_SIZE: Final = 0x1
_FALLOC_FL_PUNCH_HOLE: Final = 0x2

_FICLONE: Final = 0x4004_9409  # _IOW(0x94, 9, int)
_FIFREEZE: Final = 0xC004_5877  # _IOWR('X', 119, int)
_FITHAW: Final = 0xC004_5878  # _IOWR('X', 120, int)

_fallocate = declare("fallocate64", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_syncfs = declare("syncfs", ctypes.c_int)


def punch_hole(descriptor: int, offset_bytes: int, length_bytes: int) -> None:
    """Give the space of a range back; its bytes read as zero, size and offsets of the file stay.

    OSError EOPNOTSUPP: the file system cannot.
    """
    _fallocate(descriptor, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset_bytes, length_bytes)


def allocate(descriptor: int, length_bytes: int) -> None:
    """Give the file its blocks from 0 to `length_bytes`, and that size if it was smaller; content stays.

    OSError EOPNOTSUPP: the file system cannot, and nothing is written in its stead as posix_fallocate(3) would.
    """
    _fallocate(descriptor, 0, 0, length_bytes)


def share_blocks(source: int, target: int) -> None:
    """Make the file `target` the same as `source`: they have their blocks in common until one of them changes.

    OSError EOPNOTSUPP, EXDEV, EINVAL or ENOTTY: the file system cannot, or not between these two.
    """
    _ioctl("ioctl(FICLONE)", target, _FICLONE, source)


def freeze(descriptor: int) -> None:
    """Write out the file system of the descriptor and hold every change to it back. OSError EBUSY: it is frozen."""
    _ioctl("ioctl(FIFREEZE)", descriptor, _FIFREEZE, 0)


def thaw(descriptor: int) -> None:
    """Let changes go on. OSError EINVAL: it is not frozen."""
    _ioctl("ioctl(FITHAW)", descriptor, _FITHAW, 0)


def synchronize_file_system(descriptor: int) -> None:
    """Make all of the file system that holds the file durable. OSError tells of writes that were lost (Linux 5.8)."""
    _syncfs(descriptor)


def write_once(path: str, value: str) -> None:
    """Write `value` to a file of the kernel by one write(2), whose refusal is not hidden. OSError, with the path."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    except OSError as cause:
        raise failed("write", cause.errno or 0, path) from cause
    finally:
        os.close(descriptor)


def _ioctl(call: str, descriptor: int, request: int, argument: int) -> None:
    try:
        fcntl.ioctl(descriptor, request, argument)
    except OSError as cause:
        raise failed(call, cause.errno or 0) from cause
