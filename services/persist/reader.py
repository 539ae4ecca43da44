"""Reading one job's output: both streams merged by sequence, with bounded memory, a step at a time.

A reader holds at most one member of each stream. `steps` is run in worker threads, one step after the other, and each
is short, so that whoever asked can leave in between. Waiting for more is server.py's.
"""

from collections import Counter, deque
from collections.abc import Generator
from typing import Final

import msgspec
import structlog

from common.errors import not_found
from common.records import Stream
from services.persist import runs
from services.persist.index import Bounds, Member
from services.persist.member import DamagedMember
from services.persist.runs import Run
from services.persist.segment import Segment
from services.persist.selection import LogSelection
from services.persist.store import Store, View

log = structlog.get_logger(__name__)

STEP_BYTES: Final = 2**20
"""A step ends after about so much output, or after as many members as `STEP_MEMBERS` without any."""
STEP_MEMBERS: Final = 8
RUN_OVERHEAD_BYTES: Final = 64
"""What a run costs besides its output: a step of many short ones stays in bounds, too."""
DAMAGED_REASON: Final = "damaged"


class LogReader:
    """One query. `damaged` counts members that could not be read."""

    def __init__(self, store: Store, selection: LogSelection) -> None:
        self._store = store
        self._selection = selection
        self._bounds = selection.bounds
        self._skip = selection.offset
        self._left = selection.limit
        self._tail = selection.tail
        self.damaged: Counter[str] = Counter()

    def steps(self, view: View) -> Generator[list[Run], None, None]:
        """What is wanted of what `view` shows and was not given yet; a list a step, some of them empty."""
        bounds = self._visible(view)
        if self._tail is not None:
            first, self._skip = yield from self._find_tail(view, bounds, self._tail)
            bounds, self._tail = bounds._replace(first_sequence=first), None
        cursors = [_Cursor(self, view.segments[stream], stream, bounds) for stream in self._selection.streams]
        step: list[Run] = []
        size = work = 0
        while not self.is_full:
            read = sum(cursor.fill() for cursor in cursors)
            live = sorted((cursor for cursor in cursors if cursor.runs), key=_next_sequence)
            if not live and not read:
                break
            if live and all(cursor.runs or cursor.is_done for cursor in cursors):
                size += self._take(live, step)
            work += read
            if size >= STEP_BYTES or work >= STEP_MEMBERS:
                yield step
                step, size, work = [], 0, 0
        if step:
            yield step
        if bounds.last_sequence is not None:
            self._bounds = self._bounds._replace(first_sequence=max(bounds.first_sequence, bounds.last_sequence + 1))

    @property
    def is_full(self) -> bool:
        """The limit is reached."""
        return self._left is not None and self._left <= 0

    def is_finished(self, view: View) -> bool:
        """Nothing more will be wanted, when all of `view` was given."""
        until = self._selection.bounds.last_sequence
        return not self._selection.wait or self.is_full or view.ended or (until is not None and until <= view.settled)

    def _visible(self, view: View) -> Bounds:
        """Nothing beyond what both streams have: one may be written while the other is not yet."""
        if view.ended or not (view.live or self._selection.wait):
            return self._bounds
        until = self._bounds.last_sequence
        return self._bounds._replace(last_sequence=view.settled if until is None else min(until, view.settled))

    def _take(self, live: list["_Cursor"], step: list[Run]) -> int:
        """Move runs of the first cursor to `step`, up to where the second begins; their bytes."""
        size = 0
        limit = live[1].runs[0].first if len(live) > 1 else None
        source = live[0].runs
        while source and not self.is_full and size < STEP_BYTES and (limit is None or source[0].first < limit):
            run = source.popleft()
            if self._skip >= run.lines:
                self._skip -= run.lines
                continue
            take = run.lines - self._skip if self._left is None else min(self._left, run.lines - self._skip)
            run = run.cut(self._skip, take)
            self._skip = 0
            if self._left is not None:
                self._left -= take
            step.append(run)
            size += len(run.data) + RUN_OVERHEAD_BYTES
        return size

    def _find_tail(self, view: View, bounds: Bounds, tail: int) -> Generator[list[Run], None, tuple[int, int]]:
        """From which sequence on to read and how many matches to skip there, to get the last `tail` of them.

        Yields empty steps: with a filter it may have to look at everything.
        Members of both streams overlap. So one counts when no member is left that reaches behind its first entry.
        """
        left = sorted(
            (
                (found.header.span.last_sequence, stream, found)
                for stream in self._selection.streams
                for found in view.segments[stream].index.touched(bounds)
            ),
            key=lambda item: item[0],
        )
        counted, overlapping = 0, deque[tuple[Stream, Member]]()
        while left and counted < tail:
            _, stream, found = left.pop()
            overlapping.append((stream, found))
            edge = left[-1][0] if left else 0
            yield []
            for _ in range(len(overlapping)):
                stream, found = overlapping.popleft()
                if found.header.span.first_sequence > edge:
                    counted += self._count(view, stream, found, bounds)
                else:
                    overlapping.append((stream, found))
        first = max(bounds.first_sequence, left[-1][0] + 1 if left else 0)
        beyond = bounds._replace(first_sequence=first)
        counted += sum(self._count(view, stream, found, beyond) for stream, found in overlapping)
        return first, max(0, counted - tail)

    def _count(self, view: View, stream: Stream, found: Member, bounds: Bounds) -> int:
        if not self._selection.needle and bounds.cover(found.header.span):
            return found.header.span.lines
        return sum(run.lines for run in self.runs_of(view.segments[stream], stream, found, bounds))

    def runs_of(self, segment: Segment, stream: Stream, found: Member, bounds: Bounds) -> list[Run]:
        """The wanted runs of one member; of one that cannot be read, a gap. Raises OSError, `JobletError`."""
        job, span, needle = self._selection.job, found.header.span, self._selection.needle
        try:
            text = self._store.read(job, segment, found)
            return list(runs.of_text(text, stream, None if bounds.cover(span) else bounds, needle, span=span))
        except FileNotFoundError as cause:
            raise not_found(f"the data of job {job} was deleted meanwhile") from cause
        except (DamagedMember, msgspec.DecodeError, ValueError) as cause:
            self.damaged[segment.name] += 1
            log.error("a stored member is damaged", job=job, file=segment.name, offset=found.offset, why=str(cause))
        if needle:
            return []
        dense = span.lines == span.last_sequence - span.first_sequence + 1
        gap = Run(
            first=span.first_sequence,
            lines=span.lines if dense else 1,
            stream=stream,
            time_ns=span.first_time_ns,
            data=b"",
            gap_reason=DAMAGED_REASON,
        )
        skip = max(0, bounds.first_sequence - gap.first)
        last = gap.last if bounds.last_sequence is None else min(gap.last, bounds.last_sequence)
        return [gap.cut(skip, last - gap.first - skip + 1)] if gap.first + skip <= last else []


class _Cursor:
    """Where a reader is in one stream."""

    def __init__(self, reader: LogReader, segment: Segment, stream: Stream, bounds: Bounds) -> None:
        self._reader, self._segment, self._stream, self._bounds = reader, segment, stream, bounds
        self._members = segment.index.touched(bounds)
        self.runs: deque[Run] = deque()
        self.is_done = False

    def fill(self) -> int:
        """Read members until there is a run, at most STEP_MEMBERS; how many were read."""
        read = 0
        while not self.runs and not self.is_done and read < STEP_MEMBERS:
            found = next(self._members, None)
            if found is None:
                self.is_done = True
            else:
                self.runs.extend(self._reader.runs_of(self._segment, self._stream, found, self._bounds))
                read += 1
        return read


def _next_sequence(cursor: _Cursor) -> int:
    return cursor.runs[0].first
