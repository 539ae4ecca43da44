"""Space of files: fallocate(2), linux/falloc.h. And the one way to write to files of the kernel."""

import ctypes
import os
from typing import Final

from common.linux.libc import declare, failed

_FALLOC_FL_KEEP_SIZE: Final = 0x1
_FALLOC_FL_PUNCH_HOLE: Final = 0x2

_fallocate = declare("fallocate64", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def punch_hole(descriptor: int, offset_bytes: int, length_bytes: int) -> None:
    """Give the space of a range back; its bytes read as zero, size and offsets of the file stay.

    OSError EOPNOTSUPP: the file system cannot.
    """
    _fallocate(descriptor, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset_bytes, length_bytes)


def write_once(path: str, value: str) -> None:
    """Write `value` to a file of the kernel by one write(2), whose refusal is not hidden. OSError, with the path."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    except OSError as cause:
        raise failed("write", cause.errno or 0, path) from cause
    finally:
        os.close(descriptor)
