"""What is stored, measured; whose a job was and when it ended; and removals that a kill cut off."""

import errno
import json
import os
from pathlib import Path

import pytest

from common.identifiers import JobId, new_job_id
from common.records import Stream
from services.persist import catalogue, clockfile, summary
from services.persist import disk as files
from services.persist.catalogue import Catalogue, ScanStopped
from services.persist.clock import Reading, Watched
from services.persist.retention import StoredJob
from services.persist.store import Store
from tests.fault.test_persist_disk import FaultyDisk
from tests.unit.test_persist_journal import joined, make_store, output, query, records, write

JOB = new_job_id()
ENDED_AT_NS = 1_700_000_000 * 10**9
SAMPLE = b'{"timestamp":1,"cpu_percent":1.0,"memory_bytes":1}\n'


def scan(base: Path) -> Catalogue:
    """All that is stored below `base`."""
    return catalogue.scan(base / "logs", base / "metrics", stopped=lambda: False)


def only(base: Path) -> StoredJob:
    """The one job that is stored."""
    (found,) = scan(base).jobs
    return found


def end(store: Store, job: JobId = JOB, *, owner: str = "ann", ended_at_ns: int = ENDED_AT_NS) -> None:
    """One line, and the end of the job."""
    batch = records(output(b"line\n", 1))
    store.write(job, batch, through=1, end=1, owner=owner, ended_at_ns=ended_at_ns)


def size_of(directory: Path) -> int:
    """Bytes of the files in it."""
    return sum(path.stat().st_size for path in directory.iterdir())


@pytest.mark.requirement("S0.73")
def test_owner_end_and_bytes_of_a_job(tmp_path: Path) -> None:
    """Whose it was and when it ended stands beside its logs, for its owner only; sizes are those of the files."""
    store = make_store(tmp_path)
    end(store)
    store.write_metrics(JOB, SAMPLE, [1])
    found = only(tmp_path)
    logs, metrics = tmp_path / "logs" / JOB, tmp_path / "metrics" / JOB
    assert (found.job, found.owner, found.ended_at_ns, found.ended) == (JOB, "ann", ENDED_AT_NS, True)
    assert (found.log_bytes, found.metric_bytes) == (size_of(logs), size_of(metrics))
    assert found.disk_bytes >= found.log_bytes
    assert json.loads((logs / "job.json").read_text()) == {"job": JOB, "owner": "ann", "ended_at_ns": ENDED_AT_NS}
    assert (logs / "job.json").stat().st_mode & 0o777 == 0o600
    whole = scan(tmp_path)
    assert (whole.log_bytes, whole.metric_bytes, whole.newest_ns) == (size_of(logs), size_of(metrics), ENDED_AT_NS)
    assert whole.free_bytes > 0


def test_a_job_from_before_ended_when_its_end_mark_says_so(tmp_path: Path) -> None:
    """Without a summary: the time of the file stands for that of the end, and nobody knows the owner."""
    store = make_store(tmp_path)
    write(store, JOB, output(b"line\n", 1), end=1)
    assert not (tmp_path / "logs" / JOB / "job.json").exists()
    path = tmp_path / "logs" / JOB / "stdout.log.gz"
    os.utime(path, ns=(1, ENDED_AT_NS))
    found = only(tmp_path)
    assert (found.owner, found.ended_at_ns, found.ended) == ("", ENDED_AT_NS, True)
    os.truncate(path, path.stat().st_size - 1)
    assert not only(tmp_path).ended, "the end mark is not whole"


def test_who_has_not_ended_runs(tmp_path: Path) -> None:
    """Output without an end mark, or samples alone."""
    store = make_store(tmp_path)
    write(store, JOB, output(b"line\n", 1))
    other = new_job_id()
    store.write_metrics(other, SAMPLE, [1])
    assert {job.job: job.ended for job in scan(tmp_path).jobs} == {JOB: False, other: False}
    assert scan(tmp_path).newest_ns == 0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"job":"other","owner":"x","ended_at_ns":1}', "\xff"])
