"""The monitor: output exact and in order, and what happens at the limits of the journal and of the disk."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.linux import mounts
from common.linux.files import punch_hole
from common.records import PARTIAL_BYTES, RecordType, Stream
from services.executor.control import send_space_freed, send_stop
from tests.linux.sandboxes import Launched, Sandboxes, alive, names_of, sha256
from tests.waiting import wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

MIB = 2**20


@pytest.fixture
def sandboxes(tmp_path: Path) -> Iterator[Sandboxes]:
    """A launcher with a base directory of its own."""
    with Sandboxes(tmp_path) as opened:
        yield opened


def assert_whole(job: Launched) -> None:
    """Sequences begin at 1 and have neither hole nor repeat, over both streams and gaps."""
    expected = 1
    for record in job.records():
        assert record.sequence == expected
        expected += record.lines


@pytest.mark.requirement("T.3")
def test_streams_stay_apart_and_in_order(sandboxes: Sandboxes) -> None:
    """What goes to stdout and to stderr is recorded as such; sequences count over both without a hole."""
    job = sandboxes.start("sh", "-c", "for i in 1 2 3; do echo out$i; echo err$i >&2; done")
    result = job.result()
    assert result.stdout == b"out1\nout2\nout3\n"
    assert result.stderr == b"err1\nerr2\nerr3\n"
    assert_whole(job)
    assert result.records[-1].sequence == 7


@pytest.mark.threat("C19")
def test_binary_output_is_exact(sandboxes: Sandboxes) -> None:
    """64 MiB of random bytes come out of the journal with the same checksum."""
    script = "head -c 67108864 /dev/urandom | tee /dev/stderr | sha256sum >/tmp/sum; cat /tmp/sum"
    job = sandboxes.start("sh", "-c", script)
    result = job.result()
    assert len(result.stderr) == 64 * MIB
    assert sha256(result.stderr).encode() == result.stdout.split()[0]
    assert_whole(job)


def test_bytes_that_are_no_text_survive(sandboxes: Sandboxes) -> None:
    """NUL, invalid UTF-8, carriage returns and a missing last line end are kept as they are."""
    result = sandboxes.run("printf", "\\000\\377\\376a\\r\\n\\342\\200\\250\\n\\n\\303")
    assert result.stdout == b"\x00\xff\xfea\r\n\xe2\x80\xa8\n\n\xc3"
    assert [(r.lines, r.partial) for r in result.of(RecordType.OUTPUT)] == [(3, False), (1, True)]


@pytest.mark.threat("C18")
def test_a_long_line_is_cut_into_pieces(sandboxes: Sandboxes) -> None:
    """A line of a megabyte and a bit comes as pieces of 64 KiB that join to the line, none of them lost."""
    result = sandboxes.shell("head -c 1100000 /dev/zero; echo; echo next")
    assert result.stdout == bytes(1_100_000) + b"\nnext\n"
    pieces = result.of(RecordType.OUTPUT)
    assert all(len(piece.payload) <= PARTIAL_BYTES for piece in pieces)
    assert sum(piece.partial for piece in pieces) >= 1_100_000 // PARTIAL_BYTES
    assert all(piece.lines == 1 for piece in pieces if piece.partial)


def test_an_unfinished_line_is_passed_on_in_silence(sandboxes: Sandboxes) -> None:
    """A prompt without a line end is recorded while the job goes on, as PARTIAL; the rest is an entry of its own."""
    job = sandboxes.start(
        "sh", "-c", "printf 'name? '; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo", workdir="/tmp"
    )
    job.wait_for_output(b"name? ")
    (prompt,) = [record for record in job.records() if record.type == RecordType.OUTPUT]
    assert prompt.partial
    assert alive(job.main_pid())


def test_millions_of_lines_are_complete(sandboxes: Sandboxes) -> None:
    """A job that prints as fast as it can loses no line.

    It writes without regard for lines: when it pauses in the middle of one, that comes as two entries.
    """
    job = sandboxes.start("seq", "1000000")
    result = job.result()
    assert result.stdout == b"".join(b"%d\n" % number for number in range(1, 1_000_001))
    assert result.records[-1].sequence == 1_000_001 + sum(record.partial for record in result.records)
    assert_whole(job)


@pytest.mark.threat("C17")
def test_a_full_journal_blocks_the_job(tmp_path: Path) -> None:
    """With on_full block the job waits; when space is given back it goes on and not one byte is missing."""
    with Sandboxes(tmp_path, bytes_max=4 * MIB) as sandboxes:
        job = sandboxes.start("sh", "-c", "head -c 16777216 /dev/zero; echo done >&2")
        journal = job.directory / "journal"
        wait_for(lambda: journal.stat().st_blocks * 512 >= 4 * MIB, what="the journal to fill")
        assert not job.ended(0.5)
        assert journal.stat().st_size < 4 * MIB + 3 * MIB  # at most one read more
        taken, read = bytearray(), 0

        def consume() -> bool:
            nonlocal read
            content = journal.read_bytes()
            taken.extend(content[read:])
            if len(content) > read:
                # Whole blocks only are given back: go up to the last block border.
                descriptor = os.open(journal, os.O_RDWR)
                punch_hole(descriptor, 0, len(content))
                os.close(descriptor)
                read = len(content)
                send_space_freed(job.directory)
            return job.ended(0.01)

        wait_for(consume, timeout_s=30, what="the job to write all of it")
        consume()
        journal.write_bytes(bytes(taken))
        result = job.result()
        assert result.stdout == bytes(16 * MIB)
        assert result.stderr == b"done\n"
        assert_whole(job)
        assert not result.of(RecordType.GAP)


@pytest.mark.threat("F13")
def test_a_full_journal_drops_and_tells(tmp_path: Path) -> None:
    """With on_full drop the job never waits; what is missing is told by a GAP record, in its place and counted.

    When the space is given back there may be a MiB in the pipe still, and one in the monitor's hands: room for both.
    """
    with Sandboxes(tmp_path, bytes_max=4 * MIB, on_full="drop") as sandboxes:
        script = "seq 2000000; echo more >&2; while [ -e /proc/self/stat ]; do echo again; sleep 0.1; done"
        job = sandboxes.start("sh", "-c", script)
        journal = job.directory / "journal"
        wait_for(lambda: journal.stat().st_blocks * 512 >= 4 * MIB, what="the journal to fill")
        wait_for(lambda: "sleep" in names_of(job), what="seq to be through and sleep to run")
        kept = journal.read_bytes()
        descriptor = os.open(journal, os.O_RDWR)
        punch_hole(descriptor, 0, len(kept) // 4096 * 4096)
        os.close(descriptor)
        send_space_freed(job.directory)
        wait_for(lambda: journal.stat().st_size > len(kept), what="the journal to go on")
        send_stop(job.directory, signal=signal.SIGTERM, grace_ms=5000)
        assert job.ended()
        content = journal.read_bytes()
        journal.write_bytes(kept + content[len(kept) :])
        result = job.result()
        (gap,) = result.of(RecordType.GAP)
        told = json.loads(bytes(gap.payload))
        assert told["reason"] == "journal_full"
        before = result.stdout.split(b"again")[0]
        assert told["bytes"] >= len(b"".join(b"%d\n" % n for n in range(1, 2_000_001))) - len(before)
        assert gap.lines >= 2_000_000 - before.count(b"\n")
        assert_whole(job)


@pytest.mark.threat("F13")
def test_a_full_disk_is_waited_for(tmp_path: Path) -> None:
    """ENOSPC ends nobody: the torn record is cut off, the job waits, and all is written when there is space again."""
    with Sandboxes(tmp_path) as sandboxes:
        launch = sandboxes.plan("sh", "-c", "seq 300000; exit 5")
        directory = Path(launch.task.job_dir)
        directory.mkdir(mode=0o700)
        filler = directory / "filler"
        mounts.mount("tmpfs", str(directory), "tmpfs", 0, "size=3m")
        try:
            filler.write_bytes(bytes(MIB * 5 // 2))
            job = sandboxes.start_launch(launch)
            assert not job.ended(1.0)
            assert all(record.type != RecordType.EXIT for record in job.records())

            def only_whole_records() -> bool:
                size = (directory / "journal").stat().st_size
                return size == sum(36 + len(record.payload) for record in job.records())

            wait_for(only_whole_records, what="the torn record to be cut off, which is tried again now and then")
            filler.unlink()
            result = job.result()
            assert result.exit["exit_code"] == 5
            assert result.stdout == b"".join(b"%d\n" % number for number in range(1, 300_001))
        finally:
            for each in sandboxes.jobs:
                each.close()
            mounts.umount2(str(directory), mounts.MNT_DETACH)
            directory.rmdir()


def test_a_closed_stream_is_not_waited_for(sandboxes: Sandboxes) -> None:
    """A job that closes its output goes on, and its end is seen."""
    result = sandboxes.shell("echo last; exec >&- 2>&-; sleep 0.2; exit 8")
    assert (result.stdout, result.exit["exit_code"]) == (b"last\n", 8)


@pytest.mark.threat("B15")
def test_the_job_cannot_change_the_monitors_end(sandboxes: Sandboxes) -> None:
    """/dev/stdout can be opened again by the job, and what it does to its end leaves the capture whole."""
    result = sandboxes.shell("echo one >/dev/stdout; echo two >/dev/stderr; echo three >/proc/self/fd/1")
    assert (result.stdout, result.stderr) == (b"one\nthree\n", b"two\n")
    assert result.output(Stream.NONE) == b""


def test_the_monitor_is_small(sandboxes: Sandboxes, capsys: pytest.CaptureFixture[str]) -> None:
    """What monitor and init of a quiet job hold together is printed, and stays below a generous bound."""
    jobs = [sandboxes.start("sh", "-c", "echo up; sleep 60") for _ in range(4)]
    for job in jobs:
        job.wait_for_output(b"up")
    pids = [pid for job in jobs for pid in (job.monitor, _init_of(job))]
    pss_kib = sum(_pss_kib(pid) for pid in pids) / len(jobs)
    with capsys.disabled():
        print(f"\n  PSS of monitor and init together: {pss_kib:.0f} KiB")  # noqa: T201
    assert pss_kib < 6 * 1024


def _init_of(job: Launched) -> int:
    return int(Path(f"/proc/{job.main_pid()}/stat").read_text().rpartition(") ")[2].split()[1])


def _pss_kib(pid: int) -> int:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(next(line.split()[1] for line in rollup.splitlines() if line.startswith("Pss:")))
