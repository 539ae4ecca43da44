"""Which limits this host enforces: every one is written to a group that is made for it, and read back by the driver."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final, NamedTuple

import structlog

from common.cpulist import format_cpu_list
from common.errors import JobletError
from common.identifiers import new_job_id
from common.messages.jobs import Capability, Limits
from services.executor.cgroups.driver import CgroupDriver, CgroupPlan

log = structlog.get_logger(__name__)

GIB: Final = 2**30
_WAITS_FOR_MONITOR: Final = "after the kernel's first kill joblet's monitor kills the rest of the job"


class Tried(NamedTuple):
    """A limit, and what came out."""

    limits: Limits
    capability: Capability
    plan: CgroupPlan | None  # None: it was refused before


def limits_by_name(cpus: frozenset[int]) -> dict[str, Limits]:
    """Name of the capability → a job's limits that need it. `cpus`: those that a job may run on."""
    return {
        "limit.cpu": Limits(cpu_percent=100),
        "limit.cpu_weight": Limits(cpu_weight=100),
        "limit.cpuset": Limits(cpu_cores=format_cpu_list(cpus)),
        "limit.memory": Limits(memory_bytes=GIB),
        "limit.pids": Limits(pids=100),
        "limit.io_bytes": Limits(read_bytes_per_s=GIB, write_bytes_per_s=GIB),
        "limit.io_ops": Limits(read_ops_per_s=10**6, write_ops_per_s=10**6),
        "limit.io_weight": Limits(io_weight=100),
    }


def try_limits(driver: CgroupDriver, cpus: frozenset[int]) -> tuple[Capability, ...]:
    """One capability a limit, and whether the kernel kills all of a job that is out of memory."""
    found = {name: _try(driver, name, limits) for name, limits in limits_by_name(cpus).items()}
    return (*(each.capability for each in found.values()), _oom_group(found))


@contextmanager
def probe_group(driver: CgroupDriver, limits: Limits) -> Iterator[CgroupPlan]:
    """Groups as a job with `limits` has them; they are removed. Raises JobletError when they cannot be made.

    They bear a job id of nobody: should this process be killed meanwhile, the next start sweeps them away.
    """
    job = new_job_id()
    plan = driver.plan(job, limits)
    driver.create(plan)
    try:
        yield plan
    finally:
        driver.kill(job)
        if not driver.remove(job):
            log.warning("a control group of a probe is left until the next start", job_id=job)


def _try(driver: CgroupDriver, name: str, limits: Limits) -> Tried:
    refused = driver.unsupported(limits)
    if refused:
        return Tried(limits, Capability(name=name, level="missing", detail=refused[0][1]), None)
    try:
        with probe_group(driver, limits) as plan:
            restricted = _restrictions(driver, limits)
    except JobletError as error:
        return Tried(limits, Capability(name=name, level="missing", detail=str(error)), None)
    level = "degraded" if restricted else "enforced"
    return Tried(limits, Capability(name=name, level=level, detail=restricted), plan)


def _restrictions(driver: CgroupDriver, limits: Limits) -> str:
    texts = [text for limit, text in driver.restrictions() if getattr(limits, limit) is not None]
    return "; ".join(dict.fromkeys(texts))


def _oom_group(found: Mapping[str, Tried]) -> Capability:
    _, memory, plan = found["limit.memory"]
    name = "memory.oom_group"
    if plan is None:
        return Capability(name=name, level="missing", detail=memory.detail)
    if any(write.path.endswith("/memory.oom.group") for write in plan.writes):
        return Capability(name=name, level="enforced")
    if plan.oom_watch:
        return Capability(name=name, level="degraded", detail=_WAITS_FOR_MONITOR)
    return Capability(name=name, level="missing", detail=memory.detail)