def test_a_damaged_summary_is_as_none(tmp_path: Path, text: str) -> None:
    """The end mark is there, too."""
    end(make_store(tmp_path))
    (tmp_path / "logs" / JOB / "job.json").write_text(text, encoding="latin-1")
    found = only(tmp_path)
    assert found.ended
    assert found.owner == ""


@pytest.mark.requirement("S0.63")
@pytest.mark.threat("B12")
def test_foreign_names_and_links_are_passed_over(tmp_path: Path) -> None:
    """Nothing is measured through a link, and a job's directory that is none counts for nothing."""
    store = make_store(tmp_path)
    end(store)
    before = only(tmp_path)
    (tmp_path / "logs" / "notes").mkdir()
    (tmp_path / "logs" / "notes" / "big").write_bytes(b"x" * 100_000)
    (tmp_path / "logs" / new_job_id()).symlink_to(tmp_path / "logs" / JOB)
    (tmp_path / "metrics" / new_job_id()).write_text("a file")
    (tmp_path / "logs" / JOB / "link").symlink_to(tmp_path / "logs" / "notes" / "big")
    found = only(tmp_path)
    assert (found.job, found.log_bytes) == (before.job, before.log_bytes)


def test_a_scan_that_is_stopped(tmp_path: Path) -> None:
    """The process ends: it does not walk on."""
    end(make_store(tmp_path))
    with pytest.raises(ScanStopped):
        catalogue.scan(tmp_path / "logs", tmp_path / "metrics", stopped=lambda: True)


@pytest.mark.threat("F13")
def test_a_summary_for_which_there_is_no_room(tmp_path: Path) -> None:
    """The end is not acknowledged, no half file stays, and when it comes again all is well."""
    disk = FaultyDisk()
    store = make_store(tmp_path, disk=disk)
    write(store, JOB, output(b"line\n", 1), end=1)
    wanted: list[int] = []
    store.when_full = wanted.append
    disk.room_bytes = 5
    with pytest.raises(OSError, match="No space"):
        store.write(JOB, (), through=1, end=1, owner="ann", ended_at_ns=ENDED_AT_NS)
    assert wanted == [summary.SUMMARY_BYTES_MAX], "whoever can make room is told"
    with pytest.raises(OSError, match="No space"):
        write(store, JOB, output(os.urandom(5000).replace(b"\n", b"x") + b"\n", 2))
    assert wanted[1] > 5000
    assert not scan(tmp_path).untidy
    disk.room_bytes = 2**40
    store.write(JOB, (), through=1, end=1, owner="ann", ended_at_ns=ENDED_AT_NS)
    assert only(tmp_path).owner == "ann"


def test_the_summary_is_synchronized_before_the_end_is_acknowledged(tmp_path: Path) -> None:
    """With durability fsync: its bytes, then its name."""
    disk = FaultyDisk()
    store = make_store(tmp_path, disk=disk, durability="fsync")
    write(store, JOB, output(b"line\n", 1), end=1)
    disk.diary.clear()
    store.write(JOB, (), through=1, end=1, owner="ann", ended_at_ns=ENDED_AT_NS)
    assert disk.diary == ["write", "sync", "sync"]


def test_a_summary_that_was_being_written_is_tidied_away(tmp_path: Path) -> None:
    """What a kill left is found, and goes."""
    store = make_store(tmp_path)
    end(store)
    (tmp_path / "logs" / JOB / summary.UNFINISHED).write_text("{")
    assert scan(tmp_path).untidy == (JOB,)
    store.tidy(JOB)
    assert scan(tmp_path).untidy == ()
    assert only(tmp_path).owner == "ann"
    store.tidy(new_job_id())


