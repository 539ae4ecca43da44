"""A service is killed at each place that common/failpoints.py names, while a job passes it; then all promises hold.

A place that is never passed fails its row. Retention's places are not here: a row of them is a test of its rules
(`OF_OTHERS` says where). Pairs: one service dies at one place while the other dies at another.
"""

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from common.failpoints import PLACES
from tests.e2e.node import Node
from tests.fault.invariants import Events, check_services, check_traces, check_whole, ended, record_of
from tests.fault.kills_logs import Follower, answer
from tests.fault.kills_node import ROUNDS_S, Failpoints, ends_told, failpoints, seeded, started
from tests.fault.kills_programs import ROUNDS_ALL, Program, needs_python
from tests.waiting import wait_for

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to run a node"),
    pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason=needs_python),
]

SETTINGS: Final = {
    "joblet": {"journal": {"bytes_max": 2**20}},  # space is given back each quarter of it
    "persist": {"storage": {"local": {"flush_bytes": 65536, "flush_ms": 50}}},
}
OF_OTHERS: Final = {
    "persist.chosen": "retention's rules choose nothing here",
    "persist.logs_removed": "the same",
    "persist.trimmed": "the same",
    "persist.half_trimmed": "the same",
}
"""Places that the jobs here never pass, and why."""
ALSO_AFTER_WAITING: Final = ("executor.recorded", "executor.launching", "executor.launched")
"""Places that a job passes at once, or after it has waited: then it is another step that leads there."""
ROUNDS: Final = 60
"""Of printing."""
PAIR_S: Final = 15.0
"""One pair is tried for each so many seconds of JOBLET_TEST_ROUNDS_S."""


class Way(NamedTuple):
    """How a place is passed, and what becomes of the job."""

    numbers: tuple[int, ...] = (1,)
    """Which passing kills; one is chosen. Behind the first the job prints until that one has come.

    A service that stood still takes at once what it would have taken in many steps.
    """
    state: str = "failed"
    exit_code: int = 5
    recovers: bool = False
    """The executor is killed first, while the job waits: the place is on the way of the one that comes after."""
    torn: bool = False
    """Something that is no member is put behind the stored ones."""
    one_end: bool = True
    """The end is announced once: the executor is not killed close to it."""
    uploads: bool = False
    """The job comes with a file, which must not be left over."""
    waits: bool = False
    """The job is for a second later: it waits for its time, then for its turn."""


WAYS: Final[dict[str, Way]] = {
    "persist.taken": Way((1, 2, 5)),
    "persist.flush_begun": Way((1, 2, 4)),
    "persist.tail_cut": Way(torn=True),
    "persist.written": Way((1, 2, 3, 5)),
    "persist.synchronized": Way((1, 2, 3, 5)),
    "persist.one_stream": Way((1, 2, 3)),
    "persist.stored": Way((1, 2, 4)),
    "persist.acknowledged": Way((1, 2, 4)),
    "persist.ended": Way(),
    "executor.recorded": Way(uploads=True),
    "executor.due": Way(uploads=True, waits=True),
    "executor.chosen": Way(uploads=True, waits=True),
    "executor.launching": Way(uploads=True),
    "executor.launched": Way(one_end=False, uploads=True),
    "executor.published": Way((2, 4, 8), one_end=False),
    "executor.sent": Way((1, 2, 4), one_end=False),
    "executor.heard": Way((1, 2, 4), one_end=False),
    "executor.cursor_saved": Way((1, 2), one_end=False),
    "executor.given_back": Way((1, 2), one_end=False),
    "executor.ended": Way(one_end=False),
    "executor.cleaned": Way(one_end=False),
    "executor.delivered": Way(one_end=False),
    "executor.journal_removed": Way(one_end=False),
    "executor.taken_up": Way(recovers=True, one_end=False),
    "executor.settled": Way(recovers=True, one_end=False),
    "executor.swept": Way(recovers=True, one_end=False),
}


class Fragile(NamedTuple):
    """The node that all rows share, and what is watched of it."""

    node: Node
    points: Failpoints
    events: Events


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """The node whose services die at places."""
    with failpoints(), started("places", SETTINGS) as made:
        yield made


@pytest.fixture(scope="module")
def fragile(node: Node) -> Iterator[Fragile]:
    """The node with its events."""
    events = Events(node)
    yield Fragile(node, Failpoints(Path(os.environ["JOBLET_FAILPOINTS"])), events)
    events.close()


def program(chance: random.Random) -> Program:
    """A job that prints 2.6 MB, on both streams: more than twice what its journal holds, and so through every place."""
    return Program(chance.randrange(2**32), rounds=ROUNDS, lines=900, records=100, pause_ms=20)


def test_every_place_has_its_row() -> None:
    """A new place cannot be forgotten."""
    of_volumes = {place for place in PLACES if place.startswith("volumes.")}  # test_kills_volumes.py
    assert WAYS.keys() | OF_OTHERS.keys() | of_volumes == PLACES.keys()
    assert not WAYS.keys() & OF_OTHERS.keys()


