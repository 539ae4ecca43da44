"""Which monitors live: each holds a POSIX lock on its job's `lock` file, see fcntl(2) and `launcher/jobfiles.py`."""

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Final

from services.executor.launcher.jobfiles import LOCK

_FLOCK: Final = struct.Struct("@hhqqi")  # struct flock of fcntl.h on 64-bit Linux: type, whence, start, length, pid


def monitor_pid(job_dir: Path) -> int | None:
    """The pid of the job's monitor. None: it has ended, or never began."""
    try:
        descriptor = os.open(job_dir / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        # F_GETLK asks without taking: it answers who would be in the way of a write lock on the whole file.
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    finally:
        os.close(descriptor)
    return None if kind == fcntl.F_UNLCK else pid


def open_monitor(job_dir: Path) -> int | None:
    """A pidfd of the job's monitor, readable when it ends. None: there is none. The caller closes it.

    The pid is asked for again after the pidfd is open: a lock that is still held by it proves that the descriptor is
    the monitor's and not that of a later process with its number.
    """
    pid = monitor_pid(job_dir)
    if pid is None:
        return None
    try:
        descriptor = os.pidfd_open(pid)
    except OSError as cause:
        if cause.errno == errno.ESRCH:
            return None
        raise
    if monitor_pid(job_dir) != pid:
        os.close(descriptor)
        return None
    return descriptor
