"""The kernel has no more to give to a service: it is killed for want of memory, or cannot fork."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.node import Node
from tests.fault.invariants import alive, check_services, check_traces, check_whole, ended, record_of
from tests.fault.kills_groups import MEMORY_FILES, PIDS_FILES, SWAP_FILES, group
from tests.fault.kills_logs import Follower
from tests.fault.kills_node import launcher_of, seeded, started, still
from tests.fault.kills_programs import Program, needs_python
from tests.waiting import wait_for

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to run a node"),
    pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason=needs_python),
]

MORE_BYTES: Final = 2**20
"""What a service may have beyond what it has: less than one batch and its copy."""
RUSH: Final = Program(0, lines=1000, records=100, pause_ms=20, gate=2)
"""Behind the gate 37 kB in each round, until it is told that it is enough."""
WAITING_BYTES: Final = 9 * 2**20
"""What waits for persist when it goes on: however slowly it was printed, it comes at once."""


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """The node whose services are bound."""
    with started("bounds") as made:
        yield made


@pytest.mark.threat("F21")
@pytest.mark.threat("F22")
@pytest.mark.parametrize("name", ["persist", "executor"])
def test_out_of_memory(node: Node, name: str) -> None:
    """The kernel's own killer takes the service while a job floods: the job goes on, and its output is whole."""
    program = RUSH._replace(seed=seeded().randrange(2**32))
    job = node.detached("--", *program.arguments)
    follower = Follower(node, job)
    try:
        pid = node.wait_for_state(job, "running")["pid"]
        wait_for(lambda: follower.bytes == sum(map(len, program.begun(2).values())), what="the first rounds")
        victim = node.service(name)
        with group("memory", MEMORY_FILES) as bound:
            bound.bound(MEMORY_FILES, MORE_BYTES)
            bound.bound(SWAP_FILES, MORE_BYTES if Path("/sys/fs/cgroup/memory").is_dir() else 0)
            bound.add(victim)
            # With nobody to take it, output is on the executor's hands: up to 8 MiB of one job.
            with still(node.service("persist")):
                os.kill(pid, signal.SIGUSR1)
                journal = node.base / "jobs" / job / "journal"
                wait_for(
                    lambda: journal.stat().st_size > WAITING_BYTES if name == "persist" else not alive(victim),
                    timeout_s=30,
                    what="output that waits for persist, or kills the executor",
                )
            wait_for(lambda: not alive(victim), timeout_s=30, what=f"joblet-{name} to be killed")
            assert bound.oom_kills == 1
        assert alive(pid)
        os.kill(pid, signal.SIGUSR2)
        assert ended(node, job)["exit_code"] == program.exit_code
        check_whole(node, job, program.expected, follower=follower)
    finally:
        follower.close()
    check_traces(node)
    check_services(node)


@pytest.mark.threat("F36")
def test_the_launcher_cannot_fork(node: Node) -> None:
    """Jobs cannot be started and their callers are told why; everything else goes on, and so do jobs afterwards."""
    running = node.detached("--", "sh", "-c", "echo begun; exec sleep 1000")
    node.wait_for_state(running, "running")
    told: dict[str, str] = {}
    with group("pids", PIDS_FILES) as bound:
        bound.bound(PIDS_FILES, 1)
        bound.add(launcher_of(node))
        for _ in range(4):  # spares that were made before are used up
            done = node.rnx("job", "run", "--detach", "--", "true")
            if done.returncode != 0:
                told[""] = done.stderr.decode()
                continue
            job = done.stdout.decode().strip()
            record = wait_for(lambda job=job: ended(node, job), what="the end of the job")  # type: ignore[misc]
            if record["state"] == "failed":
                told[job] = record["reason"]
        assert told, "everything was started"
        assert all("fork: Resource temporarily unavailable" in each for each in told.values()), told
        assert record_of(node, running)["state"] == "running"
    assert node.ok("job", "run", "echo", "again") == b"again\n"
    node.ok("job", "stop", running, "--grace", "0s")
    ended(node, running)
    check_traces(node)
    check_services(node)
