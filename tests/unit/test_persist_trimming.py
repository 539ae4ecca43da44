"""Trimming: the oldest output goes, the rest stays as it is, and every sequence is there or inside of one gap."""

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.joblet.storedlog import verify_job
from common.identifiers import new_job_id
from common.records import Stream
from services.persist import trimming
from services.persist.disk import job_directory
from services.persist.reader import LogReader
from services.persist.runs import Run
from services.persist.segment import StaleSegment
from services.persist.store import Store
from services.persist.trimming import Cut, TrimStopped
from tests.fault.test_persist_disk import FaultyDisk
from tests.unit.test_persist_journal import (
    gap,
    joined,
    last_sequences,
    make_store,
    output,
    query,
    random_journal,
    records,
    run_program,
    select,
    write,
)

JOB = new_job_id()
SEEDS = range(6)


def job_directory_of(base: Path) -> Path:
    """The directory of JOB's logs."""
    return base / "logs" / JOB


def sizes(base: Path) -> int:
    """Bytes of the files that are there."""
    return sum(path.stat().st_size for path in job_directory_of(base).iterdir())


def go_on() -> bool:
    """Nobody stops the trim."""
    return False


def filled(base: Path, seed: int, *, disk: FaultyDisk | None = None) -> tuple[Store, dict[Stream, bytes], int]:
    """A store with JOB, that wrote to both streams and ended: what it wrote, and its last sequence."""
    source = random.Random(seed)  # noqa: S311  # no secret
    store = make_store(base, disk=disk, flush_bytes=2048)
    encoded, expected = random_journal(source, count=200)
    start = 0
    while start < len(encoded):
        end = start + source.randrange(1, 12)
        write(store, JOB, *encoded[start:end])
        start = end
    last = last_sequences(encoded)[-1]
    write(store, JOB, end=last)
    return store, expected, last


def trim(store: Store, base: Path, bytes_max: int) -> Cut | None:
    """Trim JOB to so many bytes."""
    cut = store.find_cut(JOB, sizes(base), bytes_max)
    if cut is not None:
        store.trim(JOB, cut, stopped=go_on)
    return cut


def assert_whole(store: Store, base: Path, last: int, expected: dict[Stream, bytes]) -> list[Run]:
    """Every sequence once, an entry or in the one gap at the beginning; bytes are the end of what was written."""
    report = verify_job(job_directory_of(base))
    assert report.findings == []
    assert report.last_sequence == last
    for path in job_directory_of(base).iterdir():
        run_program("gzip", "-t", str(path))
    runs = query(store, JOB)
    assert [run.first for run in runs] == [1, *(run.last + 1 for run in runs[:-1])]
    assert runs[-1].last == last
    for stream, data in expected.items():
        assert data.endswith(joined(runs, stream))
    return runs


@pytest.mark.requirement("S0.73")
@pytest.mark.parametrize("seed", SEEDS)
def test_trimmed_again_and_again_every_sequence_is_told(tmp_path: Path, seed: int) -> None:
    """Down to less and less, both streams interleaved: within the bytes, one gap, exact bytes in it, the end known."""
    store, expected, last = filled(tmp_path, seed)
    written, size = sum(map(len, expected.values())), sizes(tmp_path)
    for part in (1.0, 0.9, 0.6, 0.3, 0.2):
        bytes_max = int(size * part)
        cut = trim(store, tmp_path, bytes_max)
        assert (cut is None) == (part == 1.0)
        assert sizes(tmp_path) <= bytes_max
        for each in (store, make_store(tmp_path)):
            runs = assert_whole(each, tmp_path, last, expected)
            gaps = [run for run in runs if run.gap_reason]
            assert len(gaps) == (cut is not None)
            if cut is not None:
                assert (gaps[0].first, gaps[0].lines, gaps[0].gap_reason) == (1, cut.through, "retention")
                assert gaps[0].gap_bytes + sum(len(run.data) for run in runs) == written
                assert gaps[0].stream is Stream.NONE
            assert each.view(JOB).ended
        assert trim(store, tmp_path, bytes_max) is None, "once is enough"


@pytest.mark.requirement("S0.73")
def test_nothing_but_the_gap_can_stay(tmp_path: Path) -> None:
    """A bound below the last member: all output goes, the gap and the end stay; a second trim finds nothing to gain."""
    store, expected, last = filled(tmp_path, 1)
    cut = trim(store, tmp_path, 500)
    assert cut is not None
    assert cut.through == last
    runs = assert_whole(store, tmp_path, last, expected)
    assert [(run.lines, run.gap_reason) for run in runs] == [(last, "retention")]
    assert trim(store, tmp_path, 10) is None


