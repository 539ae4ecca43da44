"""Crowds of readers: everyone who reads gets every line, whoever does not or vanishes harms nobody and leaves nothing.

The small cases stand in tests/e2e/test_followers.py.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.node import Node, end, make_base, read_all
from tests.e2e.test_followers import resident_bytes
from tests.fault.crowd_plan import Group, crowd
from tests.fault.silent_proxy import SilentProxy
from tests.fault.waiting_jobs import READY, lines_of, rounds_of_lines, start_waiting
from tests.waiting import SLOWNESS, wait_for

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to run a node"),
    pytest.mark.timeout(400),
]

READERS = 800
SLEEPERS = 200
ROUNDS, LINES_A_ROUND = 20, 1000
QUEUE_BYTES = 2**20
FOLLOWER_BYTES_MAX = 2.5 * 2**20
"""Of the api's memory, for each of a thousand followers: what is on its way to one, and what waits for it.

Measured: 0.8 MiB, and 1.7 on a machine with twice the work that it has cores for.
"""
ANSWER_TIMEOUT_S = 20
"""A unary call on a machine whose cores are all busy with the crowd, both ends of it."""
PLACES = 100


@pytest.fixture
def node_with() -> Iterator[Callable[..., Node]]:
    """Makes a node for one test, with these settings of joblet.grpc."""
    made: list[Node] = []

    def make(**grpc: Any) -> Node:
        fresh = Node(make_base("crowd", {"joblet": {"grpc": grpc}}))
        made.append(fresh)
        fresh.start()
        return fresh

    yield make
    for each in made:
        each.remove()


def descriptors_of(pid: int) -> int:
    """How many descriptors a process has."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


@pytest.mark.requirement("T.3")
@pytest.mark.requirement("S2.6")
@pytest.mark.requirement("S2.10")
@pytest.mark.threat("D17")
@pytest.mark.threat("D18")
@pytest.mark.threat("D22")
def test_a_thousand_followers_two_hundred_of_which_never_read(node_with: Callable[..., Node]) -> None:
    """Eight hundred get every byte in order and the end, others are answered meanwhile, and memory is bounded.

    Killed, the clients leave no descriptor behind.
    """
    node = node_with(active_streams_max=READERS + SLEEPERS, follower_queue_bytes=QUEUE_BYTES)
    job = start_waiting(node, rounds_of_lines(ROUNDS, LINES_A_ROUND, 0.1))
    node.ok("job", "log", job.id, "--no-follow")  # opens what the api keeps open
    api = node.service("api")
    memory, descriptors = resident_bytes(api), descriptors_of(api)
    with crowd(node.config, Group(job=job.id, count=READERS), Group(job=job.id, count=SLEEPERS, reads=False)) as people:
        assert people.opened() == READERS + SLEEPERS
        job.go()
        peak, answers = memory, 0

        def finished() -> bool:
            nonlocal peak, answers
            peak = max(peak, resident_bytes(api))
            node.ok("job", "status", job.id, timeout_s=ANSWER_TIMEOUT_S * SLOWNESS)
            answers += 1
            return people.ready()

        wait_for(finished, timeout_s=150, what="the readers to end")
        told = people.told()
        expected = hashlib.sha256(READY + b"".join(lines_of(ROUNDS * LINES_A_ROUND))).hexdigest()
        assert Counter(each.ended for each in told.heard) == {"COMPLETED": READERS}
        assert {(each.merged, each.entries) for each in told.heard} == {(expected, ROUNDS * LINES_A_ROUND + 1)}
        assert {(each.jumps, each.gaps) for each in told.heard} == {(0, ())}
        assert told.counters["api.followers"] == SLEEPERS
        assert answers > 1
        assert peak - memory < FOLLOWER_BYTES_MAX * (READERS + SLEEPERS)
        assert descriptors_of(api) > descriptors
        people.process.kill()
        wait_for(lambda: descriptors_of(api) <= descriptors, what="the connections of the dead to be closed")
    assert node.service("api") == api


