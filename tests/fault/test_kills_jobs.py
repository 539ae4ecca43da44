"""Jobs whose keepers die: the monitor, the launcher, the executor at the very end, `joblet up`, everything at once."""

import os
import signal
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.node import PROGRAMS, Node, make_base
from tests.fault.invariants import (
    Events,
    alive,
    check_log,
    check_services,
    check_traces,
    check_whole,
    ended,
    record_of,
)
from tests.fault.kills_logs import Follower
from tests.fault.kills_node import kill_now, launcher_of, monitor_of, rest, seeded, started, still
from tests.fault.kills_programs import Program, needs_python
from tests.leaks import children_of
from tests.waiting import wait_for

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to run a node"),
    pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason=needs_python),
]

GATED: Final = Program(0, rounds=40, lines=50, records=20, pause_ms=5, gate=2)
"""It prints two rounds, waits for SIGUSR1, and prints the rest."""
FIRST_STARTS: Final = 4


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """The node whose jobs lose their keepers."""
    with started("keepers") as made:
        yield made


@pytest.fixture(scope="module")
def events(node: Node) -> Iterator[Events]:
    """All that is told of its jobs."""
    heard = Events(node)
    yield heard
    heard.close()


@pytest.fixture
def own() -> Iterator[Node]:
    """A node of one test, which kills its `joblet up`."""
    with started("orphans") as made:
        yield made


def at_the_gate(node: Node, program: Program) -> tuple[str, int]:
    """A job that has printed its first rounds, all of which are stored, and waits; its id and its process."""
    job = node.detached("--", *program.arguments)
    pid: int = node.wait_for_state(job, "running")["pid"]
    first = sum(map(len, program.begun(program.gate).values()))
    wait_for(lambda: len(node.ok("job", "log", job, "--no-follow")) == first, what="the first rounds to be stored")
    return job, pid


@pytest.mark.threat("F03")
def test_killed_monitor(node: Node, events: Events) -> None:
    """LOST within seconds, told once; the log is a whole beginning of what the job wrote; nothing of it is left."""
    program = Program(seeded().randrange(2**32), lines=20, records=10, pause_ms=10)
    job = node.detached("--", *program.arguments)
    follower = Follower(node, job)
    try:
        wait_for(lambda: follower.bytes > 10_000, what="the job to print")
        pid = record_of(node, job)["pid"]
        assert kill_now(monitor_of(job))
        wait_for(lambda: not alive(pid), timeout_s=5, what="the job to end with its monitor")
        record = ended(node, job)
        assert record["state"] == "lost"
        assert record["reason"]
        log = check_log(node, job)
        assert log.gaps == ()
        follower.check(log)
        for stream, data in log.streams.items():
            written = program.begun(data.count(b"\n"))[stream]  # more than it can have been
            assert data
            assert written.startswith(data), stream
    finally:
        follower.close()
    events.check_end(record, once=True)
    check_traces(node)


@pytest.mark.threat("F07")
@pytest.mark.timeout(180)
def test_ends_while_there_is_no_executor(node: Node, events: Events) -> None:
    """An exit code, a signal, the end time and the last output are known afterwards, each of its own job."""
    chance = seeded()
    leaves = GATED._replace(seed=chance.randrange(2**32), exit_code=42)
    succeeds = GATED._replace(seed=chance.randrange(2**32), exit_code=0)
    first, first_pid = at_the_gate(node, leaves)
    second, second_pid = at_the_gate(node, succeeds)
    third, third_pid = at_the_gate(node, leaves)
    with still(node.up_pid):  # so that nobody starts it again
        executor = node.service("executor")
        assert kill_now(executor)
        wait_for(lambda: not alive(executor), what="the executor to be gone")
        os.kill(first_pid, signal.SIGUSR1)
        os.kill(second_pid, signal.SIGUSR1)
        os.kill(third_pid, signal.SIGKILL)
        wait_for(lambda: not any(map(monitor_of, (first, second, third))), timeout_s=30, what="the monitors to end")
        over = datetime.now(UTC)
    for job, state, code, number in (
        (first, "failed", 42, None),
        (second, "completed", 0, None),
        (third, "failed", None, 9),
    ):
        record = ended(node, job)
        assert (record["state"], record["exit_code"], record["signal"]) == (state, code, number)
        begun, finished = (datetime.fromisoformat(record[name]) for name in ("started_at", "ended_at"))
        assert begun < finished < over, "it ended when it ended, not when somebody looked"
        events.check_end(record, once=False)
    check_whole(node, first, leaves.printed(leaves.rounds))
    check_whole(node, second, succeeds.printed(succeeds.rounds))
    check_whole(node, third, leaves.begun(leaves.gate))
    check_traces(node)
    check_services(node)


