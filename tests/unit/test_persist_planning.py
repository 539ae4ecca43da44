"""What of a batch is new, and what is missing."""

import pytest

from common.records import Stream
from services.persist import lines, planning
from services.persist.planning import Plan
from tests.unit.test_persist_journal import gap, output, records


def entries(plan: Plan, stream: Stream) -> list[tuple[int, int]]:
    """Sequence and gap of each entry planned for a stream."""
    return [(e.sequence, e.gap) for chunk in plan.chunks[stream] for e in lines.decode(chunk.text)]


def positions(stdout: int, stderr: int) -> dict[Stream, int]:
    """Last stored sequences."""
    return {Stream.STDOUT: stdout, Stream.STDERR: stderr}


@pytest.mark.threat("E05")
def test_repeats_are_refused_by_stream() -> None:
    """After a crash between the two files, what one of them has is refused and what the other lacks is taken."""
    batch = records(output(b"a\nb\n", 1), output(b"c\n", 3, stream=Stream.STDERR), output(b"d\n", 4))
    planned = planning.plan(batch, positions(4, 0))
    assert entries(planned, Stream.STDOUT) == []
    assert entries(planned, Stream.STDERR) == [(3, 0)]
    assert (planned.repeats, planned.missing) == (3, 0)


def test_a_record_that_is_stored_in_part_is_stored_to_its_end() -> None:
    """A member may have ended within a record."""
    planned = planning.plan(records(output(b"a\nb\nc\n", 1)), positions(2, 0))
    assert entries(planned, Stream.STDOUT) == [(3, 0)]
    assert planned.repeats == 2


@pytest.mark.threat("E05")
def test_a_hole_becomes_a_gap_line() -> None:
    """Sequences that nobody sent are visible to readers, and counted."""
    planned = planning.plan(records(output(b"x\n", 8, stream=Stream.STDERR)), positions(2, 3))
    assert entries(planned, Stream.STDOUT) == [(4, 4)]
    assert entries(planned, Stream.STDERR) == [(8, 0)]
    assert planned.missing == 4


def test_the_end_of_a_job_tells_what_never_came() -> None:
    """A job that ended at 9 and sent up to 5 lacks 6 to 9."""
    planned = planning.plan(records(output(b"x\n", 5)), positions(4, 0), level_with=9)
    assert entries(planned, Stream.STDOUT) == [(5, 0), (6, 4)]
    assert planned.missing == 4
    assert planning.plan([], positions(9, 3), level_with=9).missing == 0


def test_a_gap_record_is_taken_once() -> None:
    """The sender's own gap is stored as it is, and refused when it comes again."""
    planned = planning.plan(records(gap(1, 5), gap(1, 5)), positions(0, 0))
    assert entries(planned, Stream.STDOUT) == [(1, 5)]
    assert planned.repeats == 5


def test_a_gap_of_no_stream_stands_with_stdout() -> None:
    """What the monitor dropped was of both streams; the journal goes on behind it."""
    batch = records(gap(1, 5, stream=Stream.NONE), output(b"x\n", 6, stream=Stream.STDERR))
    planned = planning.plan(batch, positions(0, 0))
    assert entries(planned, Stream.STDOUT) == [(1, 5)]
    assert entries(planned, Stream.STDERR) == [(6, 0)]
    assert planning.plan(batch, positions(5, 6)).repeats == 6
