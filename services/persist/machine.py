"""Which batches are taken, when they are written, and what is answered. Pure: events in, instructions out.

One job, go-back-N as common/messages/logs.py says:

    batch 0 of a newer epoch ──▶ taken, the epoch is the present one; what waited of the old one is dropped
    the next batch of the present epoch ──▶ taken
    anything else ──▶ AskResend, of the highest epoch that is known
    Flush ──▶ Flushed: Answer up to its last sequence, and only then
          └─▶ FlushFailed: nothing is answered, what waits is dropped, AskResend after `retry_ms`: the sender
              comes back with all that was not acknowledged. Abandoned: nothing of the job is taken any more.

A job has at most one Flush under way, so its output stays in order. What is due waits in one of two lines, each first
in, first out, each with places of its own for the Flushes that are under way:

    small   jobs of which `small_bytes` or less wait. Writing that is mostly waiting for the disk, which synchronizes
            several files in hardly more time than one: so there are many places.
    large   the others. Work for the processors: so there are few places. A turn is at most `turn_bytes`, and less
            when many wait, so that a round through all of them stays at about `round_bytes`.

So a job that writes a line now and then never stands behind one that floods, a flood stands behind each other flood
once, and while something is due no place that it may take is empty. No clock and no I/O: times come in as `now_ms`, on
any steady clock.
"""

from collections import deque
from typing import Final, NamedTuple

from common.identifiers import JobId
from services.persist.events import (
    Answer,
    AskResend,
    BatchArrived,
    BatchRefused,
    Event,
    Flush,
    Flushed,
    FlushFailed,
    Instruction,
    JobDeleted,
    Tick,
)

JOBS_MAX: Final = 10_000
"""Jobs that are remembered; beyond, the longest idle one is forgotten and must begin a new epoch."""


class Limits(NamedTuple):
    """When to write."""

    flush_bytes: int
    flush_ms: int
    turn_bytes: int = 4 * 2**20
    retry_ms: int = 1000
    small_bytes: int = 64 * 2**10
    small_places: int = 16
    large_places: int = 2
    round_bytes: int = 32 * 2**20

    @property
    def places(self) -> int:
        """Flushes that may be under way at once."""
        return self.small_places + self.large_places


class _Line:
    """Jobs that are due, and how many may be written at once."""

    def __init__(self, places: int) -> None:
        self.waiting: dict[JobId, _Job] = {}
        self.free = places


class _Job:
    def __init__(self) -> None:
        self.epoch = -1  # below any
        self.next_batch: int | None = None  # None: only a newer epoch is taken
        self.waiting: deque[BatchArrived] = deque()
        self.waiting_bytes = 0
        self.waiting_since_ms = 0
        self.line: _Line | None = None  # the one it waits in
        self.flushing: _Line | None = None  # the one whose place its Flush has
        self.flushing_bytes = 0
        self.resend_at_ms: int | None = None
        self.abandoned = False

    @property
    def is_idle(self) -> bool:
        """Nothing is lost when it is forgotten. Whoever is owed a Resend waits for that."""
        return not (self.waiting or self.flushing or self.abandoned) and self.resend_at_ms is None


