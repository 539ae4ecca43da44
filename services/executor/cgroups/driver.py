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
    """A number to read from a file of the kernel when the job has ended.

    `key` is "" where the file holds only the number, the word before it where the file holds "key number" lines,
    `key=` for the sum of all `key=number` words (io.stat), and `* key` for the sum of all lines that end with `key
    number` (blkio). The number is divided by `divisor`.
    """

    path: str
    key: str = ""
    divisor: int = 1


class Meter(NamedTuple):
    """One field of common.messages.jobs.Usage, and where its value is read: the first reading that can be, counts."""

    name: str
    readings: tuple[Reading, ...]


class CgroupPlan(NamedTuple):
    """Everything that makes one job's groups. Plain values: it travels to the launcher as JSON.

    Why `tasks` and "0" in `join`: a write to cgroup.procs, or of another's pid, takes the system-wide
    cgroup_threadgroup_rwsem and so waits for an RCU grace period, 6 to 14 ms on an idle machine; a thread that moves
    itself does not (kernel/cgroup/cgroup.c, cgroup_procs_write_start, Linux 5.6), 0.1 ms.
    """

    directories: tuple[str, ...]  # made in this order, removed in the reverse one
    writes: tuple[Write, ...]  # after the directories
    join: tuple[str, ...]  # v1 `tasks` files: the job's init, while single-threaded, writes "0" to each itself
    clone_into: str  # v2 directory for clone3(CLONE_INTO_CGROUP); "": none
    usage: tuple[Meter, ...]
    oom_watch: str  # v1 memory group whose first OOM kill must end the job; "": the kernel kills all of it by itself
    lift: tuple[Write, ...] = ()  # to be written when the job was killed, see below

    # Why `lift`: a process whose input or output is held back sleeps uninterruptibly until all of it has passed, also
    # when it was killed. Measured with 20 MB to write at 1 MB/s: killed after 2 s it ended 18 s later; with the limit
    # lifted, at once. Nothing of the job itself runs any more then.


class CgroupDriver(Protocol):
    """The groups of all jobs on this host, below `settings.joblet.cgroup_parent`."""

    @property
    def version(self) -> str:
        """Return "v2", "v1" or "hybrid"."""

    def prepare(self) -> None:
        """Make the parent of all jobs' groups and pass the controllers on to it. Raises JobletError. Idempotent."""

    def unsupported(self, limits: Limits) -> tuple[tuple[str, str], ...]:
        """Name and repair of each limit in `limits` that this host cannot enforce."""

    def restrictions(self) -> tuple[tuple[str, str], ...]:
        """Name of each limit that is enforced with a restriction on this host, and the restriction."""

    def plan(self, job: JobId, limits: Limits, *, devices: tuple[str, ...] = ()) -> CgroupPlan:
        """The groups that enforce `limits`, of which none is unsupported. Pure.

        `devices`: MAJ:MIN of disks that this job sees beside those that every job does, for its limits of input and
        output.
        """

    def create(self, plan: CgroupPlan) -> None:
        """Make the groups and write the limits, reading each back. Raises JobletError with file and value."""

    def sample(self, job: JobId, *, previous: StoreMetric | None, now_ns: int) -> StoreMetric | None:
        """Usage now. None when the group is gone.

        cpu_percent is the mean since `previous`, in percent of one core. Without a `previous` it is 0.0, and the
        sample only sets where the next one counts from. A `previous` that this driver did not make, such as one of
        zeros at the job's start, counts as the instant at which the job had used nothing.
        """

    def kill(self, job: JobId) -> None:
        """SIGKILL every process in the job's groups, also those that fork meanwhile. Nothing when there is none.

        Limits of input and output are lifted, so that a process that waits for them can end.
        """

    def remove(self, job: JobId) -> bool:
        """Remove the job's groups. False while a process or a dying child still holds one (EBUSY): try later."""

    def present(self) -> frozenset[JobId]:
        """Jobs that have a group on this host, for the sweep at start."""

    def release(self) -> None:
        """Remove the parent of all jobs' groups if it is empty: nothing is left when the last job has ended."""
