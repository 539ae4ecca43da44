"""Ten thousand short jobs, 8 at a time, and nothing of them is left. Run by `make soak`; needs root, and minutes.

JOBLET_SOAK_JOBS sets another number, JOBLET_TEST_SEED repeats a run. Which jobs: tests/soak/worker.py. What must hold
is in issue 3: 0 processes, mounts, groups, namespaces, interfaces, loop devices and directories; and the services are
as small as before.
"""

import json
import os
import random
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.e2e.node import SERVICES, Node, end, make_base
from tests.leaks import command_of, own_groups
from tests.soak.host import Occupied, occupied, processes_in_groups, processes_of, special_files, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to run a node")

JOBS: Final = int(os.environ.get("JOBLET_SOAK_JOBS", "10000"))
SECONDS_PER_JOB_MAX: Final = 2.0
WARM_UP_JOBS: Final = 100
UIDS: Final = range(1_600_000_000, 1_600_000_000 + 65_536 * 4)
"""Of the jobs of this node alone, so that none can hide among those of others."""

DESCRIPTORS_MORE_MAX: Final = 20
RSS_MORE_BYTES_MAX: Final = 64 * 2**20
"""Of one process, beside what it needs to know JOBS ended jobs."""


class Size(NamedTuple):
    """What one service holds."""

    rss_bytes: int
    descriptors: int


class Worker:
    """A running tests.soak.worker."""

    def __init__(self, node: Node, jobs: int, seed: int) -> None:
        command = [sys.executable, "-m", "tests.soak.worker", str(node.config), str(jobs), str(seed)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def told(self, timeout_s: float) -> dict[str, Any]:
        """The next line that it prints."""
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], timeout_s)
        line = self.process.stdout.readline() if readable else b""
        assert line, f"the worker said nothing within {timeout_s:.0f} s"
        found: dict[str, Any] = json.loads(line)
        return found

    def delete(self, timeout_s: float) -> int:
        """Let it delete all jobs; how many it deleted."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        return int(self.told(timeout_s)["deleted"])


@pytest.fixture
def node() -> Iterator[Node]:
    """A node whose jobs have uids that no other job of this host has."""
    own = Node(make_base("soak", {"joblet": {"jobs": {"uid_first": UIDS.start}}}))
    own.start()
    yield own
    own.remove()


def sizes(node: Node) -> dict[str, Size]:
    """Every service, the launcher and the supervisor, by name and process id."""
    pids = {name: node.service(name) for name in SERVICES} | {"up": node.up_pid}
    pids["launcher"] = next(pid for pid in node.processes() if command_of(pid).startswith("joblet-launcher"))
    return {f"{name} {pid}": _size(pid) for name, pid in pids.items()}


def _size(pid: int) -> Size:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return Size(pages * os.sysconf("SC_PAGE_SIZE"), len(list(Path(f"/proc/{pid}/fd").iterdir())))


def run(node: Node, jobs: int, seed: int) -> dict[str, Any]:
    """Run jobs and delete them; the summary."""
    worker = Worker(node, jobs, seed)
    try:
        summary = worker.told(60 + jobs * SECONDS_PER_JOB_MAX)
        assert summary["wrong"] == [], f"seed {seed}"
        until_only_the_remainder(node)
        assert worker.delete(60 + jobs * SECONDS_PER_JOB_MAX) >= jobs
        assert worker.process.wait(30) == 0
    finally:
        end(worker.process)
    return summary


def until_only_the_remainder(node: Node) -> None:
    """Of ended jobs there is no process, and in a directory, as long as it is there, journal and lock only."""

    def more() -> list[str]:
        left = [str(each) for job in occupied(node).jobs for each in (node.base / "jobs" / job).glob("*")]
        return [f"process {pid}" for pid in processes_of(UIDS)] + [
            each for each in left if not each.endswith(("/journal", "/lock"))
        ]

    until(lambda: not more(), lambda: "\n".join(more()))


def until_nothing(node: Node, before: Occupied, special: list[str]) -> None:
    """Nothing of any job is left, in the kernel or on the disk."""
    until(lambda: not occupied(node).beyond(before), lambda: "\n".join(occupied(node).beyond(before)))
    until(lambda: not processes_of(UIDS), lambda: f"processes {sorted(processes_of(UIDS))}")

    def files() -> list[str]:
        of_jobs = [each for name in ("logs", "metrics", "uploads") for each in (node.base / name).rglob("*")]
        now = [each for each in special_files(node.base) if not each.startswith("jobs/")]
        return [str(each) for each in of_jobs] + sorted(set(now) - set(special))

    until(lambda: not files(), lambda: "\n".join(files()[:20]))


@pytest.mark.timeout(JOBS * SECONDS_PER_JOB_MAX * 2 + 900)
@pytest.mark.threat("C01")
@pytest.mark.threat("C26")
@pytest.mark.threat("F37")
def test_nothing_is_left_of_ten_thousand_jobs(node: Node) -> None:
    """Plain ones, failing ones, fork bombs, double forks, stubborn ones, files, networks: each ends right, all goes."""
    seed = int(os.environ.get("JOBLET_TEST_SEED", random.SystemRandom().randrange(10**6)))
    print(f"\nJOBLET_TEST_SEED={seed} JOBLET_SOAK_JOBS={JOBS}")  # noqa: T201  # how to repeat it
    before, special = occupied(node), special_files(node.base)
    run(node, WARM_UP_JOBS, seed)
    until_nothing(node, before, special)
    small = sizes(node)
    summary = run(node, JOBS, seed + 1)
    until_nothing(node, before, special)
    large = sizes(node)
    print(json.dumps(summary | {"rss_mib": grown(small, large)}))  # noqa: T201  # the result
    assert large.keys() == small.keys(), "no service was restarted"
    for name, size in large.items():
        assert size.descriptors <= small[name].descriptors + DESCRIPTORS_MORE_MAX, (name, small[name], size)
        assert size.rss_bytes <= small[name].rss_bytes + RSS_MORE_BYTES_MAX, (name, small[name], size)
    node.stop()
    assert (processes_of(UIDS), processes_in_groups(), own_groups()) == (frozenset(),) * 3, "nor of the spares"
    assert list((node.base / "jobs").rglob("*")) == []


def grown(before: dict[str, Size], after: dict[str, Size]) -> dict[str, list[int]]:
    """RSS in MiB before and after, by process."""
    return {
        name: [before[name].rss_bytes >> 20, size.rss_bytes >> 20] for name, size in after.items() if name in before
    }
