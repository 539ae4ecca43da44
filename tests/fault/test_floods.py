"""Floods: a hundred jobs at once, one beside a quiet one, and listeners that do not listen; nobody loses anything."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from common.messages.topics import EVENTS
from services.executor.follower import SLICE_BYTES
from tests.e2e.node import PROGRAMS, Node, end, numbers, read_all
from tests.fault.disks_nodes import (
    MIB,
    Services,
    assert_nothing_of_jobs_left,
    assert_whole,
    fresh_node,
    needs_root,
    wait_for_states,
    wait_until_stored,
)
from tests.unit.test_persist_journal import run_program
from tests.waiting import wait_for

pytestmark = [needs_root, pytest.mark.timeout(300)]

JOBS: Final = 100
LINES: Final = 5000
FIRSTS: Final = range(0, JOBS * LINES, LINES)
SERVICE_GROWTH_MAX: Final = 192 * MIB
BURST_LINES: Final = 20_000
PADDING: Final = "-" * 92
QUEUED_BYTES_MAX: Final = EVENTS.queue_messages_max * SLICE_BYTES
"""What the publisher may hold for a subscriber that does not read; those who ceased to at one time share messages."""
SAYING: Final = ("--", "sh", "-c", "while :; do echo said; sleep 0.05; done")
ENDLESS: Final = f"i=0; while [ ! -e /tmp/stop ]; do i=$((i+1)); yes $i{PADDING} | head -n {BURST_LINES}; done"
FLOODING: Final = ("--max-cpu", "25", "--", "sh", "-c", ENDLESS)
"""A quarter of a core is a flood, and leaves the machine to those who deal with it."""
PASSED_LINES: Final = 1_500_000
"""Far more than the queue of a subscriber holds."""


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """The node of all floods, with a journal limit that they reach."""
    with fresh_node("floods", {"joblet": {"journal": {"bytes_max": 16 * MIB}}}) as made:
        yield made


def inside(node: Node, job: str) -> Path:
    """The /tmp of a running job."""
    return Path(f"/proc/{node.wait_for_state(job, 'running')['pid']}/root/tmp")


@pytest.mark.threat("C17")
@pytest.mark.requirement("S3.13")
def test_a_hundred_jobs_flood_at_once() -> None:
    """They begin to write together; each log is complete and exact, and the node answers meanwhile."""
    with fresh_node("hundred") as node:
        services = Services(node)
        script = f"mkfifo /tmp/go; : < /tmp/go; seq $1 $(($1 + {LINES - 1})); exit 3"
        with ThreadPoolExecutor(4) as pool:
            started = pool.map(lambda first: node.detached("--", "sh", "-c", script, "sh", str(first)), FIRSTS)
            firsts = dict(zip(started, FIRSTS, strict=True))
        wait_for_states(node, firsts, "running", timeout_s=60)
        for record in node.jobs("--state", "running", "--limit", "200"):
            let_go(Path(f"/proc/{record['pid']}/root/tmp/go"))
        assert len(node.jobs("--limit", "200")) == JOBS
        wait_for_states(node, firsts, "failed", timeout_s=60)
        wait_until_stored(node, list(firsts), timeout_s=60)
        for job, first in firsts.items():
            assert stored_output(node, job) == b"".join(b"%d\n" % number for number in range(first, first + LINES))
        for job, first in list(firsts.items())[::25]:
            assert numbers(node.ok("job", "log", job, "--no-follow")) == list(range(first, first + LINES))
        assert_whole(node, *firsts)
        services.assert_same()
        services.assert_bounded(SERVICE_GROWTH_MAX)
        assert_nothing_of_jobs_left(node)


def let_go(fifo: Path) -> None:
    """Open a FIFO for writing as soon as its job waits for that. A hundred that look for a file are a load."""

    def opened() -> bool:
        try:
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError:  # ENXIO: nobody reads yet
            return False
        return True

    wait_for(opened, what=f"the job that waits at {fifo}")


def stored_output(node: Node, job: str) -> bytes:
    """What is stored of stdout, read by programs that are not ours."""
    text = run_program("zcat", str(node.base / "logs" / job / "stdout.log.gz"))
    return run_program("jq", "-j", '.content + (if .partial then "" else "\\n" end)', data=text)


@pytest.mark.threat("C17")
def test_a_quiet_job_beside_a_flood(node: Node) -> None:
    """Its line is heard and stored while the flood goes on, and so is every other question answered."""
    services = Services(node)
    flood = node.detached(*FLOODING)
    stop = inside(node, flood) / "stop"
    quiet = node.detached("--", "sh", "-c", "while [ ! -e /tmp/go ]; do sleep 0.05; done; echo heard; sleep 1000")
    go = inside(node, quiet) / "go"
    follower = node.background("job", "log", quiet)
    heard = read_all(follower.stdout)
    try:
        wait_for(lambda: len(node.entries(flood, "--tail", "1")) == 1, what="the flood to be on its way")
        go.touch()
        wait_for(lambda: heard.data == b"heard\n", timeout_s=20, what="the quiet line to be heard")
        wait_for(lambda: numbers_stored(node, quiet) == [b"heard"], timeout_s=20, what="the quiet line to be stored")
        assert node.ok("job", "run", "--", "echo", "new") == b"new\n"
        assert node.status(flood)["state"] == "running", "all of that was beside the flood"
        node.ok("job", "stop", quiet, "--grace", "0s")
        stop.touch()
        node.ok("job", "wait", flood, timeout_s=60)
        assert heard.finished() == b"heard\n"
    finally:
        end(follower)
    wait_until_stored(node, [flood, quiet], timeout_s=60)
    assert_counted_up(node, flood)
    services.assert_same()
    services.assert_bounded(SERVICE_GROWTH_MAX)
    node.ok("job", "delete", flood)


def numbers_stored(node: Node, job: str) -> list[bytes]:
    """The lines in the stored file of a running job; none while persist is still writing there."""
    path = node.base / "logs" / job / "stdout.log.gz"
    whole = subprocess.run(["gzip", "-t", path], capture_output=True, check=False).returncode == 0
    return stored_output(node, job).split() if whole else []


def assert_counted_up(node: Node, job: str) -> None:
    """Every number so many times, and then the next one, read as a stream; its file is whole gzip."""
    with subprocess.Popen(node.command("job", "log", job, "--no-follow"), stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        for number, line in enumerate(reader.stdout):
            assert int(line.rstrip(b"-\n")) == number // BURST_LINES + 1
    assert reader.returncode == 0
    run_program("gzip", "-t", str(node.base / "logs" / job / "stdout.log.gz"))
    assert (number + 1) % BURST_LINES == 0


@contextlib.contextmanager
def deaf_subscriber(node: Node, topic: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Somebody's own ZeroMQ program that subscribed and does not read."""
    command = [sys.executable, "-m", "tests.fault.disks_tap", str(node.base / "run" / "events.sock"), topic]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        end(process)


