"""The monitor: output exact and in order, limits of the journal, stopping, and what happens when somebody dies."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.records import PARTIAL_BYTES, RecordType, Stream
from services.executor.control import send_space_freed, send_stop
from services.executor.linux.files import punch_hole
from services.executor.linux.processes import pidfd_send_signal
from tests.linux.sandboxes import Launched, Sandboxes, alive, sha256
from tests.waiting import wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

MIB = 2**20


@pytest.fixture
def sandboxes(tmp_path: Path) -> Iterator[Sandboxes]:
    """A launcher with a base directory of its own."""
    with Sandboxes(tmp_path) as opened:
        yield opened


def processes_of(job: Launched) -> set[int]:
    """Every process that the host sees in the PID namespace of the job's main process."""
    namespace = Path(f"/proc/{job.main_pid()}/ns/pid").readlink()
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "ns" / "pid").readlink() == namespace:
                    found.add(int(entry.name))
            except (FileNotFoundError, ProcessLookupError, PermissionError):  # gone, or more privileged than we
                continue
    return found


def names_of(job: Launched) -> set[str]:
    """The names of the job's processes."""
    return {Path(f"/proc/{pid}/comm").read_text().strip() for pid in processes_of(job)}


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
    """A job that prints as fast as it can loses no line."""
    job = sandboxes.start("seq", "1000000")
    result = job.result()
    assert result.stdout == b"".join(b"%d\n" % number for number in range(1, 1_000_001))
    assert result.records[-1].sequence == 1_000_001
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
    """With on_full drop the job never waits; what is missing is told by a GAP record, in its place and counted."""
    with Sandboxes(tmp_path, bytes_max=MIB, on_full="drop") as sandboxes:
        script = "seq 1000000; echo more >&2; while [ -e /proc/self/stat ]; do echo again; sleep 0.1; done"
        job = sandboxes.start("sh", "-c", script)
        journal = job.directory / "journal"
        wait_for(lambda: journal.stat().st_blocks * 512 >= MIB, what="the journal to fill")
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
        assert told["bytes"] >= len(b"".join(b"%d\n" % n for n in range(1, 1_000_001))) - len(before)
        assert gap.lines >= 1_000_000 - before.count(b"\n")
        assert_whole(job)


