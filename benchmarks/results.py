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

    Where a thing was measured several times `ours` and `theirs` are medians, and `best` and `their_best` the best of
    these runs. `ratio` is ours divided by the peer's; None when there is no peer. `budget` is the promise in words,
    `met` whether it is kept: None when it cannot be judged. `size` is how large the job was, in lines, where a thing is
    measured for jobs of several sizes.
    """

    name: str
    unit: str
    ours: float
    best: float | None = None
    peer: str = ""
    theirs: float | None = None
    their_best: float | None = None
    ratio: float | None = None
    size: int | None = None
    budget: str = ""
    met: bool | None = None
    note: str = ""


def compared(row: Row, *, ratio_min: float | None = None, ratio_max: float | None = None, ours_min: float = 0.0) -> Row:
    """The row with its ratio, judged by the bounds."""
    if row.theirs is None:
        return msgspec.structs.replace(row, note=row.note or f"{row.peer} {MISSING}")
    ratio = row.ours / row.theirs
    met = (ratio_min is None or ratio >= ratio_min) and (ratio_max is None or ratio <= ratio_max)
    met = met and row.ours >= ours_min
    judged = met if ratio_min is not None or ratio_max is not None else row.met
    return msgspec.structs.replace(row, ratio=ratio, met=judged)


def rates(
    name: str, unit: str, ours: Sequence[float], *, peer: str = "", theirs: Sequence[float] = (), budget: str = ""
) -> Row:
    """Medians and bests of several runs of something of which more is better; no `theirs`: the peer is not there."""
    return Row(
        name=name,
        unit=unit,
        ours=statistics.median(ours),
        best=max(ours),
        peer=peer,
        theirs=statistics.median(theirs) if theirs else None,
        their_best=max(theirs) if theirs else None,
        budget=budget,
    )


def percentile(values: Sequence[float], percent: int) -> float:
    """The value below which `percent` of the sorted values lie."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def table(rows: Sequence[Row]) -> str:
    """Aligned columns."""
    head = ("what", "joblet", "best", "unit", "peer", "its", "best", "ratio", "budget", "met", "")
    lines = [head] + [
        (
            row.name if row.size is None else f"{row.size:,} lines: {row.name}",
            number(row.ours),
            _or_dash(row.best),
            row.unit,
            row.peer,
            _or_dash(row.theirs),
            _or_dash(row.their_best),
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


def _or_dash(value: float | None) -> str:
    return "-" if value is None else number(value)


def number(value: float) -> str:
    """Three digits or so, for people."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.1f}"
