"""Executor's outboxes and persist's machine, tied together: whatever fails, everything is delivered, and none waits.

Both are pure, so a channel in memory and a counter for a clock are all there is between them. The outbox's patience is
left out: it is there for messages that get lost, and would heal a word that persist forgot to say.
"""

import random
from collections import deque

import pytest

from common.identifiers import JobId, new_job_id
from common.messages.logs import EndOfJob, StoreRecords
from services.executor.durable import Outbox
from services.executor.job_store import Cursor
from services.executor.journal import Slice
from services.persist import machine as machine_module
from services.persist.events import (
    Answer,
    AskResend,
    BatchArrived,
    BatchRefused,
    Flush,
    Flushed,
    FlushFailed,
    Instruction,
    Tick,
)
from services.persist.machine import Limits, Machine

RECORD_BYTES = 10
WINDOW_BYTES = 80
LIMITS = Limits(flush_bytes=60, flush_ms=20, turn_bytes=100, retry_ms=50, small_bytes=30, small_places=2)


class World:
    """Jobs of one executor, a persist that can be killed, and what is durable of each job."""

    def __init__(self, source: random.Random, jobs: int) -> None:
        self.source = source
        self.now_ms = 0
        self.outboxes = {job: _outbox(job) for job in (new_job_id() for _ in range(jobs))}
        self.machine = Machine(LIMITS)
        self.to_persist: deque[StoreRecords | EndOfJob] = deque()
        self.to_executor: deque[Answer | AskResend] = deque()
        self.flushing: list[Flush] = []
        self.durable = dict.fromkeys(self.outboxes, 0)
        self.ended: set[JobId] = set()

    def step(self, *, faults: bool) -> None:
        """Something happens."""
        self.now_ms += self.source.randrange(10)
        match self.source.randrange(10):
            case 0 | 1:
                self._send(self.source.choice([*self.outboxes]))
            case 2 | 3 if self.to_persist:
                self._arrives(self.to_persist.popleft(), corrupt=faults and self.source.random() < 0.02)
            case 4 | 5 if self.to_executor:
                self._heard(self.to_executor.popleft())
            case 6:
                self._do(self.machine.handle(Tick(self.now_ms)))
            case 7 if self.flushing:
                self._end(self.flushing.pop(self.source.randrange(len(self.flushing))), faults=faults)
            case 8 if faults and self.source.random() < 0.02:
                self._restart()
            case 9:
                self._grow(self.source.choice([*self.outboxes]))

    @property
    def delivered(self) -> bool:
        """All jobs are, with their ends."""
        return all(outbox.delivered for outbox in self.outboxes.values())

    def _grow(self, job: JobId) -> None:
        outbox = self.outboxes[job]
        if outbox.last_sequence is not None:
            return
        outbox.grown(outbox.readable + self.source.randrange(4) * RECORD_BYTES)
        if self.source.random() < 0.05:
            outbox.ended(outbox.readable // RECORD_BYTES)

    def _send(self, job: JobId) -> None:
        outbox = self.outboxes[job]
        if outbox.paused_until_ns > self.now_ms * 10**6 or outbox.in_flight_bytes >= WINDOW_BYTES:
            return
        if outbox.has_records():
            start = outbox.sent
            count = min(self.source.randrange(1, 4), (outbox.readable - start.offset) // RECORD_BYTES)
            last = start.sequence + count
            data = b"".join(number.to_bytes(RECORD_BYTES, "big") for number in range(start.sequence + 1, last + 1))
            piece = Slice(start.offset, start.offset + len(data), data, last)
            self.to_persist.append(outbox.send_records(piece, now_ns=self.now_ms * 10**6))
        elif outbox.end_is_due():
            self.to_persist.append(outbox.send_end(now_ns=self.now_ms * 10**6))

    def _arrives(self, message: StoreRecords | EndOfJob, *, corrupt: bool) -> None:
        job, epoch, number = message.job, message.epoch, message.batch
        if corrupt:
            self._do(self.machine.handle(BatchRefused(job, epoch)))
            return
        if isinstance(message, EndOfJob):
            last = message.last_sequence
            event = BatchArrived(job, epoch, number, (), 0, last, last, self.now_ms)
        else:
            through = int.from_bytes(message.records[-RECORD_BYTES:], "big")
            event = BatchArrived(job, epoch, number, (), len(message.records), through, None, self.now_ms)
        self._do(self.machine.handle(event))

    def _end(self, flush: Flush, *, faults: bool) -> None:
        job = flush.job
        if faults and self.source.random() < 0.2:
            self._do(self.machine.handle(FlushFailed(job, abandoned=False, now_ms=self.now_ms)))
            return
        through = max(one.through for one in flush.batches)
        self.durable[job] = max(self.durable[job], through)
        ended = flush.batches[-1].end is not None
        if ended:
            self.ended.add(job)
        self._do(self.machine.handle(Flushed(job, flush.epoch, through, ended, self.now_ms)))

    def _heard(self, word: Answer | AskResend) -> None:
        outbox = self.outboxes[word.job]
        if isinstance(word, AskResend):
            outbox.missing(word.epoch, now_ns=self.now_ms * 10**6)
            return
        outbox.stored(word.last_sequence, ended=word.ended, now_ns=self.now_ms * 10**6)
        assert outbox.acknowledged.sequence <= self.durable[word.job]
        assert not outbox.delivered or word.job in self.ended

    def _restart(self) -> None:
        self.machine = Machine(LIMITS)
        self.to_persist.clear()
        self.to_executor.clear()
        self.flushing.clear()
        for outbox in self.outboxes.values():
            if not outbox.delivered:
                outbox.go_back(now_ns=self.now_ms * 10**6)

    def _do(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Flush():
                    assert instruction.job not in {flush.job for flush in self.flushing}
                    self.flushing.append(instruction)
                case Answer() | AskResend():
                    self.to_executor.append(instruction)


def _outbox(job: JobId) -> Outbox:
    return Outbox(Cursor(job=job, epoch=0, acknowledged_offset=0, acknowledged_sequence=0), now_ns=0)


@pytest.mark.parametrize("seed", range(200))
def test_everything_is_delivered_and_nobody_waits_for_a_word(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushes that fail, batches that are corrupt, restarts, more jobs than are remembered; then all goes well."""
    source = random.Random(seed)  # noqa: S311  # no secret
    monkeypatch.setattr(machine_module, "JOBS_MAX", source.choice((2, 100)))
    world = World(source, jobs=source.randrange(1, 8))
    for _ in range(source.randrange(3000)):
        world.step(faults=True)
    for _ in range(40_000):
        if world.delivered:
            break
        world.step(faults=False)
    assert world.delivered, [job for job, outbox in world.outboxes.items() if not outbox.delivered]
    assert world.machine.held_bytes == sum(one.size_bytes for flush in world.flushing for one in flush.batches)
