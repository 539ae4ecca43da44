"""The durable cursor of a job: go-back-N to persist, over a channel that loses messages. Pure: no I/O, no clock.

    readable ─────────────┐ how far the journal can be read
    sent ────────┐        │ how far it was sent in this epoch
    acknowledged │        │ how far persist has it for sure
        ▼        ▼        ▼
    ────┴────────┴────────┴──▶ journal

What is sent is numbered from 0 within an epoch. Whenever something may have been lost (persist says so, persist has
begun anew, or nothing was acknowledged for a while), the cursor goes back to what was acknowledged, in a higher
epoch; persist drops what it has already, by sequence. docs/protocol.md and docs/adr/0006-go-back-n.md.
"""

from collections import deque
from typing import Final, NamedTuple

from common.identifiers import JobId
from common.messages.logs import EndOfJob, StoreRecords
from services.executor.job_store import Cursor
from services.executor.journal import Slice

PATIENCE_NS: Final = 5_000_000_000
"""Without progress for so long, what is unacknowledged is sent again; twice as long after each time in vain."""
PATIENCE_DOUBLINGS_MAX: Final = 4
EPOCH_MAX: Final = 2**62
"""The wall clock in nanoseconds reaches it in the year 2116; what claims to be beyond is no epoch of ours."""
RESENDS_AT_ONCE: Final = 3
PAUSE_NS_FIRST: Final = 100_000_000
PAUSE_DOUBLINGS_MAX: Final = 5
"""A Resend is followed at once, three times; then, without progress, after 0.1 s, 0.2 s … 3.2 s: persist may refuse
what it is sent, and would otherwise be sent it as fast as it can say so."""


class Position(NamedTuple):
    """A place between two records: byte offset, and sequence of the last entry before it."""

    offset: int
    sequence: int


class InFlight(NamedTuple):
    """A batch that is sent and not acknowledged."""

    end: Position
    bytes: int


