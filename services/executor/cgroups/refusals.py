"""Which limits of a job cannot be enforced, and why. Pure; both drivers ask here with what their host offers."""

from collections.abc import Iterable
from typing import Final, NamedTuple

from common.errors import JobletError
from common.identifiers import JobId, parse_job_id
from common.messages.jobs import Limits
from services.executor.cgroups import control_files

NOT_IN_THIS_RELEASE: Final = "limits of input and output are not in this release; leave it out"
IO_LIMITS: Final = ("io_weight", "read_bytes_per_s", "write_bytes_per_s", "read_ops_per_s", "write_ops_per_s")


class Offer(NamedTuple):
    """Whether the host can enforce a limit; if not, why and how to repair it."""

    available: bool
    repair: str


def refusals(
    limits: Limits,
    *,
    cpu_percent: Offer,
    cpu_weight: Offer,
    cpu_cores: Offer,
    memory_bytes: Offer,
    pids: Offer,
    cpus: frozenset[int],
) -> tuple[tuple[str, str], ...]:
    """Name and repair of each limit that is set and cannot be enforced. `cpus`: those that a job may run on."""
    asked: tuple[tuple[str, object, Offer], ...] = (
        ("cpu_percent", limits.cpu_percent, cpu_percent),
        ("cpu_weight", limits.cpu_weight, cpu_weight),
        ("cpu_cores", limits.cpu_cores, cpu_cores),
        ("memory_bytes", limits.memory_bytes, memory_bytes),
        ("pids", limits.pids, pids),
    )
    refused = [(name, offer.repair) for name, value, offer in asked if value is not None and not offer.available]
    refused += [(name, NOT_IN_THIS_RELEASE) for name in IO_LIMITS if getattr(limits, name) is not None]
    if limits.cpu_cores is not None and cpu_cores.available:
        refused += _not_there(limits.cpu_cores, cpus)
    return tuple(refused)


def _not_there(cpu_cores: str, cpus: frozenset[int]) -> list[tuple[str, str]]:
    usable = control_files.format_cpu_list(cpus)
    try:
        missing = control_files.parse_cpu_list(cpu_cores) - cpus
    except ValueError:
        return [("cpu_cores", f"{cpu_cores[:40]!r} is no list of CPUs; use some of {usable}")]
    if missing:
        return [("cpu_cores", f"CPU {control_files.format_cpu_list(missing)} is not usable here; use some of {usable}")]
    return []


def job_ids(names: Iterable[str]) -> frozenset[JobId]:
    """Those of `names` that are job ids."""
    return frozenset(job for job in map(_job_id, names) if job is not None)


def _job_id(name: str) -> JobId | None:
    try:
        return parse_job_id(name)
    except JobletError:
        return None
