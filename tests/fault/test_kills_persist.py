"""Persist stands still for a minute below full load, and persist dies again and again: nothing is lost or doubled.

Full means the journal's limit, which is small here so that it is reached. Not here: kills at named places
(`test_kills_places.py`), what a disk does to persist (`test_persist_disk.py`).
"""

import math
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from cli.joblet.restarts import PAUSE_FIRST_S, PAUSE_MAX_S
from tests.e2e.node import Node
from tests.fault.invariants import (
    check_log,
    check_services,
    check_traces,
    check_whole,
    descriptors_of,
    ended,
    peak_rss_bytes,
    record_of,
)
from tests.fault.kills_logs import Follower, Log, gap_bytes, verified
from tests.fault.kills_node import ROUNDS_S, kill_now, rest, seeded, started, still
from tests.fault.kills_programs import Program, needs_python
from tests.waiting import wait_for

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to run a node"),
    pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason=needs_python),
]

STILL_S: Final = 60.0
JOURNAL_BYTES: Final = 4 * 2**20
ABOVE_BYTES: Final = 3 * 2**20
"""The bound is looked at before a read, and one read of each stream brings a MiB at most; and headers."""
EXECUTOR_MORE_BYTES_MAX: Final = 128 * 2**20
"""What may be on the way to persist (64 MiB), with a copy of each message in the queue's buffers."""
DESCRIPTORS_MORE_MAX: Final = 8
"""A question that is under way opens some."""
FLOOD: Final = Program(0, rounds=700, lines=1000, records=100, pause_ms=10, exit_code=21)
"""26 MB, about a MB a second and more: some seconds fill the journal."""


@pytest.mark.threat("F20")
@pytest.mark.threat("F19")
@pytest.mark.timeout(5 * STILL_S + 240)
def test_persist_stands_still_and_the_job_waits(blocking: Node) -> None:
    """`block`: the journal fills to its bound, the job waits, followers and other jobs go on; then all is there."""
    chance = seeded()
    flood = FLOOD._replace(seed=chance.randrange(2**32), gate=3)
    calm = Program(chance.randrange(2**32), lines=2, records=1, pause_ms=50, gate=1)
    jobs = {blocking.detached("--", *each.arguments): each for each in (calm, flood)}
    followers = {job: Follower(blocking, job) for job in jobs}
    beside, flooding = jobs
    try:
        # With all that was stored before it came, a follower is live, and needs nobody but the executor.
        for job, program in jobs.items():
            first = sum(map(len, program.begun(program.gate).values()))
            wait_for(lambda job=job, first=first: followers[job].bytes == first, what="the first rounds")  # type: ignore[misc]
        executor, persist = blocking.service("executor"), blocking.service("persist")
        before = peak_rss_bytes(executor)
        heard = followers[flooding].bytes
        pids = {job: record_of(blocking, job)["pid"] for job in jobs}
        with still(persist):
            for pid in pids.values():
                os.kill(pid, signal.SIGUSR1)
            begun = time.monotonic()
            journal = blocking.base / "jobs" / flooding / "journal"
            wait_for(lambda: occupied(journal) >= JOURNAL_BYTES, timeout_s=45, what="the journal to be full")
            rest(max(0.0, begun + STILL_S / 2 - time.monotonic()))
            full, beside_heard = occupied(journal), followers[beside].bytes
            assert full <= JOURNAL_BYTES + ABOVE_BYTES
            rest(STILL_S / 2)
            assert occupied(journal) == full, "the job does not wait"
            assert record_of(blocking, flooding)["state"] == "running"
            assert followers[flooding].bytes - heard > JOURNAL_BYTES / 2, "the live follower stands still, too"
            assert followers[beside].bytes > beside_heard, "a full journal holds up another job"
            assert peak_rss_bytes(executor) - before < EXECUTOR_MORE_BYTES_MAX
        os.kill(pids[beside], signal.SIGUSR2)
        for job, program in jobs.items():
            assert ended(blocking, job, timeout_s=90)["exit_code"] == program.exit_code
            check_whole(blocking, job, program.expected, follower=followers[job])
        assert (blocking.service("executor"), blocking.service("persist")) == (executor, persist)
    finally:
        for follower in followers.values():
            follower.close()
    check_traces(blocking)
    check_services(blocking)


