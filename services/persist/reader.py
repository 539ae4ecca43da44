"""Reading one job's output: both streams merged by sequence, with bounded memory, a step at a time.

A reader holds at most one member of each stream. `steps` is run in worker threads, one step after the other, and each
is short, so that whoever asked can leave in between, and others are served. Waiting for more is queries.py's.

Files may be replaced by shorter ones while they are read (retention does). Then the reader looks again, and goes on at
the first sequence that it has not passed yet.
"""

from collections import deque
from collections.abc import Generator, Iterator
from typing import Final

import structlog

from common.errors import not_found
from common.records import Stream
from services.persist import tail
from services.persist.blocks import Source
from services.persist.index import Bounds, Piece
from services.persist.pieces import PIECE_COST_BYTES, DamagedMembers, Pieces
from services.persist.runs import Run
from services.persist.search import Search
from services.persist.segment import StaleSegment
from services.persist.selection import LogSelection
from services.persist.store import View

log = structlog.get_logger(__name__)

STEP_BYTES: Final = 2**20
"""A step ends after about so much output, or after the work of inflating `STEP_COST_BYTES` without any."""
STEP_COST_BYTES: Final = 4 * 2**20
RUN_OVERHEAD_BYTES: Final = 64
"""What a run costs besides its output: a step of many short ones stays in bounds, too."""


class LogReader:
    """One query. `damaged` takes the members that could not be read."""

    def __init__(self, store: Source, selection: LogSelection, damaged: DamagedMembers | None = None) -> None:
        self._store = store
        self._selection = selection
        self._search = Search.of(selection.matcher) if selection.matcher else None
        self.damaged = DamagedMembers() if damaged is None else damaged
        self._bounds = selection.bounds
        self._skip = selection.offset
        self._left = selection.limit
        self._tail = selection.tail

    def steps(self, view: View) -> Generator[list[Run], None, None]:
        """What is wanted of what `view` shows and was not given yet; a list a step, some of them empty.

        Raises OSError, `JobletError`: NOT_FOUND when the job's data was deleted meanwhile.
        """
        while True:
            try:
                yield from self._look(view)
            except (StaleSegment, FileNotFoundError) as cause:
                view = self._looked_again(view, cause)
            else:
                return

    @property
    def is_full(self) -> bool:
        """The limit is reached."""
        return self._left is not None and self._left <= 0

    def is_finished(self, view: View) -> bool:
        """Nothing more will be wanted, when all of `view` was given."""
        until = self._selection.bounds.last_sequence
        return not self._selection.wait or self.is_full or view.ended or (until is not None and until <= view.settled)

    def _look(self, view: View) -> Generator[list[Run], None, None]:
        """Raises `StaleSegment` and FileNotFoundError when all was given that is passed over the next time."""
        selection = self._selection
        pieces = Pieces(self._store, selection, view, search=self._search, damaged=self.damaged)
        bounds = self._visible(view)
        if self._tail is not None:
            first, self._skip = yield from self._start_of_tail(pieces, bounds, self._tail)
            bounds = bounds._replace(first_sequence=first)
        cursors = [_Cursor(pieces, stream, bounds) for stream in selection.streams]
        if Stream.STDOUT not in selection.streams:
            cursors.append(_Cursor(pieces, Stream.STDOUT, bounds, gaps_only=True))
        step: list[Run] = []
        size = work = 0
        try:
            while not self.is_full:
                cost = sum(cursor.fill() for cursor in cursors)
                live = sorted((cursor for cursor in cursors if cursor.runs), key=_next_sequence)
                if not live and not cost:
                    break
                if live and all(cursor.runs or cursor.is_done for cursor in cursors):
                    size += self._take(pieces, live, step)
                work += cost
                if size >= STEP_BYTES or work >= STEP_COST_BYTES:
                    self._passed(cursors, given=bool(step))
                    yield step
                    step, size, work = [], 0, 0
        except (StaleSegment, FileNotFoundError):
            self._passed(cursors, given=bool(step))
            if step:
                yield step
            raise
        if step:
            yield step
        self._tail = None
        through = bounds.last_sequence
        passed = max(cursor.read_to for cursor in cursors) if through is None else through + 1
        self._bounds = self._bounds._replace(first_sequence=max(bounds.first_sequence, passed))

    def _looked_again(self, view: View, cause: Exception) -> View:
        fresh = self._store.view(self._selection.job)
        same = all(fresh.segments[stream] is segment for stream, segment in view.segments.items())
        empty = not any(segment.size_bytes for segment in fresh.segments.values())
        if empty or (same and isinstance(cause, FileNotFoundError)):
            raise not_found(f"the data of job {self._selection.job} was deleted meanwhile") from cause
        if same:
            raise OSError(f"a file of job {self._selection.job} was replaced, and nobody told the store") from cause
        log.info("stored files were replaced while they were read", job=self._selection.job)
        return fresh

    def _visible(self, view: View) -> Bounds:
        """Nothing beyond what both streams have: one may be written while the other is not yet."""
        if view.ended or not (view.live or self._selection.wait):
            return self._bounds
        until = self._bounds.last_sequence
        return self._bounds._replace(last_sequence=view.settled if until is None else min(until, view.settled))

    def _start_of_tail(self, pieces: Pieces, bounds: Bounds, count: int) -> Generator[list[Run], None, tail.Start]:
        found = tail.find(pieces, self._selection.streams, bounds, count, step_cost=STEP_COST_BYTES)
        while True:
            try:
                next(found)
            except StopIteration as end:
                start: tail.Start = end.value
                return start
            yield []

    def _passed(self, cursors: list["_Cursor"], *, given: bool) -> None:
        """What lies before all cursors is done with. As long as nothing of a tail is given, it is looked for again."""
        if given:
            self._tail = None
        if self._tail is None:
            position = min((cursor.position for cursor in cursors if cursor.position is not None), default=0)
            self._bounds = self._bounds._replace(first_sequence=max(self._bounds.first_sequence, position))

    def _take(self, pieces: Pieces, live: list["_Cursor"], step: list[Run]) -> int:
        """Move runs of the first cursor to `step`, up to where the second begins; their bytes."""
        size = 0
        limit = live[1].runs[0].first if len(live) > 1 else None
        source = live[0].runs
        while source and not self.is_full and size < STEP_BYTES and (limit is None or source[0].first < limit):
            run = source.popleft()
            counts = pieces.counts(run)
            if counts and self._skip >= run.lines:
                self._skip -= run.lines
                continue
            if counts and (self._skip or self._left is not None):
                take = run.lines - self._skip if self._left is None else min(self._left, run.lines - self._skip)
                run = run.cut(self._skip, take)
                self._skip = 0
                self._left = None if self._left is None else self._left - take
            step.append(run)
            size += len(run.data) + RUN_OVERHEAD_BYTES
        return size


