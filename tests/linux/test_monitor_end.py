"""The end of a job: stopping, run time, and what happens when somebody dies."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from common.config.limits import LIMIT_RANGES
from common.records import RecordType
from services.executor.control import send_stop
from services.executor.linux.processes import pidfd_send_signal
from tests.linux.sandboxes import Launched, Sandboxes, alive, processes_of
from tests.waiting import wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

MIB: Final = 2**20
WAIT: Final = "echo up; until [ -e /work/go ]; do sleep 0.02; done"
DEAF: Final = "trap '' TERM; echo deaf; while :; do sleep 0.05; done"


@pytest.fixture
def sandboxes(tmp_path: Path) -> Iterator[Sandboxes]:
    """A launcher with a base directory of its own."""
    with Sandboxes(tmp_path) as opened:
        yield opened


def go_on(job: Launched) -> None:
    """Let a job go on that is at `WAIT`."""
    Path(f"/proc/{job.main_pid()}/root/work/go").touch()


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
    children = "(setsid sleep 64 &); (trap '' TERM HUP; sleep 65) &"
    job = sandboxes.start("sh", "-c", f"{children} {WAIT}; exit 6")
    wait_for(lambda: len(processes_of(job)) >= 4, what="init, the main process and its children")
    everyone = processes_of(job)
    go_on(job)
    assert job.result().exit["exit_code"] == 6
    assert not [pid for pid in everyone if alive(pid)]


@pytest.mark.threat("C27")
def test_who_was_handed_the_output_cannot_keep_an_ended_job(tmp_path: Path) -> None:
    """A job can hand its pipe to another one, by a socket on a volume: what that writes holds up no end, and no disk.

    In vain are 64 MiB; read is what is in the pipe when the job ends.
    """
    written = 0

    def flood(path: Path) -> None:
        nonlocal written
        with contextlib.suppress(BrokenPipeError), path.open("wb", buffering=0) as pipe:
            while written < 64 * MIB:
                written += pipe.write(b"not the job's\n" * 4096)

    with Sandboxes(tmp_path, bytes_max=MIB) as sandboxes:
        job = sandboxes.start("sh", "-c", "echo up; sleep 60")
        job.wait_for_output(b"up")
        writing = threading.Thread(target=flood, args=(Path(f"/proc/{job.main_pid()}/fd/1"),))
        writing.start()
        wait_for(lambda: written > MIB, what="the journal to fill")
        send_stop(job.directory, signal=signal.SIGKILL, grace_ms=0)
        result = job.result()
        writing.join()
    assert (result.exit["signal"], result.exit["ended_by"]) == (signal.SIGKILL, "client")
    assert len(result.stdout) < 8 * MIB


def test_a_second_stop_shortens_the_grace(sandboxes: Sandboxes) -> None:
    """A stop with signal 9 during a long grace kills at once."""
    job = sandboxes.start("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done")
    job.wait_for_output(b"up")
    send_stop(job.directory, signal=signal.SIGTERM, grace_ms=600_000)
    send_stop(job.directory, signal=signal.SIGKILL, grace_ms=0)
    assert job.result().exit["signal"] == 9


def test_the_run_time_is_limited(sandboxes: Sandboxes) -> None:
    """At its limit a job gets the stop signal, after the grace SIGKILL; its end is told as a timeout.

    The time runs from its first instruction: a slow job may not have come to ignore the signal, and gets longer.
    """
    gentle = sandboxes.run("sleep", "60", timeout_ms=150)
    assert (gentle.exit["signal"], gentle.exit["ended_by"]) == (signal.SIGTERM, "timeout")
    runs = (sandboxes.shell(DEAF, timeout_ms=limit_ms, grace_ms=150) for limit_ms in (150, 1500, 15_000))
    stubborn = next(result for result in runs if result.stdout == b"deaf\n")
    assert (stubborn.exit["signal"], stubborn.exit["ended_by"]) == (9, "timeout")


def test_the_longest_time_limit_is_one(sandboxes: Sandboxes) -> None:
    """A job that may run for ten years runs and ends as any other: epoll_wait(2) takes 25 days at most."""
    job = sandboxes.start("sh", "-c", "echo up; sleep 0.2; exit 3", timeout_ms=LIMIT_RANGES["timeout_ms"][1])
    result = job.result()
    assert (result.stdout, result.exit["exit_code"], result.exit["ended_by"]) == (b"up\n", 3, "")


def test_a_stop_before_the_start_is_kept(sandboxes: Sandboxes) -> None:
    """A stop that comes while the sandbox is built takes effect; the job does not run on."""
    job = sandboxes.start("sleep", "60")
    send_stop(job.directory, signal=signal.SIGTERM, grace_ms=5000)
    result = job.result()
    assert result.exit["ended_by"] == "client"
    assert result.exit["outcome"] in ("signaled", "not_started")


def test_garbage_on_the_control_file_is_passed_over(sandboxes: Sandboxes) -> None:
    """Frames of no or of an unknown command harm nobody."""
    job = sandboxes.start("sh", "-c", f"{WAIT}; echo down")
    job.wait_for_output(b"up")
    with (job.directory / "control").open("r+b", buffering=0) as control:
        control.write(b"x" * 1000)
        control.write(b"JLC1\x63\x00" + bytes(10))
    assert not job.ended(0.3)
    go_on(job)
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
    job = sandboxes.start("sh", "-c", f"{WAIT}; exit 3")
    job.wait_for_output(b"up")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        os.kill(job.monitor, number)
    assert not job.ended(0.3)
    go_on(job)
    assert job.result().exit["exit_code"] == 3


@pytest.mark.threat("C26")
def test_init_reaps_orphans(sandboxes: Sandboxes) -> None:
    """A thousand double forks leave no zombie."""
    script = "i=0; while [ $i -lt 1000 ]; do (true &); i=$((i+1)); done; echo up; sleep 60"
    job = sandboxes.start("sh", "-c", script)
    job.wait_for_output(b"up")
    wait_for(lambda: len(processes_of(job)) == 3, what="init, sh and sleep to be all that is left")
