"""Killing every process of a group where the kernel has no cgroup.kill (before Linux 5.14, and cgroup v1).

The caller freezes the group first, so that no member can fork while the list is worked through.
"""

import contextlib
import os
import signal
from collections.abc import Callable
from typing import Final

from common.patience import looks
from services.executor.cgroups import control_files

FREEZE_MS_MAX: Final = 100
"""A member in an uninterruptible call cannot freeze; the rest is killed all the same, and the caller comes again."""


def kill_members(procs: str) -> int:
    """SIGKILL every process listed in the cgroup.procs file `procs` now; how many there were.

    A pid may be given to another process between reading and killing. A pidfd names the process: it is opened first,
    and only pids that are still listed afterwards are killed.
    """
    with contextlib.ExitStack() as held:
        descriptors: dict[int, int] = {}
        for pid in control_files.read_processes(procs) - {0}:  # 0: not visible from this pid namespace
            with contextlib.suppress(ProcessLookupError):
                descriptors[pid] = os.pidfd_open(pid)
                held.callback(os.close, descriptors[pid])
        members = control_files.read_processes(procs)
        for pid in descriptors.keys() & members:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptors[pid], signal.SIGKILL)
        return len(members)


def wait_frozen(frozen: Callable[[], bool]) -> bool:
    """Wait until `frozen` says so, at most FREEZE_MS_MAX; whether it did."""
    return any(frozen() for _ in looks(FREEZE_MS_MAX / 1000, pause_s=0.0005))
