"""Tells which files were written to, without polling: inotify(7).

One descriptor for all files; it is read when the event loop says that it is readable. Constants are those of
include/uapi/linux/inotify.h.
"""

import contextlib
import ctypes
import os
import struct
from pathlib import Path
from typing import Final

from common.linux.libc import declare

IN_MODIFY: Final = 0x00000002
IN_Q_OVERFLOW: Final = 0x00004000
READ_BYTES: Final = 64 * 1024
_EVENT: Final = struct.Struct("iIII")

_inotify_init1 = declare("inotify_init1", ctypes.c_int)
_inotify_add_watch = declare("inotify_add_watch", ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
_inotify_rm_watch = declare("inotify_rm_watch", ctypes.c_int, ctypes.c_int)


class Inotify:
    """Watches files for being written to. Non-blocking; close it."""

    def __init__(self) -> None:
        self.fd: int = _inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)

    def add(self, path: Path) -> int:
        """Watch `path`; the watch descriptor that `read` will name. Raises OSError (ENOSPC: too many watches)."""
        return _inotify_add_watch(self.fd, os.fsencode(path), IN_MODIFY)

    def remove(self, watch: int) -> None:
        """Watch no more. A watch whose file was removed is gone already: that is no error."""
        with contextlib.suppress(OSError):  # EINVAL: the kernel took it away with the file
            _inotify_rm_watch(self.fd, watch)

    def read(self) -> tuple[frozenset[int], bool]:
        """Watches that fired since the last call; and whether the kernel's queue overflowed: then any may have."""
        try:
            data = os.read(self.fd, READ_BYTES)
        except BlockingIOError:
            return frozenset(), False
        fired: set[int] = set()
        overflowed = False
        offset = 0
        while offset < len(data):
            watch, mask, _, name_bytes = _EVENT.unpack_from(data, offset)
            offset += _EVENT.size + name_bytes
            if mask & IN_Q_OVERFLOW:
                overflowed = True
            elif mask & IN_MODIFY:
                fired.add(watch)
        return frozenset(fired), overflowed

    def close(self) -> None:
        """Give the descriptor up."""
        os.close(self.fd)
