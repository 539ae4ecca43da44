"""What is missing where stored bytes are unreadable; exactly, for over both files every sequence is there once. Pure.

A member, or a hole between members, tells from where to where entries of its stream may be lost; whatever the other
file has of that is not. Reading the other file is the business of pieces.py.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from common.records import Stream
from services.persist.index import Bounds, Piece
from services.persist.runs import Run

REASON: Final = "damaged"


def gaps(piece: Piece, stream: Stream, time_ns: int, present: Iterable[tuple[int, int]], bounds: Bounds) -> list[Run]:
    """Gaps for what `piece` stands for and is not in the rising (first, last) of `present`, within `bounds`."""
    first = max(piece.span.first_sequence, bounds.first_sequence)
    last = piece.span.last_sequence
    if bounds.last_sequence is not None:
        last = min(last, bounds.last_sequence)
    return [Run(a, b - a + 1, stream, time_ns, b"", gap_reason=REASON) for a, b in _absent(first, last, present)]


def _absent(first: int, last: int, present: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for present_first, present_last in present:
        if first < present_first:
            yield first, min(last, present_first - 1)
        first = max(first, present_last + 1)
        if first > last:
            return
    if first <= last:
        yield first, last