def test_as_much_as_possible_stays(tmp_path: Path) -> None:
    """One member fewer would have been enough to go only if it was not cut."""
    store = make_store(tmp_path)
    for number in range(1, 21):
        write(store, JOB, output(os.urandom(300).replace(b"\n", b"x") + b"\n", number))
    write(store, JOB, end=20)
    index = store.view(JOB).segments[Stream.STDOUT].index
    size = sizes(tmp_path)
    keep = size - index[7].offset + trimming.GAP_MEMBER_BYTES_MAX
    cut = store.find_cut(JOB, size, keep)
    assert cut is not None
    assert cut.through == 7
    cut = store.find_cut(JOB, size, keep - 1)
    assert cut is not None
    assert cut.through == 8


def test_other_files_of_the_directory_count(tmp_path: Path) -> None:
    """What the summary takes is not there for output."""
    store, _, _ = filled(tmp_path, 2)
    size = sizes(tmp_path)
    assert store.find_cut(JOB, size, size) is None
    assert store.find_cut(JOB, size + 100, size) is not None


def test_gaps_that_were_there_go_into_the_new_one(tmp_path: Path) -> None:
    """Of a journal that was full, of what never came, of an earlier trim: one gap stands for all before the cut."""
    store = make_store(tmp_path)
    write(store, JOB, output(b"one\n", 1), gap(2, 5))
    write(store, JOB, output(b"eight\n", 8, stream=Stream.STDERR))
    for number in range(9, 14):
        write(store, JOB, output(os.urandom(2000).replace(b"\n", b"x") + b"\n", number))
    write(store, JOB, end=13)
    cut = trim(store, tmp_path, sizes(tmp_path) - 1)
    assert cut is not None
    runs = query(store, JOB)
    assert (runs[0].lines, runs[0].gap_reason, runs[1].first) == (cut.through, "retention", cut.through + 1)
    assert (runs[0].lines, runs[0].gap_bytes) == (7, 4 + 500), "what never came, nobody knows"
    assert verify_job(job_directory_of(tmp_path)).findings == []


def test_a_running_job_is_not_trimmed(tmp_path: Path) -> None:
    """There is no end mark, so it may write at any moment."""
    store = make_store(tmp_path)
    write(store, JOB, *(output(os.urandom(500).replace(b"\n", b"x") + b"\n", number) for number in range(1, 9)))
    assert store.find_cut(JOB, log_bytes=4000, bytes_max=100) is None
    write(store, JOB, end=8)
    cut = store.find_cut(JOB, log_bytes=4000, bytes_max=100)
    assert cut is not None
    write(store, JOB, output(b"after all\n", 9))
    with pytest.raises(StaleSegment):
        store.trim(JOB, cut, stopped=go_on)


