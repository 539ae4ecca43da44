"""The machine of one follower: what it gets next, live or from history. No I/O, no clock: events in, instructions out.

Rules of this file
- `next` is the first sequence that the follower has not got. It only grows, and what is below it is never sent again.
- Live batches stand in the window of the job, which all its followers share. What this follower lacks and the window
  does not have is a hole: a slow reader, a message that ZeroMQ dropped, a restart of the executor and joining a job
  that runs already are one case.
- LIVE: the window holds `next`, or nothing is known to be missing. CATCHING_UP: history is read up to where the window
  goes on, or up to the highest sequence that is known to exist. DONE: the job's last entry was sent.

             Ready, the window holds next: Send              Ready, it goes on above next, or
            ┌──────┐                                         more is known to exist: Read
            │      ▼       ─────────────────────────────────────────▶
            └─── LIVE                                            CATCHING_UP
                   │       ◀─────────────────────────────────────────
                   │         Progress, then Ready: nothing is missing
                   ▼ Ready with next > the last sequence of an ended job
                 DONE
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Final, NamedTuple, TypeAlias, assert_never

from services.api.followers.window import Sequenced, Window

SEND_BYTES: Final = 512 * 1024
"""Batches that wait are sent together up to this much memory, which is half of it on the wire. A client that does not
read holds one such message: in a crowd that adds up, and larger ones are no faster."""


class Progress(NamedTuple):
    """History gave everything wanted up to `last`."""

    last: int


class Ready(NamedTuple):
    """The follower took all that it was given, and asks what is next."""


Event: TypeAlias = Progress | Ready


class Send(NamedTuple):
    """Give the follower these live batches, of the first one only what is at or above `first`."""

    batches: Sequence[Sequenced]
    first: int


class Read(NamedTuple):
    """Read history from `first` to `last`, telling Progress, then say Ready."""

    first: int
    last: int


class Wait(NamedTuple):
    """Nothing to do until the window has news; then say Ready."""


class Finish(NamedTuple):
    """The follower has everything there will ever be."""


Instruction: TypeAlias = Send | Read | Wait | Finish


class Mode(StrEnum):
    """Where the follower gets its entries from."""

    LIVE = "live"
    CATCHING_UP = "catching_up"
    DONE = "done"


class Machine:
    """One follower of the output in `window`, from `next_sequence` on."""

    def __init__(self, *, next_sequence: int, window: Window) -> None:
        self.next = next_sequence
        self.mode = Mode.CATCHING_UP
        self._window = window

    def handle(self, event: Event) -> Instruction | None:
        """Take an event. Ready is answered by what to do."""
        match event:
            case Ready():
                return self._next()
            case Progress(last):
                self.next = max(self.next, last + 1)
                return None
            case _:
                assert_never(event)

    def _next(self) -> Instruction:
        window = self._window
        if window.ended_last is not None and self.next > window.ended_last:
            self.mode = Mode.DONE
            return Finish()
        batches = window.since(self.next, bytes_max=SEND_BYTES)
        if batches and batches[0].first <= self.next:
            self.mode = Mode.LIVE
            first, self.next = self.next, batches[-1].last + 1
            return Send(batches, first)
        missing_to = batches[0].first - 1 if batches else window.known_last
        if missing_to >= self.next:
            self.mode = Mode.CATCHING_UP
            return Read(self.next, missing_to)
        self.mode = Mode.LIVE
        return Wait()
