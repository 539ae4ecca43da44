"""Which limits of a job cannot be enforced, and why. Pure; both drivers ask here with what their host offers."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from common.cpulist import format_cpu_list, parse_cpu_list
from common.errors import JobletError
from common.identifiers import JobId, parse_job_id
from common.messages.jobs import Limits


class Offer(NamedTuple):
    """Whether the host can enforce a limit; if not, why and how to repair it."""

    available: bool
    repair: str


def refusals(limits: Limits, offers: Mapping[str, Offer], *, cpus: frozenset[int]) -> tuple[tuple[str, str], ...]:
    """Name and repair of each limit that is set and cannot be enforced.

    `offers`: by the name of the limit. `cpus`: those that a job may run on.
    """
    refused = [
        (name, offer.repair)
        for name, offer in offers.items()
        if getattr(limits, name) is not None and not offer.available
    ]
    if limits.cpu_cores is not None and offers["cpu_cores"].available:
        refused += _not_there(limits.cpu_cores, cpus)
    return tuple(refused)


def _not_there(cpu_cores: str, cpus: frozenset[int]) -> list[tuple[str, str]]:
    usable = format_cpu_list(cpus)
    try:
        missing = parse_cpu_list(cpu_cores) - cpus
    except ValueError:
        return [("cpu_cores", f"{cpu_cores[:40]!r} is no list of CPUs; use some of {usable}")]
    if missing:
        return [("cpu_cores", f"CPU {format_cpu_list(missing)} is not usable here; use some of {usable}")]
    return []


def job_ids(names: Iterable[str]) -> frozenset[JobId]:
    """Those of `names` that are job ids."""
    return frozenset(job for job in map(_job_id, names) if job is not None)


def _job_id(name: str) -> JobId | None:
    try:
        return parse_job_id(name)
    except JobletError:
        return None
