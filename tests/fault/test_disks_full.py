"""Disks without room, under a node that works: nothing stored is damaged, loss is told exactly, it clears by itself."""

import json
import os
import signal
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from cli.client.gaps import WORDS
from tests.e2e.node import Node, read_all
from tests.fault.disks_filesystems import MIB, small_ext4, small_tmpfs
from tests.fault.disks_nodes import (
    Services,
    assert_nothing_of_jobs_left,
    assert_whole,
    based,
    needs_root,
    noise,
    printed,
    sha256_of,
    started,
    wait_for_states,
    wait_until_stored,
)
from tests.waiting import wait_for

pytestmark = [needs_root, pytest.mark.timeout(300)]

JOBS: Final = 10
LINES: Final = 8000
WAITING_LINES: Final = 40_000
"""More than what a pipe and one read of it hold: who cannot be read waits."""
RESUMED_S: Final = 5.0
"""How soon storing must go on after there is room (F13)."""
RSS_GROWTH_MAX: Final = 96 * MIB


def printing_jobs(node: Node, lines: int = LINES) -> dict[str, bytes]:
    """Ten jobs that print at once, and what each prints."""
    return {node.detached("--", "sh", "-c", noise(key, lines)): printed(noise(key, lines)) for key in range(JOBS)}


def assert_commands_work(node: Node, jobs: Sequence[str]) -> None:
    """List, status and stop are answered."""
    assert {job["id"] for job in node.jobs()} >= set(jobs)
    assert node.status(jobs[0])["id"] == jobs[0]


def assert_complete(node: Node, expected: dict[str, bytes]) -> None:
    """Each job's output is there once, in order, byte for byte, and its files are whole."""
    wait_until_stored(node, list(expected), timeout_s=60)
    for job, output in expected.items():
        assert node.ok("job", "log", job, "--no-follow") == output
    assert_whole(node, *expected)


@pytest.mark.threat("F13")
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_no_room_for_logs(kind: str) -> None:
    """Jobs run to their ends, what they wrote waits in journals, and is stored when there is room again."""
    with based("logs-full") as node:
        where = node.base / "logs"
        made = small_tmpfs(where, 32 * MIB) if kind == "tmpfs" else small_ext4(where, node.base / "image", 32 * MIB)
        with made as disk, started(node):
            services = Services(node)
            disk.fill(leave_bytes=2 * MIB)
            expected = printing_jobs(node)
            wait_for(lambda: "no room" in node.log_text(), timeout_s=30, what="persist to find no room")
            wait_for_states(node, expected, "completed")
            stopped = node.detached("--", "sleep", "1000")
            assert_commands_work(node, [*expected, stopped])
            node.ok("job", "stop", stopped, "--grace", "0s")
            node.wait_for_state(stopped, "stopped")
            early = [(job, node.background("job", "log", job, "--no-follow")) for job in (min(expected), max(expected))]
            readers = [(job, process, read_all(process.stdout)) for job, process in early]
            before = stored_sizes(where)
            disk.give_room()
            wait_for(lambda: stored_sizes(where) != before, timeout_s=RESUMED_S, what="storing to go on")
            for job, process, reader in readers:
                heard, complaints = reader.finished(), process.communicate()[1]
                assert (heard == expected[job], process.returncode, complaints) == (True, 0, b"")
            assert_complete(node, expected)
            services.assert_same()
            services.assert_bounded(RSS_GROWTH_MAX)
            assert_nothing_of_jobs_left(node)


def stored_sizes(logs: Path) -> dict[str, int]:
    """Bytes of each stored file."""
    return {str(path): path.stat().st_size for path in logs.glob("*/*.gz")}


def stored_entries(node: Node, job: str) -> Iterator[dict[str, Any]]:
    """The lines of the stored file of stdout, gaps included, as any gzip program reads them."""
    path = node.base / "logs" / job / "stdout.log.gz"
    data = path.read_bytes() if path.exists() else b""
    while data:
        inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
        for line in inflater.decompress(data).splitlines():
            yield json.loads(line)
        data = inflater.unused_data


