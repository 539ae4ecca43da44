"""Sends what the outboxes of all jobs hold to persist, and hears its acknowledgements. The effects around durable.py.

Jobs take turns, a batch each, as turns.py has it. Bounded three ways: bytes unacknowledged of one job, of all jobs, and
bytes sent since persist was last heard of; while persist is silent, one batch goes out from time to time to find out
whether it lives (it announces itself when it starts, so this matters only when that word was lost).
"""

import asyncio
import mmap
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Final, NamedTuple, Protocol

import structlog

from common.bus import codec
from common.bus.transport import PushSocket
from common.config.settings import Journal as JournalSettings
from common.failpoints import reached
from common.identifiers import JobId
from common.messages.envelope import Body, Message
from common.messages.jobs import JobRecord
from common.messages.logs import PersistStarted, Resend, Stored
from services.executor.durable import Outbox, Position
from services.executor.job_store import Cursor
from services.executor.journal import Journal, Slice
from services.executor.turns import Turn, Turns

log = structlog.get_logger(__name__)

GIVE_BACK_BYTES: Final = 4 * 2**20
TICK_S: Final = 0.5
"""How often outboxes are looked at for being overdue."""
LEAP_MAX: Final = 2**26
"""Epochs that a new process may pass over: so many that no two count from the same one, and fewer than the nanoseconds
that a process takes to start, so that whoever comes later is above as long as the wall clock goes on."""
PROBE_NS: Final = 10_000_000_000
"""How often a batch goes to a persist that is silent."""


class Messages(Protocol):
    """What is needed of common.bus.requests.Receiver."""

    def messages(self) -> AsyncIterator[Message]:
        """Every valid message, for ever."""


class Keeper(Protocol):
    """Keeps cursors, and is told of progress."""

    def cursor_moved(self, cursor: Cursor) -> None:
        """Save the cursor soon."""

    def save_cursors(self) -> bool:
        """Save them now; False when that is impossible."""

    def space_freed(self, job: JobId) -> None:
        """Part of the job's journal was given back."""

    def damaged(self, job: JobId, problem: str) -> None:
        """The job's journal cannot be read behind some place: what is before it is delivered."""

    def delivered(self, job: JobId) -> None:
        """Persist has all of the job."""


class _Parcel(NamedTuple):
    outbox: Outbox
    journal: Journal | None  # None: there is nothing but the end to send


