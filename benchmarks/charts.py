"""The rows that carry a size, as pictures of growth: one small chart for each thing measured, both axes logarithmic.

SVG 1.1, no script. Not here: bars beside a peer's (`plot.py`). A straight level line means that the cost does not grow.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.results import Row, number

COLUMNS: Final = 2
WIDTH_PX: Final = 460
HEIGHT_PX: Final = 250
LEFT_PX: Final = 70
RIGHT_PX: Final = 30
TOP_PX: Final = 46
BOTTOM_PX: Final = 40
HEAD_PX: Final = 36
_LINE, _GRID = "#2a6f97", "#dddddd"


class Point(NamedTuple):
    """One size and what was measured there."""

    size: int
    value: float


class Frame(NamedTuple):
    """Where a chart is, and the decades that its axes span."""

    left: int
    top: int
    sizes: tuple[int, int]
    values: tuple[int, int]

    def x(self, size: float) -> float:
        """Pixels from the left."""
        return self.left + LEFT_PX + _share(size, self.sizes) * (WIDTH_PX - LEFT_PX - RIGHT_PX)

    def y(self, value: float) -> float:
        """Pixels from the top."""
        return self.top + TOP_PX + (1 - _share(value, self.values)) * (HEIGHT_PX - TOP_PX - BOTTOM_PX)


def write_growth(rows: Sequence[Row], title: str, file: Path) -> None:
    """Draw the series that have a size; no file when there is none."""
    series: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for row in rows:
        if row.size is not None:
            series[row.name, row.unit].append(Point(row.size, row.ours))
    if not series:
        return
    width = WIDTH_PX * COLUMNS
    height = HEAD_PX + HEIGHT_PX * math.ceil(len(series) / COLUMNS)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(10, 24, title, size=15),
    ]
    for place, ((name, unit), points) in enumerate(series.items()):
        frame = Frame(
            left=place % COLUMNS * WIDTH_PX,
            top=HEAD_PX + place // COLUMNS * HEIGHT_PX,
            sizes=_decades([point.size for point in points]),
            values=_decades([point.value for point in points]),
        )
        parts += _chart(frame, f"{name}, {unit}", points)
    file.write_text("\n".join([*parts, "</svg>"]) + "\n")


def _chart(frame: Frame, title: str, points: Sequence[Point]) -> Iterator[str]:
    yield _text(frame.left + LEFT_PX, frame.top + 24, title, size=13)
    low, high = frame.sizes
    for decade in range(low, high + 1):
        x = frame.x(10.0**decade)
        yield _rule(x, frame.y(10.0 ** frame.values[0]), x, frame.y(10.0 ** frame.values[1]))
        yield _text(x, frame.top + HEIGHT_PX - 20, f"{10**decade:,}", size=10, anchor="middle")
    for decade in range(frame.values[0], frame.values[1] + 1):
        y = frame.y(10.0**decade)
        yield _rule(frame.x(10.0**low), y, frame.x(10.0**high), y)
        yield _text(frame.left + LEFT_PX - 8, y + 4, number(10.0**decade), size=10, anchor="end")
    path = " ".join(f"{frame.x(point.size):.1f},{frame.y(point.value):.1f}" for point in points)
    yield f'<polyline points="{path}" fill="none" stroke="{_LINE}" stroke-width="2"/>'
    for point in points:
        x, y = frame.x(point.size), frame.y(point.value)
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{_LINE}"/>'
        yield _text(x, y - 8, number(point.value), size=10, anchor="middle")


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """The powers of ten that enclose all values, at least one apart."""
    low = math.floor(math.log10(max(min(values), 1e-3)))
    return low, max(math.ceil(math.log10(max(*values, 1e-3))), low + 1)


def _share(value: float, decades: tuple[int, int]) -> float:
    """How far between the two powers of ten a value lies, 0 to 1."""
    low, high = decades
    return (math.log10(max(value, 10.0**low)) - low) / (high - low)


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{_GRID}"/>'


def _text(x: float, y: float, text: str, *, size: int, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'
