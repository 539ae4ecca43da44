"""Queries against a plain model of them: filters, limits, tails, sequences, times; damage in the middle."""

import random
from pathlib import Path
from typing import NamedTuple

import pytest

from common.identifiers import new_job_id
from common.records import Stream
from services.persist.pieces import DamagedMembers
from services.persist.reader import LogReader
from services.persist.runs import Run
from tests.unit.test_persist_journal import (
    TIME_NS,
    gap,
    joined,
    make_store,
    output,
    query,
    random_journal,
    read,
    records,
    select,
    write,
)

JOB = new_job_id()


class Line(NamedTuple):
    """One entry, as a reader sees it."""

    sequence: int
    stream: Stream
    time_ns: int
    content: bytes
    partial: bool


def lines_of(runs: list[Run]) -> list[Line]:
    """The entries in runs."""
    return [
        Line(sequence, run.stream, run.time_ns, content, run.partial)
        for run in runs
        for sequence, content in enumerate(run.contents(), run.first)
    ]


def model(encoded: list[bytes]) -> list[Line]:
    """The entries in journal records."""
    found = []
    for record in records(*encoded):
        payload = bytes(record.payload)
        contents = [payload] if record.partial else payload.split(b"\n")[:-1]
        for sequence, content in enumerate(contents, record.sequence):
            found.append(Line(sequence, Stream(record.stream), record.time_ns, content, record.partial))
    return found


@pytest.mark.requirement("S0.42")
@pytest.mark.requirement("S0.45")
@pytest.mark.parametrize("seed", range(8))
def test_every_query_gives_what_the_model_gives(tmp_path: Path, seed: int) -> None:
    """Random journals, flushed at random places, and random queries over all fields together."""
    source = random.Random(seed)  # noqa: S311  # no secret
    encoded, _ = random_journal(source, count=120)
    store = make_store(tmp_path, flush_bytes=4096)
    rest = list(encoded)
    while rest:
        size = source.randrange(1, 30)
        write(store, JOB, *rest[:size])
        rest = rest[size:]
    if seed % 2:
        store = make_store(tmp_path, flush_bytes=4096)
    every = model(encoded)
    assert lines_of(query(store, JOB)) == every
    for _ in range(40):
        fields, expected = _random_query(source, every)
        assert lines_of(query(store, JOB, **fields)) == expected, fields


def _random_query(source: random.Random, every: list[Line]) -> tuple[dict[str, object], list[Line]]:
    fields: dict[str, object] = {}
    expected = every
    if source.random() < 0.4:
        stream = source.choice((Stream.STDOUT, Stream.STDERR))
        fields["stream"] = int(stream)
        expected = [line for line in expected if line.stream is stream]
    if source.random() < 0.4:
        first, last = sorted(source.choices(range(1, len(every) + 20), k=2))
        fields |= {"from_sequence": first, "until_sequence": last}
        expected = [line for line in expected if first <= line.sequence <= last]
    if source.random() < 0.3:
        start = TIME_NS + source.randrange(5000)
        fields |= {"start_time": start, "end_time": start + 20_000}
        expected = [line for line in expected if start <= line.time_ns < start + 20_000]
    if source.random() < 0.4:
        needle = source.choice(("plain", "\u2028", '"\\', "\0", "nowhere", "aaa", "n"))
        fields["filter"] = needle
        expected = [line for line in expected if needle.encode() in line.content]
    if source.random() < 0.5:
        offset, limit = source.randrange(20), source.choice((0, 1, 7, 1000))
        fields |= {"offset": offset, "limit": limit}
        expected = expected[offset : offset + limit if limit else None]
    elif source.random() < 0.6:
        tail = source.choice((0, 1, 10, 500, 10**6))
        fields["tail"] = tail
        expected = expected[len(expected) - tail :] if tail < len(expected) else expected
    return fields, expected


