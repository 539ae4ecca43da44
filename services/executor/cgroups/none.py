"""The driver of a host that gives this process no control group: no group is made, no limit is promised.

Rootless nodes have it where nothing is delegated to their user (docs/rootless.md). Jobs are contained all the same:
when a job's init is killed, the kernel kills everything in its pid namespace (pid_namespaces(7)), and the monitor sees
to that. Has the verbs of `v1.py` and `v2.py`.
"""

from common.identifiers import JobId
from common.messages.jobs import Limits
from common.messages.logs import StoreMetric
from services.executor.cgroups.driver import CgroupPlan

ENFORCED_BY_GROUPS = (
    "cpu_percent",
    "cpu_weight",
    "cpu_cores",
    "memory_bytes",
    "pids",
    "io_weight",
    "read_bytes_per_s",
    "write_bytes_per_s",
    "read_ops_per_s",
    "write_ops_per_s",
)
"""Limits that need a control group; the others are resource limits, or the monitor's."""


class NoneDriver:
    """`repair`: what would give this process groups, for everybody who asks for a limit."""

    def __init__(self, repair: str) -> None:
        self._repair = repair

    @property
    def version(self) -> str:
        """See CgroupDriver.version."""
        return "none"

    def prepare(self) -> None:
        """See CgroupDriver.prepare. There is nothing to make."""

    def unsupported(self, limits: Limits) -> tuple[tuple[str, str], ...]:
        """See CgroupDriver.unsupported: all that are set."""
        return tuple((name, self._repair) for name in ENFORCED_BY_GROUPS if getattr(limits, name) is not None)

    def restrictions(self) -> tuple[tuple[str, str], ...]:
        """See CgroupDriver.restrictions. None: what is not enforced is not restricted."""
        return ()

    def plan(self, job: JobId, limits: Limits, *, devices: tuple[str, ...] = ()) -> CgroupPlan:  # noqa: ARG002  # of no group
        """See CgroupDriver.plan."""
        return CgroupPlan(directories=(), writes=(), join=(), clone_into="", usage=(), oom_watch="")

    def create(self, plan: CgroupPlan) -> None:
        """See CgroupDriver.create."""

    def sample(self, job: JobId, *, previous: StoreMetric | None, now_ns: int) -> StoreMetric | None:  # noqa: ARG002  # nothing counts
        """See CgroupDriver.sample. None: who has no group is not measured."""
        return None

    def kill(self, job: JobId) -> None:
        """See CgroupDriver.kill. A monitor that is stopped, or dies, takes the job's init with it."""

    def remove(self, job: JobId) -> bool:  # noqa: ARG002  # there never was one
        """See CgroupDriver.remove."""
        return True

    def present(self) -> frozenset[JobId]:
        """See CgroupDriver.present."""
        return frozenset()

    def release(self) -> None:
        """See CgroupDriver.release."""
