"""From the write socket to the store: executes what machine.py decides.

The event loop takes messages, checks records and answers; encoding, compressing and writing happen in worker threads
(isal releases the GIL while it compresses). Nothing is answered before the store has said that it is durable.
"""

import asyncio
import errno
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, Protocol, assert_never

import structlog

from common.errors import JobletError, invalid
from common.failpoints import reached
from common.identifiers import JobId, parse_job_id
from common.messages.envelope import Body, Message
from common.messages.logs import EndOfJob, Resend, Stored, StoreMetric, StoreRecords
from common.records import CorruptRecord, decode_all
from services.persist import lines
from services.persist.changes import Changes
from services.persist.events import (
    Answer,
    AskResend,
    BatchArrived,
    BatchRefused,
    Event,
    Flush,
    Flushed,
    FlushFailed,
    JobDeleted,
    Tick,
)
from services.persist.lines import INTEGER_MAX, RefusedRecord
from services.persist.machine import Limits, Machine
from services.persist.samples import Samples
from services.persist.segment import AbandonedSegment
from services.persist.store import Store

log = structlog.get_logger(__name__)

HELD_BYTES_MAX: Final = 128 * 2**20
"""Beyond, no message is taken until some of it is written: twice what the executor has on the way."""
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
_TICK_S_MAX: Final = 0.05
_SAMPLES_S: Final = 1.0


class Source(Protocol):
    """Where messages come from: a Receiver of the write socket."""

    def messages(self) -> AsyncIterator[Message]:
        """Every valid message, for ever."""


class Ingest:
    """Runs until it is cancelled. `answer` sends to the executor and waits while that cannot take it."""

    def __init__(
        self,
        *,
        source: Source,
        answer: Callable[[Body], None],
        store: Store,
        samples: Samples,
        changes: Changes,
        limits: Limits,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._source = source
        self._answer = answer
        self._store = store
        self._samples = samples
        self._changes = changes
        self._machine = Machine(limits)
        self._pool = pool
        self._tick_s = min(_TICK_S_MAX, max(1, limits.flush_ms) / 8000)
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.counts: Counter[str] = Counter()
        """By the names of docs/operations.md, counters."""

    async def run(self) -> None:
        """Take messages for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._receive())
            group.create_task(self._tick())
            group.create_task(self._flush_samples())

    async def settle(self) -> None:
        """Wait for what is being written; nothing new is begun. After `run` was cancelled."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.get_running_loop().run_in_executor(self._pool, self._samples.flush_all)

    def deleted(self, job: JobId) -> None:
        """All that was stored of `job` is gone."""
        self._samples.forget(job)
        self._handle(JobDeleted(job))
        self._changes.tell(job, deleted=True)

    async def _receive(self) -> None:
        async for message in self._source.messages():
            self._take(message.body)
            await asyncio.sleep(0)  # a message that is there already does not let the others run
            while self._machine.held_bytes > HELD_BYTES_MAX:
                self._room.clear()
                await self._room.wait()

    async def _tick(self) -> None:
        while True:
            await self._wake.wait()
            while self._machine.needs_ticks:
                await asyncio.sleep(self._tick_s)
                self._handle(Tick(_now_ms()))
            self._wake.clear()

    def _take(self, body: Body) -> None:
        try:
            match body:
                case StoreRecords():
                    parse_job_id(body.job)
                    self._handle(self._batch(body))
                    reached("persist.taken")
                case EndOfJob():
                    parse_job_id(body.job)
                    self._handle(_end(body))
                case StoreMetric():
                    parse_job_id(body.job)
                    self._samples.add(body, _now_ms())
                case _:
                    raise AssertionError(f"{type(body).__name__} is not of this endpoint")
        except JobletError as refused:
            self._count("messages_refused", str(refused))
        self._wake.set()

    def _batch(self, body: StoreRecords) -> BatchArrived | BatchRefused:
        try:
            records = tuple(decode_all(body.records))
            for record in records:
                lines.check(record)
        except (CorruptRecord, RefusedRecord) as cause:
            self._count("records_corrupt", str(cause), job=body.job)
            return BatchRefused(body.job, body.epoch)
        through = max((record.last_sequence for record in records), default=0)
        return BatchArrived(
            body.job, body.epoch, body.batch, records, len(body.records), through, None, now_ms=_now_ms()
        )

    def _handle(self, event: Event) -> None:
        for instruction in self._machine.handle(event):
            match instruction:
                case Flush():
                    self._start(self._flush(instruction))
                case Answer(job=job, epoch=epoch, last_sequence=last, ended=ended):
                    self._answer(Stored(job=job, epoch=epoch, last_sequence=last, ended=ended))
                case AskResend(job=job, epoch=epoch):
                    self._count("resends_asked", "a batch did not follow the one before", job=job)
                    self._answer(Resend(job=job, epoch=epoch))
                case _:
                    assert_never(instruction)
        self._room.set()

    async def _flush(self, flush: Flush) -> None:
        job, through, last = flush.job, _through(flush.batches), flush.batches[-1]
        end = last.end
        records = [record for batch in flush.batches for record in batch.records]
        write = partial(self._store.write, job, records, through=through, end=end)
        if end is not None:
            write = partial(write, owner=last.owner, ended_at_ns=last.ended_at_ns)
        try:
            written = await asyncio.get_running_loop().run_in_executor(self._pool, write)
        except AbandonedSegment:
            self._failed(
                job, "synchronizing failed: nothing more of this job is stored by this process", abandoned=True
            )
        except OSError as cause:
            full = cause.errno in _FULL
            self._failed(
                job, f"{'no room' if full else 'cannot write'}: {os.strerror(cause.errno or 0)}", abandoned=False
            )
        except Exception:
            log.exception("storing failed", job=job)
            self._failed(job, "internal error", abandoned=False)
        else:
            self.counts["entries_repeated"] += written.repeats
            if written.missing:
                self._count("entries_missing", f"{written.missing} entries never came", times=written.missing, job=job)
            reached("persist.stored")
            self._handle(Flushed(job, flush.epoch, through, end is not None, _now_ms()))
            self._changes.tell(job)

    async def _flush_samples(self) -> None:
        while True:
            await asyncio.sleep(_SAMPLES_S)
            if self._samples.waiting:
                await asyncio.get_running_loop().run_in_executor(self._pool, self._samples.flush_due, _now_ms())

    def _failed(self, job: JobId, why: str, *, abandoned: bool) -> None:
        self._count("flushes_failed", why, job=job)
        self._handle(FlushFailed(job, abandoned, _now_ms()))
        self._wake.set()

    def _start(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _count(self, what: str, why: str, *, times: int = 1, **context: str) -> None:
        before = self.counts[what]
        self.counts[what] += times
        if self.counts[what].bit_length() > before.bit_length():  # at 1, 2, 4, 8 …: a flood does not fill the log
            log.warning("ingest", what=what, why=why[:300], times=self.counts[what], **context)


def _end(body: EndOfJob) -> BatchArrived:
    if not 0 <= body.last_sequence < INTEGER_MAX:
        raise invalid(f"last sequence {body.last_sequence} is out of range")
    last = body.last_sequence
    return BatchArrived(
        body.job, body.epoch, body.batch, (), 0, last, last, _now_ms(), owner=body.owner, ended_at_ns=body.ended_at_ns
    )


def _through(batches: Iterable[BatchArrived]) -> int:
    return max(batch.through for batch in batches)


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