def test_runs_have_one_time_and_stay_in_bounds(tmp_path: Path) -> None:
    """Lines of one write come together, of two do not, and none has more than a mebibyte."""
    store = make_store(tmp_path, flush_bytes=4 * 2**20)
    write(store, JOB, output(b"a\nb\n", 1), output(b"c\n", 3), output(b"d\n", 4, time_ns=TIME_NS + 1))
    write(store, JOB, output((b"y" * 63 + b"\n") * 30_000, 5, time_ns=TIME_NS + 1))
    runs = query(store, JOB)
    assert [run.data for run in runs[:2]] == [b"a\nb\nc\n", b"d\n"]
    assert max(len(run.data) for run in runs) <= 2**20
    assert sum(run.lines for run in runs) == 30_004


def test_gaps_are_entries(tmp_path: Path) -> None:
    """A gap is given with its lines, is cut by bounds, limits and tails, and is told uncut to who searches."""
    store = make_store(tmp_path)
    write(store, JOB, output(b"a\n", 1), gap(2, 10), output(b"b\n", 12))
    assert [(r.first, r.lines, r.gap_reason, r.gap_bytes) for r in query(store, JOB)] == [
        (1, 1, "", 0),
        (2, 10, "journal full", 1000),
        (12, 1, "", 0),
    ]
    assert [(r.first, r.lines) for r in query(store, JOB, from_sequence=4, until_sequence=6)] == [(4, 3)]
    assert [(r.first, r.lines) for r in query(store, JOB, offset=3, limit=2)] == [(4, 2)]
    assert [(r.first, r.lines) for r in query(store, JOB, tail=3)] == [(10, 2), (12, 1)]
    for fields in ({"filter": "b"}, {"filter": "b", "limit": 1}, {"regex": "^b", "tail": 1, "from_sequence": 2}):
        assert [(r.first, r.lines) for r in query(store, JOB, **fields)] == [(2, 10), (12, 1)], fields
    assert [(r.first, r.lines) for r in query(store, JOB, filter="journal")] == [(2, 10)]
    write(store, JOB, gap(13, 2, stream=Stream.NONE))
    assert [(r.first, r.stream) for r in query(store, JOB, tail=2)] == [(13, Stream.NONE)]


