"""What is written to a job's groups of the v1 hierarchies, and what is read there. Pure.

Has the verbs of `v2_limits.py`, in the same order. Kernel reference: Documentation/admin-guide/cgroup-v1/.
"""

from collections.abc import Mapping
from typing import Final

from common.messages.jobs import Limits
from services.executor.cgroups.driver import Meter, Reading, Write
from services.executor.cgroups.io_offers import BYTES_AND_OPS

CPU_PERIOD_US: Final = 100_000
SHARES_MIN: Final = 2
SHARES_OF_DEFAULT_WEIGHT: Final = (1024, 100)
"""cpu.shares 1024 is what cpu.weight 100 is in v2: the default."""

_IO_FILES: Final = dict(
    zip(
        BYTES_AND_OPS,
        (
            "blkio.throttle.read_bps_device",
            "blkio.throttle.write_bps_device",
            "blkio.throttle.read_iops_device",
            "blkio.throttle.write_iops_device",
        ),
        strict=True,
    )
)
IO_FILES: Final = tuple(_IO_FILES.values())
SOCKET_BYTES: Final = "memory.kmem.tcp.limit_in_bytes"
MOVED_BYTES: Final = "blkio.throttle.io_service_bytes"
MOVED_OPS: Final = "blkio.throttle.io_serviced"


def limit_writes(
    leaves: Mapping[str, str], tree: str | None, limits: Limits, *, files: frozenset[str], devices: tuple[str, ...]
) -> tuple[Write, ...]:
    """Everything that limits a job. `leaves`: its group of each controller; `tree`: that of the v2 hierarchy.

    `files`: those that this kernel has; `devices`: MAJ:MIN of whole disks.
    """
    return (
        *(() if tree is None else (Write(f"{tree}/cgroup.max.descendants", "0"),)),
        *_memory(leaves, limits, files),
        *_cpu(leaves, limits),
        *_cpu_weight(leaves, limits),
        *_cpuset(leaves, limits),
        *_pids(leaves, limits),
        *_io(leaves, limits, devices),
        *_io_weight(leaves, limits),
    )


def lift_writes(leaves: Mapping[str, str], limits: Limits, *, devices: tuple[str, ...]) -> tuple[Write, ...]:
    """What lets a killed job end at once: see CgroupPlan.lift."""
    return tuple(Write(write.path, no_limit(write.value.split()[0])) for write in _io(leaves, limits, devices))


def no_limit(device: str) -> str:
    """What takes the limit of a device out of a file of IO_FILES."""
    return f"{device} 0"


def meters(leaves: Mapping[str, str], tree: str | None) -> tuple[Meter, ...]:
    """What the job used in all."""
    cpu_time = [Reading(f"{tree}/cpu.stat", "usage_usec")] if tree else []
    if "cpuacct" in leaves:
        cpu_time.append(Reading(f"{leaves['cpuacct']}/cpuacct.usage", divisor=1000))
    return (Meter("cpu_time_us", tuple(cpu_time)), *_memory_meters(leaves), *_io_meters(leaves))


def io_totals(text: str) -> dict[str, int]:
    """Sums over all devices of the `MAJ:MIN Operation N` lines of MOVED_BYTES or MOVED_OPS."""
    totals: dict[str, int] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[2].isdigit():
            totals[words[1]] = totals.get(words[1], 0) + int(words[2])
    return totals


def _memory_meters(leaves: Mapping[str, str]) -> tuple[Meter, ...]:
    leaf = leaves.get("memory")
    if leaf is None:
        return ()
    return (
        Meter("memory_peak_bytes", (Reading(f"{leaf}/memory.max_usage_in_bytes"),)),
        Meter("oom_kills", (Reading(f"{leaf}/memory.oom_control", "oom_kill"),)),  # since Linux 4.13
    )


def _io_meters(leaves: Mapping[str, str]) -> tuple[Meter, ...]:
    leaf = leaves.get("blkio")
    if leaf is None:
        return ()
    return (
        Meter("io_read_bytes", (Reading(f"{leaf}/{MOVED_BYTES}", "* Read"),)),
        Meter("io_write_bytes", (Reading(f"{leaf}/{MOVED_BYTES}", "* Write"),)),
        Meter("io_read_ops", (Reading(f"{leaf}/{MOVED_OPS}", "* Read"),)),
        Meter("io_write_ops", (Reading(f"{leaf}/{MOVED_OPS}", "* Write"),)),
    )


def _memory(leaves: Mapping[str, str], limits: Limits, files: frozenset[str]) -> tuple[Write, ...]:
    if limits.memory_bytes is None:
        return ()
    leaf, value = leaves["memory"], str(limits.memory_bytes)
    without_swap = (
        Write(f"{leaf}/memory.memsw.limit_in_bytes", value)  # memory and swap together; never below the next
        if "memory.memsw.limit_in_bytes" in files
        else Write(f"{leaf}/memory.swappiness", "0")  # kernels booted with swapaccount=0
    )
    # What waits in sockets is a budget of its own in v1: without this file's limit it has none.
    sockets = (Write(f"{leaf}/{SOCKET_BYTES}", value),) if SOCKET_BYTES in files else ()
    return Write(f"{leaf}/memory.limit_in_bytes", value), without_swap, *sockets


def _cpu(leaves: Mapping[str, str], limits: Limits) -> tuple[Write, ...]:
    if limits.cpu_percent is None:
        return ()
    leaf = leaves["cpu"]
    return (
        Write(f"{leaf}/cpu.cfs_period_us", str(CPU_PERIOD_US)),
        Write(f"{leaf}/cpu.cfs_quota_us", str(limits.cpu_percent * CPU_PERIOD_US // 100)),
    )


def _cpu_weight(leaves: Mapping[str, str], limits: Limits) -> tuple[Write, ...]:
    if limits.cpu_weight is None:
        return ()
    shares, weight = SHARES_OF_DEFAULT_WEIGHT
    return (Write(f"{leaves['cpu']}/cpu.shares", str(max(SHARES_MIN, limits.cpu_weight * shares // weight))),)


def _cpuset(leaves: Mapping[str, str], limits: Limits) -> tuple[Write, ...]:
    return () if limits.cpu_cores is None else (Write(f"{leaves['cpuset']}/cpuset.cpus", limits.cpu_cores),)


def _pids(leaves: Mapping[str, str], limits: Limits) -> tuple[Write, ...]:
    return () if limits.pids is None else (Write(f"{leaves['pids']}/pids.max", str(limits.pids)),)


def _io(leaves: Mapping[str, str], limits: Limits, devices: tuple[str, ...]) -> tuple[Write, ...]:
    asked = {file: getattr(limits, name) for name, file in _IO_FILES.items()}
    return tuple(
        Write(f"{leaves['blkio']}/{file}", f"{device} {value}")
        for file, value in asked.items()
        if value is not None
        for device in devices
    )


def _io_weight(leaves: Mapping[str, str], limits: Limits) -> tuple[Write, ...]:
    return () if limits.io_weight is None else (Write(f"{leaves['blkio']}/blkio.bfq.weight", str(limits.io_weight)),)
