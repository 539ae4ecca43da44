"""Whether limits of input and output hold on the disks at hand. Pure but for `refused_by_kernel`, which tries.

A limit holds only when it holds on every disk behind what a job sees: with one that is left out nothing is enforced.
A weight does nothing by itself: something must share the disk by it, the scheduler BFQ or, with v2, the controller's
cost model. Reference: Documentation/admin-guide/cgroup-v2.rst (IO), Documentation/block/bfq-iosched.rst.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from services.executor.cgroups import control_files
from services.executor.cgroups.disks import Disk
from services.executor.cgroups.driver import Write
from services.executor.cgroups.refusals import Offer

BYTES_AND_OPS: Final = ("read_bytes_per_s", "write_bytes_per_s", "read_ops_per_s", "write_ops_per_s")
"""Names of the limits that hold back; `io_weight` shares out."""

BFQ_WEIGHT_MAX: Final = 1000
"""BFQ_MAX_WEIGHT of block/bfq-iosched.h; io.weight of v2 goes to 10,000."""

_NO_DISK: Final = "no disk is behind what jobs see (tmpfs, overlay and network file systems have none)"
_PUT_ON_DISK: Final = "put joblet.base_dir on a local disk"


def limit_offer(given: Offer, disks: tuple[Disk, ...], refused: Mapping[str, str]) -> Offer:
    """The offer of BYTES_AND_OPS. `given`: that of the controller; `refused`: the kernel's word on a device."""
    if not given.available:
        return given
    if not disks:
        return Offer(available=False, repair=f"{_NO_DISK}: {_PUT_ON_DISK}")
    words = [f"{disk.name}: {refused[disk.device]}" for disk in disks if disk.device in refused]
    return Offer(available=not words, repair=f"the kernel does not limit {', '.join(words)}; {_PUT_ON_DISK}")


def weight_offer(
    weight: int | None,
    disks: tuple[Disk, ...],
    *,
    bfq: Offer,
    scheduler: Callable[[Disk], str],
    costed: frozenset[str] = frozenset(),
) -> Offer:
    """The offer of `io_weight`. `bfq`: that of BFQ's own file; `costed`: devices that the cost model shares out."""
    if not disks:
        return Offer(available=False, repair=f"{_NO_DISK}: {_PUT_ON_DISK}")
    by_scheduler = [disk for disk in disks if disk.device not in costed]
    if not by_scheduler:
        return Offer(available=True, repair="")
    if not bfq.available:
        return bfq
    unshared = [disk for disk in by_scheduler if scheduler(disk) != "bfq"]
    if unshared:
        repairs = ", ".join(f"echo bfq > /sys/block/{disk.name}/queue/scheduler" for disk in unshared)
        names = ", ".join(disk.name for disk in unshared)
        return Offer(available=False, repair=f"nothing shares {names} out by weight: {repairs}")
    return Offer(
        available=weight is None or weight <= BFQ_WEIGHT_MAX,
        repair=f"the scheduler BFQ knows weights of 1 to {BFQ_WEIGHT_MAX}: use one of these",
    )


def costed_devices(text: str) -> frozenset[str]:
    """Devices of an io.cost.qos file whose cost model is switched on."""
    lines = (line.split() for line in text.splitlines())
    return frozenset(words[0] for words in lines if words and "enable=1" in words[1:])


def read_costed_devices(group: str) -> frozenset[str]:
    """`costed_devices` of the hierarchy that `group` is in: the file is in its root only."""
    for above in (Path(group), *Path(group).parents):
        try:
            return costed_devices(control_files.read(f"{above}/io.cost.qos"))
        except OSError:
            continue
    return frozenset()


def refused_by_kernel(tries: Iterable[tuple[Disk, Write]]) -> dict[str, str]:
    """Devices whose write, one that limits nothing, is refused, and why."""
    refused = {}
    for disk, write in tries:
        try:
            control_files.put(write.path, write.value)
        except OSError as cause:
            refused[disk.device] = os.strerror(cause.errno or 0)
    return refused