class Machine:
    """The state of all jobs on their way into the store."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._small, self._large = _Line(limits.small_places), _Line(limits.large_places)
        self._jobs: dict[JobId, _Job] = {}
        self._timed: dict[JobId, _Job] = {}
        """Those of `_jobs` for which time matters: a batch waits, or a Resend does."""
        self.held_bytes = 0
        """Of all jobs: what waits and what is being written."""

    def handle(self, event: Event) -> list[Instruction]:
        """What to do about `event`."""
        match event:
            case BatchArrived():
                return self._arrived(event)
            case BatchRefused():
                job = self._jobs.get(event.job)
                return [] if job is not None and job.abandoned else [AskResend(event.job, event.epoch)]
            case Flushed():
                return self._flushed(event)
            case FlushFailed():
                return self._failed(event)
            case JobDeleted():
                return self._deleted(event.job)
            case Tick():
                return self._tick(event.now_ms)

    @property
    def needs_ticks(self) -> bool:
        """False when no Tick would do anything before another event comes."""
        return bool(self._timed)

    def _arrived(self, event: BatchArrived) -> list[Instruction]:
        job = self._jobs.get(event.job)
        if job is None:
            if event.batch:
                return [AskResend(event.job, event.epoch)]
            job = self._add(event.job)
        if job.abandoned:
            return []
        if event.batch == 0 and event.epoch > job.epoch:
            self._drop_waiting(event.job, job)
            job.epoch, job.next_batch, job.resend_at_ms = event.epoch, 0, None
        if event.epoch != job.epoch or event.batch != job.next_batch:
            # An older epoch: of a sender that came back with its clock behind. It must learn where to go on from.
            return [] if job.resend_at_ms is not None else [AskResend(event.job, max(event.epoch, job.epoch))]
        if not job.waiting:
            job.waiting_since_ms = event.now_ms
        job.next_batch = event.batch + 1
        job.waiting.append(event)
        job.waiting_bytes += event.size_bytes
        self.held_bytes += event.size_bytes
        self._timed[event.job] = job
        self._line_up_if_due(event.job, job, event.now_ms)
        return self._begin()

    def _flushed(self, event: Flushed) -> list[Instruction]:
        answer = Answer(event.job, event.epoch, event.through, ended=event.ended)
        job = self._jobs.get(event.job)
        if job is None:
            return [answer]
        self._end_flush(job)
        if event.ended and not job.waiting:
            self._forget(event.job)
        else:
            self._line_up_if_due(event.job, job, event.now_ms)
        return [answer, *self._begin()]

    def _failed(self, event: FlushFailed) -> list[Instruction]:
        job = self._jobs.get(event.job)
        if job is None:
            return []
        self._end_flush(job)
        self._drop_waiting(event.job, job)
        job.abandoned = event.abandoned
        job.next_batch = None
        if not event.abandoned:
            job.resend_at_ms = event.now_ms + self._limits.retry_ms
            self._timed[event.job] = job
        return list(self._begin())

    def _deleted(self, job_id: JobId) -> list[Instruction]:
        job = self._jobs.get(job_id)
        if job is not None:  # it stays known while a Flush may be under way
            self._drop_waiting(job_id, job)
            job.next_batch, job.resend_at_ms, job.abandoned = None, None, False
        return []

    def _tick(self, now_ms: int) -> list[Instruction]:
        found: list[Instruction] = []
        for job_id, job in list(self._timed.items()):
            if job.resend_at_ms is not None and job.resend_at_ms <= now_ms:
                job.resend_at_ms = None
                found.append(AskResend(job_id, job.epoch))
            self._line_up_if_due(job_id, job, now_ms)
            if job.resend_at_ms is None and (not job.waiting or job.line is not None):
                del self._timed[job_id]
        return [*found, *self._begin()]

    def _line_up_if_due(self, job_id: JobId, job: _Job, now_ms: int) -> None:
        if job.flushing or job.line or not job.waiting or now_ms < self._due_ms(job):
            return
        job.line = self._small if job.waiting_bytes <= self._limits.small_bytes else self._large
        job.line.waiting[job_id] = job

    def _begin(self) -> list[Instruction]:
        """Fill the free places with those who wait longest."""
        found: list[Instruction] = []
        for line in (self._small, self._large):
            while line.free and line.waiting:
                turn_bytes = self._turn_bytes(line)
                job_id = next(iter(line.waiting))
                found.append(self._flush(job_id, line.waiting.pop(job_id), line, turn_bytes))
        return found

    def _turn_bytes(self, line: _Line) -> int:
        limits = self._limits
        if line is self._small:
            return limits.small_bytes
        return max(limits.flush_bytes, min(limits.turn_bytes, limits.round_bytes // len(line.waiting)))

    def _flush(self, job_id: JobId, job: _Job, line: _Line, turn_bytes: int) -> Flush:
        taken: list[BatchArrived] = []
        size_bytes = 0
        while job.waiting and (not taken or size_bytes + job.waiting[0].size_bytes <= turn_bytes):
            batch = job.waiting.popleft()
            taken.append(batch)
            size_bytes += batch.size_bytes
        job.waiting_bytes -= size_bytes
        job.line, job.flushing, job.flushing_bytes = None, line, size_bytes
        line.free -= 1
        if job.waiting:
            self._timed[job_id] = job
        return Flush(job_id, job.epoch, tuple(taken))

    def _end_flush(self, job: _Job) -> None:
        if job.flushing is not None:
            job.flushing.free += 1
        self.held_bytes -= job.flushing_bytes
        job.flushing, job.flushing_bytes = None, 0

    def _drop_waiting(self, job_id: JobId, job: _Job) -> None:
        self.held_bytes -= job.waiting_bytes
        job.waiting_bytes = 0
        job.waiting.clear()
        if job.line is not None:
            del job.line.waiting[job_id]
            job.line = None

    def _due_ms(self, job: _Job) -> int:
        """Now (0) when there is enough or the job ended, else when its oldest batch has waited for long enough."""
        if job.waiting_bytes >= self._limits.flush_bytes or job.waiting[-1].end is not None:
            return 0
        return job.waiting_since_ms + self._limits.flush_ms

    def _add(self, job_id: JobId) -> _Job:
        if len(self._jobs) >= JOBS_MAX:
            oldest = next((known for known, job in self._jobs.items() if job.is_idle), None)
            if oldest is not None:
                self._forget(oldest)
        job = self._jobs[job_id] = _Job()
        return job

    def _forget(self, job_id: JobId) -> None:
        job = self._jobs.pop(job_id)
        self._timed.pop(job_id, None)
        assert not job.waiting
        assert not job.flushing
