"""The machine of one follower: what it gets next, live or from history. No I/O, no clock: events in, instructions out.

Rules of this file
- `next` is the first sequence that the follower has not got. It only grows, and what is below it is never sent again.
- Live batches wait in one queue, bounded in bytes. When it is full the oldest goes: then the queue begins above
  `next`, and that is all that ever says "hole". A slow reader, a message that ZeroMQ dropped, a restart of the
  executor and joining a job that runs already are one case.
- LIVE: the queue's head holds `next`, or nothing is known to be missing. CATCHING_UP: history is read up to the
  queue's head, or up to the highest sequence that is known to exist. DONE: the job's last entry was sent.

             Ready, head holds next: Send                     Ready, head above next, or
            ┌──────┐                                          more is known to exist: Read
            │      ▼       ─────────────────────────────────────────▶
            └─── LIVE                                            CATCHING_UP
                   │       ◀─────────────────────────────────────────
                   │         ReadDone, then Ready: nothing is missing
                   ▼ Ended(last), then Ready with next > last
                 DONE
"""

from collections import deque
from collections.abc import Sequence
from enum import StrEnum
from typing import Final, NamedTuple, Protocol, TypeAlias, assert_never

SEND_BYTES: Final = 256 * 1024
"""Batches that wait are sent together up to this."""


class Sequenced(Protocol):
    """What the machine must know of a batch."""

    @property
    def first(self) -> int:
        """Sequence of its first entry."""

    @property
    def last(self) -> int:
        """Sequence of its last entry."""

    @property
    def size_bytes(self) -> int:
        """What it takes in a queue."""


class Live(NamedTuple):
    """A batch was published."""

    batch: Sequenced


class Marked(NamedTuple):
    """The output reaches `last` at least, and all above it will be published to us."""

    last: int


class Ended(NamedTuple):
    """The job has ended, and `last` is its last sequence."""

    last: int


class Progress(NamedTuple):
    """History gave everything wanted up to `last`."""

    last: int


class Ready(NamedTuple):
    """The follower took all that it was given, and asks what is next."""


Event: TypeAlias = Live | Marked | Ended | Progress | Ready


class Send(NamedTuple):
    """Give the follower these live batches, of the first one only what is at or above `first`."""

    batches: Sequence[Sequenced]
    first: int


class Read(NamedTuple):
    """Read history from `first` to `last`, telling Progress, then say Ready."""

    first: int
    last: int


class Wait(NamedTuple):
    """Nothing to do until a Wake."""


class Wake(NamedTuple):
    """Something happened: say Ready."""


class Finish(NamedTuple):
    """The follower has everything there will ever be."""


Instruction: TypeAlias = Send | Read | Wait | Wake | Finish


class Mode(StrEnum):
    """Where the follower gets its entries from."""

    LIVE = "live"
    CATCHING_UP = "catching_up"
    DONE = "done"


class Machine:
    """One follower, from `next_sequence` on. It holds at most `queue_bytes_max`, or one batch if that is larger."""

    def __init__(self, *, next_sequence: int, queue_bytes_max: int) -> None:
        self.next = next_sequence
        self.mode = Mode.CATCHING_UP
        self.queued_bytes = 0
        self.dropped = 0
        self._queue_bytes_max = queue_bytes_max
        self._queue: deque[Sequenced] = deque()
        self._known_last = 0
        self._ended_last: int | None = None
        self._waiting = False

    def handle(self, event: Event) -> Instruction | None:
        """Take an event. Ready is answered by what to do; the others by Wake when the follower was told to wait."""
        match event:
            case Ready():
                return self._next()
            case Live(batch):
                self._keep(batch)
            case Marked(last):
                self._known_last = max(self._known_last, last)
            case Ended(last):
                self._known_last = max(self._known_last, last)
                self._ended_last = last
            case Progress(last):
                self.next = max(self.next, last + 1)
                return None
            case _:
                assert_never(event)
        if not self._waiting:
            return None
        self._waiting = False
        return Wake()

    def _keep(self, batch: Sequenced) -> None:
        self._known_last = max(self._known_last, batch.last)
        if batch.last < self.next or (self._queue and batch.last <= self._queue[-1].last):
            return  # a repeat, as after a restart of the executor
        self._queue.append(batch)
        self.queued_bytes += batch.size_bytes
        while self.queued_bytes > self._queue_bytes_max and len(self._queue) > 1:
            self._forget()
            self.dropped += 1

    def _forget(self) -> Sequenced:
        oldest = self._queue.popleft()
        self.queued_bytes -= oldest.size_bytes
        return oldest

    def _next(self) -> Instruction:
        while self._queue and self._queue[0].last < self.next:
            self._forget()
        if self._ended_last is not None and self.next > self._ended_last:
            self.mode = Mode.DONE
            return Finish()
        if self._queue and self._queue[0].first <= self.next:
            self.mode = Mode.LIVE
            return self._send()
        missing_to = self._queue[0].first - 1 if self._queue else self._known_last
        if missing_to >= self.next:
            self.mode = Mode.CATCHING_UP
            return Read(self.next, missing_to)
        self.mode = Mode.LIVE
        self._waiting = True
        return Wait()

    def _send(self) -> Send:
        first = self.next
        batches: list[Sequenced] = []
        size_bytes = 0
        while self._queue and self._queue[0].first <= self.next and (not batches or size_bytes < SEND_BYTES):
            batch = self._queue[0]
            if batches and batch.first != self.next:
                break  # it overlaps: it must be cut, so it comes first next time
            self._forget()
            batches.append(batch)
            size_bytes += batch.size_bytes
            self.next = batch.last + 1
        return Send(batches, first)