TWO_FLOODS: Final = (
    "seq 100; while [ ! -e /tmp/go ]; do sleep 0.05; done; {flood}; touch /tmp/flooded;"
    " while [ ! -e /tmp/last ]; do sleep 0.05; done; seq 100; exit 3"
)
SMALL_RESERVE: Final = {"joblet": {"journal": {"reserve_bytes": 64 * 1024, "silence_ms": 20_000}}}
"""The reserve of a small disk must be smaller; lines are not cut where base64 pauses, so a line is an entry."""


class Flooding:
    """A job that prints a hundred lines, floods when it is told to, and ends with a hundred more."""

    def __init__(self, node: Node, key: int, lines: int) -> None:
        self.flood = noise(key, lines)
        self.id = node.detached("--", "sh", "-c", TWO_FLOODS.format(flood=self.flood))
        self._inside = Path(f"/proc/{node.wait_for_state(self.id, 'running')['pid']}/root/tmp")

    def tell(self, word: str) -> None:
        """Make a file in the job's /tmp."""
        (self._inside / word).touch()

    @property
    def flooded(self) -> bool:
        """Whether all of the flood was written: the job was not held up."""
        return (self._inside / "flooded").exists()

    @property
    def output(self) -> bytes:
        """All that it prints."""
        hundred = b"".join(b"%d\n" % number for number in range(1, 101))
        return hundred + printed(self.flood) + hundred


@pytest.mark.threat("F13")
def test_no_room_for_journals_and_jobs_wait() -> None:
    """By default a job waits in write(2): its node answers, new jobs are refused in words, and nothing is lost."""
    with (
        based("journals-full", SMALL_RESERVE) as node,
        small_tmpfs(node.base / "jobs", 32 * MIB) as disk,
        started(node),
    ):
        services = Services(node)
        jobs = [Flooding(node, key, WAITING_LINES) for key in range(JOBS)]
        other = node.detached("--", "sleep", "1000")
        node.wait_for_state(other, "running")
        os.kill(services.pids["persist"], signal.SIGSTOP)  # else what it stores makes room again
        disk.fill()
        for job in jobs:
            job.tell("go")
        refused = wait_for(lambda: refused_run(node), what="a new job to be refused")
        assert b"below the reserve" in refused, refused
        assert_commands_work(node, [job.id for job in jobs])
        node.ok("job", "stop", other, "--grace", "0s")
        assert not any(job.flooded for job in jobs)
        disk.give_room()
        os.kill(services.pids["persist"], signal.SIGCONT)
        for job in jobs:
            job.tell("last")
        wait_for_states(node, [job.id for job in jobs], "failed", timeout_s=60)
        assert_complete(node, {job.id: job.output for job in jobs})
        node.wait_for_state(other, "stopped")
        services.assert_same()
        services.assert_bounded(RSS_GROWTH_MAX)
        assert_nothing_of_jobs_left(node)


def refused_run(node: Node) -> bytes:
    """What a client is told whose new job is refused; empty while it is not."""
    done = node.rnx("job", "run", "--detach", "true")
    assert b"Traceback" not in done.stderr
    return done.stderr if done.returncode else b""


@pytest.mark.threat("F13")
def test_room_comes_back_while_jobs_run() -> None:
    """Each of three jobs writes more than the journals' disk holds: what persist has makes room for the rest."""
    with based("journals-small", SMALL_RESERVE) as node, small_tmpfs(node.base / "jobs", 4 * MIB), started(node):
        jobs = [Flooding(node, key, 5 * LINES) for key in range(3)]
        for job in jobs:
            job.tell("go")
        for job in jobs:
            job.tell("last")
        wait_for_states(node, [job.id for job in jobs], "failed", timeout_s=60)
        assert_complete(node, {job.id: job.output for job in jobs})


