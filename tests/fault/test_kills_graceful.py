"""SIGTERM: each service ends in time and in order, clients are told to come again and do, jobs do not notice."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from cli.joblet.supervisor import STOP_TIMEOUT_S
from tests.e2e.node import SERVICES, Node, end
from tests.fault.invariants import alive, check_services, check_traces, check_whole, ended
from tests.fault.kills_logs import Follower
from tests.fault.kills_node import ends_told, seeded, started
from tests.fault.kills_programs import Program, needs_python
from tests.leaks import children_of
from tests.waiting import wait_for

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to run a node"),
    pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason=needs_python),
    pytest.mark.threat("F38"),
]

STEADY: Final = Program(0, lines=20, records=5, pause_ms=20, exit_code=6, gate=1)
"""It prints until it is told that it is enough."""
FOLLOWERS: Final = 3


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """The node whose services are asked to end."""
    with started("graceful") as made:
        yield made


@pytest.fixture
def own() -> Iterator[Node]:
    """A node of one test, which ends its `joblet up`."""
    with started("ending") as made:
        yield made


@pytest.mark.timeout(240)
def test_each_service_ends_when_asked_twice(node: Node) -> None:
    """Exit code 0 in time, although a second signal follows the first; the job and its follower miss nothing."""
    program = STEADY._replace(seed=seeded().randrange(2**32))
    job = node.detached("--", *program.arguments)
    follower = Follower(node, job)
    try:
        wait_for(lambda: follower.bytes, what="the follower's first line")
        pid = node.wait_for_state(job, "running")["pid"]
        os.kill(pid, signal.SIGUSR1)
        for name in SERVICES:
            old = node.service(name)
            os.kill(old, signal.SIGTERM)
            os.kill(old, signal.SIGTERM)
            wait_for(lambda old=old: not alive(old), timeout_s=STOP_TIMEOUT_S, what=f"joblet-{name} to end")  # type: ignore[misc]
            wait_for(lambda name=name: node.service(name), timeout_s=30, what=f"joblet-{name} to be restarted")  # type: ignore[misc]
            assert ends_told(node, name)[-1].startswith("exit code 0"), ends_told(node, name)
        assert alive(pid), "all of that was meant to happen while the job prints"
        os.kill(pid, signal.SIGUSR2)
        assert ended(node, job)["exit_code"] == program.exit_code
        check_whole(node, job, program.expected, follower=follower)
    finally:
        follower.close()
    check_traces(node)
    check_services(node)


@pytest.mark.timeout(180)
def test_streams_end_with_unavailable(node: Node) -> None:
    """A client that does not resume by itself is told by the status that it may."""
    job = node.detached("--", *STEADY._replace(seed=1, rounds=2).arguments)
    pid = node.wait_for_state(job, "running")["pid"]
    client = subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.followers", str(node.config), job, str(FOLLOWERS), "0"],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    try:
        api = node.service("api")
        wait_for(lambda: streams(node, job) == FOLLOWERS, what="the streams")
        os.kill(api, signal.SIGTERM)
        out, _ = client.communicate(timeout=60)
        assert [each["ended"] for each in json.loads(out)] == ["StatusCode.UNAVAILABLE"] * FOLLOWERS
    finally:
        end(client)
    wait_for(lambda: node.service("api") not in (0, api), timeout_s=30, what="joblet-api to be restarted")
    os.kill(pid, signal.SIGUSR1)
    ended(node, job)
    check_traces(node)


@pytest.mark.timeout(240)
def test_joblet_up_ends_when_asked_twice(own: Node) -> None:
    """In order, exit code 0, every service gone; the job prints on, and is whole after the next start."""
    program = STEADY._replace(seed=seeded().randrange(2**32))
    job = own.detached("--", *program.arguments)
    pid = own.wait_for_state(job, "running")["pid"]
    os.kill(pid, signal.SIGUSR1)
    services = children_of(own.up_pid)
    os.kill(own.up_pid, signal.SIGTERM)
    assert own.stop(signal.SIGTERM) == 0
    assert not any(alive(each) for each in services)
    for name in SERVICES:
        assert f"{name:<8} | stopped with exit code 0" in own.log_text()
    assert alive(pid), "the job was meant to outlive it"
    own.start()
    os.kill(pid, signal.SIGUSR2)
    assert ended(own, job)["exit_code"] == program.exit_code
    check_whole(own, job, program.expected)
    check_traces(own)
    check_services(own)


def streams(node: Node, job: str) -> int:
    """How many streams of the job's log were let in, by the audit log."""
    decisions = map(json.loads, (node.base / "audit" / "audit.jsonl").read_bytes().splitlines())
    return sum(
        each["object"] == job and each["method"].endswith("/StreamLogs") and each["outcome"] == "allowed"
        for each in decisions
    )
