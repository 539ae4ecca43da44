"""The rows of a run as a picture: one pair of bars for each comparison, ours above the peer's, as SVG.

Each pair has a scale of its own, since rows differ in unit; so lengths compare within a pair only. SVG 1.1, no script.
"""

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Final

from benchmarks.results import Row, number

LABEL_PX: Final = 260
BAR_PX: Final = 420
ROW_PX: Final = 46
WIDTH_PX: Final = LABEL_PX + BAR_PX + 220
_OURS, _THEIRS = "#2a6f97", "#b8b8b8"


def write_svg(rows: Sequence[Row], title: str, file: Path) -> None:
    """Draw the rows that have a peer's number beside them."""
    pairs = [row for row in rows if row.theirs is not None]
    height = ROW_PX * len(pairs) + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH_PX}" height="{height}"'
        ' font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH_PX}" height="{height}" fill="white"/>',
        _text(10, 24, title, size=15),
    ]
    for number_of_pair, row in enumerate(pairs):
        parts += _pair(row, 44 + ROW_PX * number_of_pair)
    file.write_text("\n".join([*parts, "</svg>"]) + "\n")


def _pair(row: Row, top: int) -> Iterator[str]:
    assert row.theirs is not None
    longest = max(row.ours, row.theirs) or 1
    yield _text(10, top + 20, f"{row.name}, {row.unit}")
    for offset, value, colour, name in ((4, row.ours, _OURS, "joblet"), (20, row.theirs, _THEIRS, row.peer)):
        length = round(BAR_PX * value / longest)
        yield f'<rect x="{LABEL_PX}" y="{top + offset}" width="{max(length, 1)}" height="13" fill="{colour}"/>'
        yield _text(LABEL_PX + length + 8, top + offset + 11, f"{number(value)}  {name}", size=11)


def _text(x: int, y: int, text: str, *, size: int = 13) -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}">{escape(text)}</text>'
