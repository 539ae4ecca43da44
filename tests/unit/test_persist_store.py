"""The store: files that ordinary programs read, taken up again after a restart, and removed without a trace."""

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from common.config.settings import Local
from common.identifiers import new_job_id
from common.records import Stream
from services.persist import holding
from services.persist import store as store_module
from services.persist.disk import HostDisk
from tests.unit.test_persist_journal import (
    gap,
    joined,
    make_store,
    output,
    query,
    run_program,
    select,
    write,
)
from tests.unit.test_persist_journal import read as read_runs

JOB = new_job_id()


def log_file(base: Path, stream: Stream = Stream.STDOUT) -> Path:
    """The file of one stream of JOB."""
    return base / "logs" / JOB / store_module.LOG_FILES[stream]


@pytest.mark.requirement("S0.10")
@pytest.mark.requirement("S0.11")
def test_zcat_gzip_and_jq_read_the_file_as_it_is(tmp_path: Path) -> None:
    """Several flushes, the end mark included: the ordinary programs see one file of JSON lines."""
    store = make_store(tmp_path)
    write(store, JOB, output(b"one\ntwo\n", 1), output(b"err\n", 3, stream=Stream.STDERR))
    write(store, JOB, output(b"\xff\0\n", 4), output(b"rest", 5))
    write(store, JOB, end=5)
    run_program("gzip", "-t", str(log_file(tmp_path)), str(log_file(tmp_path, Stream.STDERR)))
    lines = run_program("zcat", str(log_file(tmp_path))).splitlines()
    assert [json.loads(line)["sequence"] for line in lines] == [1, 2, 4, 5]
    contents = run_program("jq", "-r", ".content // .content_b64", data=b"\n".join(lines)).split()
    assert contents == [b"one", b"two", b"/wA=", b"rest"]


def test_compressed_by_others_the_file_is_the_same(tmp_path: Path) -> None:
    """Members that several threads compress stand in their order, byte for byte as one thread writes them."""
    payload = b"".join(b"line %d of a large write\n" % number for number in range(60_000))
    found = []
    with ThreadPoolExecutor(3) as compressors:
        for name, pool in (("alone", None), ("helped", compressors)):
            base = tmp_path / name
            (base / "logs").mkdir(parents=True)
            local = msgspec.convert({"flush_bytes": 65536}, Local)
            store = store_module.Store(
                logs=base / "logs", metrics=base, settings=local, disk=HostDisk(), compressors=pool
            )
            write(store, JOB, output(payload, 1))
            assert joined(query(store, JOB), Stream.STDOUT) == payload
            found.append(log_file(base).read_bytes())
    assert found[0] == found[1]
    assert found[0].count(b"\x1f\x8b\x08\x04") > 10


@pytest.mark.requirement("S0.64")
def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    """0700 and 0600, whatever the umask."""
    umask = os.umask(0)
    try:
        write(make_store(tmp_path), JOB, output(b"x\n", 1))
    finally:
        os.umask(umask)
    assert stat.S_IMODE(log_file(tmp_path).stat().st_mode) == 0o600
    assert stat.S_IMODE(log_file(tmp_path).parent.stat().st_mode) == 0o700


def test_a_new_process_goes_on_where_the_old_one_was(tmp_path: Path) -> None:
    """What is stored is refused, what is not is appended, without hole or repeat."""
    encoded = [output(b"a\nb\n", 1), output(b"c\n", 3, stream=Stream.STDERR), output(b"d\n", 4)]
    write(make_store(tmp_path), JOB, *encoded[:2])
    store = make_store(tmp_path)
    write(store, JOB, *encoded)
    runs = query(store, JOB)
    assert [(run.first, run.data) for run in runs] == [(1, b"a\nb\n"), (3, b"c\n"), (4, b"d\n")]


def test_the_end_is_known_after_a_restart(tmp_path: Path) -> None:
    """The end mark is in the file; a repeated end adds nothing."""
    write(make_store(tmp_path), JOB, output(b"a\n", 1), end=1)
    store = make_store(tmp_path)
    assert store.view(JOB).ended
    assert store.view(JOB).settled == 1
    size = log_file(tmp_path).stat().st_size
    write(store, JOB, end=1)
    assert log_file(tmp_path).stat().st_size == size


def test_a_job_without_output_has_an_end(tmp_path: Path) -> None:
    """A waiting reader must be able to end."""
    store = make_store(tmp_path)
    assert not store.view(JOB).ended
    write(store, JOB, end=0)
    assert make_store(tmp_path).view(JOB).ended
    assert run_program("zcat", str(log_file(tmp_path))) == b""


def test_only_what_both_streams_have_is_settled(tmp_path: Path) -> None:
    """A crash after one of the two files was written: a reader who waits does not step over what is to come again."""
    first = (output(b"a\n", 1), output(b"b\n", 2, stream=Stream.STDERR))
    second = (output(b"c\n", 3), output(b"d\n", 4, stream=Stream.STDERR), output(b"e\n", 5))
    store = make_store(tmp_path)
    write(store, JOB, *first)
    before = log_file(tmp_path, Stream.STDERR).read_bytes()
    write(store, JOB, *second)
    log_file(tmp_path, Stream.STDERR).write_bytes(before)
    store = make_store(tmp_path)
    assert store.view(JOB).settled == 2
    assert [run.first for run in read_runs(store, select(JOB, wait=True))] == [1, 2]
    write(store, JOB, *second)
    assert [run.first for run in read_runs(store, select(JOB, wait=True))] == [1, 2, 3, 4, 5]


