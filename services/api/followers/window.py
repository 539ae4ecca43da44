"""The newest live output of one job: kept once, however many follow it. Pure: no I/O, no clock.

Rules of this file
- Batches are kept in the order of their sequences, and a repeat (as after a restart of the executor) is not kept. There
  may be holes between them: what ZeroMQ dropped is not here.
- What every follower has is let go (`release`). Beyond `bytes_max` the oldest goes, whoever lacks it: he finds a hole
  and reads history. So a follower that never reads costs its job's window at most, and many such cost it once.
"""

from bisect import bisect_left
from typing import Final, Protocol

FORGOTTEN_MAX: Final = 256
"""Places of what was let go before the lists are cut: cutting costs as much as what is left."""


class Sequenced(Protocol):
    """What must be known of a batch."""

    @property
    def first(self) -> int:
        """Sequence of its first entry."""

    @property
    def last(self) -> int:
        """Sequence of its last entry."""

    @property
    def size_bytes(self) -> int:
        """What it takes in memory."""


class Window:
    """It holds at most `bytes_max`, or one batch if that is larger. `dropped` counts batches that somebody lacked."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.size_bytes = 0
        self.dropped = 0
        self.known_last = 0
        self.ended_last: int | None = None
        self._batches: list[Sequenced] = []
        self._lasts: list[int] = []
        self._start = 0
        self._highest = 0

    def add(self, batch: Sequenced) -> None:
        """A batch was published."""
        self.reached(batch.last)
        if batch.last <= self._highest:
            return
        self._highest = batch.last
        self._batches.append(batch)
        self._lasts.append(batch.last)
        self.size_bytes += batch.size_bytes

    def reached(self, last: int) -> None:
        """The output reaches `last` at least."""
        self.known_last = max(self.known_last, last)

    def ended(self, last: int) -> None:
        """The job has ended, and `last` is its last sequence."""
        self.reached(last)
        self.ended_last = last

    def release(self, sequence: int) -> None:
        """Nobody needs what is below `sequence`."""
        self._forget_to(bisect_left(self._lasts, sequence, lo=self._start))

    def trim(self) -> None:
        """Let the oldest go until the rest is within bounds."""
        place, size_bytes = self._start, self.size_bytes
        while size_bytes > self.bytes_max and place < len(self._batches) - 1:
            size_bytes -= self._batches[place].size_bytes
            place += 1
        self.dropped += place - self._start
        self._forget_to(place)

    def since(self, sequence: int, *, bytes_max: int) -> list[Sequenced]:
        """The first batch that reaches `sequence`, and those that follow it without hole or overlap, up to a size."""
        place = bisect_left(self._lasts, sequence, lo=self._start)
        found: list[Sequenced] = []
        size_bytes = 0
        while place < len(self._batches) and size_bytes < bytes_max:
            batch = self._batches[place]
            if found and batch.first != found[-1].last + 1:
                break  # of a batch that overlaps a part must be cut off, so it comes first another time
            found.append(batch)
            size_bytes += batch.size_bytes
            place += 1
        return found

    def _forget_to(self, place: int) -> None:
        for position in range(self._start, place):
            self.size_bytes -= self._batches[position].size_bytes
        if place > FORGOTTEN_MAX or place == len(self._batches):
            del self._batches[:place], self._lasts[:place]
            place = 0
        else:
            self._batches[self._start : place] = [_NOTHING] * (place - self._start)
        self._start = place


class _Nothing:
    """Stands where a batch was, so that its memory is given back at once."""

    first = last = size_bytes = 0


_NOTHING: Final = _Nothing()