@pytest.mark.threat("F13")
def test_a_full_disk_is_waited_for(tmp_path: Path) -> None:
    """ENOSPC ends nobody: the torn record is cut off, the job waits, and all is written when there is space again."""
    with Sandboxes(tmp_path) as sandboxes:
        launch = sandboxes.plan("sh", "-c", "seq 300000; exit 5")
        directory = Path(launch.task.job_dir)
        directory.mkdir(mode=0o700)
        filler = directory / "filler"
        os.system(f"mount -t tmpfs -o size=3m tmpfs {directory}")  # noqa: S605  # a small disk of our own
        try:
            filler.write_bytes(bytes(MIB * 5 // 2))
            job = sandboxes.start_launch(launch)
            assert not job.ended(1.0)
            assert all(record.type != RecordType.EXIT for record in job.records())
            size = (directory / "journal").stat().st_size
            assert size == sum(36 + len(record.payload) for record in job.records())
            filler.unlink()
            result = job.result()
            assert result.exit["exit_code"] == 5
            assert result.stdout == b"".join(b"%d\n" % number for number in range(1, 300_001))
        finally:
            for each in sandboxes.jobs:
                each.close()
            os.system(f"umount {directory}")  # noqa: S605
            directory.rmdir()


@pytest.mark.threat("C27")
def test_stop_asks_first(sandboxes: Sandboxes) -> None:
    """The stop signal reaches the main process, which may end in its own way; the end is told as the client's."""
    job = sandboxes.start("sh", "-c", "trap 'echo bye; exit 4' TERM; echo up; while :; do sleep 0.05; done")
    job.wait_for_output(b"up")
    assert send_stop(job.directory, signal=signal.SIGTERM, grace_ms=10_000)
    result = job.result()
    assert result.stdout == b"up\nbye\n"
    assert (result.exit["exit_code"], result.exit["ended_by"]) == (4, "client")


@pytest.mark.threat("C27")
def test_a_plain_program_dies_of_the_stop_signal(sandboxes: Sandboxes) -> None:
    """The main process is not PID 1: without a handler SIGTERM ends it at once."""
    job = sandboxes.start("sleep", "60")
    job.main_pid()
    send_stop(job.directory, signal=signal.SIGTERM, grace_ms=60_000)
    assert job.result().exit["signal"] == signal.SIGTERM


@pytest.mark.requirement("T.4")
def test_stop_kills_everything_in_the_end(sandboxes: Sandboxes) -> None:
    """Grandchildren that ignore SIGTERM, in sessions of their own and forked twice, are gone after the grace."""
    script = (
        "trap '' TERM;"
        " (setsid sh -c 'trap \"\" TERM; (setsid sleep 61 &) ; sleep 62' &);"
        " (sleep 63 &) ; echo up; while :; do sleep 0.1; done"
    )
    job = sandboxes.start("sh", "-c", script)
    job.wait_for_output(b"up")
    wait_for(lambda: len(processes_of(job)) >= 6, what="the grandchildren to run")
    everyone = processes_of(job)
    send_stop(job.directory, signal=signal.SIGTERM, grace_ms=200)
    result = job.result()
    assert (result.exit["outcome"], result.exit["signal"], result.exit["ended_by"]) == ("signaled", 9, "client")
    assert not [pid for pid in everyone if alive(pid)]


@pytest.mark.requirement("T.4")
def test_the_job_ends_with_its_main_process(sandboxes: Sandboxes) -> None:
    """Children that outlive the main process and hold its output open are killed, and hold nothing up."""
    job = sandboxes.start("sh", "-c", "(setsid sleep 64 &); (trap '' TERM HUP; sleep 65) & echo up; sleep 0.2; exit 6")
    job.wait_for_output(b"up")
    everyone = processes_of(job)
    assert job.result().exit["exit_code"] == 6
    assert not [pid for pid in everyone if alive(pid)]


def test_a_second_stop_shortens_the_grace(sandboxes: Sandboxes) -> None:
    """A stop with signal 9 during a long grace kills at once."""
    job = sandboxes.start("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done")
    job.wait_for_output(b"up")
    send_stop(job.directory, signal=signal.SIGTERM, grace_ms=600_000)
    send_stop(job.directory, signal=signal.SIGKILL, grace_ms=0)
    assert job.result().exit["signal"] == 9


def test_the_run_time_is_limited(sandboxes: Sandboxes) -> None:
    """At its limit a job gets the stop signal, after the grace SIGKILL; its end is told as a timeout."""
    gentle = sandboxes.run("sleep", "60", timeout_ms=150)
    assert (gentle.exit["signal"], gentle.exit["ended_by"]) == (signal.SIGTERM, "timeout")
    stubborn = sandboxes.shell("trap '' TERM; while :; do sleep 0.05; done", timeout_ms=150, grace_ms=150)
    assert (stubborn.exit["signal"], stubborn.exit["ended_by"]) == (9, "timeout")


def test_a_stop_before_the_start_is_kept(sandboxes: Sandboxes) -> None:
    """A stop that comes while the sandbox is built takes effect; the job does not run on."""
    job = sandboxes.start("sleep", "60")
    send_stop(job.directory, signal=signal.SIGTERM, grace_ms=5000)
    result = job.result()
    assert result.exit["ended_by"] == "client"
    assert result.exit["outcome"] in ("signaled", "not_started")


def test_garbage_on_the_control_file_is_passed_over(sandboxes: Sandboxes) -> None:
    """Frames of no or of an unknown command harm nobody."""
    job = sandboxes.start("sh", "-c", "echo up; sleep 0.3; echo down")
    job.wait_for_output(b"up")
    with (job.directory / "control").open("r+b", buffering=0) as control:
        control.write(b"x" * 1000)
        control.write(b"JLC1\x63\x00" + bytes(10))
    assert job.result().stdout == b"up\ndown\n"


@pytest.mark.threat("F03")
def test_the_job_dies_with_its_monitor(sandboxes: Sandboxes) -> None:
    """A monitor killed by signal 9 takes the whole job with it, and leaves a journal without EXIT."""
    job = sandboxes.start("sh", "-c", "trap '' TERM HUP; (setsid sleep 66 &); echo up; while :; do sleep 0.1; done")
    job.wait_for_output(b"up")
    wait_for(lambda: len(processes_of(job)) >= 3, what="the processes of the job")
    everyone = processes_of(job)
    assert job.pidfd is not None
    pidfd_send_signal(job.pidfd, signal.SIGKILL)
    assert job.ended()
    wait_for(lambda: not [pid for pid in everyone if alive(pid)], timeout_s=2, what="the job to die")
    assert all(record.type != RecordType.EXIT for record in job.records())


def test_the_death_of_init_is_told(sandboxes: Sandboxes) -> None:
    """When init is killed (the kernel may choose it when memory is short) the job ended by that signal."""
    job = sandboxes.start("sh", "-c", "echo up; sleep 60")
    job.wait_for_output(b"up")
    (init,) = (pid for pid in processes_of(job) if Path(f"/proc/{pid}/comm").read_text() == "init\n")
    os.kill(init, signal.SIGKILL)
    result = job.result()
    assert (result.exit["outcome"], result.exit["signal"]) == ("signaled", 9)


def test_signals_of_services_do_not_end_a_monitor(sandboxes: Sandboxes) -> None:
    """What stops services (TERM, INT, HUP, QUIT) leaves a monitor at its work."""
    job = sandboxes.start("sh", "-c", "echo up; sleep 0.4; exit 3")
    job.wait_for_output(b"up")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        os.kill(job.monitor, number)
    assert job.result().exit["exit_code"] == 3


@pytest.mark.threat("C26")
def test_init_reaps_orphans(sandboxes: Sandboxes) -> None:
    """A thousand double forks leave no zombie."""
    script = "i=0; while [ $i -lt 1000 ]; do (true &); i=$((i+1)); done; echo up; sleep 60"
    job = sandboxes.start("sh", "-c", script)
    job.wait_for_output(b"up")
    wait_for(lambda: len(processes_of(job)) == 3, what="init, sh and sleep to be all that is left")


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
    """Monitor and init of a quiet job share nearly all their memory; the sum is printed, a generous bound holds."""
    jobs = [sandboxes.start("sh", "-c", "echo up; sleep 60") for _ in range(4)]
    for job in jobs:
        job.wait_for_output(b"up")
    pids = [pid for job in jobs for pid in (job.monitor, _init_of(job))]
    pss_kib = sum(_pss_kib(pid) for pid in pids) / len(jobs)
    with capsys.disabled():
        print(f"\n  PSS of monitor and init together: {pss_kib:.0f} KiB")  # noqa: T201
    assert pss_kib < 8 * 1024


def _init_of(job: Launched) -> int:
    return int(Path(f"/proc/{job.main_pid()}/stat").read_text().rpartition(") ")[2].split()[1])


def _pss_kib(pid: int) -> int:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(next(line.split()[1] for line in rollup.splitlines() if line.startswith("Pss:")))