@pytest.mark.threat("F05")
@pytest.mark.threat("F06")
@pytest.mark.threat("F02")
@pytest.mark.threat("F01")
@pytest.mark.parametrize("place", WAYS)
def test_killed_at(node: Node, fragile: Fragile, place: str) -> None:
    """The process died there; the job has run once, and its output is what it wrote."""
    killed_at(node, fragile, place, WAYS[place])


@pytest.mark.threat("F05")
@pytest.mark.parametrize("place", ALSO_AFTER_WAITING)
def test_killed_at_with_a_job_that_waited(node: Node, fragile: Fragile, place: str) -> None:
    """The same, on the other way to the same place."""
    killed_at(node, fragile, place, WAYS[place]._replace(waits=True))


def killed_at(node: Node, fragile: Fragile, place: str, way: Way) -> None:
    """Kill a process there while a job passes it."""
    chance = seeded()
    ends = len(ends_told(node, service_of(place)))
    number = chance.choice(way.numbers)
    if not (way.recovers or way.torn):
        fragile.points.arm(place, number)
    prepared = way.recovers or way.torn
    printing = program(chance)._replace(gate=ROUNDS // 2 if prepared else 0)
    if number > 1:
        printing = printing._replace(rounds=ROUNDS_ALL)
    options = ["--upload", str(Path(__file__))] if way.uploads else []
    options += ["--schedule", "1s"] if way.waits else []
    job = node.detached(*options, "--", *printing.arguments)
    follower = Follower(node, job)
    try:
        if prepared:  # while the job stands at its gate: it cannot end before
            pid = node.wait_for_state(job, "running")["pid"]
            first = sum(map(len, printing.begun(printing.gate).values()))
            wait_for(lambda: follower.bytes == first, what="the follower to hear what comes before the gate")
            wait_for(
                lambda: len(answer(node, "job", "log", job, "--no-follow").stdout) == first,
                what="that to be stored: nothing is being written then",
            )
            fragile.points.arm(place)
            if way.torn:
                tear(node, job)
            if way.recovers:
                node.kill("executor")
                ends += 1
            os.kill(pid, signal.SIGUSR1)
        died(fragile, place, ends)
        if number > 1:
            os.kill(pid_of(node, job), signal.SIGUSR2)
        record = ended(node, job)
        assert (record["state"], record["exit_code"]) == (way.state, way.exit_code), record
        written = printing.expected if number > 1 else printing.printed(printing.rounds)
        check_whole(node, job, written, follower=follower)
    finally:
        follower.close()
        fragile.points.disarm()
    fragile.events.check_end(record, once=way.one_end)
    check_traces(node)
    check_services(node)


@pytest.mark.threat("F04")
@pytest.mark.timeout(max(180, 10 * ROUNDS_S))
def test_both_killed(node: Node, fragile: Fragile) -> None:
    """Persist dies at one place and the executor at another, both while the same job prints or ends."""
    chance = seeded()
    plain = [place for place, way in WAYS.items() if not (way.recovers or way.torn or way.waits)]
    pairs = [
        (one, other) for one in plain for other in plain if one.startswith("persist") and other.startswith("executor")
    ]
    for pair in chance.sample(pairs, min(len(pairs), max(3, round(ROUNDS_S / PAIR_S)))):
        ends = {place: len(ends_told(node, service_of(place))) for place in pair}
        for place in pair:
            fragile.points.arm(place)
        printing = program(chance)
        job = node.detached("--", *printing.arguments)
        try:
            for place in pair:
                died(fragile, place, ends[place])
            record = ended(node, job)
            assert (record["state"], record["exit_code"]) == ("failed", printing.exit_code), (pair, record)
            check_whole(node, job, printing.printed(printing.rounds))
        finally:
            fragile.points.disarm()
        fragile.events.check_end(record, once=False)
    check_traces(node)
    check_services(node)


@pytest.mark.threat("B02")
def test_jobs_know_nothing_of_places(node: Node, fragile: Fragile) -> None:
    """The variable that the services see is not in a job's environment."""
    del fragile
    assert b"JOBLET_FAILPOINTS" in Path(f"/proc/{node.service('executor')}/environ").read_bytes()
    assert b"FAILPOINTS" not in node.ok("job", "run", "--", "env")


def tear(node: Node, job: str) -> None:
    """Put bytes behind the stored members of a job that will print more, and of which nothing is being written."""
    stored = node.base / "logs" / job / "stdout.log.gz"
    with stored.open("ab") as file:
        file.write(b"\x1f\x8b\x08\x04 torn")


def died(fragile: Fragile, place: str, ends: int) -> None:
    """The place was passed, and another process stands in the place of the one that did: it had ended `ends` times."""
    wait_for(lambda: not fragile.points.armed(place), timeout_s=30, what=f"somebody to pass {place}")
    service = service_of(place)
    wait_for(
        lambda: len(ends_told(fragile.node, service)) > ends and fragile.node.service(service),
        timeout_s=30,
        what=f"joblet-{service} to be restarted",
    )


def service_of(place: str) -> str:
    """The service that passes the place."""
    return place.partition(".")[0]


def pid_of(node: Node, job: str) -> int:
    """The process of a job that does not end by itself."""
    running = wait_for(
        lambda: (now := record_of(node, job))["state"] == "running" and now, timeout_s=30, what="the job to run"
    )
    return int(running["pid"])
