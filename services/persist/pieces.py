"""A view's members, and the holes between them, as runs: read, searched, and where that fails, told as gaps.

Whoever reads here holds one member's output at a time. In which order and how much of it readers get is reader.py's.
"""

from collections.abc import Iterator
from typing import Final

import msgspec
import structlog

from common.identifiers import JobId
from common.records import Stream
from services.persist import damage, lines, runs
from services.persist.blocks import Blocks, Source
from services.persist.index import Bounds, Hole, Member, Piece
from services.persist.member import DamagedMember
from services.persist.runs import Run
from services.persist.search import Search
from services.persist.selection import LogSelection
from services.persist.store import View

log = structlog.get_logger(__name__)

PIECE_COST_BYTES: Final = 8192
"""What a piece costs besides inflating it, as so many bytes inflated."""
DAMAGED_KEPT_MAX: Final = 4096


class DamagedMembers:
    """Members that could not be read since the service began; each is logged once."""

    def __init__(self) -> None:
        self._found: set[tuple[JobId, str, int]] = set()

    def __len__(self) -> int:
        return len(self._found)

    def add(self, job: JobId, file: str, offset: int, why: str) -> None:
        """One that was met now. Beyond `DAMAGED_KEPT_MAX` they are neither counted nor logged."""
        key = (job, file, offset)
        if key not in self._found and len(self._found) < DAMAGED_KEPT_MAX:
            self._found.add(key)
            log.error("a stored member is damaged", job=job, file=file, offset=offset, why=why)


class Pieces:
    """What a query's job holds in one view. `search` is that of the query."""

    def __init__(
        self, store: Source, selection: LogSelection, view: View, *, search: Search | None, damaged: DamagedMembers
    ) -> None:
        self._view = view
        self._blocks = {stream: Blocks(store, selection.job, segment) for stream, segment in view.segments.items()}
        self._job, self._streams, self._search = selection.job, selection.streams, search
        self._damaged = damaged

    def of(self, stream: Stream, bounds: Bounds, *, backwards: bool = False) -> Iterator[Piece]:
        """Where something wanted of a stream may be."""
        segment = self._view.segments[stream]
        ended_at = segment.ended_at if segment.damaged_bytes else None
        return segment.index.pieces(bounds, ended_at=ended_at, backwards=backwards)

    def cost(self, piece: Piece) -> int:
        """About how much work `runs` of it is, in bytes inflated."""
        inflated_bytes = piece.header.inflated_bytes if isinstance(piece, Member) else 0
        return PIECE_COST_BYTES + inflated_bytes * (self._search.weight if self._search else 1)

    def runs(self, stream: Stream, piece: Piece, bounds: Bounds) -> list[Run]:
        """The wanted runs of a piece. Raises `StaleSegment`, OSError."""
        read = self._read(stream, piece, bounds, self._search)
        return self._missing(stream, piece, bounds) if read is None else read

    def gaps_of_no_stream(self, piece: Piece, bounds: Bounds) -> list[Run]:
        """The wanted ones in a piece of stdout's file, where they stand, as far as it holds little else.

        What is missing may have been of stderr. That of retention has a member of its own; to find one among much
        output, all of it had to be inflated. Raises `StaleSegment`, OSError.
        """
        if not isinstance(piece, Member) or piece.header.inflated_bytes > lines.GAP_TEXT_BYTES_MAX:
            return []
        return [run for run in self._read(Stream.STDOUT, piece, bounds, None) or () if run.stream is Stream.NONE]

    def counts(self, run: Run) -> bool:
        """Whether its entries are among those that are counted: a gap is told to who searches, and not counted.

        Nor is one of no stream to who reads stderr.
        """
        told = run.stream is not Stream.NONE or Stream.STDOUT in self._streams
        return not run.gap_reason or (self._search is None and told)

    def count(self, stream: Stream, piece: Piece, bounds: Bounds) -> tuple[int, int]:
        """How many wanted entries a piece has, and what it cost to know it. Raises as `runs` does."""
        if self._search is None and isinstance(piece, Member) and bounds.cover(piece.span):
            return piece.span.lines, 0
        return sum(run.lines for run in self.runs(stream, piece, bounds) if self.counts(run)), self.cost(piece)

    def _read(self, stream: Stream, piece: Piece, bounds: Bounds, search: Search | None) -> list[Run] | None:
        """None: it is unreadable."""
        if isinstance(piece, Hole):
            return None
        try:
            text = self._blocks[stream].text(piece)
            covered = None if bounds.cover(piece.span) else bounds
            return list(runs.of_text(text, stream, covered, search, span=piece.span))
        except (DamagedMember, msgspec.DecodeError, ValueError) as cause:
            self._damaged.add(self._job, self._view.segments[stream].name, piece.offset, str(cause))
        return None

    def _missing(self, stream: Stream, piece: Piece, bounds: Bounds) -> list[Run]:
        span = piece.span
        time_ns = piece.time_ns if isinstance(piece, Hole) else span.first_time_ns
        present = () if runs.is_dense(span) else self._in_the_other(stream, span.first_sequence, span.last_sequence)
        return damage.gaps(piece, stream, time_ns, present, bounds)

    def _in_the_other(self, stream: Stream, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Sequences that the other stream has, or will be told for: of those that may be of either, stdout tells."""
        other = Stream.STDERR if stream is Stream.STDOUT else Stream.STDOUT
        bounds = Bounds(first_sequence=first, last_sequence=last)
        for piece in self.of(other, bounds):
            span = piece.span
            read = None if runs.is_dense(span) else self._read(other, piece, bounds, None)
            if read is not None:
                yield from ((run.first, run.last) for run in read)
            elif runs.is_dense(span) or (stream is Stream.STDERR and other in self._streams):
                yield span.first_sequence, span.last_sequence
