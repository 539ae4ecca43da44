"""Services are killed at random moments, again and again, while jobs print numbers: the promises hold after each round.

The seed is printed; JOBLET_TEST_SEED repeats a run. Rounds stop when `ROUNDS_S` are over.
"""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.node import SERVICES, Node, make_base, numbers
from tests.leaks import OWN_MARK, own_groups, spare_ids
from tests.waiting import wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to run a node")

ROUNDS_S = 30.0
JOBS = 3
LINES_A_JOB = 3000
COUNTING = (
    f"i=0; while [ $i -lt {LINES_A_JOB} ]; do i=$((i+1)); echo $i; [ $((i % 10)) = 0 ] && sleep 0.05; done; exit 5"
)


@pytest.fixture
def fragile() -> Iterator[Node]:
    """A node of its own."""
    made = Node(make_base("rounds"))
    made.start()
    yield made
    made.remove()


def seed() -> int:
    """The seed of this run, printed so that a failure can be repeated."""
    chosen = int(os.environ.get("JOBLET_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
    print(f"JOBLET_TEST_SEED={chosen}")  # noqa: T201  # pytest shows it with a failure
    return chosen


@pytest.mark.requirement("T.8")
@pytest.mark.threat("F04")
@pytest.mark.threat("F24")
def test_random_kills(fragile: Node) -> None:
    """Every job ends with its own exit code; each log has every number once, in order; nothing is left."""
    chance = random.Random(seed())  # noqa: S311  # reproducible on purpose
    jobs = [fragile.detached("--", "sh", "-c", COUNTING) for _ in range(JOBS)]
    kills = 0
    until = time.monotonic() + ROUNDS_S
    while time.monotonic() < until and any((fragile.base / "jobs" / job).exists() for job in jobs):
        victims = chance.sample(SERVICES, chance.choice((1, 1, 1, 2, 4)))
        for name in victims:
            pid = fragile.service(name)
            if pid:
                os.kill(pid, signal.SIGKILL)
                kills += 1
        rest_until(time.monotonic() + chance.uniform(0.3, 2.0))
    assert kills >= 5
    for job in jobs:
        done = ended(fragile, job)
        assert done.returncode == 5, done
        entries = fragile.entries(job)
        assert numbers(entries) == list(range(1, LINES_A_JOB + 1))
        assert [entry["sequence"] for entry in entries] == list(range(1, LINES_A_JOB + 1))
    directories = fragile.base / "jobs"
    wait_for(
        lambda: not {each.name for each in directories.iterdir()} - spare_ids(), what="the job directories to be gone"
    )
    wait_for(lambda: not job_groups(jobs), what="the jobs' groups to be gone")


def rest_until(moment: float) -> None:
    """Let the node work until `moment` of the monotonic clock."""
    wait_for(lambda: time.monotonic() >= moment, what="the moment of the next kill")


def ended(node: Node, job: str) -> subprocess.CompletedProcess[bytes]:
    """`rnx job wait`, asked again while the services come back."""

    def answer() -> subprocess.CompletedProcess[bytes] | None:
        done = node.rnx("job", "wait", job, timeout_s=100)
        return done if b"rnx:" not in done.stderr else None

    return wait_for(answer, timeout_s=60, what=f"the end of job {job}")


def job_groups(jobs: list[str]) -> list[str]:
    """Groups of these jobs that are still there."""
    return [group for group in own_groups() if OWN_MARK in group and Path(group).name in jobs]
