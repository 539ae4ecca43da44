"""From the text of a member to what readers get: runs of consecutive entries, with the bytes the job wrote. Pure.

A run has one stream and one time, and no sequence is missing in it, so it can go out as one LogBatch. Merging streams
and bounds over members are reader.py's.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from common.records import Stream
from services.persist import lines
from services.persist.index import Bounds
from services.persist.lines import Entry
from services.persist.member import Span
from services.persist.search import Search

RUN_BYTES_MAX: Final = 2**20


class Run(NamedTuple):
    """Entries `first` to `last`. With `gap_reason` they are missing, and `data` is empty."""

    first: int
    lines: int
    stream: Stream
    time_ns: int
    data: bytes
    partial: bool = False
    gap_reason: str = ""
    gap_bytes: int = 0

    @property
    def last(self) -> int:
        """Sequence of the last entry."""
        return self.first + self.lines - 1

    def cut(self, skip: int, take: int) -> "Run":
        """`take` of its entries, behind the first `skip`."""
        assert skip >= 0
        assert take >= 1
        assert skip + take <= self.lines
        if take == self.lines:
            return self
        first, gap_bytes = self.first + skip, 0 if skip else self.gap_bytes
        data = b"".join(b"%b\n" % line for line in self.contents()[skip : skip + take])
        return self._replace(first=first, lines=take, data=data, gap_bytes=gap_bytes)

    def contents(self) -> list[bytes]:
        """The lines, without their ends; none of a gap."""
        if self.gap_reason:
            return []
        return [self.data] if self.partial else self.data.split(b"\n")[:-1]


def of_text(text: bytes, stream: Stream, bounds: Bounds | None, search: Search | None, *, span: Span) -> Iterator[Run]:
    """The runs in the text of a member. `bounds` None: all is wanted. `search`: only what it finds.

    Raises `msgspec.DecodeError` when the text is not ours.
    """
    candidates = search.candidates(text) if search else None
    if candidates is None and bounds is None and is_dense(span) and span.first_time_ns == span.last_time_ns:
        # As many lines as sequences, and one time: so are the members of a job that floods.
        data = lines.decode_data(text, count=span.lines)
        if data is not None:
            whole = Run(span.first_sequence, span.lines, stream, span.first_time_ns, data)
            yield from _picked(whole, search.numbers(data)) if search else _halved(whole)
            return
    entries = search.entries(text, span, candidates) if search else lines.decode(text)
    if bounds is not None:
        entries = [entry for entry in entries if _is_within(entry, bounds)]
    yield from _grouped(entries, stream, bounds)


def is_dense(span: Span) -> bool:
    """All sequences of `span` are its own, and there are some."""
    return span.lines > 0 and span.lines == span.last_sequence - span.first_sequence + 1


def _picked(whole: Run, numbers: list[int]) -> Iterator[Run]:
    """What of a run is on the lines with these rising numbers; neighbours stay together."""
    if len(numbers) == whole.lines:
        yield from _halved(whole)
        return
    rows = whole.data.split(b"\n") if numbers else []
    start, count = 0, len(numbers)
    while start < count:
        first, end = numbers[start], start + 1
        while end < count and numbers[end] - end == first - start:
            end += 1
        data = b"\n".join([*rows[first : first + end - start], b""])
        yield from _halved(Run(whole.first + first, end - start, whole.stream, whole.time_ns, data))
        start = end


def _grouped(entries: list[Entry], stream: Stream, bounds: Bounds | None) -> Iterator[Run]:
    start, count = 0, len(entries)
    while start < count:
        first = entries[start]
        if first.gap:
            yield _gap(first, stream, bounds)
            start += 1
            continue
        end = start + 1
        if not first.partial:
            shift, time_ns = first.sequence - start, first.timestamp
            while end < count:
                entry = entries[end]
                if entry.timestamp != time_ns or entry.sequence - end != shift or entry.partial or entry.gap:
                    break
                end += 1
        yield from _halved(
            Run(first.sequence, end - start, stream, first.timestamp, _data(entries, start, end), first.partial)
        )
        start = end


def _data(entries: list[Entry], start: int, end: int) -> bytes:
    if entries[start].partial:
        return entries[start].raw
    try:
        # The empty last one makes the last line end: adding it afterwards would copy all.
        return "\n".join([*[entry.content for entry in entries[start:end]], ""]).encode()  # type: ignore[list-item]
    except TypeError:  # a None among them: a line that is not UTF-8
        return b"\n".join([*[entry.raw for entry in entries[start:end]], b""])


def _halved(run: Run) -> Iterator[Run]:
    if len(run.data) <= RUN_BYTES_MAX or run.lines == 1:
        yield run
        return
    half = run.lines // 2
    yield from _halved(run.cut(0, half))
    yield from _halved(run.cut(half, run.lines - half))


def _gap(entry: Entry, stream: Stream, bounds: Bounds | None) -> Run:
    stream = Stream.NONE if entry.stream == lines.STREAM_NAMES[Stream.NONE] else stream
    run = Run(
        entry.sequence, entry.gap, stream, entry.timestamp, b"", gap_reason=entry.reason, gap_bytes=entry.gap_bytes
    )
    if bounds is None:
        return run
    skip = max(0, bounds.first_sequence - run.first)
    last = run.last if bounds.last_sequence is None else min(run.last, bounds.last_sequence)
    return run.cut(skip, last - run.first - skip + 1)


def _is_within(entry: Entry, bounds: Bounds) -> bool:
    return (
        bounds.first_sequence <= entry.sequence + max(0, entry.gap - 1)
        and (bounds.last_sequence is None or entry.sequence <= bounds.last_sequence)
        and (bounds.first_time_ns is None or bounds.first_time_ns <= entry.timestamp)
        and (bounds.last_time_ns is None or entry.timestamp <= bounds.last_time_ns)
    )
