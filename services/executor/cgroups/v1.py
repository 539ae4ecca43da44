"""Control groups of a host whose controllers are in v1 hierarchies, each at its own mount.

    <mount of the controller>/<parent>            one a hierarchy
    <mount of the controller>/<parent>/<job-id>   leaf: all of one job
    <tree>/<parent>/<job-id>                      hybrid hosts only: the v2 hierarchy, without controllers

Limits are v1's; on a hybrid host the v2 tree gives what v1 lacks: a process is cloned into it, cgroup.kill ends all of
it, and it counts CPU time. Without it the freezer holds the processes still while they are killed.
Has the verbs of `v2.py`, in the same order. Kernel reference: Documentation/admin-guide/cgroup-v1/.
"""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from common.errors import precondition
from common.identifiers import JobId
from common.messages.jobs import Limits
from common.messages.logs import StoreMetric
from services.executor.cgroups import control_files, io_offers, members, pressure, v1_limits
from services.executor.cgroups.disks import Disk, scheduler
from services.executor.cgroups.driver import CgroupPlan, Write
from services.executor.cgroups.refusals import Offer, job_ids, refusals
from services.executor.cgroups.usage import CpuMeter
from services.executor.cgroups.v2 import kill_tree_group

CONTROLLERS: Final = ("cpu", "memory", "pids", "blkio", "cpuset", "cpuacct", "freezer")
GIVEN_BY_TREE: Final = ("cpuacct", "freezer")
"""What a v2 hierarchy without controllers does as well."""

_OOM_KILLS_ALL: Final = (
    "cgroup v1: when memory runs out the kernel kills one process of the job; the job's monitor kills the others as "
    "soon as that is counted, some milliseconds later"
)
_OOM_KILLS_ONE: Final = (
    "cgroup v1 without cgroup.event_control (PREEMPT_RT): when memory runs out the kernel kills one process of the "
    "job, not all of them"
)
_SOCKETS: Final = "what waits in sockets is held to the same number, in addition"
_SOCKETS_FREE: Final = "what waits in sockets is not limited (the kernel has no memory.kmem.tcp.limit_in_bytes)"
_CAN_SWAP: Final = "a job can swap beyond its limit (boot with swapaccount=1, or without swap)"
_BUFFERED: Final = (
    "cgroup v1: limited is what the job itself writes to the disk, by O_DIRECT, O_SYNC or fsync; what it leaves in "
    "the page cache the kernel writes later, unlimited and uncounted (boot with v2)"
)