@pytest.mark.requirement("S2.13")
@pytest.mark.threat("D18")
@pytest.mark.threat("D22")
def test_places_of_clients_that_were_killed_are_free_again(node_with: Callable[..., Node]) -> None:
    """All places are taken, by readers of a running job and by sleepers; after kill -9 of them all are there again."""
    node = node_with(active_streams_max=PLACES)
    job = node.detached("--", "sh", "-c", "while :; do seq 1000; sleep 0.05; done")
    node.ok("job", "log", job, "--no-follow", "--limit", "1")
    api = node.service("api")
    descriptors = descriptors_of(api)
    for _ in range(2):
        with crowd(node.config, Group(job=job, count=70), Group(job=job, count=30, reads=False)) as people:
            assert people.opened() == PLACES
            refused = node.rnx("job", "log", job)
            assert refused.returncode == 4
            assert b"Max capacity reached" in refused.stderr
            people.process.kill()
        wait_for(lambda: descriptors_of(api) <= descriptors, what="the connections of the dead to be closed")
        wait_for(
            lambda: node.rnx("job", "log", job, "--limit", "1").returncode == 0,
            what="the places of the dead to be free",
        )
    node.ok("job", "stop", job, "--grace", "0s")
    node.rnx("job", "wait", job)


@pytest.mark.requirement("S2.14")
@pytest.mark.threat("D22")
@pytest.mark.threat("F27")
@pytest.mark.parametrize("pause_s", [0.01, 0.0], ids=["few lines", "a flood"])
def test_a_connection_that_goes_silent(node_with: Callable[..., Node], pause_s: float) -> None:
    """The node finds out by its keepalive and gives the place back; the client, cut off at last, misses nothing."""
    node = node_with(active_streams_max=1, keepalive_time_ms=1000, keepalive_timeout_ms=1000)
    rounds, lines = (600, 1) if pause_s else (400, 1000)
    sent_bytes = rounds * lines * 100
    job = start_waiting(node, rounds_of_lines(rounds, lines, pause_s))
    api = node.service("api")
    with SilentProxy(node.port) as network:
        follower = node.background("--config", str(config_through(network, node)), "job", "log", job.id)
        heard = read_all(follower.stdout)
        complaints = read_all(follower.stderr)
        try:
            wait_for(lambda: READY in heard.data, what="the follower to hear the first line")
            network.silence_after(sent_bytes // 2)  # however fast it is: in the middle of what comes
            job.go()
            wait_for(lambda: heard.data.count(b"\n") > 100, what="the follower to hear some lines")
            wait_for(
                lambda: node.rnx("job", "log", job.id, "--limit", "1").returncode == 0,
                timeout_s=30,
                what="the place of the silent client to be free",
            )
            assert follower.poll() is None
            network.cut()
            follower.wait(timeout=100)
            assert follower.returncode == 0, complaints.finished()
            assert heard.finished() == READY + b"".join(lines_of(rounds * lines))
            complaints.finished()
        finally:
            end(follower)
    assert node.service("api") == api


@pytest.mark.requirement("S2.6")
@pytest.mark.threat("F27")
def test_a_client_that_is_far_away(node_with: Callable[..., Node]) -> None:
    """With a round trip of 0.8 s it takes seconds to connect, and everything arrives."""
    node = node_with()
    job = node.detached("--", "seq", "1000")
    with SilentProxy(node.port, delay_s=0.4) as network:
        out = node.ok("--config", str(config_through(network, node)), "job", "log", job)
    assert out == b"".join(b"%d\n" % number for number in range(1, 1001))


def config_through(network: SilentProxy, node: Node) -> Path:
    """The client's configuration with the proxy's address."""
    config = node.config.read_text()
    assert f"127.0.0.1:{node.port}" in config
    through = node.config.with_name("through-the-proxy.yml")
    through.write_text(config.replace(f"127.0.0.1:{node.port}", f"127.0.0.1:{network.port}"))
    through.chmod(0o600)
    return through
