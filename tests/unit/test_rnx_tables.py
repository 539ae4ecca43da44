"""Tables on a terminal."""

from rich.console import Console

from cli.rnx.tables import make_table

ID = "a63c74aa-0b3c-44aa-ac2b-13680e883c90"


def test_only_the_last_column_is_cut() -> None:
    """On a narrow terminal an id stays whole, so that it can be copied, and so do headings; the command gives way."""
    console = Console(width=80, highlight=False)
    with console.capture() as capture:
        console.print(make_table(("ID", "NAME", "COMMAND"), [(ID, "", "sh -c " + "x" * 200)]))
    heading, row = capture.get().splitlines()
    assert heading.split() == ["ID", "NAME", "COMMAND"]
    assert row.split()[0] == ID
    assert row.rstrip().endswith("…")
    assert len(row) <= 80


def test_the_id_stays_whole_where_much_stands_behind_it() -> None:
    """The columns of `rnx job list` do not fit into 80 characters: the others give way, not what is copied."""
    headings = ("ID", "NAME", "OWNER", "STATE", "EXIT", "CREATED", "COMMAND")
    rows = [(ID, "nightly", "alice", "completed", "signal 15", "2026-11-22T21:21:40Z", "sh -c true")]
    for width in (40, 60, 80):
        console = Console(width=width, highlight=False)
        with console.capture() as capture:
            console.print(make_table(headings, rows))
        assert [line.split()[0] for line in capture.get().splitlines()] == ["ID", ID]