class _Cursor:
    """Where a reader is in one stream. `gaps_only`: of stdout's file only what is missing of no stream is wanted."""

    def __init__(self, pieces: Pieces, stream: Stream, bounds: Bounds, *, gaps_only: bool = False) -> None:
        self._pieces, self._stream, self._bounds = pieces, stream, bounds
        self._gaps_only = gaps_only
        self._left: Iterator[Piece] = pieces.of(stream, bounds)
        self.read_to = bounds.first_sequence
        """What lies before was read."""
        self.runs: deque[Run] = deque()
        self.is_done = False

    @property
    def position(self) -> int | None:
        """The first sequence that was not passed yet; None: all were."""
        if self.runs:
            return self.runs[0].first
        return None if self.is_done else self.read_to

    def fill(self) -> int:
        """Read pieces until there is a run, or the work of a step is done; about how much it was, in bytes inflated."""
        cost = 0
        while not self.runs and not self.is_done and cost < STEP_COST_BYTES:
            piece = next(self._left, None)
            if piece is None:
                self.is_done = True
                break
            if self._gaps_only:
                self.runs.extend(self._pieces.gaps_of_no_stream(piece, self._bounds))
                cost += PIECE_COST_BYTES
            else:
                self.runs.extend(self._pieces.runs(self._stream, piece, self._bounds))
                cost += self._pieces.cost(piece)
            self.read_to = piece.span.last_sequence + 1
        return cost


def _next_sequence(cursor: _Cursor) -> int:
    return cursor.runs[0].first