class V1Driver:
    """`roots`: a writable group for each controller; `tree`: one of the v2 hierarchy, where there is one.

    `parent`: name of the group below each; `cpus`: usable ones; `disks`: those behind what every job sees.
    """

    def __init__(
        self,
        roots: Mapping[str, Path],
        *,
        tree: Path | None,
        parent: str,
        cpus: frozenset[int],
        disks: tuple[Disk, ...] = (),
    ) -> None:
        used = CONTROLLERS if tree is None else tuple(name for name in CONTROLLERS if name not in GIVEN_BY_TREE)
        self._parents = {name: f"{roots[name]}/{parent}" for name in used if name in roots}
        self._tree = None if tree is None else f"{tree}/{parent}"
        self._cpus = cpus
        self._disks = disks
        self._files: frozenset[str] = frozenset()
        self._refused_disks: dict[str, str] = {}
        self._pressure_files: frozenset[str] = frozenset()
        self._cpu_meter = CpuMeter()

    @property
    def version(self) -> str:
        """See CgroupDriver.version."""
        return "v1" if self._tree is None else "hybrid"

    def prepare(self) -> None:
        """See CgroupDriver.prepare. Nothing is passed on in v1: a child has all that its parent has."""
        files: set[str] = set()
        for parent in self._all_parents():
            try:
                os.makedirs(parent, 0o755, exist_ok=True)  # noqa: PTH103
            except OSError as cause:
                raise precondition(
                    f"cannot make the control group {parent}: {os.strerror(cause.errno or 0)}",
                    "run the executor as root with the cgroup file systems mounted read-write",
                ) from cause
            if parent != self._tree:
                files |= control_files.files_of(Path(parent))
        self._files = frozenset(files)
        if "memory" in self._parents:
            _count_children(self._parents["memory"])
        if "cpuset" in self._parents:
            _inherit_cpuset(self._parents["cpuset"])
        if self._tree is not None:
            self._pressure_files = pressure.readable(self._tree)
        self._refused_disks = self._try_disks()

    def unsupported(self, limits: Limits) -> tuple[tuple[str, str], ...]:
        """See CgroupDriver.unsupported."""
        offers = {
            "cpu_percent": self._offer("cpu", "cpu.cfs_quota_us"),
            "cpu_weight": self._offer("cpu", "cpu.shares"),
            "cpu_cores": self._offer("cpuset", "cpuset.cpus"),
            "memory_bytes": self._offer("memory", "memory.limit_in_bytes"),
            "pids": self._offer("pids", "pids.max"),
            "io_weight": self._weight_offer(limits.io_weight),
            **dict.fromkeys(io_offers.BYTES_AND_OPS, self._io_offer()),
        }
        return refusals(limits, offers, cpus=self._cpus)

    def restrictions(self) -> tuple[tuple[str, str], ...]:
        """See CgroupDriver.restrictions."""
        memory = [_OOM_KILLS_ALL if self._watches_oom else _OOM_KILLS_ONE]
        memory.append(_SOCKETS if v1_limits.SOCKET_BYTES in self._files else _SOCKETS_FREE)
        if "memory.memsw.limit_in_bytes" not in self._files:
            memory.append(_CAN_SWAP)
        return (("memory_bytes", "; ".join(memory)), ("write_bytes_per_s", _BUFFERED), ("write_ops_per_s", _BUFFERED))

    def plan(self, job: JobId, limits: Limits, *, devices: tuple[str, ...] = ()) -> CgroupPlan:
        """See CgroupDriver.plan."""
        tree = None if self._tree is None else f"{self._tree}/{job}"
        leaves = {name: f"{parent}/{job}" for name, parent in self._parents.items() if self._needs(name, limits)}
        v1_leaves = tuple(dict.fromkeys(leaves.values()))  # cpu and cpuacct are often one mount
        disks = tuple(dict.fromkeys((*(disk.device for disk in self._disks), *devices)))
        return CgroupPlan(
            directories=(*([tree] if tree else []), *v1_leaves),
            writes=v1_limits.limit_writes(leaves, tree, limits, files=self._files, devices=disks),
            join=tuple(f"{leaf}/tasks" for leaf in v1_leaves),
            clone_into=tree or "",
            usage=v1_limits.meters(leaves, tree),
            oom_watch=leaves["memory"] if self._watches_oom else "",
            lift=v1_limits.lift_writes(leaves, limits, devices=disks),
        )

    def create(self, plan: CgroupPlan) -> None:
        """See CgroupDriver.create."""
        try:
            control_files.make_groups(plan)
        except FileNotFoundError:  # someone removed the empty parent
            self.prepare()
            control_files.make_groups(plan)

    def sample(self, job: JobId, *, previous: StoreMetric | None, now_ns: int) -> StoreMetric | None:
        """See CgroupDriver.sample."""
        try:
            used_us = self._cpu_time_us(job)
            memory_bytes = self._read_number(job, "memory", "memory.usage_in_bytes")
            pids = self._read_number(job, "pids", "pids.current")
            moved_bytes = self._io_totals(job, v1_limits.MOVED_BYTES)
            moved_ops = self._io_totals(job, v1_limits.MOVED_OPS)
            waited = pressure.read(f"{self._tree}/{job}", self._pressure_files)
        except OSError as cause:
            if cause.errno in control_files.GONE:
                return None
            raise
        return StoreMetric(
            job=job,
            time_ns=now_ns,
            cpu_percent=self._cpu_meter.percent(job, used_us, previous=previous, now_ns=now_ns),
            memory_bytes=memory_bytes,
            io_read_bytes=moved_bytes.get("Read", 0),
            io_write_bytes=moved_bytes.get("Write", 0),
            io_read_ops=moved_ops.get("Read", 0),
            io_write_ops=moved_ops.get("Write", 0),
            pids=pids,
            cpu_pressure=waited.cpu,
            memory_pressure=waited.memory,
            io_pressure=waited.io,
        )

    def kill(self, job: JobId) -> None:
        """See CgroupDriver.kill."""
        if self._tree is not None:
            kill_tree_group(f"{self._tree}/{job}")
        elif "freezer" in self._parents:
            _kill_frozen(f"{self._parents['freezer']}/{job}")
        else:
            raise precondition(
                "cannot kill all of a job: no v2 hierarchy and no freezer controller is mounted",
                "mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified",
            )
        for file in self._files.intersection(v1_limits.IO_FILES):
            control_files.lift(f"{self._parents['blkio']}/{job}/{file}", v1_limits.no_limit)

    def remove(self, job: JobId) -> bool:
        """See CgroupDriver.remove."""
        self._cpu_meter.forget(job)
        removed = [control_files.remove_group(f"{parent}/{job}") for parent in reversed(self._all_parents())]
        return all(removed)

    def present(self) -> frozenset[JobId]:
        """See CgroupDriver.present."""
        return job_ids(name for parent in self._all_parents() for name in control_files.subgroups(parent))

    def release(self) -> None:
        """See CgroupDriver.release."""
        for parent in self._all_parents():
            with contextlib.suppress(OSError):
                os.rmdir(parent)  # noqa: PTH106

    def _all_parents(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*([self._tree] if self._tree else []), *self._parents.values()]))

    def _needs(self, controller: str, limits: Limits) -> bool:
        """Each hierarchy costs a job its start some time: join those only that limit or count something."""
        return controller != "cpuset" or limits.cpu_cores is not None

    def _offer(self, controller: str, file: str) -> Offer:
        mounted = controller in self._parents
        repair = f"this kernel has no {file}" if mounted else f"mount the v1 {controller} controller, or boot with v2"
        return Offer(available=file in self._files, repair=repair)

    @property
    def _watches_oom(self) -> bool:
        return "memory" in self._parents and "cgroup.event_control" in self._files

    def _io_offer(self) -> Offer:
        given = self._offer("blkio", "blkio.throttle.read_bps_device")
        return io_offers.limit_offer(given, self._disks, self._refused_disks)

    def _weight_offer(self, weight: int | None) -> Offer:
        bfq = self._offer("blkio", "blkio.bfq.weight")
        return io_offers.weight_offer(weight, self._disks, bfq=bfq, scheduler=scheduler)

    def _try_disks(self) -> dict[str, str]:
        if not self._files.issuperset(v1_limits.IO_FILES):
            return {}
        file = f"{self._parents['blkio']}/{v1_limits.IO_FILES[0]}"
        return io_offers.refused_by_kernel((disk, Write(file, v1_limits.no_limit(disk.device))) for disk in self._disks)

    def _cpu_time_us(self, job: JobId) -> int:
        if self._tree is not None:
            return control_files.read_table(f"{self._tree}/{job}/cpu.stat")["usage_usec"]
        return self._read_number(job, "cpuacct", "cpuacct.usage") // 1000

    def _read_number(self, job: JobId, controller: str, file: str) -> int:
        if file not in self._files:
            return 0
        return control_files.read_number(f"{self._parents[controller]}/{job}/{file}")

    def _io_totals(self, job: JobId, file: str) -> dict[str, int]:
        if file not in self._files:
            return {}
        return v1_limits.io_totals(control_files.read(f"{self._parents['blkio']}/{job}/{file}"))


