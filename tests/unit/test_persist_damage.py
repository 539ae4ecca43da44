"""A byte of a stored file is flipped: the rest is read as it was written, and what is lost is told exactly."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.identifiers import new_job_id
from common.records import Stream
from services.persist import damage
from services.persist.index import Bounds, Member
from services.persist.member import Header, Span
from services.persist.reader import LogReader
from services.persist.runs import Run
from services.persist.store import LOG_FILES, Store
from tests.unit.test_persist_journal import TIME_NS, gap, make_store, output, query, read, select, write

JOB = new_job_id()
Entries = dict[int, tuple[Stream, bytes]]


def written(base: Path, source: random.Random) -> Entries:
    """An ended job with four flushes of both streams, lines of both between each other; what it wrote."""
    store, entries, sequence = make_store(base), {}, 1
    for number in range(4):
        encoded = []
        for _ in range(source.randrange(3, 8)):
            stream = source.choice((Stream.STDOUT, Stream.STDERR)) if number else Stream.STDOUT
            content = [b"line %x" % source.getrandbits(32) for _ in range(source.randrange(1, 4))]
            encoded.append(output(b"".join(line + b"\n" for line in content), sequence, stream=stream))
            for line in content:
                entries[sequence] = (stream, line)
                sequence += 1
        write(store, JOB, *encoded)
    write(store, JOB, end=sequence - 1)
    return entries


def given(runs: list[Run]) -> tuple[Entries, dict[int, str]]:
    """Entries and missing sequences in runs, each of which is there once, and in order."""
    entries: Entries = {}
    missing: dict[int, str] = {}
    last = 0
    for run in runs:
        assert run.first > last
        last = run.last
        if run.gap_reason:
            missing |= dict.fromkeys(range(run.first, run.last + 1), run.gap_reason)
        entries |= {n: (run.stream, content) for n, content in enumerate(run.contents(), run.first)}
    return entries, missing


def flipped(base: Path, stream: Stream, offset: int) -> None:
    """Flip bits of one stored byte; once more, and it is as it was."""
    path = base / "logs" / JOB / LOG_FILES[stream]
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x55
    path.write_bytes(content)


def places(base: Path, source: random.Random) -> Iterator[tuple[Stream, int]]:
    """Some bytes of both files: of each header, of each end, and of what is between them."""
    for stream, name in LOG_FILES.items():
        content = (base / "logs" / JOB / name).read_bytes()
        headers = [found.offset for found in make_store(base).view(JOB).segments[stream].index.pieces(Bounds())]  # type: ignore[union-attr]
        chosen = {offset + source.randrange(64) for offset in headers} | {offset - 1 for offset in headers if offset}
        chosen |= set(source.sample(range(len(content)), 12)) | {len(content) - 1, len(content) - 74}
        yield from ((stream, offset) for offset in sorted(chosen))


@pytest.mark.threat("F12")
@pytest.mark.parametrize("restarted", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_whatever_byte_is_flipped_the_rest_is_there(tmp_path: Path, seed: int, *, restarted: bool) -> None:
    """Each entry is read byte-exact or told as damaged; none twice; also from its middle, at its tail, by stream."""
    source = random.Random(seed)  # noqa: S311  # no secret
    entries = written(tmp_path, source)
    everything = max(entries)
    for stream, offset in places(tmp_path, source):
        running = make_store(tmp_path)
        running.view(JOB)
        flipped(tmp_path, stream, offset)
        store = make_store(tmp_path) if restarted else running
        found, missing = given(query(store, JOB))
        assert found == {n: entry for n, entry in entries.items() if n not in missing}, (stream, offset)
        assert sorted([*found, *missing]) == list(range(1, everything + 1)), (stream, offset)
        assert set(missing.values()) <= {"damaged"}
        assert {entries[n][0] for n in missing} <= {stream}
        _all_agree(store, entries, missing, stream, source)
        flipped(tmp_path, stream, offset)


def _all_agree(store: Store, entries: Entries, missing: dict[int, str], hit: Stream, source: random.Random) -> None:
    """Queries for a part tell the same."""
    every = sorted(entries)
    first, last = sorted(source.choices(every, k=2))
    found, lost = given(query(store, JOB, from_sequence=first, until_sequence=last))
    assert sorted([*found, *lost]) == list(range(first, last + 1))
    assert lost == {n: reason for n, reason in missing.items() if first <= n <= last}
    tail = source.randrange(1, len(every))
    found, lost = given(query(store, JOB, tail=tail))
    assert sorted([*found, *lost]) == every[-tail:]
    for stream in LOG_FILES:
        found, lost = given(query(store, JOB, stream=int(stream)))
        assert found == {n: entry for n, entry in entries.items() if entry[0] is stream and n not in missing}
        assert lost == (missing if stream is hit else {})
    word = "line 1"
    found, lost = given(query(store, JOB, filter=word))
    assert found == {n: e for n, e in entries.items() if n not in missing and word.encode() in e[1]}
    assert lost == missing


@pytest.mark.threat("F12")
def test_damage_in_both_files_at_once_is_told_once(tmp_path: Path) -> None:
    """Members that overlap are both lost: every sequence of them is missing once."""
    store = make_store(tmp_path)
    write(store, JOB, output(b"a\n", 1), output(b"b\n", 2, stream=Stream.STDERR), output(b"c\n", 3))
    write(store, JOB, *[output(b"x\n", 4 + n, stream=Stream(1 + n % 2)) for n in range(6)])
    write(store, JOB, output(b"y\n", 10))
    write(store, JOB, end=10)
    view = store.view(JOB)
    for stream in LOG_FILES:
        flipped(tmp_path, stream, view.segments[stream].index[1].offset + 70)
    found, missing = given(query(make_store(tmp_path), JOB))
    assert sorted(found) == [1, 2, 3, 10]
    assert sorted(missing) == [4, 5, 6, 7, 8, 9]
    for stream in LOG_FILES:
        flipped(tmp_path, stream, view.segments[stream].index[1].offset + 70)
        flipped(tmp_path, stream, view.segments[stream].index[1].offset + 20)
    found, missing = given(query(make_store(tmp_path), JOB))
    assert sorted(found) == [1, 2, 3, 10]
    assert sorted(missing) == [4, 5, 6, 7, 8, 9]


@pytest.mark.threat("F12")
def test_a_torn_end_without_a_mark_is_asked_for_again(tmp_path: Path) -> None:
    """The last member of a running job is damaged: nothing wrong is read, and a flush behind it shows the hole."""
    store = make_store(tmp_path)
    write(store, JOB, output(b"a\nb\n", 1))
    write(store, JOB, output(b"c\nd\n", 3))
    flipped(tmp_path, Stream.STDOUT, store.view(JOB).segments[Stream.STDOUT].index[1].offset + 70)
    again = make_store(tmp_path)
    assert given(query(again, JOB))[0] == {1: (Stream.STDOUT, b"a"), 2: (Stream.STDOUT, b"b")}
    write(again, JOB, output(b"d\ne\n", 4))
    found, missing = given(query(again, JOB))
    assert (sorted(found), missing) == ([1, 2, 4, 5], {3: "never_received"})


def test_a_gap_that_stands_in_a_file_is_not_missing(tmp_path: Path) -> None:
    """A stored gap of no stream, beside a damaged member of the other file, stays what it is."""
    store = make_store(tmp_path)
    write(
        store,
        JOB,
        output(b"e\n", 1, stream=Stream.STDERR),
        gap(2, 3, stream=Stream.NONE),
        output(b"f\n", 5, stream=Stream.STDERR),
        output(b"g\n", 6),
    )
    write(store, JOB, end=6)
    flipped(tmp_path, Stream.STDERR, 70)
    runs = query(store, JOB)
    assert [(run.first, run.lines, run.gap_reason) for run in runs] == [
        (1, 1, "damaged"),
        (2, 3, "journal full"),
        (5, 1, "damaged"),
        (6, 1, ""),
    ]


@pytest.mark.threat("F12")
def test_a_time_tells_where_damage_is_shown(tmp_path: Path) -> None:
    """A hole is shown to whoever asks for a time between its neighbours."""
    store = make_store(tmp_path)
    for number in range(1, 4):
        write(store, JOB, output(b"x\n", number, time_ns=TIME_NS + number * 10**9))
    write(store, JOB, end=3)
    flipped(tmp_path, Stream.STDOUT, store.view(JOB).segments[Stream.STDOUT].index[1].offset + 20)
    again = make_store(tmp_path)
    for fields, expected in (
        ({"start_time": TIME_NS + 2 * 10**9}, [2, 3]),
        ({"end_time": TIME_NS + 2 * 10**9}, [1, 2]),
        ({"end_time": TIME_NS + 10**9}, []),
        ({"start_time": TIME_NS + 4 * 10**9}, []),
    ):
        assert [run.first for run in query(again, JOB, **fields)] == expected, fields


def test_what_is_absent() -> None:
    """The rest of a span, cut to what is wanted."""
    member = Member(0, Header(100, 100, Span(4, 10, 20, 1, 2)))

    def absent(bounds: Bounds, *present: tuple[int, int]) -> list[tuple[int, int]]:
        return [(run.first, run.last) for run in damage.gaps(member, Stream.STDOUT, 1, present, bounds)]

    assert absent(Bounds()) == [(10, 20)]
    assert absent(Bounds(), (1, 10), (12, 13), (14, 14), (18, 30)) == [(11, 11), (15, 17)]
    assert absent(Bounds(), (1, 30)) == []
    assert absent(Bounds(12, 15), (12, 13)) == [(14, 15)]
    assert absent(Bounds(21)) == []


def test_a_damaged_member_is_counted_once(tmp_path: Path) -> None:
    """However often it is met."""
    store = make_store(tmp_path)
    write(store, JOB, output(b"a\n", 1))
    write(store, JOB, output(b"b\n", 2))
    flipped(tmp_path, Stream.STDOUT, 70)
    reader = LogReader(store, select(JOB))
    for _ in range(3):
        read(store, select(JOB))
        list(reader.steps(store.view(JOB)))
    assert len(reader.damaged) == 1


def test_a_file_that_is_gone_beside_one_that_is_not(tmp_path: Path) -> None:
    """The other stream is read as it is, after a start."""
    store = make_store(tmp_path)
    write(store, JOB, output(b"a\n", 1), output(b"b\n", 2, stream=Stream.STDERR))
    (tmp_path / "logs" / JOB / LOG_FILES[Stream.STDOUT]).unlink()
    assert [run.data for run in query(make_store(tmp_path), JOB)] == [b"b\n"]
    shutil.rmtree(tmp_path / "logs" / JOB)
    assert query(make_store(tmp_path), JOB) == []
