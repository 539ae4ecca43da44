"""Which members a file has: offsets, sequences and times in flat arrays, 60 bytes a member. No I/O.

One writer adds while readers look: a reader takes `len()` once and looks no further than that. Sequences rise from
member to member, times may not (a clock can be set back), so a time is looked for among all.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

from services.persist.member import Header, Span


class Member(NamedTuple):
    """Where a member stands, and its header."""

    offset: int
    header: Header


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
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, member: Member) -> None:
        """Take a member behind all others."""
        header = member.header
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

    def touched(self, bounds: Bounds) -> Iterator[Member]:
        """Members that may hold something wanted, in their order, of those that are there now."""
        for number in range(bisect_left(self._lasts, bounds.first_sequence, hi=self._count), self._count):
            member = self[number]
            if bounds.last_sequence is not None and member.header.span.first_sequence > bounds.last_sequence:
                return
            if bounds.touch(member.header.span):
                yield member


def dense_until(*indexes: MemberIndex) -> int:
    """The last sequence up to which the members of a job's streams are without a hole, as far as headers tell.

    A flush writes one stream after the other; when it was cut off in between, what it wrote to the first must not
    be taken for all there is. Members of one flush interleave, so they count as one step.
    """
    spans = sorted((index[n].header.span for index in indexes for n in range(len(index))), key=_first_sequence)
    dense = entries = reached = 0
    for span in spans:
        if span.first_sequence > reached + 1:
            break
        entries += span.lines
        reached = max(reached, span.last_sequence)
        if entries == reached:
            dense = reached
    return dense


def _first_sequence(span: Span) -> int:
    return span.first_sequence
