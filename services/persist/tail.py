"""Where the last so many wanted entries begin, found from the end: what lies before them is not looked at."""

import heapq
from collections.abc import Generator, Iterator
from typing import NamedTuple

from common.records import Stream
from services.persist.index import Bounds, Piece
from services.persist.pieces import PIECE_COST_BYTES, Pieces


class Start(NamedTuple):
    """Read from `first_sequence` on, and pass over `skip` wanted entries there."""

    first_sequence: int
    skip: int


def find(
    pieces: Pieces, streams: tuple[Stream, ...], bounds: Bounds, tail: int, *, step_cost: int
) -> Generator[None, None, Start]:
    """Where the last `tail` begin. Yields after about `step_cost`: with a search it may have to look at everything.

    Pieces of both streams overlap. So one counts when none is left that reaches behind its first entry.
    """
    backwards = heapq.merge(*(_backwards(pieces, stream, bounds) for stream in streams), key=_from_the_end)
    following = next(backwards, None)
    overlapping: list[tuple[Stream, Piece]] = []
    counted = cost = 0
    while following is not None and counted < tail:
        overlapping.append(following)
        following = next(backwards, None)
        edge = following[1].span.last_sequence if following else 0
        reaching: list[tuple[Stream, Piece]] = []
        for stream, piece in overlapping:
            if piece.span.first_sequence <= edge:
                reaching.append((stream, piece))
                continue
            entries, spent = pieces.count(stream, piece, bounds)
            counted += entries
            cost += spent + PIECE_COST_BYTES
            if cost >= step_cost:
                yield
                cost = 0
        overlapping = reaching
    first = max(bounds.first_sequence, following[1].span.last_sequence + 1 if following else 0)
    beyond = bounds._replace(first_sequence=first)
    counted += sum(pieces.count(stream, piece, beyond)[0] for stream, piece in overlapping)
    return Start(first, max(0, counted - tail))


def _backwards(pieces: Pieces, stream: Stream, bounds: Bounds) -> Iterator[tuple[Stream, Piece]]:
    return ((stream, piece) for piece in pieces.of(stream, bounds, backwards=True))


def _from_the_end(item: tuple[Stream, Piece]) -> int:
    return -item[1].span.last_sequence
