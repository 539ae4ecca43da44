"""Which monitors live: each holds a POSIX lock on its job's `lock` file, see fcntl(2) and `launcher/jobfiles.py`.

And whose children they have: a job's processes are found from its monitor, so that a number that is another process's
by now is never taken for them.
"""

import errno
import fcntl
import os
import select
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


def open_inside(job_dir: Path, main_pid: int) -> int | None:
    """A pidfd of a process in the job's namespaces. None: the job has ended. The caller closes it.

    Init, which is never the job's own; for who is not root it is closed, and the main process has to do: it cannot
    leave its namespaces. `main_pid` is on the host, and may be another process's by now: so its parents are asked for
    again when the pidfd is open. As long as that lives, the answer is about the processes meant.
    """
    above = _above(job_dir, main_pid)
    if above is None:
        return None
    _, init = above
    try:
        descriptor = os.pidfd_open(init if os.geteuid() == 0 else main_pid)
    except ProcessLookupError:
        return None
    if _above(job_dir, main_pid) == above and not _ended(descriptor):
        return descriptor
    os.close(descriptor)
    return None


def _above(job_dir: Path, main_pid: int) -> tuple[int, int] | None:
    """Monitor and init, when they are the parents of `main_pid` and the monitor is the job's."""
    monitor, init = monitor_pid(job_dir), _parent(main_pid)
    if monitor is None or init is None or _parent(init) != monitor:
        return None
    return monitor, init


def _parent(pid: int) -> int | None:
    try:
        # proc_pid_stat(5): the second field ends with the last bracket, the fourth is the parent.
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def _ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