@pytest.mark.threat("F12")
@pytest.mark.requirement("S0.73")
@pytest.mark.parametrize("wait", [False, True])
def test_what_was_trimmed_is_told_to_who_reads_stderr_alone(tmp_path: Path, *, wait: bool) -> None:
    """The gap stands in stdout's file, and some of it was of stderr. It is told, cut by bounds, and not counted."""
    store = make_store(tmp_path)
    for n in range(1, 40):
        write(store, JOB, output(b"%d %d\n" % (n, n % 10), n, stream=Stream.STDERR if n % 10 == 4 else Stream.STDOUT))
    write(store, JOB, end=39)
    size = sum(path.stat().st_size for path in (tmp_path / "logs" / JOB).iterdir())
    cut = store.find_cut(JOB, size, size // 2)
    assert cut is not None
    store.trim(JOB, cut, stopped=lambda: False)

    def told(**fields: object) -> list[tuple[int, int, str]]:
        runs = query(store, JOB, stream=int(Stream.STDERR), wait=wait, **fields)
        return [(run.first, run.lines, run.gap_reason) for run in runs]

    missing, lines = (1, cut.through, "retention"), [(24, 1, ""), (34, 1, "")]
    assert 14 <= cut.through < 24
    assert told() == [missing, *lines]
    assert told(from_sequence=5, until_sequence=24) == [(5, cut.through - 4, "retention"), lines[0]]
    assert told(limit=1) == [missing, lines[0]]
    assert told(offset=1) == [missing, lines[1]]
    assert told(filter="34") == [missing, lines[1]]
    assert told(tail=1) == [lines[1]]


def test_a_damaged_member_is_named_and_the_rest_is_given(tmp_path: Path) -> None:
    """A flipped byte in the middle costs one member, which shows as a gap."""
    store = make_store(tmp_path)
    for number in range(1, 6):
        write(store, JOB, output(b"line %d\n" % number, number))
    index = store.view(JOB).segments[Stream.STDOUT].index
    _flip(tmp_path, index[2].offset + 70)
    damaged = DamagedMembers()
    reader = LogReader(make_store(tmp_path), select(JOB), damaged)
    runs = [run for step in reader.steps(make_store(tmp_path).view(JOB)) for run in step]
    assert joined(runs, Stream.STDOUT) == b"line 1\nline 2\nline 4\nline 5\n"
    assert [(run.first, run.lines) for run in runs if run.gap_reason == "damaged"] == [(3, 1)]
    assert len(damaged) == 1
    (lost,) = query(make_store(tmp_path), JOB, filter="line 3")
    assert (lost.first, lost.gap_reason) == (3, "damaged")
    assert [run.first for run in query(make_store(tmp_path), JOB, from_sequence=4)] == [4, 5]


@pytest.mark.threat("F12")
def test_a_damaged_header_is_passed_over(tmp_path: Path) -> None:
    """The next valid header is searched for, the file is not cut, and appending goes on."""
    store = make_store(tmp_path)
    for number in range(1, 6):
        write(store, JOB, output(b"line %d\n" % number, number))
    index = store.view(JOB).segments[Stream.STDOUT].index
    size = store.view(JOB).segments[Stream.STDOUT].size_bytes
    _flip(tmp_path, index[2].offset + 30)
    again = make_store(tmp_path)
    write(again, JOB, output(b"line 6\n", 6))
    assert again.view(JOB).segments[Stream.STDOUT].damaged_bytes == index[2].header.member_bytes
    assert (tmp_path / "logs" / JOB / "stdout.log.gz").stat().st_size > size
    assert [(run.first, run.gap_reason) for run in query(again, JOB)] == [
        (1, ""),
        (2, ""),
        (3, "damaged"),
        (4, ""),
        (5, ""),
        (6, ""),
    ]


def test_a_reader_goes_on_where_it_was(tmp_path: Path) -> None:
    """With wait, a second look gives what came since, and offset and limit count over both."""
    store = make_store(tmp_path)
    reader = LogReader(store, select(JOB, wait=True, offset=1, limit=3))
    seen = []
    for number in range(1, 7):
        view = store.view(JOB)
        seen += [run.first for step in reader.steps(view) for run in step]
        assert reader.is_finished(view) == (number > 4)
        write(store, JOB, output(b"x\n", number, stream=Stream(number % 2 + 1)))
    assert seen == [2, 3, 4]


def test_waiting_ends_at_the_wanted_sequence_or_the_end(tmp_path: Path) -> None:
    """until_sequence that is stored ends it, and so does the end of the job."""
    store = make_store(tmp_path)
    write(store, JOB, output(b"a\nb\n", 1))
    until, forever = (
        LogReader(store, select(JOB, wait=True, until_sequence=2)),
        LogReader(store, select(JOB, wait=True)),
    )
    for reader in (until, forever):
        list(reader.steps(store.view(JOB)))
    assert until.is_finished(store.view(JOB))
    assert not forever.is_finished(store.view(JOB))
    write(store, JOB, end=2)
    assert forever.is_finished(store.view(JOB))


def test_nothing_is_shown_before_both_streams_have_it(tmp_path: Path) -> None:
    """While a job runs, a reader sees no further than what is acknowledged."""
    store = make_store(tmp_path)
    write(store, JOB, output(b"a\n", 1))
    view = store.view(JOB)
    write(store, JOB, output(b"b\n", 2, stream=Stream.STDERR), output(b"c\n", 3))
    assert [run.first for step in LogReader(store, select(JOB)).steps(view) for run in step] == [1]
    assert [run.first for run in read(store, select(JOB))] == [1, 2, 3]


def _flip(base: Path, offset: int) -> None:
    path = base / "logs" / JOB / "stdout.log.gz"
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x55
    path.write_bytes(content)