@contextlib.contextmanager
def tap(node: Node, pattern: str) -> Iterator["subprocess.Popen[bytes]"]:
    """`joblet tap PATTERN --json`."""
    command = [str(PROGRAMS / "joblet"), "tap", pattern, "--base-dir", str(node.base), "--json"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        end(process)


@pytest.mark.threat("E06")
@pytest.mark.threat("F23")
@pytest.mark.threat("F26")
def test_subscribers_at_their_high_water_mark(node: Node) -> None:
    """One never reads, a tap is stopped: publisher and job do not wait, a follower gets all, and the tap goes on."""
    services = Services(node)
    talker = node.detached(*SAYING)
    with deaf_subscriber(node, "log.") as deaf, tap(node, "log.*") as stopped:
        assert deaf.stdout is not None
        assert deaf.stdout.readline() == b"ready\n"
        assert stopped.stdout is not None
        assert stopped.stdout.readline()
        os.kill(stopped.pid, signal.SIGSTOP)
        flood = node.detached(*FLOODING)
        stop = inside(node, flood) / "stop"
        follower = node.background("job", "log", flood)
        try:
            follower_counts = counting(follower)
            passed = next(follower_counts)
            while passed < PASSED_LINES:
                passed = next(follower_counts)
            services.assert_bounded(QUEUED_BYTES_MAX + SERVICE_GROWTH_MAX)
            os.kill(stopped.pid, signal.SIGCONT)
            tapped = read_all(stopped.stdout)
            size = len(tapped.data)
            wait_for(lambda: len(tapped.data) > size + MIB, timeout_s=20, what="the tap to go on")
            stop.touch()
            *_, passed = follower_counts
            stopped.kill()
            tapped.finished()
            assert follower.wait(60) == 0
        finally:
            end(follower)
    node.ok("job", "stop", talker, "--grace", "0s")
    assert passed % BURST_LINES == 0
    wait_until_stored(node, [flood], timeout_s=60)
    assert_counted_up(node, flood)
    services.assert_same()
    services.assert_bounded(2 * QUEUED_BYTES_MAX + SERVICE_GROWTH_MAX)  # the tap had new messages, the other the first
    node.ok("job", "delete", flood)


def counting(follower: "subprocess.Popen[bytes]") -> Iterator[int]:
    """How many lines came so far; each of them must be the next."""
    assert follower.stdout is not None
    for number, line in enumerate(follower.stdout):
        assert int(line.rstrip(b"-\n")) == number // BURST_LINES + 1
        yield number + 1
