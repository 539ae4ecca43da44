"""Resolution of a path that must not leave a directory: openat2(2) (Linux 5.6). Header: linux/openat2.h.

The kernel refuses while it walks; a check of the text before an open can be raced.
"""

import ctypes
import os
from typing import Final

from common.linux.libc import declare_syscall, failed

RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10


class _OpenHow(ctypes.Structure):
    """struct open_how of linux/openat2.h (24 bytes)."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in ("flags", "mode", "resolve"))


_openat2 = declare_syscall("openat2", ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_OpenHow), ctypes.c_size_t)


def openat2(directory: int, path: str, flags: int, *, resolve: int, mode: int = 0) -> int:
    """A descriptor of `path` below `directory`, resolved as `resolve` (RESOLVE_…) says. The caller closes it."""
    how = _OpenHow(flags=flags | os.O_CLOEXEC, mode=mode, resolve=resolve)
    try:
        return _openat2(directory, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
    except OSError as cause:
        raise failed("openat2", cause.errno or 0, path) from cause
