"""What a cgroup driver does, whatever the version. `v2.py` and `v1.py` have the same verbs; `select.py` chooses.

A driver turns limits into a `CgroupPlan` (pure), and applies, samples, kills and removes. Units are those of
common/messages/jobs.py. Kernel reference: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.
"""

from typing import NamedTuple, Protocol

from common.identifiers import JobId
from common.messages.jobs import Limits
from common.messages.logs import StoreMetric


class Write(NamedTuple):
    """A value for a control file, absolute path."""

    path: str
    value: str


class Reading(NamedTuple):
    """A number to read from a control file when the job has ended.

    `key` is the word before the number where the file holds "key number" lines, "" where it holds only a number;
    the number is divided by `divisor`.
    """

    path: str
    key: str = ""
    divisor: int = 1


class CgroupPlan(NamedTuple):
    """Everything that makes one job's groups. Plain values: it travels to the launcher as JSON."""

    directories: tuple[str, ...]  # made in this order, removed in the reverse one
    writes: tuple[Write, ...]  # after the directories
    join: tuple[str, ...]  # cgroup.procs files: the job's init is written there before it goes on
    clone_into: str  # v2 directory for clone3(CLONE_INTO_CGROUP); "": none
    cpu_time_us: tuple[Reading, ...]  # the first that can be read counts
    memory_peak_bytes: tuple[Reading, ...]
    oom_kills: tuple[Reading, ...]


class CgroupDriver(Protocol):
    """The groups of all jobs on this host, below `settings.joblet.cgroup_parent`."""

    version: str  # "v2", "v1" or "hybrid"

    def unsupported(self, limits: Limits) -> tuple[tuple[str, str], ...]:
        """Name and repair of each limit in `limits` that this host cannot enforce."""

    def plan(self, job: JobId, limits: Limits) -> CgroupPlan:
        """The groups that enforce `limits`. Pure."""

    def create(self, plan: CgroupPlan) -> None:
        """Make the groups and write the limits, reading each back. Raises JobletError with path and value."""

    def sample(self, job: JobId, *, previous: StoreMetric | None, now_ns: int) -> StoreMetric | None:
        """Usage now; cpu_percent since `previous`. None when the group is gone."""

    def kill(self, job: JobId) -> None:
        """SIGKILL every process in the job's groups, also those that fork meanwhile."""

    def remove(self, job: JobId) -> bool:
        """Remove the job's groups. False while a process or a dying child still holds one (EBUSY): try later."""

    def present(self) -> frozenset[JobId]:
        """Jobs that have a group on this host, for the sweep at start."""
