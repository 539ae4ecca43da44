"""The driver of tests: the same behaviour as `v1.py` and `v2.py` without a kernel. The contract suite runs over all.

A test says what lives in a job's group (`occupy`) and what it has used (`use`); SIGKILL takes `dying_removals` tries to
remove before the group is empty, as a process in the kernel would.
"""

from common.identifiers import JobId
from common.messages.jobs import Limits
from common.messages.logs import StoreMetric
from services.executor.cgroups.driver import CgroupPlan, Meter, Reading
from services.executor.cgroups.usage import CpuMeter


class MemoryDriver:
    """Groups that exist in this object only."""

    def __init__(self, *, dying_removals: int = 0) -> None:
        self.killed: list[JobId] = []
        self.refused: tuple[tuple[str, str], ...] = ()
        self.broken: set[JobId] = set()
        self._dying_removals = dying_removals
        self._occupied: dict[JobId, int] = {}  # how many tries to remove will find it busy; -1: until killed
        self._groups: set[JobId] = set()
        self._used_us: dict[JobId, int] = {}
        self._cpu_meter = CpuMeter()

    @property
    def version(self) -> str:
        """See CgroupDriver.version."""
        return "memory"

    def prepare(self) -> None:
        """See CgroupDriver.prepare."""

    def unsupported(self, limits: Limits) -> tuple[tuple[str, str], ...]:
        """See CgroupDriver.unsupported: those of `refused` that are set in `limits`."""
        return tuple((name, repair) for name, repair in self.refused if getattr(limits, name) is not None)

    def restrictions(self) -> tuple[tuple[str, str], ...]:
        """See CgroupDriver.restrictions."""
        return ()

    def plan(self, job: JobId, limits: Limits, *, devices: tuple[str, ...] = ()) -> CgroupPlan:  # noqa: ARG002  # nothing is limited here
        """See CgroupDriver.plan."""
        leaf = f"/nowhere/{job}"
        return CgroupPlan((leaf,), (), (), "", (Meter("cpu_time_us", (Reading(f"{leaf}/cpu"),)),), "")

    def create(self, plan: CgroupPlan) -> None:
        """See CgroupDriver.create."""
        self._groups |= {JobId(directory.rpartition("/")[2]) for directory in plan.directories}

    def sample(self, job: JobId, *, previous: StoreMetric | None, now_ns: int) -> StoreMetric | None:
        """See CgroupDriver.sample. OSError for a job in `broken`."""
        if job in self.broken:
            raise OSError(5, "Input/output error", job)
        if job not in self._groups:
            return None
        percent = self._cpu_meter.percent(job, self._used_us.get(job, 0), previous=previous, now_ns=now_ns)
        pids = 1 if job in self._occupied else 0
        return StoreMetric(job=job, time_ns=now_ns, cpu_percent=percent, memory_bytes=0, pids=pids)

    def kill(self, job: JobId) -> None:
        """See CgroupDriver.kill."""
        self.killed.append(job)
        if self._occupied.get(job) == -1:
            self._occupied[job] = self._dying_removals

    def remove(self, job: JobId) -> bool:
        """See CgroupDriver.remove. OSError for a job in `broken`."""
        if job in self.broken:
            raise OSError(5, "Input/output error", job)
        tries = self._occupied.get(job, 0)
        if tries:
            self._occupied[job] = max(-1, tries - 1)
            return False
        self._occupied.pop(job, None)
        self._groups.discard(job)
        self._cpu_meter.forget(job)
        return True

    def present(self) -> frozenset[JobId]:
        """See CgroupDriver.present."""
        return frozenset(self._groups)

    def release(self) -> None:
        """See CgroupDriver.release."""

    def occupy(self, job: JobId) -> None:
        """A process lives in the job's group from now on."""
        self._occupied[job] = -1

    def use(self, job: JobId, cpu_time_us: int) -> None:
        """The job has used this much CPU time in all."""
        self._used_us[job] = cpu_time_us
