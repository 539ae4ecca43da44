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
from services.executor.cgroups import control_files, members
from services.executor.cgroups.driver import CgroupPlan, Meter, Reading, Write
from services.executor.cgroups.refusals import Offer, job_ids, refusals
from services.executor.cgroups.usage import CpuMeter
from services.executor.cgroups.v2 import kill_tree_group

CONTROLLERS: Final = ("cpu", "memory", "pids", "blkio", "cpuset", "cpuacct", "freezer")
GIVEN_BY_TREE: Final = ("cpuacct", "freezer")
"""What a v2 hierarchy without controllers does as well."""

CPU_PERIOD_US: Final = 100_000
SHARES_MIN: Final = 2
SHARES_OF_DEFAULT_WEIGHT: Final = (1024, 100)
"""cpu.shares 1024 is what cpu.weight 100 is in v2: the default."""


class V1Driver:
    """`roots`: a writable group for each controller; `tree`: one of the v2 hierarchy, where there is one."""

    def __init__(self, roots: Mapping[str, Path], *, tree: Path | None, parent: str, cpus: frozenset[int]) -> None:
        used = CONTROLLERS if tree is None else tuple(name for name in CONTROLLERS if name not in GIVEN_BY_TREE)
        self._parents = {name: f"{roots[name]}/{parent}" for name in used if name in roots}
        self._tree = None if tree is None else f"{tree}/{parent}"
        self._cpus = cpus
        self._files: frozenset[str] = frozenset()
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

    def unsupported(self, limits: Limits) -> tuple[tuple[str, str], ...]:
        """See CgroupDriver.unsupported."""
        return refusals(
            limits,
            cpu_percent=self._offer("cpu", "cpu.cfs_quota_us"),
            cpu_weight=self._offer("cpu", "cpu.shares"),
            cpu_cores=self._offer("cpuset", "cpuset.cpus"),
            memory_bytes=self._offer("memory", "memory.limit_in_bytes"),
            pids=self._offer("pids", "pids.max"),
            cpus=self._cpus,
        )

    def restrictions(self) -> tuple[tuple[str, str], ...]:
        """See CgroupDriver.restrictions."""
        told = "cgroup v1: when memory runs out the kernel kills one process of the job, not all of them"
        if "memory.memsw.limit_in_bytes" not in self._files:
            told += "; a job can swap beyond its limit (boot with swapaccount=1, or without swap)"
        return (("memory_bytes", told),)

    def plan(self, job: JobId, limits: Limits) -> CgroupPlan:
        """See CgroupDriver.plan."""
        tree = None if self._tree is None else f"{self._tree}/{job}"
        leaves = {name: f"{parent}/{job}" for name, parent in self._parents.items() if self._needs(name, limits)}
        v1_leaves = tuple(dict.fromkeys(leaves.values()))  # cpu and cpuacct are often one mount
        writes = (
            *_no_subgroups(tree),
            *self._memory(leaves, limits),
            *_cpu(leaves, limits),
            *_cpu_weight(leaves, limits),
            *_cpuset(leaves, limits),
            *_pids(leaves, limits),
        )
        cpu_time = [Reading(f"{tree}/cpu.stat", "usage_usec")] if tree else []
        if "cpuacct" in leaves:
            cpu_time.append(Reading(f"{leaves['cpuacct']}/cpuacct.usage", divisor=1000))
        return CgroupPlan(
            directories=(*([tree] if tree else []), *v1_leaves),
            writes=writes,
            join=tuple(f"{leaf}/tasks" for leaf in v1_leaves),
            clone_into=tree or "",
            usage=(
                Meter("cpu_time_us", tuple(cpu_time)),
                *_memory_meters(leaves),
            ),
            oom_watch="",
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
            moved_bytes = self._io_totals(job, "blkio.throttle.io_service_bytes")
            moved_ops = self._io_totals(job, "blkio.throttle.io_serviced")
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

    def _memory(self, leaves: Mapping[str, str], limits: Limits) -> tuple[Write, ...]:
        if limits.memory_bytes is None:
            return ()
        leaf, value = leaves["memory"], str(limits.memory_bytes)
        without_swap = (
            Write(f"{leaf}/memory.memsw.limit_in_bytes", value)  # memory and swap together; never below the next
            if "memory.memsw.limit_in_bytes" in self._files
            else Write(f"{leaf}/memory.swappiness", "0")  # kernels booted with swapaccount=0
        )
        return Write(f"{leaf}/memory.limit_in_bytes", value), without_swap

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
        return _sum_by_operation(control_files.read(f"{self._parents['blkio']}/{job}/{file}"))


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


def _memory_meters(leaves: Mapping[str, str]) -> tuple[Meter, ...]:
    leaf = leaves.get("memory")
    if leaf is None:
        return ()
    return (
        Meter("memory_peak_bytes", (Reading(f"{leaf}/memory.max_usage_in_bytes"),)),
        Meter("oom_kills", (Reading(f"{leaf}/memory.oom_control", "oom_kill"),)),  # since Linux 4.13
    )


def _no_subgroups(tree: str | None) -> tuple[Write, ...]:
    return () if tree is None else (Write(f"{tree}/cgroup.max.descendants", "0"),)


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


def _sum_by_operation(text: str) -> dict[str, int]:
    """Sums over all devices of `MAJ:MIN Operation N` lines."""
    totals: dict[str, int] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[2].isdigit():
            totals[words[1]] = totals.get(words[1], 0) + int(words[2])
    return totals
