"""Services are killed at random moments, again and again, while jobs print: the promises hold afterwards.

The seed is printed; JOBLET_TEST_SEED repeats a run. Rounds go on for JOBLET_TEST_ROUNDS_S (45), and so do the jobs.
"""

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.node import SERVICES, Node, end, read_all
from tests.fault.invariants import check_log, check_services, check_traces, check_whole, ended
from tests.fault.kills_logs import Follower, assert_same, verified
from tests.fault.kills_node import ROUNDS_S, kill_now, kill_up, launcher_of, rest, seeded, started
from tests.fault.kills_programs import Program, mixed, needs_python
from tests.waiting import wait_for

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to run a node"),
    pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason=needs_python),
]

VICTIMS = (*SERVICES, "launcher")
PAUSE_S = (0.2, 2.0)
SHORT_JOBS = 8


@pytest.fixture
def fragile() -> Iterator[Node]:
    """A node of its own."""
    with started("rounds") as made:
        yield made


@pytest.mark.requirement("T.8")
@pytest.mark.threat("F01")
@pytest.mark.threat("F02")
@pytest.mark.threat("F04")
@pytest.mark.timeout(4 * ROUNDS_S + 300)
def test_random_kills(fragile: Node) -> None:
    """Every job ends with its own exit code, its log and each follower's are byte for byte what it wrote."""
    chance = seeded()
    programs = {fragile.detached("--", *each.arguments): each for each in mixed(chance, round(ROUNDS_S)).values()}
    pids = {job: fragile.wait_for_state(job, "running")["pid"] for job in programs}
    followers = {job: Follower(fragile, job) for job in programs}
    short: list[Short] = []
    try:
        # A stream that was going on is taken up again; one that never began is not.
        wait_for(
            lambda: all(each.bytes for each in followers.values()), timeout_s=30, what="every follower's first line"
        )
        kills = rounds(fragile, chance, short)
        print(f"{kills} kills, {len(short)} short jobs")  # noqa: T201  # what the rounds were worth
        assert kills >= ROUNDS_S / 10
        for job, program in programs.items():
            record = ended(fragile, job, timeout_s=90)
            assert (record["exit_code"], record["signal"]) == (program.exit_code, None), record
            assert record["pid"] in (pids[job], None)
            check_whole(fragile, job, program.expected, follower=followers[job])
        for each in short:
            each.check(fragile)
    finally:
        for follower in followers.values():
            follower.close()
        for each in short:
            each.close()
    assert verified(fragile).keys() >= programs.keys()
    check_traces(fragile)
    check_services(fragile)


class Short:
    """An attached `rnx job run` of a job that is over in a moment."""

    def __init__(self, node: Node, chance: random.Random, number: int) -> None:
        self.program = Program(chance.randrange(2**32), rounds=20, lines=20, records=5, pause_ms=20, exit_code=11)
        self._name = f"short-{number}"
        self._process = node.background("job", "run", "--name", self._name, "--", *self.program.arguments)
        self._out, self._err = read_all(self._process.stdout), read_all(self._process.stderr)

    def check(self, node: Node) -> None:
        """It ran once, and its caller has its bytes and its exit code; or it was not begun, and its caller knows."""
        self._process.wait(120)
        out, err = self._out.finished(), self._err.finished()
        found = [job for job in node.jobs("--all") if job["name"] == self._name]
        if not found:  # the node could not be asked: nothing was promised
            assert self._process.returncode == 5, err
            return
        (job,) = found
        record = ended(node, job["id"])
        if record["exit_code"] is None:
            assert (record["state"], record["reason"][:21]) == ("failed", "could not be started:"), record
            assert self._process.returncode != 0
            assert check_log(node, job["id"]).last_sequence == 0
            return
        assert record["exit_code"] == self.program.exit_code
        written = self.program.printed(self.program.rounds)
        log = check_log(node, job["id"])
        assert log.gaps == ()
        assert self._process.returncode == self.program.exit_code, err
        for stream, heard in (("stdout", out), ("stderr", err)):
            assert_same(heard, written[stream], f"{stream} of an attached run")
            assert_same(log.streams[stream], written[stream], f"{stream} of {self._name}")

    def close(self) -> None:
        """End it if it still runs."""
        end(self._process)


def rounds(node: Node, chance: random.Random, short: list[Short]) -> int:
    """Kill for ROUNDS_S, one or several at once, and once or twice `joblet up` itself; how many were killed."""
    begun = time.monotonic()
    ends_of_up = sorted(chance.uniform(0.2, 0.9) * ROUNDS_S for _ in range(chance.choice((1, 2))))
    starts = sorted(chance.uniform(0.0, 0.9) * ROUNDS_S for _ in range(SHORT_JOBS))
    kills = 0
    while (passed := time.monotonic() - begun) < ROUNDS_S:
        if starts and passed >= starts[0]:
            starts.pop(0)
            short.append(Short(node, chance, len(short)))
        if ends_of_up and passed >= ends_of_up[0]:
            ends_of_up.pop(0)
            kill_up(node)
            node.start()
            kills += 1
        for name in chance.sample(VICTIMS, chance.choice((1, 1, 1, 2, 3, len(VICTIMS)))):
            kills += kill_now(launcher_of(node) if name == "launcher" else node.service(name))
        rest(chance.uniform(*PAUSE_S))
    return kills