def _kill_frozen(leaf: str) -> None:
    """SIGKILL every process of a freezer group; it takes effect at the thaw. Nothing when the group is gone."""
    try:
        control_files.put(f"{leaf}/freezer.state", "FROZEN")
        members.wait_frozen(lambda: control_files.read(f"{leaf}/freezer.state").strip() == "FROZEN")
        members.kill_members(f"{leaf}/cgroup.procs")
        control_files.put(f"{leaf}/freezer.state", "THAWED")
    except OSError as cause:
        if cause.errno not in control_files.GONE:
            raise


def _count_children(parent: str) -> None:
    """Before Linux 5.11 a group's limit counts its children only when asked to; later it always does."""
    hierarchical = f"{parent}/memory.use_hierarchy"
    if Path(hierarchical).exists() and control_files.read_number(hierarchical) == 0:
        control_files.put(hierarchical, "1")


def _inherit_cpuset(parent: str) -> None:
    """A new cpuset group is empty and takes no process; let `parent` have its own parent's, and pass it on."""
    for file in ("cpuset.cpus", "cpuset.mems"):
        if not control_files.read(f"{parent}/{file}").strip():
            control_files.put(f"{parent}/{file}", control_files.read(f"{Path(parent).parent}/{file}").strip())
    control_files.put(f"{parent}/cgroup.clone_children", "1")
