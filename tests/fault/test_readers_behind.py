"""Readers that fall behind, join late, want a part, and go on after everything was killed: each has his part exactly.

The seed is printed; JOBLET_TEST_SEED repeats a run.
"""

import hashlib
import os
import random
import re
import signal
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest

from tests.e2e.node import Node, make_base
from tests.fault.crowd_plan import Group, Heard, crowd
from tests.fault.invariants import ended
from tests.fault.kills_node import seeded
from tests.fault.waiting_jobs import READY, lines_of, rounds_of_lines, start_waiting
from tests.waiting import wait_for

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to run a node"),
    pytest.mark.timeout(300),
]

ROUNDS, LINES_A_ROUND = 25, 1600
OUT = ROUNDS * LINES_A_ROUND
NOISE = "seq -f 'E%.0f' 100 >&2"
QUEUE_BYTES = 128 * 1024
"""Less than one round prints."""


class Entry(NamedTuple):
    """One stored line, with its line end."""

    stream: str
    data: bytes


@pytest.fixture
def narrow() -> Iterator[Node]:
    """A node whose followers have short queues."""
    made = Node(make_base("narrow", {"joblet": {"grpc": {"follower_queue_bytes": QUEUE_BYTES}}}))
    made.start()
    yield made
    made.remove()


def stored(node: Node, job: str) -> list[Entry]:
    """The whole log, as it was written: every sequence once."""
    entries = node.entries(job)
    assert [each["sequence"] for each in entries] == list(range(1, len(entries) + 1))
    return [Entry(each["stream"], each["content"].encode() + b"\n") for each in entries]


def crowd_of_all_kinds(job: str, chance: random.Random) -> tuple[Group, ...]:
    """Some who read as fast as they can, some slowly; who join at any moment, at any place, for any part."""

    def moment() -> int:
        return chance.randrange(1, OUT)

    return (
        Group(job=job, count=10),
        *(Group(job=job, count=2, pause_ms=chance.randrange(5, 60)) for _ in range(8)),
        *(Group(job=job, join_at=moment()) for _ in range(10)),
        *(Group(job=job, join_at=moment(), from_sequence=moment()) for _ in range(10)),
        *(Group(job=job, join_at=moment(), tail=chance.randrange(5000)) for _ in range(10)),
        *(Group(job=job, join_at=moment(), from_sequence=moment(), limit=chance.randrange(1, 3000)) for _ in range(10)),
        *(Group(job=job, join_at=moment(), filter=f"{chance.randrange(100)}1 this", pause_ms=5) for _ in range(6)),
        *(
            Group(job=job, join_at=moment(), regex=f"^0*[1-9][0-9]*{chance.randrange(10)}7 this", pause_ms=5)
            for _ in range(6)
        ),
        *(Group(job=job, join_at=moment(), stream=name, pause_ms=5) for name in ("STDOUT", "STDERR") * 3),
    )


def wanted(group: Group, heard: Heard, log: Sequence[Entry]) -> list[bytes]:
    """What a follower of this kind must get. Where a tail begins, only the node knew: `heard` tells it."""
    first = max(group.from_sequence, 1)
    if group.tail is not None:
        first = heard.first if heard.entries else len(log) + 1
        # It joined behind the entries that the first follower had then, and got all since.
        assert first + group.tail > group.join_at
        assert heard.entries >= min(group.tail, len(log))
    chosen = [
        entry.data
        for entry in log[first - 1 :]
        if (not group.stream or entry.stream == group.stream.lower())
        and group.filter.encode() in entry.data
        and re.search(group.regex.encode(), entry.data)
    ]
    return chosen[: group.limit] if group.limit else chosen


@pytest.mark.requirement("T.3")
@pytest.mark.requirement("S3.13")
@pytest.mark.threat("E06")
@pytest.mark.threat("F26")
def test_readers_at_every_place_of_a_flood(narrow: Node) -> None:
    """Each gets its part exactly, whether it comes live or from the store; the stored log is what the job wrote."""
    chance = seeded()
    job = start_waiting(narrow, rounds_of_lines(ROUNDS, LINES_A_ROUND, 0.1, between=NOISE))
    groups = crowd_of_all_kinds(job.id, chance)
    with crowd(narrow.config, *groups) as people:
        people.opened()
        job.go()
        told = people.told()
    log = stored(narrow, job.id)
    assert b"".join(each.data for each in log if each.stream == "stdout") == READY + b"".join(lines_of(OUT))
    noise = b"".join(b"E%d\n" % number for number in range(1, 101)) * ROUNDS
    assert b"".join(each.data for each in log if each.stream == "stderr") == noise
    assert told.counters["api.batches_dropped"] > 0, "nobody fell behind: this has tested nothing"
    assert len(told.heard) == sum(group.count for group in groups)
    for each in told.heard:
        group = groups[each.group]
        expected = wanted(group, each, log)
        assert each.gaps == (), group
        assert (each.entries, each.merged) == (len(expected), hashlib.sha256(b"".join(expected)).hexdigest()), group
        if not (group.stream or group.filter or group.regex):
            assert each.jumps == 0, group
        if not group.limit:
            assert each.ended == "COMPLETED", group


LINES = 1600
COUNTING = f"i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo $i; [ $((i % 10)) = 0 ] && sleep 0.05; done; exit 5"
PIECE = 200


@pytest.mark.requirement("S3.13")
@pytest.mark.threat("F27")
@pytest.mark.threat("F04")
def test_a_place_in_a_log_outlives_every_service(narrow: Node) -> None:
    """One log is read in pieces by --from-seq while services are killed between them: no line is missing or twice."""
    chance = seeded()
    job = narrow.detached("--", "sh", "-c", COUNTING)
    kinds = [("api",), ("persist",), ("executor",), ("api", "persist", "executor")]
    got: list[bytes] = []

    def piece() -> int | None:
        """What was printed counts, even when rnx failed in the middle of it."""
        place = ["--from-seq", str(len(got) + 1), "--limit", str(chance.randrange(1, PIECE * 2))]
        done = narrow.rnx("job", "log", job, *place, timeout_s=100)
        lines = done.stdout.splitlines(keepends=True)
        got.extend(line for line in lines if line.endswith(b"\n"))
        assert done.returncode in (0, 5), done.stderr
        return len(lines)

    while len(got) < LINES:
        victims = kinds[chance.randrange(len(kinds))]
        for pid in filter(None, map(narrow.service, victims)):
            os.kill(pid, signal.SIGKILL)
        wait_for(piece, timeout_s=60, what=f"more lines after {', '.join(victims)} were killed")
    assert got == [b"%d\n" % number for number in range(1, LINES + 1)]
    assert ended(narrow, job)["exit_code"] == 5
