"""From the bytes of one stream to entries: lines, and pieces of lines that are too long or not finished. Pure.

Every line ends up in one entry or in several of which all but the last are partial; no byte is changed or dropped.
"""

from typing import NamedTuple

from common.records import PARTIAL_BYTES


class Piece(NamedTuple):
    """Some whole lines, or (`partial`) one entry without a line end."""

    payload: bytes
    lines: int
    partial: bool


class LineSplitter:
    """Splits one stream. `held` is what waits for its line end; it is always shorter than `piece_bytes`."""

    def __init__(self, piece_bytes: int = PARTIAL_BYTES) -> None:
        self._piece_bytes = piece_bytes
        self.held = b""

    def feed(self, received: bytes) -> list[Piece]:
        """The entries that `received` completes."""
        data = self.held + received if self.held else received
        pieces: list[Piece] = []
        start = position = 0
        while len(data) - position >= self._piece_bytes:
            line_end = data.rfind(b"\n", position, position + self._piece_bytes)
            if line_end >= 0:
                position = line_end + 1
                continue
            _append_lines(pieces, data, start, position)
            start = position + self._piece_bytes
            pieces.append(Piece(data[position:start], 1, partial=True))
            position = start
        position = max(position, data.rfind(b"\n", position) + 1)
        _append_lines(pieces, data, start, position)
        self.held = data[position:]
        return pieces

    def flush(self) -> list[Piece]:
        """What is held, as a partial entry: the job was silent for a while, or closed the stream."""
        held, self.held = self.held, b""
        return [Piece(held, 1, partial=True)] if held else []


def _append_lines(pieces: list[Piece], data: bytes, start: int, end: int) -> None:
    if end > start:
        pieces.append(Piece(data[start:end], data.count(b"\n", start, end), partial=False))
