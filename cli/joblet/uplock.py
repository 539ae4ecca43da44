"""One `joblet up` for a base directory: a POSIX lock on `joblet.pid`, which tells the holder's pid to `joblet down`.

The kernel knows who holds it (F_GETLK, fcntl(2)) and releases it when he dies; the number in the file is for people.
"""

import fcntl
import os
import struct
from pathlib import Path
from typing import Final

from common.errors import JobletError, Reason

PID_FILE: Final = "joblet.pid"
_FLOCK: Final = struct.Struct("hhqqi")  # struct flock with 64-bit offsets: type, whence, start, length, pid


class UpLock:
    """Held from construction until `close`. Raises JobletError(EXISTS) when another process has it."""

    def __init__(self, base: Path) -> None:
        path = base / PID_FILE
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o644)
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as cause:
            os.close(self._descriptor)
            raise JobletError(
                Reason.EXISTS,
                f"another joblet up (pid {holder(base) or 'unknown'}) runs on {base}",
                detail=f"stop it with: joblet down --base-dir {base}",
            ) from cause
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Release it."""
        # Truncated, not unlinked: who opened the file meanwhile would lock a file that nobody else can find.
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)


def holder(base: Path) -> int:
    """Pid of the `joblet up` that runs on `base`; 0: none does."""
    try:
        descriptor = os.open(base / PID_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, question)[: _FLOCK.size])
    finally:
        os.close(descriptor)
    return 0 if kind == fcntl.F_UNLCK else int(pid)
