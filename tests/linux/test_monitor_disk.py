"""The monitor's journal at its limits: a job's own choice, disks that are full or refuse, one line without an end."""

import fcntl
import json
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from common import records
from common.linux import mounts
from common.messages.jobs import OnFull
from common.records import PARTIAL_BYTES, RecordType, Stream
from services.executor.control import send_stop
from services.executor.journal import Journal
from services.executor.launcher.capture import Piece
from services.executor.launcher.journal import DiskJournal, Recorder
from services.executor.launcher.task import JournalLimits
from tests.linux.sandboxes import Launched, Sandboxes, alive
from tests.waiting import wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

MIB: Final = 2**20
F_ADD_SEALS: Final = 1033
F_SEAL_SHRINK: Final = 0x0002
LINES: Final = 1_000_000
NUMBERS: Final = b"".join(b"%d\n" % number for number in range(1, LINES + 1))


@contextmanager
def small_disk(directory: Path, size: str) -> Iterator[None]:
    """A tmpfs at `directory`, which is gone afterwards."""
    directory.mkdir(mode=0o700)
    mounts.mount("tmpfs", str(directory), "tmpfs", 0, f"size={size}")
    try:
        yield
    finally:
        mounts.umount2(str(directory), mounts.MNT_DETACH)
        directory.rmdir()


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """A write beyond `size` bytes of a file fails, after as much of it as fits: as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def whole(found: list[records.Record]) -> bool:
    """Sequences begin at 1 and have neither hole nor repeat."""
    expected = 1
    for record in found:
        if record.sequence != expected:
            return False
        expected += record.lines
    return True


def dropped(job: Launched) -> int:
    """How many bytes of NUMBERS the GAPs of a job that printed them stand for; all else must be there, in its place."""
    position = lost = 0
    for record in job.records():
        if record.type == RecordType.OUTPUT:
            payload = bytes(record.payload)
            assert payload == NUMBERS[position : position + len(payload)]
            position += len(payload)
        elif record.type == RecordType.GAP:
            told = json.loads(bytes(record.payload))
            assert told["reason"] == "journal_full"
            # A line is an entry; one that came in two parts is two.
            assert record.lines >= NUMBERS.count(b"\n", position, position + told["bytes"])
            position, lost = position + told["bytes"], lost + told["bytes"]
    assert position == len(NUMBERS)
    assert whole(job.records())
    return lost


@pytest.mark.threat("C17")
@pytest.mark.parametrize("default", list(OnFull))
def test_each_job_waits_or_drops_as_it_chose(tmp_path: Path, default: OnFull) -> None:
    """Two jobs of one node, whatever the node's default: one waits in write(2), the other ends and tells its loss."""
    with Sandboxes(tmp_path, bytes_max=MIB // 2, on_full=default.value) as sandboxes:
        waits = sandboxes.start("seq", "2000000", on_full=OnFull.BLOCK)
        drops = sandboxes.start("seq", str(LINES), on_full=OnFull.DROP)
        assert drops.result().exit["exit_code"] == 0
        assert dropped(drops) > len(NUMBERS) // 2
        journal = waits.directory / "journal"
        wait_for(lambda: journal.stat().st_blocks * 512 >= MIB // 2, what="the other journal to fill")
        assert not waits.ended(0.3)
        assert alive(waits.main_pid())
        assert not [record for record in waits.records() if record.type in (RecordType.GAP, RecordType.EXIT)]


@pytest.mark.threat("F13")
def test_a_full_disk_drops_exactly_what_it_says(tmp_path: Path) -> None:
    """ENOSPC with on_full drop: the job is through without waiting, and the GAP tells all of what is missing."""
    with Sandboxes(tmp_path) as sandboxes:
        launch = sandboxes.plan("seq", str(LINES), on_full=OnFull.DROP)
        directory = Path(launch.task.job_dir)
        with small_disk(directory, "5m"):  # of the 2.5 MiB that are free, one read of a full pipe takes 1 at the most
            filler = directory / "filler"
            filler.write_bytes(bytes(MIB * 5 // 2))
            job = sandboxes.start_launch(launch)
            wait_for(lambda: not alive(job.main_pid()), what="the job to be through")
            filler.unlink()
            assert job.result().exit["exit_code"] == 0
            assert 0 < dropped(job) < len(NUMBERS)
            for each in sandboxes.jobs:
                each.close()


@pytest.mark.threat("F13")
def test_a_record_that_does_not_fit_leaves_no_part_of_it(tmp_path: Path) -> None:
    """Part of it was written already: it is cut off, and the whole of it is written when there is space."""
    path = tmp_path / "journal"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        journal = DiskJournal(descriptor)
        assert journal.append(b"a" * 1000)
        with files_at_most(1500):
            assert not journal.append(b"b" * 1000)
        assert path.read_bytes() == b"a" * 1000
        assert journal.append(b"c" * 1000)
        assert path.read_bytes() == b"a" * 1000 + b"c" * 1000
    finally:
        os.close(descriptor)


@pytest.mark.threat("F13")
def test_nothing_is_written_behind_a_part_that_cannot_be_cut_off(tmp_path: Path) -> None:
    """Not even when there is space again: readers see an unfinished record, wait, and take nothing of it."""
    descriptor = os.memfd_create("journal", os.MFD_ALLOW_SEALING)
    try:
        fcntl.fcntl(descriptor, F_ADD_SEALS, F_SEAL_SHRINK)
        recorder = Recorder(DiskJournal(descriptor), JournalLimits(MIB, drop_when_full=True, silence_ms=100))
        recorder.output(Stream.STDOUT, [Piece(b"one\n", 1, partial=False)], 1)
        size = os.fstat(descriptor).st_size
        with files_at_most(size + 50):
            recorder.output(Stream.STDOUT, [Piece(b"two" * 100 + b"\n", 1, partial=False)], 2)
        assert os.fstat(descriptor).st_size == size + 50
        recorder.output(Stream.STDOUT, [Piece(b"three\n", 1, partial=False)], 3)
        assert not recorder.settled
        content = os.pread(descriptor, MIB, 0)
    finally:
        os.close(descriptor)
    assert len(content) == size + 50
    path = tmp_path / "journal"
    path.write_bytes(content)
    reader = Journal(path)
    piece = reader.read(0, last_sequence=0, bytes_max=MIB)
    assert (piece.end, piece.last_sequence) == (size, 1)
    assert reader.read(size, last_sequence=1, bytes_max=MIB).records == b""
    reader.close()


@pytest.mark.threat("F13")
def test_a_disk_that_takes_nothing_is_asked_again(tmp_path: Path) -> None:
    """Whatever the error is: block keeps every record in its order, drop counts each; none is raised."""
    del tmp_path
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        for drops in (False, True):
            recorder = Recorder(DiskJournal(full), JournalLimits(MIB, drop_when_full=drops, silence_ms=100))
            for number in range(3):
                recorder.output(Stream.STDOUT, [Piece(b"x\n", 1, partial=False)], number)
            recorder.event(RecordType.EXIT, b"{}", 4)
            assert not recorder.settled
            assert not recorder.retry(5)
            assert recorder.accepts_output() is drops
    finally:
        os.close(full)


@pytest.mark.threat("C18")
def test_a_line_without_an_end_costs_no_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """200 MiB without a line end: pieces of 64 KiB, all of them, and the monitor is as small as with short lines."""
    script = "head -c 209715200 /dev/zero; exec sleep 100"
    with Sandboxes(tmp_path) as sandboxes:
        short = sandboxes.start("sh", "-c", "seq 200000; exec sleep 100")
        long = sandboxes.start("sh", "-c", script)
        journal = long.directory / "journal"
        wait_for(lambda: journal.stat().st_size > 200 * MIB, timeout_s=60, what="the line to be recorded")
        wait_for(lambda: short.output().endswith(b"200000\n"), what="the short lines")
        peaks = [_peak_bytes(job.monitor) for job in (short, long)]
        for job in (short, long):
            send_stop(job.directory, signal=signal.SIGKILL, grace_ms=0)
        result = long.result()
        pieces = result.of(RecordType.OUTPUT)
        assert len(result.stdout) == 200 * MIB
        assert not result.stdout.strip(b"\0")
        assert all(piece.partial and piece.lines == 1 and len(piece.payload) <= PARTIAL_BYTES for piece in pieces)
        assert whole(list(result.records))
        with capsys.disabled():
            print(f"\n  monitor at most: {peaks[0] // 1024} KiB with lines, {peaks[1] // 1024} KiB without")  # noqa: T201
        assert peaks[1] < peaks[0] + 8 * MIB


def _peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))