@pytest.mark.threat("F13")
@pytest.mark.threat("C17")
def test_no_room_for_journals_and_output_is_dropped() -> None:
    """With on_full drop no job waits; what is missing is told by entry and byte, and the rest is exact."""
    settings = {"joblet": {"journal": {**SMALL_RESERVE["joblet"]["journal"], "on_full": "drop"}}}
    with based("journals-drop", settings) as node, small_tmpfs(node.base / "jobs", 16 * MIB) as disk, started(node):
        services = Services(node)
        jobs = [Flooding(node, key, LINES) for key in range(JOBS)]
        disk.fill()
        for job in jobs:
            job.tell("go")
        wait_for(lambda: all(job.flooded for job in jobs), timeout_s=30, what="the floods to pass")
        assert_commands_work(node, [job.id for job in jobs])
        disk.give_room()
        for job in jobs:
            job.tell("last")
        wait_for_states(node, [job.id for job in jobs], "failed")
        wait_until_stored(node, [job.id for job in jobs])
        for job in jobs:
            assert_exact_with_gaps(node, job)
        assert_whole(node, *(job.id for job in jobs))
        services.assert_same()
        services.assert_bounded(RSS_GROWTH_MAX)
        assert_nothing_of_jobs_left(node)


def assert_exact_with_gaps(node: Node, job: Flooding) -> None:
    """Entries and gaps follow each other without hole or repeat; each entry and each gap's bytes are the job's own."""
    lines = job.output.splitlines(keepends=True)
    kept, missing, sequence = b"", 0, 1
    for entry in stored_entries(node, job.id):
        assert entry["sequence"] == sequence
        count = entry.get("gap", 0)
        if count:
            told = (entry["reason"], entry["gap_bytes"])
            assert told == ("journal_full", len(b"".join(lines[sequence - 1 : sequence - 1 + count])))
            missing += count
        else:
            kept += entry["content"].encode() + b"\n"
            assert kept.endswith(lines[sequence - 1])
        sequence += count or 1
    assert sequence == len(lines) + 1
    assert missing > 0
    done = node.rnx("job", "log", job.id, "--no-follow")
    assert (done.returncode, sha256_of(done.stdout)) == (0, sha256_of(kept))
    assert WORDS["journal_full"].encode() in done.stderr
    assert node.rnx("job", "log", job.id).stdout == kept, "followed to its end"


@pytest.mark.threat("F15")
def test_no_room_for_the_job_database() -> None:
    """New jobs are refused and leave nothing; reading, stopping and output go on; every end is on record afterwards."""
    with based("state-full") as node, small_tmpfs(node.base / "state", 16 * MIB) as disk, started(node):
        services = Services(node)
        ended = node.detached("--", "seq", "10")
        node.ok("job", "wait", ended)
        jobs = [Flooding(node, key, LINES) for key in range(3)]
        stopped = node.detached("--", "sleep", "1000")
        node.wait_for_state(stopped, "running")
        disk.fill()
        known = {job["id"] for job in node.jobs()}
        refused = wait_for(lambda: refused_run(node), what="a new job to be refused")
        assert b"cannot be recorded" in refused
        assert b"state" in refused
        assert_commands_work(node, [ended, *(job.id for job in jobs)])
        with_new = {job["id"] for job in node.jobs()}
        assert refused_run(node)
        assert {job["id"] for job in node.jobs()} == with_new >= known, "a refused job does not exist"
        assert node.rnx("job", "delete", ended, "--timeout", "3s").returncode in (0, 1, 5)
        for job in jobs:
            job.tell("go")
        wait_for(lambda: all(job.flooded for job in jobs), timeout_s=30, what="the floods to pass")
        for job in jobs:
            job.tell("last")
        wait_for_states(node, [job.id for job in jobs], "failed")
        node.ok("job", "stop", stopped, "--grace", "0s")
        node.wait_for_state(stopped, "stopped")
        services.assert_same()
        disk.give_room()
        assert_complete(node, {job.id: job.output for job in jobs})
        assert node.ok("job", "run", "echo", "again") == b"again\n"
        node.kill("executor")
        for job in jobs:
            record = wait_for(lambda job=job: answered_status(node, job.id), what="the executor to be back")  # type: ignore[misc]
            assert (record["state"], record["exit_code"]) == ("failed", 3)
        assert node.status(stopped)["state"] == "stopped"
        assert_nothing_of_jobs_left(node)


def answered_status(node: Node, job: str) -> dict[str, Any] | None:
    """The job's status; None while nobody answers."""
    done = node.rnx("--json", "job", "status", job)
    return json.loads(done.stdout) if done.returncode == 0 else None