class Sender:
    """The durable cursors of all jobs. `run` and `hear` must be running."""

    def __init__(
        self,
        push: PushSocket,
        keeper: Keeper,
        settings: JournalSettings,
        *,
        now_ns: Callable[[], int] = time.monotonic_ns,
        wall_ns: Callable[[], int] = time.time_ns,
        leap: Callable[[], int] = lambda: secrets.randbelow(LEAP_MAX),
    ) -> None:
        """`now_ns` measures patience, so it must not jump; `wall_ns` only makes epochs higher than a process before.

        `leap` makes them others than its, should the wall clock have been set back.
        """
        self._push = push
        self._keeper = keeper
        self._settings = settings
        self._now_ns = now_ns
        self._wall_ns = wall_ns
        self._leap = leap
        self._parcels: dict[JobId, _Parcel] = {}
        self._given_back: dict[JobId, int] = {}
        self._refused: set[JobId] = set()  # whose space the file system did not take back the last time
        self._turns = Turns(
            job_bytes_max=settings.unacknowledged_bytes_max, total_bytes_max=settings.unacknowledged_total_bytes_max
        )
        self._wake = asyncio.Event()
        self._paused: set[JobId] = set()
        self._unheard_bytes = 0
        self._probe_ns = 0
        self.counts: Counter[str] = Counter(resends=0)
        """`resends`: how often what was on the way of a job was sent again."""
        self._short = False  # of room on the disk of the journals

    def add(self, cursor: Cursor, journal: Journal | None) -> None:
        """Deliver a job from `cursor` on."""
        floor = max(self._wall_ns(), cursor.epoch) + self._leap()
        outbox = Outbox(cursor, now_ns=self._now_ns(), epoch_floor=floor)
        self._parcels[cursor.job] = parcel = _Parcel(outbox, journal)
        self._given_back[cursor.job] = 0
        if cursor.acknowledged_offset:  # a process before may have died between saving this and giving it back
            self._free(parcel)
        self._enqueue(cursor.job)

    def grown(self, job: JobId, readable: int) -> None:
        """The job's journal can be read up to `readable` now."""
        parcel = self._parcels.get(job)
        if parcel is not None:
            parcel.outbox.grown(readable)
            self._enqueue(job)

    def sealed(self, job: JobId) -> None:
        """Nobody writes the job's journal any more: what waited to become a whole record is damage, and passed over."""
        self._enqueue(job)

    def ended(self, record: JobRecord) -> None:
        """The job has ended; its `last_sequence` was its last entry that can be read."""
        parcel = self._parcels.get(record.id)
        if parcel is not None:
            parcel.outbox.ended(record.last_sequence, owner=record.owner, ended_at_ns=record.ended_at_ns)
            self._enqueue(record.id)

    def remove(self, job: JobId) -> None:
        """Deliver nothing more of a job."""
        self._parcels.pop(job, None)
        self._turns.forget(job)
        self._given_back.pop(job, None)
        self._refused.discard(job)

    @property
    def unacknowledged_bytes(self) -> int:
        """Bytes of all jobs that are sent and not acknowledged."""
        return self._turns.total_bytes

    async def run(self) -> None:
        """Send what there is to send, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._turns.any_may_send and self._may_send() and (turn := self._turns.next()) is not None:
                await self._turn(turn)
                await asyncio.sleep(0)  # the live cursor's turn

    async def watch(self) -> None:
        """Go back where nothing was acknowledged for too long, for ever."""
        while True:
            await asyncio.sleep(TICK_S)
            self.look_for_overdue()

    def look_for_overdue(self) -> None:
        """Go back where nothing was acknowledged for too long, and go on where a pause is over."""
        now_ns = self._now_ns()
        for job in [job for job in self._paused if not self._is_paused(job, now_ns)]:
            self._paused.discard(job)
            self._enqueue(job)
        overdue = [job for job, parcel in self._parcels.items() if parcel.outbox.overdue(now_ns)]
        if overdue:
            log.warning("persist has not acknowledged in time: sending again", jobs=len(overdue), one=overdue[0])
        for job in overdue:
            outbox = self._parcels[job].outbox
            outbox.give_up_waiting(now_ns=now_ns)
            self.counts["resends"] += 1
            self._went_back(job, outbox)
        self._give_back_again()
        if self._turns.any_may_send:
            self._wake.set()

    async def hear(self, messages: Messages) -> None:
        """Take acknowledgements, for ever."""
        async for message in messages.messages():
            self.heard(message.body)

    def heard(self, body: Body) -> None:
        """One word from persist."""
        self._unheard_bytes = 0
        match body:
            case Stored():
                self._stored(body)
            case Resend():
                parcel = self._parcels.get(body.job)
                if parcel is not None and parcel.outbox.missing(body.epoch, now_ns=self._now_ns()):
                    self.counts["resends"] += 1
                    self._went_back(body.job, parcel.outbox)
            case PersistStarted():
                log.info("persist started: sending again what it has not acknowledged", instance=body.instance[:64])
                for job, started in self._parcels.items():
                    self.counts["resends"] += started.outbox.waiting
                    started.outbox.go_back(now_ns=self._now_ns())
                    self._went_back(job, started.outbox)
            case _:
                raise AssertionError(f"{type(body).__name__} is not in the endpoint's table")
        self._wake.set()

    def _stored(self, stored: Stored) -> None:
        parcel = self._parcels.get(stored.job)
        if parcel is None:
            return
        outbox = parcel.outbox
        if not outbox.stored(stored.last_sequence, ended=stored.ended, now_ns=self._now_ns()):
            return
        self._turns.on_the_way(stored.job, outbox.in_flight_bytes)
        if outbox.delivered:
            self.remove(stored.job)
            self._keeper.delivered(stored.job)
            return
        reached("executor.heard")
        self._moved(parcel)
        self._enqueue(stored.job)

    def _moved(self, parcel: _Parcel) -> None:
        self._keeper.cursor_moved(parcel.outbox.cursor)
        self._give_back(parcel)

    def _give_back_again(self) -> None:
        """What could not be given back when it was acknowledged; on a full disk every page that is.

        Jobs wait for room that only we can make, and such a job prints nothing that would bring another occasion.
        """
        one = next((parcel.journal for parcel in self._parcels.values() if parcel.journal is not None), None)
        try:
            self._short = one is not None and one.free_bytes() < max(self._settings.reserve_bytes, GIVE_BACK_BYTES)
        except OSError as cause:
            self._short = False
            log.warning("the room for journals is not known", problem=str(cause))
        for parcel in self._parcels.values():
            if not self._give_back(parcel):
                return  # the others' cursors cannot be saved either

    def _give_back(self, parcel: _Parcel) -> bool:
        """Free the acknowledged beginning of a journal; the cursor is saved first, so that nobody reads the hole.

        False: it cannot be saved now.
        """
        job, end = parcel.outbox.job, parcel.outbox.acknowledged.offset
        enough = min(GIVE_BACK_BYTES, max(1, self._settings.bytes_max // 4))
        threshold = mmap.PAGESIZE if self._short else enough
        if parcel.journal is None or end - self._given_back[job] < threshold:
            return True
        if not self._keeper.save_cursors():
            return False
        reached("executor.cursor_saved")
        self._free(parcel)
        return True

    def _free(self, parcel: _Parcel) -> None:
        job, end = parcel.outbox.job, parcel.outbox.acknowledged.offset
        if parcel.journal is None:
            return
        try:
            parcel.journal.give_back(end)
        except OSError as cause:
            if job not in self._refused:
                log.warning("journal space cannot be given back", job=job, problem=str(cause))
            self._refused.add(job)
            return
        self._refused.discard(job)
        self._given_back[job] = end
        reached("executor.given_back")
        self._keeper.space_freed(job)

    def _went_back(self, job: JobId, outbox: Outbox) -> None:
        self._keeper.cursor_moved(outbox.cursor)
        self._turns.on_the_way(job, outbox.in_flight_bytes)
        self._enqueue(job)

    def _enqueue(self, job: JobId) -> None:
        parcel = self._parcels.get(job)
        if parcel is None:
            return
        outbox = parcel.outbox
        if outbox.has_records() or outbox.end_is_due():
            self._turns.line_up(job, outbox.readable - outbox.sent.offset)
            self._wake.set()

    def _may_send(self) -> bool:
        """Whether persist was heard of lately, or it is time for a probe: one turn."""
        if self._unheard_bytes < self._settings.unacknowledged_total_bytes_max:
            return True
        if self._now_ns() - self._probe_ns < PROBE_NS:
            return False
        self._probe_ns = self._now_ns()
        return True

    async def _turn(self, turn: Turn) -> None:
        parcel = self._parcels[turn.job]
        before = parcel.outbox.acknowledged
        message = self._next(parcel, turn.bytes_max)
        if message is None:
            return
        if parcel.outbox.acknowledged != before:  # persist has it, and has said so: no answer will say it again
            self._moved(parcel)
        payload = codec.encode(message)
        self._unheard_bytes += len(payload)
        self._turns.on_the_way(turn.job, parcel.outbox.in_flight_bytes)
        self._enqueue(turn.job)
        await self._push.send(payload)
        reached("executor.sent")

    def _is_paused(self, job: JobId, now_ns: int) -> bool:
        parcel = self._parcels.get(job)
        return parcel is not None and parcel.outbox.paused_until_ns > now_ns

    def _next(self, parcel: _Parcel, bytes_max: int) -> Body | None:
        outbox = parcel.outbox
        if self._is_paused(outbox.job, self._now_ns()):
            self._paused.add(outbox.job)
            return None
        if outbox.has_records() and parcel.journal is not None:
            piece = self._read(outbox, parcel.journal, bytes_max)
            return None if piece is None else outbox.send_records(piece, now_ns=self._now_ns())
        return outbox.send_end(now_ns=self._now_ns()) if outbox.end_is_due() else None

    def _read(self, outbox: Outbox, journal: Journal, bytes_max: int) -> Slice | None:
        """The next batch, or None when the first record does not fit and something is on the way: that comes first."""
        wanted = min(bytes_max, outbox.readable - outbox.sent.offset)
        try:
            piece = journal.read(outbox.sent.offset, last_sequence=outbox.sent.sequence, bytes_max=wanted)
        except OSError as cause:
            piece = Slice(outbox.sent.offset, outbox.sent.offset, b"", outbox.sent.sequence, (), str(cause))
        if piece.corrupt:
            log.error("journal damaged: what is before goes to persist", job=outbox.job, problem=piece.corrupt)
            self._keeper.damaged(outbox.job, piece.corrupt)
            self._enqueue(outbox.job)
            outbox.unreadable(Position(piece.end, piece.last_sequence))
        if not piece.records:
            return None
        if len(piece.records) > bytes_max and outbox.in_flight_bytes:
            return None
        return piece
