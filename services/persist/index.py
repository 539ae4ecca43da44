"""Which members a file has: offsets, sequences and times in flat arrays, 60 bytes a member. No I/O.

One writer adds while readers look: a reader takes `len()` once and looks no further than that. Sequences rise from
member to member, times may not (a clock can be set back), so a time is looked for among all.

Where members do not follow each other in the file, bytes between them are unreadable: a hole. What is missing there is
told by damage.py.
"""

import heapq
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import islice
from typing import Final, NamedTuple

from services.persist.member import Header, Span

_TIME_MAX: Final = 2**63 - 1


class Member(NamedTuple):
    """Where a member stands, and its header."""

    offset: int
    header: Header

    @property
    def span(self) -> Span:
        """What its text stands for."""
        return self.header.span


class Hole(NamedTuple):
    """Unreadable bytes in the place of members.

    `span` is what they may have stood for at most, as their neighbours tell, its `lines` 0 because nobody knows;
    `time_ns` is that of a neighbour.
    """

    span: Span
    time_ns: int


Piece = Member | Hole


class Bounds(NamedTuple):
    """What a reader wants: sequences and Unix nanoseconds, first and last inclusive. None: not bounded."""

    first_sequence: int = 0
    last_sequence: int | None = None
    first_time_ns: int | None = None
    last_time_ns: int | None = None

    def cover(self, span: Span) -> bool:
        """True when all that `span` stands for is wanted."""
        return (
            self.first_sequence <= span.first_sequence
            and (self.last_sequence is None or span.last_sequence <= self.last_sequence)
            and (self.first_time_ns is None or self.first_time_ns <= span.first_time_ns)
            and (self.last_time_ns is None or span.last_time_ns <= self.last_time_ns)
        )

    def touch(self, span: Span) -> bool:
        """True when something that `span` stands for may be wanted."""
        return (
            self.first_sequence <= span.last_sequence
            and (self.last_sequence is None or span.first_sequence <= self.last_sequence)
            and (self.first_time_ns is None or self.first_time_ns <= span.last_time_ns)
            and (self.last_time_ns is None or span.first_time_ns <= self.last_time_ns)
        )


class MemberIndex:
    """The members of one file, in their order."""

    def __init__(self) -> None:
        self._offsets = array("q")
        self._lengths = array("I")
        self._inflated = array("I")
        self._lines = array("Q")
        self._firsts = array("q")
        self._lasts = array("q")
        self._first_times = array("q")
        self._last_times = array("q")
        self._holes: set[int] = set()
        """Numbers of members that do not begin where the one before them ends."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, member: Member) -> None:
        """Take a member behind all others."""
        header = member.header
        last = self._count - 1
        if member.offset != (self._offsets[last] + self._lengths[last] if self._count else 0):
            self._holes.add(self._count)
        self._offsets.append(member.offset)
        self._lengths.append(header.member_bytes)
        self._inflated.append(header.inflated_bytes)
        self._lines.append(header.span.lines)
        self._firsts.append(header.span.first_sequence)
        self._lasts.append(header.span.last_sequence)
        self._first_times.append(header.span.first_time_ns)
        self._last_times.append(header.span.last_time_ns)
        self._count += 1

    def drop_last(self) -> Member:
        """Take the last member out."""
        member = self[self._count - 1]
        self._count -= 1
        self._holes.discard(self._count)
        for column in (self._offsets, self._lengths, self._inflated, self._lines):
            column.pop()
        for column in (self._firsts, self._lasts, self._first_times, self._last_times):
            column.pop()
        return member

    def __getitem__(self, number: int) -> Member:
        span = Span(
            self._lines[number],
            self._firsts[number],
            self._lasts[number],
            self._first_times[number],
            self._last_times[number],
        )
        return Member(self._offsets[number], Header(self._lengths[number], self._inflated[number], span))

    @property
    def last_sequence(self) -> int:
        """The last sequence in the file; 0 when it is empty."""
        return self._lasts[self._count - 1] if self._count else 0

    def sequences(self) -> Iterator[tuple[int, int, int]]:
        """First and last sequence and number of entries of each member that is there now, in their order."""
        return islice(zip(self._firsts, self._lasts, self._lines, strict=False), self._count)

    def touched(self, bounds: Bounds) -> Iterator[Member]:
        """Members that may hold something wanted, in their order, of those that are there now."""
        for number in range(bisect_left(self._lasts, bounds.first_sequence, hi=self._count), self._count):
            member = self[number]
            if bounds.last_sequence is not None and member.header.span.first_sequence > bounds.last_sequence:
                return
            if bounds.touch(member.header.span):
                yield member

    def pieces(self, bounds: Bounds, *, ended_at: int | None = None, backwards: bool = False) -> Iterator[Piece]:
        """Members and holes that may hold something wanted, in their order or against it.

        `ended_at`: what is missing behind the last member up to this sequence stood in a hole, too.
        """
        count = self._count
        low = bisect_left(self._lasts, bounds.first_sequence, hi=count)
        high = count
        if bounds.last_sequence is not None:
            high = bisect_right(self._firsts, bounds.last_sequence, lo=low, hi=count)
        first_ns = 0 if bounds.first_time_ns is None else bounds.first_time_ns
        last_ns = _TIME_MAX if bounds.last_time_ns is None else bounds.last_time_ns
        numbers = range(low, high + 1)
        for number in reversed(numbers) if backwards else numbers:
            found: list[Piece] = []
            if number in self._holes or (number == count and ended_at is not None):
                found.append(self._hole(number, count, ended_at or 0))
            # A time may be in the last of a million members: none is made of those before.
            if number < high and self._last_times[number] >= first_ns and self._first_times[number] <= last_ns:
                found.append(self[number])
            for piece in reversed(found) if backwards else found:
                if piece.span.first_sequence <= piece.span.last_sequence and bounds.touch(piece.span):
                    yield piece

    def _hole(self, number: int, count: int, ended_at: int) -> Hole:
        """The one in front of member `number`, or behind the last of `count`."""
        before = self[number - 1].span if number else None
        after = self[number].span if number < count else None
        times = [
            span_time for span_time in (before and before.last_time_ns, after and after.first_time_ns) if span_time
        ]
        span = Span(
            lines=0,
            first_sequence=before.last_sequence + 1 if before else 1,
            last_sequence=after.first_sequence - 1 if after else ended_at,
            first_time_ns=min(times) if before and times else 0,
            last_time_ns=max(times) if after and times else _TIME_MAX,
        )
        return Hole(span, times[0] if times else 0)


def dense_until(*indexes: MemberIndex) -> int:
    """The last sequence up to which the members of a job's streams are without a hole, as far as headers tell.

    A flush writes one stream after the other; when it was cut off in between, what it wrote to the first must not
    be taken for all there is. Members of one flush interleave, so they count as one step.
    """
    dense = entries = reached = 0
    for first, last, lines in heapq.merge(*(index.sequences() for index in indexes)):
        if first > reached + 1:
            break
        entries += lines
        reached = max(reached, last)
        if entries == reached:
            dense = reached
    return dense
