"""Space of files: fallocate(2). Header: linux/falloc.h."""

import ctypes
from typing import Final

from services.executor.linux.libc import declare

_FALLOC_FL_KEEP_SIZE: Final = 0x1
_FALLOC_FL_PUNCH_HOLE: Final = 0x2

_fallocate = declare("fallocate64", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def punch_hole(descriptor: int, offset_bytes: int, length_bytes: int) -> None:
    """Give the space of a range back; its bytes read as zero, size and offsets of the file stay.

    OSError EOPNOTSUPP: the file system cannot.
    """
    _fallocate(descriptor, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset_bytes, length_bytes)
