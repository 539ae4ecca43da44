"""Control groups of a host whose controllers are all in the v2 hierarchy.

    <root>/<parent>            controllers passed on to the children, no process of its own
    <root>/<parent>/<job-id>   leaf: all of one job

Has the verbs of `v1.py`, in the same order. Kernel reference: Documentation/admin-guide/cgroup-v2.rst.
"""

import contextlib
import errno
import os
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

CONTROLLERS: Final = ("cpu", "memory", "pids", "io", "cpuset")
CPU_PERIOD_US: Final = 100_000


class V2Driver:
    """`root`: a writable group of the v2 hierarchy; `parent`: name of the group below it; `cpus`: usable ones."""

    def __init__(self, root: Path, *, parent: str, cpus: frozenset[int]) -> None:
        self._root = str(root)
        self._parent = f"{root}/{parent}"
        self._cpus = cpus
        self._files: frozenset[str] = frozenset()
        self._refused: dict[str, str] = {}
        self._cpu_meter = CpuMeter()

    @property
    def version(self) -> str:
        """See CgroupDriver.version."""
        return "v2"

    def prepare(self) -> None:
        """See CgroupDriver.prepare. A controller that cannot be passed on is remembered with the reason."""
        self._refused.clear()
        _pass_on(self._root, self._refused)
        try:
            os.makedirs(self._parent, 0o755, exist_ok=True)  # noqa: PTH103
        except OSError as cause:
            raise precondition(
                f"cannot make the control group {self._parent}: {os.strerror(cause.errno or 0)}",
                "run the executor as root, or delegate a cgroup to it (systemd: Delegate=yes, DelegateSubgroup=)",
            ) from cause
        _pass_on(self._parent, self._refused)
        passed_on = set(control_files.read(f"{self._parent}/cgroup.subtree_control").split())
        files = control_files.files_of(Path(self._parent))
        self._files = frozenset(
            file
            for file in files
            if file.split(".")[0] in passed_on or file.startswith("cgroup.") or file == "cpu.stat"
        )

    def unsupported(self, limits: Limits) -> tuple[tuple[str, str], ...]:
        """See CgroupDriver.unsupported."""
        return refusals(
            limits,
            cpu_percent=self._offer("cpu", "cpu.max"),
            cpu_weight=self._offer("cpu", "cpu.weight"),
            cpu_cores=self._offer("cpuset", "cpuset.cpus"),
            memory_bytes=self._offer("memory", "memory.max"),
            pids=self._offer("pids", "pids.max"),
            cpus=self._cpus,
        )

    def restrictions(self) -> tuple[tuple[str, str], ...]:
        """See CgroupDriver.restrictions."""
        return ()

    def plan(self, job: JobId, limits: Limits) -> CgroupPlan:
        """See CgroupDriver.plan."""
        leaf = self._leaf(job)
        writes = (
            *_no_subgroups(leaf),
            *self._memory(leaf, limits),
            *_cpu(leaf, limits),
            *_cpu_weight(leaf, limits),
            *_cpuset(leaf, limits),
            *_pids(leaf, limits),
        )
        return CgroupPlan(
            directories=(leaf,),
            writes=writes,
            join=(),
            clone_into=leaf,
            usage=(
                Meter("cpu_time_us", (Reading(f"{leaf}/cpu.stat", "usage_usec"),)),
                Meter("memory_peak_bytes", (Reading(f"{leaf}/memory.peak"),)),  # since Linux 5.19
                Meter("oom_kills", (Reading(f"{leaf}/memory.events", "oom_kill"),)),
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
        leaf = self._leaf(job)
        try:
            used_us = control_files.read_table(f"{leaf}/cpu.stat")["usage_usec"]
            memory_bytes = self._read_number(leaf, "memory.current")
            pids = self._read_number(leaf, "pids.current")
            moved = _io_totals(control_files.read(f"{leaf}/io.stat")) if "io.stat" in self._files else {}
        except OSError as cause:
            if cause.errno in control_files.GONE:
                return None
            raise
        return StoreMetric(
            job=job,
            time_ns=now_ns,
            cpu_percent=self._cpu_meter.percent(job, used_us, previous=previous, now_ns=now_ns),
            memory_bytes=memory_bytes,
            io_read_bytes=moved.get("rbytes", 0),
            io_write_bytes=moved.get("wbytes", 0),
            io_read_ops=moved.get("rios", 0),
            io_write_ops=moved.get("wios", 0),
            pids=pids,
        )

    def kill(self, job: JobId) -> None:
        """See CgroupDriver.kill."""
        kill_tree_group(self._leaf(job))

    def remove(self, job: JobId) -> bool:
        """See CgroupDriver.remove."""
        self._cpu_meter.forget(job)
        return control_files.remove_group(self._leaf(job))

    def present(self) -> frozenset[JobId]:
        """See CgroupDriver.present."""
        return job_ids(control_files.subgroups(self._parent))

    def release(self) -> None:
        """See CgroupDriver.release."""
        with contextlib.suppress(OSError):
            os.rmdir(self._parent)  # noqa: PTH106

    def _leaf(self, job: JobId) -> str:
        return f"{self._parent}/{job}"

    def _offer(self, controller: str, file: str) -> Offer:
        repair = self._refused.get(controller, f"this kernel has no {file}")
        return Offer(available=file in self._files, repair=repair)

    def _memory(self, leaf: str, limits: Limits) -> tuple[Write, ...]:
        if limits.memory_bytes is None:
            return ()
        swap = "memory.swap.max" in self._files  # missing where the kernel cannot swap
        return (
            Write(f"{leaf}/memory.max", str(limits.memory_bytes)),
            *([Write(f"{leaf}/memory.swap.max", "0")] if swap else []),
            Write(f"{leaf}/memory.oom.group", "1"),
        )

    def _read_number(self, leaf: str, file: str) -> int:
        return control_files.read_number(f"{leaf}/{file}") if file in self._files else 0


def kill_tree_group(leaf: str) -> None:
    """SIGKILL every process of a v2 group, also on hybrid hosts. Nothing when the group is gone."""
    try:
        control_files.put(f"{leaf}/cgroup.kill", "1")
    except OSError as cause:
        if cause.errno not in control_files.GONE:
            raise
        if Path(leaf).is_dir():
            _kill_frozen(leaf)


def _kill_frozen(leaf: str) -> None:
    """Before Linux 5.14 there is no cgroup.kill. May go when no supported host is older."""
    try:
        control_files.put(f"{leaf}/cgroup.freeze", "1")
        members.wait_frozen(lambda: control_files.read_table(f"{leaf}/cgroup.events").get("frozen") == 1)
        members.kill_members(f"{leaf}/cgroup.procs")
        control_files.put(f"{leaf}/cgroup.freeze", "0")
    except OSError as cause:
        if cause.errno not in control_files.GONE:
            raise


def _pass_on(group: str, refused: dict[str, str]) -> None:
    """Enable for the children of `group` what `group` has of CONTROLLERS; note in `refused` what fails."""
    available = control_files.read(f"{group}/cgroup.controllers").split()
    enabled = control_files.read(f"{group}/cgroup.subtree_control").split()
    for controller in CONTROLLERS:
        if controller in enabled or controller in refused:
            continue
        if controller not in available:
            refused[controller] = f"the {controller} controller is not given to {group}: enable it in its parents"
            continue
        try:  # one by one: a single write fails as a whole
            control_files.put(f"{group}/cgroup.subtree_control", f"+{controller}")
        except OSError as cause:
            refused[controller] = _why_not(group, controller, cause)


def _why_not(group: str, controller: str, cause: OSError) -> str:
    failed = f"cannot enable the {controller} controller in {group}: {os.strerror(cause.errno or 0)}"
    if cause.errno == errno.EBUSY:
        return f"{failed}; move the processes of {group} into a group below it (systemd: DelegateSubgroup=)"
    return failed


def _no_subgroups(leaf: str) -> tuple[Write, ...]:
    return (Write(f"{leaf}/cgroup.max.descendants", "0"),)


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


def _io_totals(text: str) -> dict[str, int]:
    """Sums over all devices of `MAJ:MIN rbytes=N wbytes=N rios=N wios=N …` lines."""
    totals: dict[str, int] = {}
    for line in text.splitlines():
        for word in line.split()[1:]:
            key, equals, number = word.partition("=")
            if equals and number.isdigit():
                totals[key] = totals.get(key, 0) + int(number)
    return totals