class Outbox:
    """What of one job is still to reach persist."""

    def __init__(self, cursor: Cursor, *, now_ns: int, epoch_floor: int = 0) -> None:
        """`now_ns` is of a clock that never goes back.

        `epoch_floor` is none that an earlier process has used and could not save: persist would join what that sent to
        what this one sends.
        """
        self.job: JobId = cursor.job
        self.acknowledged = Position(cursor.acknowledged_offset, cursor.acknowledged_sequence)
        self.sent = self.acknowledged
        self._stored_sequence = self._highest_sent = cursor.acknowledged_sequence
        self.readable = cursor.acknowledged_offset
        self.last_sequence: int | None = None  # of the whole job; known when no more will be readable
        self.delivered = False
        self._owner, self._ended_at_ns = "", 0
        self._damaged_at: Position | None = None
        self._epoch = max(cursor.epoch, epoch_floor)
        self._batch = 0
        self._in_flight: deque[InFlight] = deque()
        self.in_flight_bytes = 0
        """Bytes that are sent and not acknowledged."""
        self._end_sent = False
        self._progress_ns = now_ns
        self._in_vain = 0
        self._resends = 0
        self.paused_until_ns = 0
        self.go_back(now_ns=now_ns)

    @property
    def cursor(self) -> Cursor:
        """What a later process needs to go on here."""
        return Cursor(
            job=self.job,
            epoch=self._epoch,
            acknowledged_offset=self.acknowledged.offset,
            acknowledged_sequence=self.acknowledged.sequence,
        )

    @property
    def waiting(self) -> bool:
        """True while something that was sent waits for its acknowledgement."""
        return bool(self._in_flight) or (self._end_sent and not self.delivered)

    def grown(self, readable: int) -> None:
        """The journal can be read up to `readable` now."""
        if self._damaged_at is None:
            self.readable = max(self.readable, readable)

    def ended(self, last_sequence: int, *, owner: str = "", ended_at_ns: int = 0) -> None:
        """Nothing more will become readable. Whose the job was, and when it ended, is told with the end."""
        self._owner, self._ended_at_ns = owner, ended_at_ns
        self.last_sequence = last_sequence if self._damaged_at is None else self._damaged_at.sequence

    def unreadable(self, at: Position) -> None:
        """The journal is damaged behind `at`: what can be delivered ends there."""
        self.readable, self._damaged_at = at.offset, at
        if self.last_sequence is not None:
            self.last_sequence = at.sequence

    def has_records(self) -> bool:
        """True when there are records that were not sent in this epoch."""
        return self.sent.offset < self.readable

    def end_is_due(self) -> bool:
        """True when all records were sent and the end of the job was not."""
        return self.last_sequence is not None and not self.has_records() and not self._end_sent and not self.delivered

    def send_records(self, piece: Slice, *, now_ns: int) -> StoreRecords:
        """Count `piece`, which begins at `sent`, as sent: the message that carries it."""
        assert piece.offset == self.sent.offset, (piece.offset, self.sent)
        if not self.waiting:
            self._progress_ns = now_ns
        self.sent = Position(piece.end, piece.last_sequence)
        self._highest_sent = max(self._highest_sent, self.sent.sequence)
        self._in_flight.append(InFlight(self.sent, len(piece.records)))
        self.in_flight_bytes += len(piece.records)
        message = StoreRecords(job=self.job, epoch=self._epoch, batch=self._batch, records=piece.records)
        self._batch += 1
        self._settle()
        return message

    def send_end(self, *, now_ns: int) -> EndOfJob:
        """Count the end of the job as sent: the message that carries it."""
        assert self.last_sequence is not None
        if not self.waiting:
            self._progress_ns = now_ns
        message = EndOfJob(
            job=self.job,
            epoch=self._epoch,
            batch=self._batch,
            last_sequence=self.last_sequence,
            owner=self._owner,
            ended_at_ns=self._ended_at_ns,
        )
        self._batch += 1
        self._end_sent = True
        self._highest_sent = max(self._highest_sent, self.last_sequence)
        return message

    def stored(self, last_sequence: int, *, ended: bool, now_ns: int) -> bool:
        """Persist has all up to `last_sequence`, and the end of the job when `ended`. True: that is progress.

        An acknowledgement of an older epoch counts: what is durable stays so. More than was ever sent does not.
        """
        before = self._stored_sequence, self.acknowledged, self.delivered
        self._stored_sequence = max(self._stored_sequence, min(last_sequence, self._highest_sent))
        self._settle()
        if ended and self.last_sequence is not None and self._stored_sequence >= self.last_sequence:
            self.delivered = True
            self._forget_in_flight()
        progress = before != (self._stored_sequence, self.acknowledged, self.delivered)
        if progress:
            self._progress_ns, self._in_vain, self._resends, self.paused_until_ns = now_ns, 0, 0, 0
        return progress

    def missing(self, epoch: int, *, now_ns: int) -> bool:
        """Persist lacks a batch of `epoch`. True when the cursor went back; a newer epoch has done so already.

        An epoch above ours is of an executor before us that could not save it, and whose clock was ahead of ours.
        """
        if not self._epoch <= epoch < EPOCH_MAX or self.delivered:
            return False
        self._epoch = epoch
        self.go_back(now_ns=now_ns)
        self._resends += 1
        if self._resends > RESENDS_AT_ONCE:
            doublings = min(self._resends - RESENDS_AT_ONCE - 1, PAUSE_DOUBLINGS_MAX)
            self.paused_until_ns = now_ns + (PAUSE_NS_FIRST << doublings)
        return True

    def overdue(self, now_ns: int) -> bool:
        """True when what was sent has been waiting for too long."""
        patience_ns = PATIENCE_NS << min(self._in_vain, PATIENCE_DOUBLINGS_MAX)
        return self.waiting and now_ns - self._progress_ns >= patience_ns

    def give_up_waiting(self, *, now_ns: int) -> None:
        """Nothing was acknowledged in time: go back, and be more patient next time."""
        self._in_vain += 1
        self.go_back(now_ns=now_ns)

    def go_back(self, *, now_ns: int) -> None:
        """Begin again behind what was acknowledged, in an epoch higher than any before."""
        self._epoch += 1
        self._batch = 0
        self._forget_in_flight()
        self._end_sent = False
        self.sent = self.acknowledged
        self._progress_ns = now_ns

    def _settle(self) -> None:
        """Take off what is acknowledged. A batch without a new entry (START, EXIT) waits for nothing."""
        while self._in_flight and self._in_flight[0].end.sequence <= self._stored_sequence:
            batch = self._in_flight.popleft()
            self.acknowledged = batch.end
            self.in_flight_bytes -= batch.bytes

    def _forget_in_flight(self) -> None:
        self._in_flight.clear()
        self.in_flight_bytes = 0
