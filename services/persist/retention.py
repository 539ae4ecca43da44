"""What is to be removed, and which rule says so. Pure: what is stored and the rules in, removals out.

    age          ended jobs that ended so long ago
    job_bytes    an ended job with larger logs: its oldest output, down to what trimming can reach
    owner_bytes  of an owner's jobs the oldest, until the others are in bounds
    total_bytes  of all jobs the oldest, until the others are in bounds
    free_bytes   of all jobs the oldest, until so much is free

In this order, each for what those before it leave. Oldest: by when the job ended, whatever the clock says now. A job
that has not ended is never touched, and counts in the total. Not here: measuring (catalogue.py), doing (keeping.py),
and whether the clock can be believed (clock.py).
"""

from collections import Counter
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Final, NamedTuple

from common.config.settings import Retention
from common.identifiers import JobId

DAY_NS: Final = 24 * 3600 * 10**9
PLAUSIBLE_FROM_NS: Final = 1_577_836_800 * 10**9
"""2020-01-01, before there was a joblet. Who ended earlier ended while the clock was not set: nobody knows its age."""


class Rule(StrEnum):
    """What asks for a removal; the word on the wire."""

    AGE = "age"
    JOB_BYTES = "job_bytes"
    OWNER_BYTES = "owner_bytes"
    TOTAL_BYTES = "total_bytes"
    FREE_BYTES = "free_bytes"


class StoredJob(NamedTuple):
    """What is stored of one job, in bytes of its files."""

    job: JobId
    owner: str
    """"": not known."""
    ended_at_ns: int
    ended: bool
    log_bytes: int
    metric_bytes: int
    disk_bytes: int
    """What its removal gives back on the file system that holds the logs."""
    trimmed_bytes: int | None = None
    """What its logs would have when they are trimmed for `job_bytes`; None: that gains nothing."""

    @property
    def size_bytes(self) -> int:
        """Logs and metrics."""
        return self.log_bytes + self.metric_bytes


class Rules(NamedTuple):
    """0: no such rule."""

    age_ns: int = 0
    job_bytes: int = 0
    owner_bytes: int = 0
    total_bytes: int = 0
    free_bytes: int = 0


class Removal(NamedTuple):
    """All of a job, or with `trims` the oldest output of it."""

    job: JobId
    owner: str
    ended_at_ns: int
    size_bytes: int
    """How much smaller its files are then."""
    why: Rule
    trims: bool = False


def rules_of(settings: Retention) -> Rules:
    """The rules that the settings mean."""
    return Rules(
        settings.age_days * DAY_NS,
        settings.job_bytes,
        settings.owner_bytes,
        settings.total_bytes,
        settings.free_bytes,
    )


def plan(
    jobs: Iterable[StoredJob], rules: Rules, *, free_bytes: int, now_ns: int, clock_believed: bool
) -> list[Removal]:
    """What to remove: whole jobs first, then trims, each the longest ended first.

    `free_bytes`: what is free now. Without `clock_believed` nothing is removed for its age.
    """
    plan = _Plan(jobs)
    if rules.age_ns and clock_believed:
        plan.remove_while(Rule.AGE, lambda job: PLAUSIBLE_FROM_NS <= job.ended_at_ns < now_ns - rules.age_ns)
    if rules.job_bytes:
        plan.trim(rules.job_bytes)
    if rules.owner_bytes:
        plan.remove_while(
            Rule.OWNER_BYTES, lambda job: job.owner != "" and plan.of_owners[job.owner] > rules.owner_bytes
        )
    if rules.total_bytes:
        plan.remove_while(Rule.TOTAL_BYTES, lambda _: plan.total > rules.total_bytes)
    if rules.free_bytes:
        plan.remove_while(
            Rule.FREE_BYTES, lambda job: job.disk_bytes > 0 and free_bytes + plan.freed < rules.free_bytes
        )
    return plan.removals()


class _Plan:
    """What stays after the rules so far, and what goes."""

    def __init__(self, jobs: Iterable[StoredJob]) -> None:
        everything = list(jobs)
        self.total = sum(job.size_bytes for job in everything)
        self.of_owners: Counter[str] = Counter()
        self.freed = 0
        for job in everything:
            self.of_owners[job.owner] += job.size_bytes
        self._left = sorted((job for job in everything if job.ended), key=_age)
        self._sizes = {job.job: job.size_bytes for job in self._left}
        """As they are after trimming."""
        self._whole: list[tuple[StoredJob, Rule]] = []
        self._trims: dict[JobId, StoredJob] = {}

    def remove_while(self, rule: Rule, wanted: Callable[[StoredJob], bool]) -> None:
        """Remove every job that is `wanted`, the oldest first; the answer may change with each removal."""
        kept: list[StoredJob] = []
        for job in self._left:
            if not wanted(job):
                kept.append(job)
                continue
            size = self._sizes[job.job]
            trimmed = self._trims.pop(job.job, None)
            self._count(job, size, job.disk_bytes - (0 if trimmed is None else job.size_bytes - size))
            self._whole.append((job, rule))
        self._left = kept

    def trim(self, job_bytes: int) -> None:
        """Trim every job whose logs are larger."""
        for job in self._left:
            if job.log_bytes > job_bytes and job.trimmed_bytes is not None:
                gained = job.log_bytes - job.trimmed_bytes
                self._sizes[job.job] -= gained
                self._trims[job.job] = job
                self._count(job, gained, gained)

    def removals(self) -> list[Removal]:
        """The outcome."""
        whole = sorted(self._whole, key=lambda item: _age(item[0]))
        trims = (job for job in self._left if job.job in self._trims)
        return [
            *(Removal(job.job, job.owner, job.ended_at_ns, job.size_bytes, rule) for job, rule in whole),
            *(
                Removal(
                    job.job,
                    job.owner,
                    job.ended_at_ns,
                    job.size_bytes - self._sizes[job.job],
                    Rule.JOB_BYTES,
                    trims=True,
                )
                for job in trims
            ),
        ]

    def _count(self, job: StoredJob, size_bytes: int, disk_bytes: int) -> None:
        self.total -= size_bytes
        self.of_owners[job.owner] -= size_bytes
        self.freed += max(0, disk_bytes)


def _age(job: StoredJob) -> tuple[int, JobId]:
    return job.ended_at_ns, job.job