@pytest.mark.threat("F13")
@pytest.mark.parametrize("room", [0, 10, 300, 2000])
def test_no_room_for_the_shorter_files_changes_nothing(tmp_path: Path, room: int) -> None:
    """ENOSPC at any byte: the files are as they were, nothing else is left, and later it can be done."""
    disk = FaultyDisk()
    store, expected, last = filled(tmp_path, 3, disk=disk)
    before = {path.name: path.read_bytes() for path in job_directory_of(tmp_path).iterdir()}
    cut = store.find_cut(JOB, sizes(tmp_path), sizes(tmp_path) // 2)
    assert cut is not None
    disk.room_bytes = room
    with pytest.raises(OSError, match="No space"):
        store.trim(JOB, cut, stopped=go_on)
    assert {path.name: path.read_bytes() for path in job_directory_of(tmp_path).iterdir()} == before
    disk.room_bytes = 2**40
    store.trim(JOB, cut, stopped=go_on)
    assert_whole(store, tmp_path, last, expected)


@pytest.mark.threat("F16")
def test_a_failed_fsync_changes_nothing(tmp_path: Path) -> None:
    """The shorter file is not safe, so it does not take the place of the longer one."""
    disk = FaultyDisk()
    store, expected, last = filled(tmp_path, 3, disk=disk)
    cut = store.find_cut(JOB, sizes(tmp_path), sizes(tmp_path) // 2)
    assert cut is not None
    disk.sync_error = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        store.trim(JOB, cut, stopped=go_on)
    disk.sync_error = None
    assert not [run for run in assert_whole(store, tmp_path, last, expected) if run.gap_reason]


def test_a_trim_that_is_stopped_changes_nothing(tmp_path: Path) -> None:
    """The process is asked to end in the middle of it."""
    store, expected, last = filled(tmp_path, 4)
    cut = store.find_cut(JOB, sizes(tmp_path), sizes(tmp_path) // 2)
    assert cut is not None
    asked = iter([False, False, True])
    with pytest.raises(TrimStopped):
        store.trim(JOB, cut, stopped=lambda: next(asked, True))
    assert len(list(job_directory_of(tmp_path).iterdir())) == 2
    assert_whole(store, tmp_path, last, expected)


@pytest.mark.parametrize("renamed", [0, 1])
def test_what_a_kill_leaves_is_undone_or_finished(tmp_path: Path, renamed: int) -> None:
    """Old or new, never half, for the first look of the next process and for its tidying."""
    looks: tuple[Callable[[Store], object], ...] = (lambda store: store.view(JOB), lambda store: store.tidy(JOB))
    for number, look in enumerate(looks):
        base = tmp_path / str(number)
        base.mkdir()
        store, expected, last = filled(base, 5)
        logs = store.view(JOB).segments
        cut = store.find_cut(JOB, sizes(base), sizes(base) // 2)
        assert cut is not None
        assert cut.starts[Stream.STDERR], "both files are to be shortened"
        with job_directory(base / "logs", JOB) as directory:
            trimming.prepare(directory, logs, cut, 0, FaultyDisk(), stopped=go_on)
        if renamed:
            (job_directory_of(base) / "stdout.log.gz.trimmed").rename(job_directory_of(base) / "stdout.log.gz")
        next_store = make_store(base)
        look(next_store)
        assert sorted(path.name for path in job_directory_of(base).iterdir()) == ["stderr.log.gz", "stdout.log.gz"]
        runs = assert_whole(next_store, base, last, expected)
        assert bool(runs[0].gap_reason) == bool(renamed)


def test_a_kill_while_the_first_file_is_written(tmp_path: Path) -> None:
    """Any rest of it goes."""
    _, expected, last = filled(tmp_path, 5)
    (job_directory_of(tmp_path) / "stdout.log.gz.trimmed").write_bytes(b"\x1f\x8b")
    store = make_store(tmp_path)
    assert store.view(JOB).ended
    assert not assert_whole(store, tmp_path, last, expected)[0].gap_reason
    assert len(list(job_directory_of(tmp_path).iterdir())) == 2


def test_a_reader_of_the_old_file_learns_that_it_is_another(tmp_path: Path) -> None:
    """StaleSegment for what it holds; a fresh view goes on where it was."""
    store, expected, last = filled(tmp_path, 0)
    view = store.view(JOB)
    steps = LogReader(store, select(JOB)).steps(view)
    first = next(steps)
    assert first
    trim(store, tmp_path, sizes(tmp_path) // 2)
    segment = view.segments[Stream.STDOUT]
    with pytest.raises(StaleSegment):
        store.read(JOB, segment, segment.index[len(segment.index) - 1])
    assert store.view(JOB).segments[Stream.STDOUT] is not segment
    rest = query(store, JOB, from_sequence=last - 1)
    assert rest[-1].last == last
    assert_whole(store, tmp_path, last, expected)


def test_a_reader_of_a_file_that_was_cut_by_hand_is_stale(tmp_path: Path) -> None:
    """Its end is not there any more; that is no damage of a member."""
    store = make_store(tmp_path)
    write(store, JOB, output(b"a\n", 1), end=1)
    segment = store.view(JOB).segments[Stream.STDOUT]
    os.truncate(job_directory_of(tmp_path) / "stdout.log.gz", 10)
    with pytest.raises(StaleSegment):
        store.read(JOB, segment, segment.index[0])
    assert len(store.view(JOB).segments[Stream.STDOUT].index) == 0


def test_the_estimate_of_the_gap_is_no_less_than_any_gap(tmp_path: Path) -> None:
    """The largest numbers that fit: the bytes that were promised are kept."""
    store = make_store(tmp_path)
    largest = 2**62
    write(store, JOB, output(os.urandom(3000).replace(b"\n", b"x") + b"\n", largest), end=largest)
    assert trim(store, tmp_path, 600) is not None
    assert sizes(tmp_path) <= 600
    assert [run.lines for run in query(store, JOB)] == [largest]
    assert records(output(b"x\n", 1))
