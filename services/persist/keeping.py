"""Retention at work: measures what is stored, asks retention.py what must go, and removes it, one job after the other.

On the event loop: when to look, one round at a time, and telling who asked. In a thread of its own: everything that
touches a disk, so that neither output nor queries wait for it. What was removed, or could not be, is in the audit log.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Final, Literal, NamedTuple, Protocol, TypeVar

import msgspec
import structlog

from common.config.settings import Retention
from common.failpoints import reached
from common.identifiers import JobId
from common.quantities import format_duration_ms, format_time_ns
from services.persist import catalogue, clock, clockfile, retention
from services.persist.catalogue import Catalogue, ScanStopped
from services.persist.clock import Reading, Watched
from services.persist.retention import Removal, StoredJob
from services.persist.segment import StaleSegment
from services.persist.store import Store
from services.persist.trimming import Cut, TrimStopped

log = structlog.get_logger(__name__)

T = TypeVar("T")

EARLY_S: Final = 1.0
"""Between two rounds when there is no room, as long as each finds something to remove …"""
IDLE_EARLY_S: Final = 5.0
"""… and when it does not; or so many times what a round takes:"""
IDLE_FACTOR: Final = 20
SPARE_BYTES: Final = 64 * 1024
"""For directories and other things that a file system needs to write something."""
UNFINISHED: Final = "unfinished"
"""In the audit log, in place of a rule: a removal that a process before did not come to the end of."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the audit log. `object`: the job.

    `outcome`: "removed", "trimmed" (up to entry `through`), or "failed" with `why`.
    """

    kind: Literal["removal"] = "removal"
    time: str
    who: str = "joblet-persist"
    method: str = "retention"
    object: str
    owner: str
    bytes: int
    rule: str
    through: int = 0
    outcome: str
    why: str = ""


class Audit(Protocol):
    """Where lines go."""

    def record(self, decision: msgspec.Struct) -> None:
        """Keep the line. Never raises."""


class Told(NamedTuple):
    """A removal, and the last entry that goes when not all of the job does; 0: all of it."""

    removal: Removal
    through: int


class Facts(NamedTuple):
    """How much is stored; `measured_at_ns` 0: not measured yet."""

    jobs: int = 0
    log_bytes: int = 0
    metric_bytes: int = 0
    free_bytes: int = 0
    measured_at_ns: int = 0


class _Round(NamedTuple):
    removals: list[Removal]
    cuts: dict[JobId, Cut]


class Keeper:
    """Applies the rules, by itself and when asked. `removed` is called on the event loop for each job that is gone."""

    def __init__(
        self,
        *,
        store: Store,
        logs: Path,
        metrics: Path,
        settings: Retention,
        audit: Audit,
        removed: Callable[[JobId], None],
        pool: ThreadPoolExecutor,
        read_clock: Callable[[], Reading] = clock.read,
    ) -> None:
        self._store, self._logs, self._metrics = store, logs, metrics
        self._rules = retention.rules_of(settings)
        self._interval_s = settings.interval_ms / 1000
        self._audit = audit
        self._removed = removed
        self._pool = pool
        self._read_clock = read_clock
        self._watched: Watched | None = None
        self._one_round = asyncio.Lock()
        self._early = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = Event()
        self._wanted_bytes = 0
        self.counts: Counter[str] = Counter()
        """jobs_removed and bytes_removed."""
        self.facts = Facts()

    async def run(self) -> None:
        """Apply the rules for ever."""
        while True:
            begun = time.monotonic()
            removals = await self._round()
            took_s = time.monotonic() - begun
            try:
                async with asyncio.timeout(self._interval_s):
                    await asyncio.sleep(EARLY_S if removals else max(IDLE_EARLY_S, IDLE_FACTOR * took_s))
                    await self._early.wait()
            except TimeoutError:
                pass
            self._early.clear()

    def hurry(self, wanted_bytes: int) -> None:
        """There is no room for so much: do not wait for the next time. May be called in any thread.

        What could not be written is taken back, so it may find `free_bytes` free; it needs more than that, then.
        """
        if self._loop is not None and any(self._rules):
            self._loop.call_soon_threadsafe(self._want, wanted_bytes)

    def stop(self) -> None:
        """The process ends: what is under way in the thread ends as soon as it can."""
        self._stopped.set()

    async def apply(self, *, dry_run: bool) -> AsyncGenerator[Told, None]:
        """Remove what the rules say, now, and tell each removal; with `dry_run` only tell. Raises OSError.

        Whoever is told may take all the time it wants: the round does not wait for it. It ends when that one leaves.
        """
        told: asyncio.Queue[Told | None] = asyncio.Queue()
        applying = asyncio.create_task(self._apply(told.put_nowait, dry_run=dry_run))
        applying.add_done_callback(lambda _: told.put_nowait(None))
        try:
            while (one := await told.get()) is not None:
                yield one
            await applying
        finally:
            applying.cancel()
            await asyncio.gather(applying, return_exceptions=True)

    async def _apply(self, tell: Callable[[Told], None], *, dry_run: bool) -> None:
        self._loop = asyncio.get_running_loop()
        async with self._one_round:
            found = await self._in_thread(self._plan, dry_run)
            for removal in found.removals:
                cut = found.cuts[removal.job] if removal.trims else None
                if dry_run or await self._in_thread(self._carry_out, removal, cut):
                    tell(Told(removal, cut.through if cut else 0))

    @property
    def note(self) -> str:
        """What whoever asks should know about the last round; ASCII."""
        if not self._rules.age_ns or self._watched is None or self._watched.is_believed:
            return ""
        left = format_duration_ms(max(60_000, self._watched.unsettled_ns // 10**6 // 60_000 * 60_000))
        return f"the clock was set, or may be wrong: for another {left} no job is removed for its age"

    def _want(self, wanted_bytes: int) -> None:
        self._wanted_bytes = max(self._wanted_bytes, wanted_bytes)
        self._early.set()

    async def _round(self) -> int:
        removals = 0
        try:
            async for _ in self.apply(dry_run=False):
                removals += 1
        except (ScanStopped, TrimStopped):
            pass
        except OSError as cause:
            log.error("what is stored cannot be measured", why=str(cause))
        except Exception:
            log.exception("retention failed")
        return removals

    def _plan(self, dry_run: bool) -> _Round:  # noqa: FBT001  # run_in_executor passes no keywords
        found = catalogue.scan(self._logs, self._metrics, stopped=self._stopped.is_set)
        now = self._read_clock()
        self._watch(found, now, keep=not dry_run)
        if not dry_run:
            self._tidy(found)
            self.facts = Facts(len(found.jobs), found.log_bytes, found.metric_bytes, found.free_bytes, now.wall_ns)
        rules, wanted_bytes = self._rules, self._wanted_bytes
        if not dry_run:
            self._wanted_bytes = 0
        if rules.free_bytes and wanted_bytes:
            rules = rules._replace(free_bytes=max(rules.free_bytes, wanted_bytes + SPARE_BYTES))
        cuts = self._cuts(found.jobs)
        jobs = [_with_cut(job, cuts.get(job.job)) for job in found.jobs]
        assert self._watched is not None
        removals = retention.plan(
            jobs,
            rules,
            free_bytes=found.free_bytes,
            now_ns=now.wall_ns,
            clock_believed=self._watched.is_believed,
        )
        return _Round(removals, cuts)

    def _watch(self, found: Catalogue, now: Reading, *, keep: bool) -> None:
        before = self._watched or clockfile.load(self._logs)
        self._watched = clock.look(before, now, newest_ns=found.newest_ns)
        if keep:
            clockfile.save(self._logs, self._watched)
        if self.note and (before is None or before.is_believed):
            log.warning("age is no reason to remove anything for now", note=self.note)

    def _cuts(self, jobs: tuple[StoredJob, ...]) -> dict[JobId, Cut]:
        cuts: dict[JobId, Cut] = {}
        for job in jobs:
            if self._rules.job_bytes and job.ended and job.log_bytes > self._rules.job_bytes:
                try:
                    cut = self._store.find_cut(job.job, job.log_bytes, self._rules.job_bytes)
                except OSError as cause:
                    log.error("a job's logs cannot be read", job=job.job, why=str(cause))
                    continue
                if cut is not None:
                    cuts[job.job] = cut
        return cuts

    def _tidy(self, found: Catalogue) -> None:
        for job in found.untidy:
            try:
                self._store.tidy(job)
            except OSError as cause:
                log.error("a job's directory cannot be tidied", job=job, why=str(cause))
        for job in found.set_aside:
            try:
                sizes = self._store.resume_removal(job)
                self._tell(job, "", UNFINISHED, size_bytes=sum(sizes), outcome="removed")
                self._store.end_removal(job)
            except OSError as cause:
                self._tell(job, "", UNFINISHED, outcome="failed", why=str(cause))

    def _carry_out(self, removal: Removal, cut: Cut | None) -> bool:
        """Whether it was done. What comes after it, too: whoever asked may be gone by then."""
        job = removal.job
        reached("persist.chosen")
        try:
            if cut is not None:
                size = self._store.trim(job, cut, stopped=self._stopped.is_set)
                self._count(removal, jobs=0, log_bytes=size, metric_bytes=0)
                self._tell(job, removal.owner, removal.why, size_bytes=size, outcome="trimmed", through=cut.through)
                return True
            log_bytes, metric_bytes = self._store.remove(job)
            self._count(removal, jobs=1, log_bytes=log_bytes, metric_bytes=metric_bytes)
            self._tell(job, removal.owner, removal.why, size_bytes=log_bytes + metric_bytes, outcome="removed")
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._removed, job)
            self._store.end_removal(job)
        except (OSError, StaleSegment) as cause:
            self._tell(job, removal.owner, removal.why, outcome="failed", why=str(cause) or type(cause).__name__)
            return False
        return True

    def _count(self, removal: Removal, *, jobs: int, log_bytes: int, metric_bytes: int) -> None:
        self.counts["jobs_removed"] += jobs
        self.counts["bytes_removed"] += log_bytes + metric_bytes
        facts = self.facts
        self.facts = facts._replace(
            jobs=facts.jobs - jobs,
            log_bytes=facts.log_bytes - log_bytes,
            metric_bytes=facts.metric_bytes - metric_bytes,
            free_bytes=catalogue.free(self._logs),
        )
        log.info("removed", job=removal.job, bytes=log_bytes + metric_bytes, rule=removal.why, trimmed=removal.trims)

    def _tell(
        self,
        job: JobId,
        owner: str,
        rule: str,
        *,
        outcome: str,
        size_bytes: int = 0,
        through: int = 0,
        why: str = "",
    ) -> None:
        if why:
            log.error("what must go cannot be removed", job=job, rule=rule, why=why)
        self._audit.record(
            Line(
                time=format_time_ns(time.time_ns()),
                object=job,
                owner=owner,
                bytes=size_bytes,
                rule=rule,
                through=through,
                outcome=outcome,
                why=why,
            )
        )

    async def _in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)


def _with_cut(job: StoredJob, cut: Cut | None) -> StoredJob:
    return job if cut is None else job._replace(trimmed_bytes=job.log_bytes - cut.bytes_before + cut.bytes_after)
