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
from services.executor.cgroups import control_files, delegation, io_offers, members, pressure, v2_limits
from services.executor.cgroups.disks import Disk, scheduler
from services.executor.cgroups.driver import CgroupPlan, Write
from services.executor.cgroups.refusals import Offer, job_ids, refusals
from services.executor.cgroups.usage import CpuMeter

CONTROLLERS: Final = ("cpu", "memory", "pids", "io", "cpuset")
DELEGATE: Final = (
    "have it delegated: systemd's Delegate=yes and DelegateSubgroup= for a service; for a user's own services "
    "`loginctl enable-linger` and Delegate=cpu cpuset io memory pids in /etc/systemd/system/user@.service.d/joblet.conf"
)


class V2Driver:
    """`root`: a writable group of the v2 hierarchy; `parent`: name of the group below it; `cpus`: usable ones.

    `disks`: those behind what every job sees.
    """

    def __init__(self, root: Path, *, parent: str, cpus: frozenset[int], disks: tuple[Disk, ...] = ()) -> None:
        self._root = str(root)
        self._parent = f"{root}/{parent}"
        self._cpus = cpus
        self._disks = disks
        self._files: frozenset[str] = frozenset()
        self._refused: dict[str, str] = {}
        self._refused_disks: dict[str, str] = {}
        self._pressure_files: frozenset[str] = frozenset()
        self._cpu_meter = CpuMeter()

    @property
    def version(self) -> str:
        """See CgroupDriver.version."""
        return "v2"

    def prepare(self) -> None:
        """See CgroupDriver.prepare. A controller that cannot be passed on is remembered with the reason."""
        self._refused.clear()
        try:
            delegation.make_room(self._root)
            _pass_on(self._root, self._refused)
            os.makedirs(self._parent, 0o755, exist_ok=True)  # noqa: PTH103
        except OSError as cause:
            raise precondition(
                f"cannot make the control group {self._parent}: {os.strerror(cause.errno or 0)}",
                f"run the executor as root, or {DELEGATE}",
            ) from cause
        _pass_on(self._parent, self._refused)
        passed_on = set(control_files.read(f"{self._parent}/cgroup.subtree_control").split())
        files = control_files.files_of(Path(self._parent))
        self._files = frozenset(
            file
            for file in files
            if file.split(".")[0] in passed_on or file.startswith("cgroup.") or file == "cpu.stat"
        )
        self._pressure_files = pressure.readable(self._parent)
        self._refused_disks = self._try_disks()

    def unsupported(self, limits: Limits) -> tuple[tuple[str, str], ...]:
        """See CgroupDriver.unsupported."""
        offers = {
            "cpu_percent": self._offer("cpu", "cpu.max"),
            "cpu_weight": self._offer("cpu", "cpu.weight"),
            "cpu_cores": self._offer("cpuset", "cpuset.cpus"),
            "memory_bytes": self._offer("memory", "memory.max"),
            "pids": self._offer("pids", "pids.max"),
            "io_weight": self._weight_offer(limits.io_weight),
            **dict.fromkeys(io_offers.BYTES_AND_OPS, self._io_offer()),
        }
        return refusals(limits, offers, cpus=self._cpus)

    def restrictions(self) -> tuple[tuple[str, str], ...]:
        """See CgroupDriver.restrictions."""
        if "io.max" in self._files and "memory.max" not in self._files:
            told = "without the memory controller what is not written by O_DIRECT or fsync is not limited"
            return (("write_bytes_per_s", told), ("write_ops_per_s", told))
        return ()

    def plan(self, job: JobId, limits: Limits, *, devices: tuple[str, ...] = ()) -> CgroupPlan:
        """See CgroupDriver.plan."""
        leaf = self._leaf(job)
        disks = tuple(dict.fromkeys((*(disk.device for disk in self._disks), *devices)))
        return CgroupPlan(
            directories=(leaf,),
            writes=v2_limits.limit_writes(leaf, limits, files=self._files, devices=disks),
            join=(),
            clone_into=leaf,
            usage=v2_limits.meters(leaf),
            oom_watch="",
            lift=v2_limits.lift_writes(leaf, limits, devices=disks),
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
            moved = v2_limits.io_totals(control_files.read(f"{leaf}/io.stat")) if "io.stat" in self._files else {}
            waited = pressure.read(leaf, self._pressure_files)
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
            cpu_pressure=waited.cpu,
            memory_pressure=waited.memory,
            io_pressure=waited.io,
        )

    def kill(self, job: JobId) -> None:
        """See CgroupDriver.kill."""
        leaf = self._leaf(job)
        kill_tree_group(leaf)
        if "io.max" in self._files:
            control_files.lift(f"{leaf}/io.max", v2_limits.no_limit)

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

    def _io_offer(self) -> Offer:
        return io_offers.limit_offer(self._offer("io", "io.max"), self._disks, self._refused_disks)

    def _weight_offer(self, weight: int | None) -> Offer:
        costed = "io.weight" in self._files
        return io_offers.weight_offer(
            weight,
            self._disks,
            bfq=self._offer("io", "io.bfq.weight"),
            scheduler=scheduler,
            costed=io_offers.read_costed_devices(self._root) if costed and weight is not None else frozenset(),
        )

    def _try_disks(self) -> dict[str, str]:
        if "io.max" not in self._files:
            return {}
        file = f"{self._parent}/io.max"
        return io_offers.refused_by_kernel((disk, Write(file, v2_limits.no_limit(disk.device))) for disk in self._disks)

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
            refused[controller] = f"the {controller} controller is not given to {group}: {_how_to_give(controller)}"
            continue
        try:  # one by one: a single write fails as a whole
            control_files.put(f"{group}/cgroup.subtree_control", f"+{controller}")
        except OSError as cause:
            refused[controller] = _why_not(group, controller, cause)


def _how_to_give(controller: str) -> str:
    """Root enables it in the parents; others need it delegated."""
    return f"enable it in its parents (echo +{controller} > …/cgroup.subtree_control), or {DELEGATE}"


def _why_not(group: str, controller: str, cause: OSError) -> str:
    failed = f"cannot enable the {controller} controller in {group}: {os.strerror(cause.errno or 0)}"
    if cause.errno != errno.EBUSY:
        return failed
    inside = delegation.describe(control_files.read_processes(f"{group}/cgroup.procs"))
    return f"{failed}; move its processes {inside} into a group below it (systemd: DelegateSubgroup=)"