@pytest.mark.requirement("S0.63")
def test_a_job_removed_by_hand_is_taken_as_removed(tmp_path: Path) -> None:
    """Retention by hand while the service runs: later output is stored, what went is a gap."""
    store = make_store(tmp_path)
    write(store, JOB, output(b"a\nb\n", 1))
    log_file(tmp_path).unlink()
    log_file(tmp_path).parent.rmdir()
    write(store, JOB, output(b"c\n", 3))
    assert [(run.first, run.lines, run.gap_reason) for run in query(store, JOB)] == [
        (1, 2, "never_received"),
        (3, 1, ""),
    ]


def test_a_file_that_shrank_is_loaded_again(tmp_path: Path) -> None:
    """Somebody truncated the file: what is left is kept, nothing is written at a wrong place."""
    store = make_store(tmp_path)
    write(store, JOB, output(b"a\n", 1))
    size = log_file(tmp_path).stat().st_size
    write(store, JOB, output(b"b\n", 2))
    os.truncate(log_file(tmp_path), size + 5)
    write(store, JOB, output(b"c\n", 3))
    runs = query(make_store(tmp_path), JOB)
    assert joined(runs, Stream.STDOUT) == b"a\nc\n"
    assert [run.first for run in runs if run.gap_reason] == [2]
    run_program("gzip", "-t", str(log_file(tmp_path)))


@pytest.mark.requirement("S0.12", "S0.44")
def test_delete_removes_everything_and_tells_how_much(tmp_path: Path) -> None:
    """Both directories go; the job may begin anew; a job of which there is nothing is fine."""
    store = make_store(tmp_path)
    write(store, JOB, output(b"a\n", 1))
    store.write_metrics(JOB, b'{"timestamp":1,"cpu_percent":1.0,"memory_bytes":1}\n', [1])
    sizes = (log_file(tmp_path).stat().st_size, (tmp_path / "metrics" / JOB / "metrics.jsonl.gz").stat().st_size)
    assert store.delete(JOB) == sizes
    assert list((tmp_path / "logs").iterdir()) == list((tmp_path / "metrics").iterdir()) == []
    assert store.delete(JOB) == (0, 0)
    write(store, JOB, output(b"again\n", 1))
    assert joined(query(store, JOB), Stream.STDOUT) == b"again\n"


@pytest.mark.threat("B12")
def test_delete_follows_no_link(tmp_path: Path) -> None:
    """Links in the place of a directory or inside it go themselves; what they point at stays."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("keep")
    store = make_store(tmp_path)
    (tmp_path / "metrics" / JOB).symlink_to(outside)
    write(store, JOB, output(b"a\n", 1))
    (tmp_path / "logs" / JOB / "link").symlink_to(outside)
    (tmp_path / "logs" / JOB / "deep").mkdir()
    (tmp_path / "logs" / JOB / "deep" / "link").symlink_to(outside)
    store.delete(JOB)
    assert not (tmp_path / "logs" / JOB).exists()
    assert not (tmp_path / "metrics" / JOB).is_symlink()
    assert (outside / "precious").read_text() == "keep"


@pytest.mark.threat("B12")
def test_nothing_is_written_or_read_through_a_link(tmp_path: Path) -> None:
    """A link in the place of a job's directory or file is an error, not a way out of the store."""
    store = make_store(tmp_path)
    (tmp_path / "outside").mkdir()
    (tmp_path / "logs" / JOB).symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match="Not a directory"):
        write(store, JOB, output(b"a\n", 1))
    (tmp_path / "logs" / JOB).unlink()
    (tmp_path / "logs" / JOB).mkdir()
    log_file(tmp_path).symlink_to(tmp_path / "outside" / "file")
    with pytest.raises(OSError, match="symbolic links"):
        write(make_store(tmp_path), JOB, output(b"a\n", 1))
    assert list((tmp_path / "outside").iterdir()) == []


def test_many_lines_make_several_bounded_members(tmp_path: Path) -> None:
    """A large flush is cut into members, so that a query for little inflates little."""
    store = make_store(tmp_path, flush_bytes=4096)
    write(store, JOB, output(b"line\n" * 50_000, 1))
    index = store.view(JOB).segments[Stream.STDOUT].index
    assert len(index) > 5
    assert sum(index[number].header.span.lines for number in range(len(index))) == 50_000
    assert max(index[number].header.inflated_bytes for number in range(len(index))) < 2**20


def test_what_is_known_of_jobs_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound the longest unused job is dropped from memory, and loaded again when it is asked for."""
    monkeypatch.setattr(holding, "JOBS_KEPT_MAX", 2)
    store = make_store(tmp_path)
    jobs = [new_job_id() for _ in range(5)]
    for job in jobs:
        write(store, job, output(b"a\n", 1))
    assert len(store._jobs) == 2  # what is bounded is not visible otherwise
    for job in jobs:
        write(store, job, output(b"a\n", 1), output(b"b\n", 2))
        assert joined(query(store, job), Stream.STDOUT) == b"a\nb\n"


def test_a_gap_of_any_size_is_stored(tmp_path: Path) -> None:
    """A sequence far ahead makes a gap line, not an error."""
    store = make_store(tmp_path)
    write(store, JOB, output(b"a\n", 2**62), gap(2**62 + 1, 2**32 - 1))
    assert [run.lines for run in query(make_store(tmp_path), JOB)] == [2**62 - 1, 1, 2**32 - 1]
