"""Being told when memory of a v1 group ran out: an eventfd(2), and what it means.

cgroup v1 has no memory.oom.group: the kernel kills one process and lets the rest of the job go on. So the monitor
waits for the event beside its others, and kills the job when a kill was counted.

The event alone is no reason to kill. It comes before the kernel looks for its victim, and it comes as well
- when a group above ran out of memory: every group below is notified, whoever is killed;
- when memory was freed meanwhile, so that nobody is killed;
- when the group is removed.
The count of `oom_kill` is of processes of this group only. Of 30 events 2 came before it, by up to 10 ms; and as the
kernel prints its report in between, a serial console can make that a second. So: at the event read it, ask
`oom_killed`, and while that is False ask again after each of RECHECK_MS; then let it be.

Reference: Documentation/admin-guide/cgroup-v1/memory.rst (9. Memory thresholds, 10. OOM Control), mm/memcontrol-v1.c.
Only the standard library is imported: the launcher runs without site-packages.
"""

import os
from typing import Final

RECHECK_MS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Pauses between an event without a counted kill and the next look; two seconds together."""

_COUNT: Final = b"oom_kill "
_CONTROL_BYTES_MAX: Final = 4096


def open_oom_watch(group: str) -> int:
    """A descriptor that becomes readable when memory of the v1 memory group `group` runs out.

    It does not block, holds eight bytes to be read, and the caller closes it, which ends the watch. Raises OSError,
    FileNotFoundError where the kernel has no cgroup.event_control (PREEMPT_RT).
    """
    watch = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        _register(group, watch)
    except BaseException:
        os.close(watch)
        raise
    return watch


def oom_killed(group: str) -> bool:
    """Whether the kernel has killed a process of `group` for want of memory. False when the group is gone."""
    try:
        descriptor = os.open(f"{group}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = os.read(descriptor, _CONTROL_BYTES_MAX)
        finally:
            os.close(descriptor)
    except OSError:
        return False
    return any(line.startswith(_COUNT) and line[len(_COUNT) :].strip() != b"0" for line in content.splitlines())


def _register(group: str, watch: int) -> None:
    """Both files may be closed afterwards: the kernel keeps the group and the eventfd by itself."""
    oom_control = os.open(f"{group}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
    try:
        event_control = os.open(f"{group}/cgroup.event_control", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(event_control, b"%d %d" % (watch, oom_control))
        finally:
            os.close(event_control)
    finally:
        os.close(oom_control)
