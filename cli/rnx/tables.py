"""Output for people and for programs: tables, key-value lists, JSON.

Here: the three shapes, with everything that came from a job or a node escaped (threat C20). Not here: what is in them
(`cli/client/views.py`). A table is cut to the width of a terminal, and whole elsewhere.
"""

import json
import sys
from collections.abc import Container, Iterable, Sequence
from typing import Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.client.escape import escape_line
from cli.client.views import Value

_UNCUT_COLUMNS: Final = 100_000
_STATE_STYLES: Final = {
    "running": "green",
    "starting": "green",
    "failed": "red",
    "lost": "red",
    "timed_out": "yellow",
    "stopped": "yellow",
}


def print_json(value: Value) -> None:
    """One JSON document on one line. ASCII only, so that no control character of C1 reaches a terminal."""
    click.echo(json.dumps(value, separators=(",", ":")))


def stdout_console() -> Console:
    """Of stdout as it is: FORCE_COLOR and the like must not make a terminal, with its width, of a pipe to a program."""
    return Console(highlight=False, soft_wrap=False, force_terminal=None if sys.stdout.isatty() else False)


def make_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table without lines; states are coloured. Only the last column is cut: an id is there to be copied."""
    rows = [*rows]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings[:-1]:
        table.add_column(heading, no_wrap=True)
    table.add_column(headings[-1])  # rich takes space from columns that may wrap only; its cells do not, all the same
    table.columns[0].min_width = max((cell(row[0]).cell_len for row in rows), default=None)
    for row in rows:
        cells = [cell(text) for text in row]
        cells[-1].no_wrap, cells[-1].overflow = True, "ellipsis"
        table.add_row(*cells)
    return table


def used_columns(
    headings: Sequence[str], rows: Sequence[tuple[str, ...]], *, sometimes: Container[str]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and rows without those columns of `sometimes` in which nobody has anything."""
    kept = [
        number
        for number, heading in enumerate(headings)
        if heading not in sometimes or any(row[number] for row in rows)
    ]
    return tuple(headings[number] for number in kept), [tuple(row[number] for number in kept) for row in rows]


def cell(text: str) -> Text:
    """Text of someone else: no markup, no control characters."""
    return Text(escape_line(text), style=_STATE_STYLES.get(text, ""))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """The table on stdout."""
    console = stdout_console()
    if not console.is_terminal:
        console = Console(highlight=False, width=_UNCUT_COLUMNS, force_terminal=False)
    with console.capture() as capture:
        console.print(make_table(headings, rows))
    for line in capture.get().splitlines():
        click.echo(line.rstrip())


def print_fields(fields: Iterable[tuple[str, str]]) -> None:
    """`name: value` lines with the values in one column."""
    known = [(name, escape_line(value)) for name, value in fields if value]
    width = max((len(name) for name, _ in known), default=0) + 1
    for name, value in known:
        click.echo(f"{name + ':':<{width}} {value}")
