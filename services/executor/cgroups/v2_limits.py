"""What is written to a job's group of the v2 hierarchy, and what is read there. Pure.

Has the verbs of `v1_limits.py`, in the same order. Kernel reference: Documentation/admin-guide/cgroup-v2.rst.
"""

from typing import Final

from common.messages.jobs import Limits
from services.executor.cgroups.driver import Meter, Reading, Write
from services.executor.cgroups.io_offers import BFQ_WEIGHT_MAX, BYTES_AND_OPS

CPU_PERIOD_US: Final = 100_000
_IO_KEYS: Final = dict(zip(BYTES_AND_OPS, ("rbps", "wbps", "riops", "wiops"), strict=True))


def limit_writes(leaf: str, limits: Limits, *, files: frozenset[str], devices: tuple[str, ...]) -> tuple[Write, ...]:
    """Everything that limits a job. `files`: those that this kernel has; `devices`: MAJ:MIN of whole disks."""
    return (
        Write(f"{leaf}/cgroup.max.descendants", "0"),
        *_memory(leaf, limits, files),
        *_cpu(leaf, limits),
        *_cpu_weight(leaf, limits),
        *_cpuset(leaf, limits),
        *_pids(leaf, limits),
        *_io(leaf, limits, devices),
        *_io_weight(leaf, limits, files),
    )


def lift_writes(leaf: str, limits: Limits, *, devices: tuple[str, ...]) -> tuple[Write, ...]:
    """What lets a killed job end at once: see CgroupPlan.lift."""
    return tuple(Write(write.path, no_limit(write.value.split()[0])) for write in _io(leaf, limits, devices))


def no_limit(device: str) -> str:
    """What io.max holds for a device without limits."""
    return _io_value(device, Limits())


def meters(leaf: str) -> tuple[Meter, ...]:
    """What the job used in all."""
    return (
        Meter("cpu_time_us", (Reading(f"{leaf}/cpu.stat", "usage_usec"),)),
        Meter("memory_peak_bytes", (Reading(f"{leaf}/memory.peak"),)),  # since Linux 5.19
        Meter("oom_kills", (Reading(f"{leaf}/memory.events", "oom_kill"),)),
        Meter("io_read_bytes", (Reading(f"{leaf}/io.stat", "rbytes="),)),
        Meter("io_write_bytes", (Reading(f"{leaf}/io.stat", "wbytes="),)),
        Meter("io_read_ops", (Reading(f"{leaf}/io.stat", "rios="),)),
        Meter("io_write_ops", (Reading(f"{leaf}/io.stat", "wios="),)),
    )


def io_totals(text: str) -> dict[str, int]:
    """Sums over all devices of the `MAJ:MIN rbytes=N wbytes=N rios=N wios=N …` lines of io.stat."""
    totals: dict[str, int] = {}
    for line in text.splitlines():
        for word in line.split()[1:]:
            key, equals, number = word.partition("=")
            if equals and number.isdigit():
                totals[key] = totals.get(key, 0) + int(number)
    return totals


def _memory(leaf: str, limits: Limits, files: frozenset[str]) -> tuple[Write, ...]:
    """With a limit or without: what is killed for want of memory is killed as a whole."""
    whole = (Write(f"{leaf}/memory.oom.group", "1"),) if "memory.oom.group" in files else ()
    if limits.memory_bytes is None:
        return whole
    # Missing where the kernel cannot swap.
    swap = (Write(f"{leaf}/memory.swap.max", "0"),) if "memory.swap.max" in files else ()
    return (Write(f"{leaf}/memory.max", str(limits.memory_bytes)), *swap, *whole)


def _cpu(leaf: str, limits: Limits) -> tuple[Write, ...]:
    if limits.cpu_percent is None:
        return ()
    return (Write(f"{leaf}/cpu.max", f"{limits.cpu_percent * CPU_PERIOD_US // 100} {CPU_PERIOD_US}"),)


def _cpu_weight(leaf: str, limits: Limits) -> tuple[Write, ...]:
    return () if limits.cpu_weight is None else (Write(f"{leaf}/cpu.weight", str(limits.cpu_weight)),)


def _cpuset(leaf: str, limits: Limits) -> tuple[Write, ...]:
    return () if limits.cpu_cores is None else (Write(f"{leaf}/cpuset.cpus", limits.cpu_cores),)


def _pids(leaf: str, limits: Limits) -> tuple[Write, ...]:
    return () if limits.pids is None else (Write(f"{leaf}/pids.max", str(limits.pids)),)


def _io(leaf: str, limits: Limits, devices: tuple[str, ...]) -> tuple[Write, ...]:
    if all(getattr(limits, name) is None for name in BYTES_AND_OPS):
        return ()
    return tuple(Write(f"{leaf}/io.max", _io_value(device, limits)) for device in devices)


def _io_value(device: str, limits: Limits) -> str:
    """A line of io.max with all its keys, as the kernel shows it."""
    asked = {key: getattr(limits, name) for name, key in _IO_KEYS.items()}
    return " ".join([device, *(f"{key}={'max' if value is None else value}" for key, value in asked.items())])


def _io_weight(leaf: str, limits: Limits, files: frozenset[str]) -> tuple[Write, ...]:
    """io.weight is the cost model's, io.bfq.weight the scheduler's; each acts on the disks that it shares out."""
    weight = limits.io_weight
    if weight is None:
        return ()
    most = {"io.weight": weight, "io.bfq.weight": BFQ_WEIGHT_MAX}
    return tuple(
        Write(f"{leaf}/{file}", f"default {weight}") for file, top in most.items() if file in files and weight <= top
    )
