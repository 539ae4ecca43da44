"""What START and EXIT of a journal say, in the JSON that the monitor writes and docs/protocol.md draws."""

import json

import pytest

from common.messages.jobs import Usage
from common.records import RecordType
from services.executor.events import Ended, Failure, OutputLost, Started
from services.executor.journal import Note
from services.executor.notes import UnreadableNote, parse_note


def note(kind: RecordType, **fields: object) -> Note:
    """A record of version 1."""
    return Note(kind, 9, json.dumps({"version": 1, **fields}).encode(), 4)


def ended(**fields: object) -> Ended:
    """The event of an EXIT."""
    event = parse_note(note(RecordType.EXIT, **fields))
    assert isinstance(event, Ended)
    return event


def test_usage_stands_at_the_top_of_an_exit() -> None:
    """Every figure of Usage is a key of its own, so that a monitor of an older release is understood."""
    figures = {name: number for number, name in enumerate(Usage.__struct_fields__, start=1)}
    event = ended(outcome="exited", exit_code=0, **figures)
    assert event.usage == Usage(**figures)
    assert (event.at_ns, event.last_sequence, event.exit_code) == (9, 4, 0)


def test_an_exit_of_an_older_monitor_is_understood() -> None:
    """What it did not measure is 0; unknown keys of a newer one pass."""
    older = ended(outcome="signaled", signal=9, cpu_time_us=5, memory_peak_bytes=6, oom_kills=1, ended_by="timeout")
    assert older.usage == Usage(cpu_time_us=5, memory_peak_bytes=6, oom_kills=1)
    newer = ended(outcome="not_started", failure={"step": "mount", "errno": 1}, gpu_time_us=1)
    assert newer.failure == Failure(step="mount", errno=1)
    assert newer.usage == Usage()


def test_a_start_tells_the_pid() -> None:
    """Of the host."""
    assert parse_note(note(RecordType.START, pid=7, monitor_pid=6)) == Started(at_ns=9, pid=7)


@pytest.mark.parametrize(
    ("payload", "lost_bytes"),
    [
        (b'{"reason":"journal_full","bytes":70}', 70),
        (b'{"reason":"journal_full"}', 0),
        (b'{"bytes":-4}', 0),
        (b"\xff", 0),
    ],
)
def test_a_gap_tells_what_is_missing(payload: bytes, lost_bytes: int) -> None:
    """Which entries is in its header; its bytes are known or not."""
    gap = Note(RecordType.GAP, 9, payload, last_sequence=14, lines=10)
    assert parse_note(gap) == OutputLost(at_ns=9, first=5, entries=10, bytes=lost_bytes)


@pytest.mark.parametrize(
    "unreadable",
    [
        note(RecordType.EXIT, outcome="melted"),
        note(RecordType.EXIT, outcome="exited", cpu_time_us="much"),
        note(RecordType.EXIT, outcome="exited", version=2),
        note(RecordType.START),
        Note(RecordType.EXIT, 1, b"\xff", 0),
    ],
)
def test_what_is_not_of_this_version_is_said_to_be_unreadable(unreadable: Note) -> None:
    """Never guessed at."""
    with pytest.raises(UnreadableNote):
        parse_note(unreadable)