@pytest.mark.parametrize("emptied", [False, True])
def test_a_removal_that_was_cut_off_is_resumed(tmp_path: Path, emptied: bool) -> None:  # noqa: FBT001
    """Set aside, nobody sees the job any more; the next process removes the rest, the samples too."""
    store = make_store(tmp_path)
    end(store)
    store.write_metrics(JOB, SAMPLE, [1])
    files.set_aside(tmp_path / "logs", JOB)
    if emptied:
        files.empty_set_aside(tmp_path / "logs", JOB)
    store = make_store(tmp_path)
    assert query(store, JOB) == []
    found = scan(tmp_path)
    assert found.set_aside == (JOB,)
    assert sum(store.resume_removal(JOB)) > 0
    assert scan(tmp_path).set_aside == (JOB,), "until it is told"
    store.end_removal(JOB)
    assert list((tmp_path / "logs").iterdir()) == list((tmp_path / "metrics").iterdir()) == []


def test_a_job_that_began_anew_keeps_what_it_has(tmp_path: Path) -> None:
    """Its old directory is still set aside: only that goes, now or with a second removal."""
    store = make_store(tmp_path)
    end(store)
    files.set_aside(tmp_path / "logs", JOB)
    end(store)
    store.write_metrics(JOB, SAMPLE, [1])
    assert store.resume_removal(JOB)[1] == 0
    store.end_removal(JOB)
    assert joined(query(store, JOB), Stream.STDOUT) == b"line\n"
    assert only(tmp_path).metric_bytes > 0
    files.set_aside(tmp_path / "logs", JOB)
    end(store)
    store.delete(JOB)
    assert list((tmp_path / "logs").iterdir()) == list((tmp_path / "metrics").iterdir()) == []


@pytest.mark.requirement("S0.63")
def test_a_directory_that_is_removed_by_hand_is_not_there(tmp_path: Path) -> None:
    """The next query says that nothing is stored, of an ended and of a running job; samples go on, too."""
    store = make_store(tmp_path)
    end(store)
    running = new_job_id()
    write(store, running, output(b"a\nb\n", 1), output(b"c\n", 3, stream=Stream.STDERR))
    store.write_metrics(running, SAMPLE, [1])
    for job in (JOB, running):
        files.remove_job_directory(tmp_path / "logs", job)
        assert query(store, job) == []
        assert not store.view(job).ended
    files.remove_job_directory(tmp_path / "metrics", running)
    assert len(store.metrics(running).index) == 0
    store.write_metrics(running, SAMPLE, [2])
    assert len(store.metrics(running).index) == 1
    write(store, running, output(b"d\n", 4), end=4)
    runs = query(store, running)
    assert [(run.first, run.lines, run.gap_reason) for run in runs] == [(1, 3, "never_received"), (4, 1, "")]
    assert store.view(running).ended


def test_what_is_known_of_the_clock_is_kept(tmp_path: Path) -> None:
    """Across processes; what cannot be read is as nothing, what cannot be written is logged."""
    assert clockfile.load(tmp_path) is None
    watched = Watched(last=Reading(boot="one", steady_ns=5, wall_ns=6), unsettled_ns=7)
    clockfile.save(tmp_path, watched)
    assert clockfile.load(tmp_path) == watched
    assert [path.name for path in tmp_path.iterdir()] == [clockfile.CLOCK_FILE]
    (tmp_path / clockfile.CLOCK_FILE).write_text("{}")
    assert clockfile.load(tmp_path) is None
    (tmp_path / clockfile.CLOCK_FILE).unlink()
    (tmp_path / clockfile.CLOCK_FILE).mkdir()
    clockfile.save(tmp_path, watched)
    assert clockfile.load(tmp_path) is None
    clockfile.save(tmp_path / "gone", watched)


def test_a_directory_in_the_way_does_not_stop_a_removal(tmp_path: Path) -> None:
    """Not empty, or no directory at all: ENOTEMPTY and its like are no reason to keep a job for ever."""
    store = make_store(tmp_path)
    for in_the_way in ("directory", "file"):
        end(store)
        aside = tmp_path / "logs" / (files.SET_ASIDE + JOB)
        if in_the_way == "file":
            aside.write_text("x")
        else:
            (aside / "deep").mkdir(parents=True)
        store.delete(JOB)
        assert list((tmp_path / "logs").iterdir()) == [], in_the_way
    assert errno.ENOTEMPTY in files._IN_THE_WAY
