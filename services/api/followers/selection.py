"""What one client wants of a job's output: which entries, behind how many, and how many of them. Pure.

The same for stored and live output, so that nobody can tell from which of the two an entry came. Does not belong here:
what persist is asked (`reader.py`), what is sent when (`follower.py`).

Gaps. What is missing was of some text, time or stream that nobody knows. So a gap is told whatever is selected, unless
its own time or stream say that it is not meant; and it counts among the entries only where nothing is selected but
sequences. Among selected entries it is told, and neither skipped nor counted.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from common import records
from common.matching import Matcher, matcher
from services.api.followers.chunks import Chunk, cut


class Selection(NamedTuple):
    """Which entries a client wants. 0, None and empty: not bounded. `selection` makes one."""

    stream: int | None = None
    start_ns: int = 0
    end_ns: int = 0
    text: str = ""
    pattern: str = ""
    matcher: Matcher | None = None

    @property
    def everything(self) -> bool:
        """Nothing is left out."""
        return self == Selection()

    def of(self, chunk: Chunk) -> Iterator[Chunk]:
        """The wanted runs of entries."""
        if chunk.time_ns < self.start_ns or (self.end_ns and chunk.time_ns >= self.end_ns):
            return
        if self.stream is not None and chunk.stream not in {self.stream, records.Stream.NONE}:
            return
        if self.matcher is None or chunk.gap_reason:
            yield chunk
        else:
            yield from _runs(chunk, self.matcher)


def selection(
    *, stream: int | None = None, start_ns: int = 0, end_ns: int = 0, text: str = "", pattern: str = ""
) -> Selection:
    """Entries of `stream`, written from `start_ns` to before `end_ns`, that contain `text` or match `pattern`.

    Raises JobletError(INVALID) for a pattern that is none, and for text and pattern together.
    """
    return Selection(stream, start_ns, end_ns, text, pattern, matcher(text=text, pattern=pattern))


def _runs(chunk: Chunk, wanted: Matcher) -> Iterator[Chunk]:
    """Wanted neighbours together. Nothing is done for a line that is not wanted: most of a log is not."""
    data = chunk.data
    sequence, position = chunk.first, 0  # the entry `sequence` begins at `position`
    run_first, run_start = 0, -1
    for start, end in _wanted(chunk, wanted):
        if run_start >= 0 and start != position:
            yield _part(chunk, run_first, sequence, data[run_start:position])
            run_start = -1
        sequence += data.count(b"\n", position, start)
        if run_start < 0:
            run_first, run_start = sequence, start
        sequence += 1
        position = end
    if run_start >= 0:
        yield _part(chunk, run_first, sequence, data[run_start:position])


def _wanted(chunk: Chunk, wanted: Matcher) -> Iterator[tuple[int, int]]:
    data = chunk.data
    whole = data.rfind(b"\n") + 1 if chunk.partial else len(data)
    yield from wanted.wanted(data[:whole])
    if chunk.partial and wanted.matches(data[whole:]):  # the last entry has no line end, and may be empty
        yield whole, len(data)


def _part(chunk: Chunk, first: int, behind: int, data: bytes) -> Chunk:
    if behind - first == chunk.lines:
        return chunk
    ends = behind == chunk.first + chunk.lines
    return chunk._replace(first=first, lines=behind - first, data=data, partial=chunk.partial and ends)


class Page:
    """`offset` entries to pass over and `limit` to give (0: all), counted over everything that passes through."""

    def __init__(self, *, offset: int, limit: int, gaps_count: bool) -> None:
        self._skip = offset
        self._left = limit or None
        self._gaps_count = gaps_count

    @property
    def whole(self) -> bool:
        """All that comes is given."""
        return self._skip == 0 and self._left is None

    @property
    def full(self) -> bool:
        """Nothing more is given."""
        return self._left == 0

    def of(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        """What is on the page of the selected `chunks` that come next."""
        kept: list[Chunk] = []
        for chunk in chunks:
            if self.full:
                break
            if chunk.gap_reason and not self._gaps_count:
                kept.append(chunk)
                continue
            skipped = min(self._skip, chunk.lines)
            self._skip -= skipped
            taken = chunk.lines - skipped if self._left is None else min(self._left, chunk.lines - skipped)
            piece = cut(chunk, chunk.first + skipped, chunk.first + skipped + taken - 1)
            if piece is not None:
                kept.append(piece)
                self._left = None if self._left is None else self._left - piece.lines
        return kept
