"""What a benchmark gives back, and how it is shown: rows, a table for people, JSON for programs.

Belongs here: the shape of a result and its two renderings. Does not belong here: measuring.
"""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import msgspec

MISSING = "not installed here"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One number beside that of a peer, measured in the same run on the same machine.

    `ratio` is ours divided by the peer's; None when there is no peer. `budget` is the promise in words, `met` whether
    it is kept: None when it cannot be judged.
    """

    name: str
    unit: str
    ours: float
    peer: str = ""
    theirs: float | None = None
    ratio: float | None = None
    budget: str = ""
    met: bool | None = None
    note: str = ""


def compared(row: Row, *, ratio_min: float | None = None, ratio_max: float | None = None) -> Row:
    """The row with its ratio, judged by the bounds."""
    if row.theirs is None:
        return msgspec.structs.replace(row, note=row.note or f"{row.peer} {MISSING}")
    ratio = row.ours / row.theirs
    met = (ratio_min is None or ratio >= ratio_min) and (ratio_max is None or ratio <= ratio_max)
    judged = met if ratio_min is not None or ratio_max is not None else row.met
    return msgspec.structs.replace(row, ratio=ratio, met=judged)


def percentile(values: Sequence[float], percent: int) -> float:
    """The value below which `percent` of the sorted values lie."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def table(rows: Sequence[Row]) -> str:
    """Aligned columns."""
    head = ("what", "joblet", "unit", "peer", "its", "ratio", "budget", "met", "")
    lines = [head] + [
        (
            row.name,
            number(row.ours),
            row.unit,
            row.peer,
            "-" if row.theirs is None else number(row.theirs),
            "-" if row.ratio is None else f"{row.ratio:.2f}",
            row.budget,
            {True: "yes", False: "NO", None: "-"}[row.met],
            row.note,
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def write_json(rows: Sequence[Row], machine: dict[str, str], file: Path) -> None:
    """All of it for programs."""
    file.write_text(json.dumps({"machine": machine, "rows": msgspec.to_builtins(rows)}, indent=1) + "\n")


def number(value: float) -> str:
    """Three digits or so, for people."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.1f}"