@pytest.mark.threat("F04")
def test_killed_launcher(node: Node, events: Events) -> None:
    """Running jobs do not notice; the next ones are started by another launcher."""
    program = GATED._replace(seed=seeded().randrange(2**32))
    job, pid = at_the_gate(node, program)
    for _ in range(3):
        before = launcher_of(node)
        assert kill_now(before)
        assert node.ok("job", "run", "echo", "again") == b"again\n"
        # A job that a spare was ready for has not waited for the next launcher.
        wait_for(lambda before=before: launcher_of(node) not in (0, before), what="another launcher")  # type: ignore[misc]
    os.kill(pid, signal.SIGUSR1)
    record = ended(node, job)
    assert record["exit_code"] == program.exit_code
    check_whole(node, job, program.printed(program.rounds))
    events.check_end(record, once=True)
    check_traces(node)


@pytest.mark.threat("F04")
@pytest.mark.timeout(240)
def test_joblet_up_is_killed_and_started_at_once(own: Node) -> None:
    """The next one does not wait for the services of the one before to be gone, and neither does its user."""
    program = GATED._replace(seed=seeded().randrange(2**32))
    job, pid = at_the_gate(own, program)
    services = children_of(own.up_pid)
    own.stop(signal.SIGKILL)
    os.kill(pid, signal.SIGUSR1)
    own.start()
    wait_for(lambda: not any(map(alive, services)), timeout_s=15, what="the services to end with their joblet up")
    assert ended(own, job)["exit_code"] == program.exit_code
    check_whole(own, job, program.printed(program.rounds))
    check_traces(own)
    check_services(own)


@pytest.mark.threat("F04")
@pytest.mark.threat("F09")
@pytest.mark.timeout(240)
def test_everything_is_killed_at_once(own: Node) -> None:
    """Monitors included, as when the machine goes down: after the start the job is LOST, what was stored is there."""
    program = GATED._replace(seed=seeded().randrange(2**32))
    job, pid = at_the_gate(own, program)
    kept = check_log(own, job)
    services = children_of(own.up_pid)
    monitor = monitor_of(job)
    own.stop(signal.SIGKILL)
    for victim in (*services, monitor):
        kill_now(victim)
    wait_for(lambda: not any(map(alive, (*services, monitor, pid))), what="everybody to be gone")
    own.start()
    record = ended(own, job)
    assert record["state"] == "lost"
    assert check_log(own, job) == kept
    check_traces(own)
    check_services(own)


@pytest.mark.threat("F10")
@pytest.mark.timeout(300)
def test_first_start_is_killed(request: pytest.FixtureRequest) -> None:
    """Whatever of certificates and configuration was written by then, the next start succeeds, and clients get in."""
    chance = seeded()
    node = Node(make_base("first"))
    request.addfinalizer(node.remove)
    for file in (node.base / "certs").iterdir():
        file.unlink()  # others' certificates: this start makes its own
    (node.base / "certs").rmdir()
    command = [str(PROGRAMS / "joblet"), "up", "--base-dir", str(node.base), "--port", "0"]
    for _ in range(FIRST_STARTS):
        with node.log.open("ab") as log:
            up = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log)
        rest(chance.uniform(0.3, 4.0))
        services = children_of(up.pid)
        up.kill()
        up.wait()
        wait_for(lambda services=services: not any(map(alive, services)), timeout_s=30, what="the services to end")  # type: ignore[misc]
    node.start()
    assert node.ok("job", "run", "echo", "in") == b"in\n"
    check_traces(node)
    check_services(node)
