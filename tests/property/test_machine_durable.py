"""Go-back-N against a channel that loses, and against ends that restart: every line arrives once, in order."""

import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.identifiers import JobId, new_job_id
from common.messages.logs import EndOfJob, StoreRecords
from common.records import RecordType, Stream, decode_all, encode
from services.executor.durable import Outbox
from services.executor.job_store import Cursor
from services.executor.journal import scan

STEP_NS = 300_000_000


class Receiver:
    """Persist's rules, as common/messages/logs.py states them. `stored` survives a restart, the rest does not."""

    def __init__(self) -> None:
        self.stored: list[bytes] = []
        self.ended = False
        self.restart()

    def restart(self) -> None:
        """Lose everything that is in memory only."""
        self.epoch, self.next_batch = -1, 0

    def take(self, message: StoreRecords | EndOfJob) -> tuple[str, int]:
        """The answer: ("stored", last sequence) or ("resend", epoch)."""
        if not (
            (message.epoch > self.epoch and message.batch == 0)
            or (message.epoch, message.batch) == (self.epoch, self.next_batch)
        ):
            return "resend", message.epoch
        self.epoch, self.next_batch = message.epoch, message.batch + 1
        if isinstance(message, StoreRecords):
            for record in decode_all(message.records):
                if record.lines and record.sequence > len(self.stored):
                    assert record.sequence == len(self.stored) + 1, "a hole reached persist"
                    self.stored.append(bytes(record.payload))
        else:
            assert message.last_sequence == len(self.stored), "the end came before the last line"
            self.ended = True
        return "stored", len(self.stored)


class World:
    """A sender, a receiver and what is on the way between them. All chance comes from the seed."""

    def __init__(self, seed: int, lines: int, loss: float) -> None:
        self.random = random.Random(seed)  # noqa: S311  # a simulation
        self.loss = loss
        self.lines = [b"line %d\n" % n for n in range(1, lines + 1)]
        self.journal = b"".join(
            encode(RecordType.OUTPUT, text, time_ns=1, sequence=n, lines=1, stream=Stream.STDOUT)
            for n, text in enumerate(self.lines, 1)
        )
        self.job: JobId = new_job_id()
        self.now_ns = 1
        self.saved = Cursor(job=self.job)
        self.receiver = Receiver()
        self.to_receiver: deque[StoreRecords | EndOfJob] = deque()
        self.to_sender: deque[tuple[str, int, bool]] = deque()
        self.start_sender()

    def start_sender(self) -> None:
        """A new process: only what was saved is known."""
        self.outbox = Outbox(self.saved, now_ns=self.now_ns, epoch_floor=self.now_ns)
        self.outbox.grown(len(self.journal))
        self.outbox.ended(len(self.lines))

    def step(self) -> None:
        """One thing happens."""
        self.now_ns += STEP_NS
        match self.random.randrange(40):
            case 0:
                self.receiver.restart()
                self.outbox.go_back(now_ns=self.now_ns)
            case 1:
                self.saved = self.outbox.cursor
                self.start_sender()
            case 2:
                self.start_sender()  # the last cursors were never written
            case n if n < 20:
                self.send()
            case n if n < 32 and self.to_receiver:
                message = self.to_receiver.popleft()
                if self.random.random() >= self.loss:
                    kind, number = self.receiver.take(message)
                    self.to_sender.append((kind, number, self.receiver.ended))
            case _ if self.to_sender:
                self.hear(*self.to_sender.popleft())
        if self.outbox.overdue(self.now_ns):
            self.outbox.give_up_waiting(now_ns=self.now_ns)

    def send(self) -> None:
        """The next batch, if there is one."""
        if self.outbox.paused_until_ns > self.now_ns:
            return
        if self.outbox.has_records():
            cut = self.outbox.sent.offset + self.random.randrange(40, 400)
            piece = scan(
                self.journal[self.outbox.sent.offset : cut],
                self.outbox.sent.offset,
                last_sequence=self.outbox.sent.sequence,
            )
            assert not piece.corrupt
            if piece.records:
                self.to_receiver.append(self.outbox.send_records(piece, now_ns=self.now_ns))
        elif self.outbox.end_is_due():
            self.to_receiver.append(self.outbox.send_end(now_ns=self.now_ns))

    def hear(self, kind: str, number: int, ended: bool) -> None:  # noqa: FBT001
        """One answer, which may be lost too."""
        if self.random.random() < self.loss:
            return
        if kind == "stored":
            self.outbox.stored(number, ended=ended, now_ns=self.now_ns)
            assert self.outbox.acknowledged.sequence <= len(self.receiver.stored), "acknowledged but not stored"
        else:
            self.outbox.missing(number, now_ns=self.now_ns)


@pytest.mark.threat("E05")
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 60), st.sampled_from([0.0, 0.1, 0.4]))
def test_every_line_arrives_once_and_in_order_whatever_is_lost(seed: int, lines: int, loss: float) -> None:
    """Losses both ways, restarts of both ends, acknowledgements that were never saved: in the end all is there."""
    world = World(seed, lines, loss)
    for _ in range(3000):
        world.step()
        if world.outbox.delivered:
            break
    world.loss = 0.0
    while not world.outbox.delivered:
        world.step()
    assert world.receiver.stored == world.lines
    assert world.receiver.ended