@pytest.mark.threat("F20")
@pytest.mark.requirement("S0.47")
@pytest.mark.timeout(300)
def test_persist_stands_still_and_output_is_dropped(dropping: Node) -> None:
    """`drop`: the job ends by itself meanwhile; gaps tell exactly which entries and how many bytes are missing."""
    program = FLOOD._replace(seed=seeded().randrange(2**32), rounds=400, records=0, gate=1)
    job = dropping.detached("--", *program.arguments)
    pid = dropping.wait_for_state(job, "running")["pid"]
    with still(dropping.service("persist")):
        os.kill(pid, signal.SIGUSR1)
        record = dropping.wait_for_state(job, "failed", timeout_s=60)
        assert record["exit_code"] == program.exit_code
    ended(dropping, job)
    log = check_log(dropping, job)
    assert log.gaps, "nothing was dropped: the flood was too small"
    assert {gap.reason for gap in log.gaps} == {"journal_full"}
    assert verified(dropping)[job]["gap_entries"] == sum(gap.lines for gap in log.gaps)
    written = program.printed(program.rounds)["stdout"]
    check_parts(log, gap_bytes(dropping, job), written)
    check_traces(dropping)
    check_services(dropping)


def check_parts(log: Log, lost: dict[int, int], written: bytes) -> None:
    """Entries and gaps together are what was written to the one stream: the bytes of each where it belongs."""
    entries = {entry.sequence: entry.data for entry in log.entries}
    gaps = {gap.first: gap for gap in log.gaps}
    position = 0
    for first in sorted(entries.keys() | gaps.keys()):
        if first in entries:
            data = entries[first]
            assert written[position : position + len(data)] == data, f"entry {first} at byte {position}"
            position += len(data)
            continue
        piece = written[position : position + lost[first]]
        # A line that was written while the machine stood still is an entry more: its beginning, without a line end.
        assert piece.count(b"\n") <= gaps[first].lines
        position += lost[first]
    assert position == len(written)


@pytest.mark.threat("F24")
@pytest.mark.timeout(6 * ROUNDS_S + 240)
def test_persist_that_never_lives_long(looping: Node) -> None:
    """Killed whenever it comes up: its supervisor waits longer and longer, nobody else dies, no descriptor is lost."""
    chance = seeded()
    program = Program(chance.randrange(2**32), seconds=round(ROUNDS_S), lines=20, records=5, pause_ms=30, exit_code=0)
    job = looping.detached("--", *program.arguments)
    follower = Follower(looping, job)
    try:
        wait_for(lambda: follower.bytes, what="the follower's first line")
        others = {name: looping.service(name) for name in ("executor", "api", "volumes")}
        before = {name: descriptors_of(pid) for name, pid in others.items()}
        begun = time.monotonic()
        killed: set[int] = set()
        while time.monotonic() - begun < ROUNDS_S:
            pid = wait_for(
                lambda: (now := looping.service("persist")) not in killed and now, timeout_s=30, what="the next persist"
            )
            rest(chance.choice((0.0, 0.0, 0.3, 1.0)))
            assert kill_now(pid)
            killed.add(pid)
        assert ROUNDS_S / 15 <= len(killed) <= starts_max(time.monotonic() - begun)
        assert ended(looping, job, timeout_s=90)["exit_code"] == 0
        check_whole(looping, job, program.expected, follower=follower)
        assert {name: looping.service(name) for name in others} == others
        for name, pid in others.items():
            assert descriptors_of(pid) <= before[name] + DESCRIPTORS_MORE_MAX, name
    finally:
        follower.close()
    check_traces(looping)
    check_services(looping)


@pytest.fixture
def blocking() -> Iterator[Node]:
    """A node whose journals are small, and whose jobs wait."""
    with started("blocking", {"joblet": {"journal": {"bytes_max": JOURNAL_BYTES}}}) as made:
        yield made


@pytest.fixture
def dropping() -> Iterator[Node]:
    """A node whose journals are small, and whose jobs lose what does not fit."""
    with started("dropping", {"joblet": {"journal": {"bytes_max": JOURNAL_BYTES, "on_full": "drop"}}}) as made:
        yield made


@pytest.fixture
def looping() -> Iterator[Node]:
    """A node of its own."""
    with started("looping") as made:
        yield made


def occupied(path: Path) -> int:
    """Bytes of the disk that the file takes."""
    return path.stat().st_blocks * 512


def starts_max(seconds: float) -> int:
    """How often a service that dies at once is started in so long: pauses double up to PAUSE_MAX_S."""
    doubling = math.ceil(math.log2(PAUSE_MAX_S / PAUSE_FIRST_S))
    return 2 + doubling + math.ceil(seconds / PAUSE_MAX_S)  # the first one, and the one that had lived long
