"""Which batches are taken, when they are written, and what is answered. Pure: events in, instructions out.

One job, go-back-N as common/messages/logs.py says:

    batch 0 of a newer epoch ──▶ taken, the epoch is the present one; what waited of the old one is dropped
    the next batch of the present epoch ──▶ taken
    anything else ──▶ AskResend, of the highest epoch that is known
    Flush ──▶ Flushed: Answer up to its last sequence, and only then
          └─▶ FlushFailed: nothing is answered, what waits is dropped, AskResend after `retry_ms`: the sender
              comes back with all that was not acknowledged. Abandoned: nothing of the job is taken any more.

A job has at most one Flush under way, of at most `turn_bytes`, and goes to the end of the line for its next one: so a
job that floods does not hold up the others. No clock and no I/O: times come in as `now_ms`, on any steady clock.
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


class _Job:
    def __init__(self) -> None:
        self.epoch = -1  # below any
        self.next_batch: int | None = None  # None: only a newer epoch is taken
        self.waiting: deque[BatchArrived] = deque()
        self.waiting_bytes = 0
        self.waiting_since_ms = 0
        self.flushing = False
        self.flushing_bytes = 0
        self.resend_at_ms: int | None = None
        self.abandoned = False

    def drop_waiting(self) -> int:
        dropped, self.waiting_bytes = self.waiting_bytes, 0
        self.waiting.clear()
        return dropped


class Machine:
    """The state of all jobs on their way into the store."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
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
            self.held_bytes -= job.drop_waiting()
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
        return self._flush_if_due(event.job, job, event.now_ms)

    def _flushed(self, event: Flushed) -> list[Instruction]:
        answer = Answer(event.job, event.epoch, event.through, ended=event.ended)
        job = self._jobs.get(event.job)
        if job is None:
            return [answer]
        self._end_flush(job)
        if event.ended and not job.waiting:
            self._forget(event.job)
            return [answer]
        return [answer, *self._flush_if_due(event.job, job, event.now_ms)]

    def _failed(self, event: FlushFailed) -> list[Instruction]:
        job = self._jobs.get(event.job)
        if job is None:
            return []
        self._end_flush(job)
        self.held_bytes -= job.drop_waiting()
        job.abandoned = event.abandoned
        job.next_batch = None
        if not event.abandoned:
            job.resend_at_ms = event.now_ms + self._limits.retry_ms
            self._timed[event.job] = job
        return []

    def _deleted(self, job_id: JobId) -> list[Instruction]:
        job = self._jobs.get(job_id)
        if job is not None:  # it stays known while a Flush may be under way
            self.held_bytes -= job.drop_waiting()
            job.next_batch, job.resend_at_ms, job.abandoned = None, None, False
        return []

    def _tick(self, now_ms: int) -> list[Instruction]:
        found: list[Instruction] = []
        for job_id, job in list(self._timed.items()):
            if job.resend_at_ms is not None and job.resend_at_ms <= now_ms:
                job.resend_at_ms = None
                found.append(AskResend(job_id, job.epoch))
            found += self._flush_if_due(job_id, job, now_ms)
            if not job.waiting and job.resend_at_ms is None:
                del self._timed[job_id]
        return found

    def _flush_if_due(self, job_id: JobId, job: _Job, now_ms: int) -> list[Instruction]:
        if job.flushing or not job.waiting or now_ms < self._due_ms(job):
            return []
        taken: list[BatchArrived] = []
        size_bytes = 0
        while job.waiting and (not taken or size_bytes + job.waiting[0].size_bytes <= self._limits.turn_bytes):
            batch = job.waiting.popleft()
            taken.append(batch)
            size_bytes += batch.size_bytes
        job.waiting_bytes -= size_bytes
        job.flushing, job.flushing_bytes = True, size_bytes
        return [Flush(job_id, job.epoch, tuple(taken))]

    def _end_flush(self, job: _Job) -> None:
        self.held_bytes -= job.flushing_bytes
        job.flushing, job.flushing_bytes = False, 0

    def _due_ms(self, job: _Job) -> int:
        """Now (0) when there is enough or the job ended, else when its oldest batch has waited for long enough."""
        if job.waiting_bytes >= self._limits.flush_bytes or job.waiting[-1].end is not None:
            return 0
        return job.waiting_since_ms + self._limits.flush_ms

    def _add(self, job_id: JobId) -> _Job:
        if len(self._jobs) >= JOBS_MAX:
            idle = (known for known, job in self._jobs.items() if not (job.waiting or job.flushing or job.abandoned))
            oldest = next(idle, None)
            if oldest is not None:
                self._forget(oldest)
        job = self._jobs[job_id] = _Job()
        return job

    def _forget(self, job_id: JobId) -> None:
        job = self._jobs.pop(job_id)
        self._timed.pop(job_id, None)
        assert not job.waiting
        assert not job.flushing
