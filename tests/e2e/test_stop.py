"""Stopping: the whole job ends, whatever it does, and nothing of it stays."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.node import Node, end, read_all
from tests.leaks import CGROUP_ROOT, OWN_MARK
from tests.waiting import SLOWNESS, wait_for

STUBBORN = """
trap '' TERM INT HUP
(trap '' TERM; setsid sh -c 'trap "" TERM; (trap "" TERM; sleep 1000.25) & sleep 1000.25 & wait; sleep 1000.25' &) &
setsid setsid sh -c 'trap "" TERM; sleep 1000.25; sleep 1000.25' &
echo ready
while :; do sleep 1000.25; done
"""


def stubborn_processes() -> list[int]:
    """Host pids of the sleeps of STUBBORN."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if command == b"sleep\x001000.25\x00":
                found.append(int(entry.name))
    return found


def groups_of(job: str) -> list[Path]:
    """Control groups whose name has the job's id in it."""
    return [Path(at) for at, _, _ in os.walk(CGROUP_ROOT) if OWN_MARK in at and job in at]


def remains_of(node: Node, job: str) -> list[str]:
    """Processes, groups and the directory that are still there of a job."""
    directory = node.base / "jobs" / job
    left = [str(group) for group in groups_of(job)]
    return left + ([str(directory)] if directory.exists() else [])


@pytest.mark.requirement("T.4")
@pytest.mark.requirement("S2.34")
@pytest.mark.requirement("S2.30")
def test_stop_ends_grandchildren_that_ignore_it(node: Node) -> None:
    """TERM is ignored by everyone, double forks and new sessions included: after the grace period all are gone."""
    before = set(stubborn_processes())
    job = node.detached("--grace", "500ms", "--", "sh", "-c", STUBBORN)
    wait_for(lambda: len(set(stubborn_processes()) - before) >= 4, what="the job's descendants to run")
    assert groups_of(job), "the group's name holds the job's id"
    node.ok("job", "stop", job)
    done = node.rnx("job", "wait", job)
    assert done.returncode == 137
    record = node.status(job)
    assert (record["state"], record["signal"]) == ("stopped", 9)
    wait_for(lambda: not set(stubborn_processes()) - before, what="every descendant to be gone")
    wait_for(lambda: not remains_of(node, job), what="groups and directory to be gone")


@pytest.mark.requirement("T.4")
def test_descendants_do_not_outlive_a_job_that_ends_by_itself(node: Node) -> None:
    """The main process ends at once; what it left in the background ends with it, and output comes to its end."""
    before = set(stubborn_processes())
    done = node.rnx("job", "run", "--", "sh", "-c", "setsid sleep 1000.25 & echo started; exit 3", timeout_s=20)
    assert (done.stdout, done.returncode) == (b"started\n", 3)
    wait_for(lambda: not set(stubborn_processes()) - before, what="the background process to be gone")


def test_stop_is_kind_at_first(node: Node) -> None:
    """A job that handles TERM ends in its own way, with its own exit code and last words."""
    job = node.detached("--", "sh", "-c", "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.05; done")
    wait_for(lambda: node.ok("job", "log", job, "--no-follow") == b"up\n", what="the trap to be set")
    node.ok("job", "stop", job)
    assert node.rnx("job", "wait", job).returncode == 5
    record = node.status(job)
    assert (record["state"], record["exit_code"]) == ("stopped", 5)
    assert node.ok("job", "log", job, "--stream", "stdout") == b"up\nbye\n"


@pytest.mark.requirement("S3.8")
@pytest.mark.parametrize(("option", "number"), [("SIGKILL", 9), ("INT", 2), ("SIGUSR1", 10)])
def test_stop_with_another_signal(node: Node, option: str, number: int) -> None:
    """The signal that the caller names is the one that ends the job."""
    job = node.detached("--", "sleep", "1000")
    node.wait_for_state(job, "running")
    node.ok("job", "stop", job, "--signal", option)
    assert node.rnx("job", "wait", job).returncode == 128 + number
    assert node.status(job)["signal"] == number


def test_run_time_limit(node: Node) -> None:
    """TIMED_OUT, and the attached caller sees the signal's exit code."""
    began = time.monotonic()
    done = node.rnx("job", "run", "--timeout", "500ms", "--grace", "200ms", "--", "sleep", "1000", timeout_s=30)
    assert done.returncode in (143, 137)
    assert time.monotonic() - began < 20 * SLOWNESS
    assert node.jobs("--limit", "1")[0]["state"] == "timed_out"


def test_stop_of_an_ended_job_is_refused(node: Node) -> None:
    """Nothing happens to the record."""
    job = node.detached("--", "true")
    node.ok("job", "wait", job)
    before = node.status(job)
    done = node.rnx("job", "stop", job)
    assert done.returncode == 4
    assert node.status(job) == before


@pytest.mark.parametrize(("choice", "state"), [("stop", "stopped"), ("kill", "stopped"), ("detach", "running")])
def test_interrupt_of_an_attached_run(node: Node, choice: str, state: str) -> None:
    """--on-interrupt decides what Ctrl-C does to the job."""
    run = node.background(
        "job", "run", "--name", f"interrupt-{choice}", "--on-interrupt", choice, "--", "sleep", "1000"
    )
    try:
        job = wait_for(
            lambda: next(
                (
                    job
                    for job in node.jobs("--limit", "5", "--state", "running")
                    if job["name"] == f"interrupt-{choice}"
                ),
                None,
            ),
            what="the job to run",
        )
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=30 * SLOWNESS)
        assert node.wait_for_state(job["id"], state)
    finally:
        end(run)
        node.rnx("job", "stop", job["id"], "--grace", "0s")
        node.rnx("job", "wait", job["id"])


def test_deleted_job_is_gone(node: Node) -> None:
    """Record, log and directory; a second delete says there is no such job."""
    job = node.detached("--", "echo", "soon gone")
    node.ok("job", "wait", job)
    wait_for((node.base / "logs" / job).exists, what="the log to be stored")
    node.ok("job", "delete", job)
    assert node.rnx("job", "status", job).returncode == 3
    assert node.rnx("job", "log", job, "--no-follow").returncode == 3
    assert node.rnx("job", "delete", job).returncode == 3
    wait_for(lambda: not (node.base / "logs" / job).exists(), what="the stored log to be gone")
    wait_for(lambda: not remains_of(node, job), what="groups and directory to be gone")


def test_running_job_is_not_deleted(node: Node) -> None:
    """Stop it first."""
    job = node.detached("--", "sleep", "1000")
    node.wait_for_state(job, "running")
    assert node.rnx("job", "delete", job).returncode == 4
    node.ok("job", "stop", job, "--grace", "0s")
    node.rnx("job", "wait", job)


@pytest.mark.threat("C18")
def test_attached_run_that_is_cut_off_does_not_stop_the_job(node: Node) -> None:
    """Kill -9 of the client harms nobody: the job goes on and its log is whole."""
    script = "i=0; while [ $i -lt 60 ]; do i=$((i+1)); echo $i; sleep 0.02; done"
    run = subprocess.Popen(
        node.command("job", "run", "--name", "cut-off", "--", "sh", "-c", script), stdout=subprocess.PIPE
    )
    reader = read_all(run.stdout)
    wait_for(lambda: b"3\n" in reader.data, what="some lines")
    run.kill()
    run.wait()
    reader.finished()
    job = next(job for job in node.jobs("--limit", "5") if job["name"] == "cut-off")
    assert node.rnx("job", "wait", job["id"]).returncode == 0
    assert node.ok("job", "log", job["id"]).split() == [b"%d" % number for number in range(1, 61)]
