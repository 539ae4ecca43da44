"""Disks that refuse, run out of inodes, or change what was written, under a node: told in words, and never silent."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from cli.client.gaps import WORDS
from common.records import RecordType, decode_all
from services.persist import member
from tests.e2e.node import Node, numbers
from tests.fault.disks_filesystems import MIB, small_tmpfs
from tests.fault.disks_nodes import (
    Services,
    assert_nothing_of_jobs_left,
    assert_whole,
    based,
    fresh_node,
    needs_root,
    noise,
    printed,
    started,
    verify,
    wait_for_states,
    wait_until_stored,
)
from tests.waiting import wait_for

pytestmark = [needs_root, pytest.mark.timeout(300)]

LINES: Final = 4000
WITHOUT_SPARES: Final = {"joblet": {"jobs": {"spares": 0}, "journal": {"reserve_bytes": 64 * 1024}}}
MEMBERS: Final = 6
MEMBER_LINES: Final = 500
SEVERAL_MEMBERS: Final = (
    f"for i in $(seq {MEMBERS}); do seq {MEMBER_LINES}; while [ ! -e /tmp/$i ]; do sleep 0.02; done; done"
)
"""A job whose output is stored in several members, because it goes on when what it wrote is stored."""


@pytest.mark.threat("F13")
@pytest.mark.threat("F17")
@pytest.mark.parametrize("fault", ["read-only", "no inodes"])
def test_logs_that_cannot_be_written(fault: str) -> None:
    """Jobs go on, what is stored stays readable, and the rest is stored when the disk takes it again."""
    with based("logs-refused") as node, small_tmpfs(node.base / "logs", 32 * MIB) as disk, started(node):
        services = Services(node)
        before = node.detached("--", "seq", "100")
        wait_until_stored(node, [before])
        if fault == "read-only":
            disk.set_read_only()
        else:
            disk.set_inodes(os.statvfs(disk.where).f_files - disk.free_inodes)
            assert disk.free_inodes == 0
        expected = {node.detached("--", "sh", "-c", noise(key, LINES)): printed(noise(key, LINES)) for key in range(5)}
        wait_for_states(node, expected, "completed")
        wait_for(lambda: "no room" in node.log_text(), what="persist to be refused")
        assert numbers(node.ok("job", "log", before, "--no-follow")) == list(range(1, 101))
        if fault == "read-only":
            disk.set_writable()
        else:
            disk.set_inodes(10_000)
        wait_until_stored(node, list(expected), timeout_s=20)
        for job, output in expected.items():
            assert node.ok("job", "log", job, "--no-follow") == output
        assert_whole(node, before, *expected)
        services.assert_same()
        assert_nothing_of_jobs_left(node)


@pytest.mark.threat("F13")
@pytest.mark.threat("F17")
@pytest.mark.parametrize("fault", ["read-only", "no inodes"])
def test_journals_that_cannot_be_made(fault: str) -> None:
    """A new job is refused or FAILED in words; the node answers, and runs jobs again when the disk takes them."""
    with (
        based("jobs-refused", WITHOUT_SPARES) as node,
        small_tmpfs(node.base / "jobs", 32 * MIB) as disk,
        started(node),
    ):
        services = Services(node)
        before = node.detached("--", "seq", "100")
        wait_until_stored(node, [before])
        if fault == "read-only":
            disk.set_read_only()
            words: tuple[bytes, ...] = (b"read-only", b"read only")
        else:
            disk.set_inodes(os.statvfs(disk.where).f_files - disk.free_inodes)
            words = (b"space", b"room", b"inodes")
        done = node.rnx("job", "run", "--", "echo", "never")
        assert done.returncode != 0
        assert done.stdout == b""
        assert any(word in done.stderr.lower() for word in words), done.stderr
        assert {job["state"] for job in node.jobs()} <= {"completed", "failed"}
        assert numbers(node.ok("job", "log", before, "--no-follow")) == list(range(1, 101))
        if fault == "read-only":
            disk.set_writable()
        else:
            disk.set_inodes(10_000)
        assert node.ok("job", "run", "--", "seq", "100") == printed("seq 100")
        services.assert_same()
        assert_nothing_of_jobs_left(node)


@pytest.fixture(scope="module")
def damaged_node() -> Iterator[Node]:
    """The node whose stored files are damaged; each test takes a job of its own."""
    with fresh_node("damaged") as node:
        yield node


def stored_job(node: Node) -> tuple[str, Path, list[tuple[int, int]]]:
    """An ended job with several members in its file: id, file, and offset and length of each member."""
    job = node.detached("--", "sh", "-c", SEVERAL_MEMBERS)
    inside = Path(f"/proc/{node.wait_for_state(job, 'running')['pid']}/root/tmp")
    for number in range(1, MEMBERS + 1):
        lines = number * MEMBER_LINES
        wait_for(lambda lines=lines: len(node.entries(job)) == lines, what=f"{lines} lines to be stored")  # type: ignore[misc]
        (inside / str(number)).touch()
    node.ok("job", "wait", job)
    wait_until_stored(node, [job])
    path = node.base / "logs" / job / "stdout.log.gz"
    content, offset = path.read_bytes(), 0
    members = []
    while (header := member.parse_header(content, offset)) is not None:
        members.append((offset, header.member_bytes))
        offset += header.member_bytes
    assert offset == len(content)
    assert len(members) >= MEMBERS
    return job, path, members


def flip(path: Path, offset: int) -> None:
    """Change one bit of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


@pytest.mark.threat("F11")
@pytest.mark.threat("F12")
@pytest.mark.parametrize("where", ["content", "header"])
@pytest.mark.parametrize("restarted", [False, True], ids=["known", "loaded"])
def test_one_flipped_bit_in_a_stored_log(damaged_node: Node, where: str, *, restarted: bool) -> None:
    """Exactly that member's entries are told as missing, the rest is served; `joblet verify` finds it, too."""
    node = damaged_node
    job, path, members = stored_job(node)
    offset, length = members[2]
    header = member.parse_header(path.read_bytes(), offset)
    assert header is not None
    first, last = header.span.first_sequence, header.span.last_sequence
    flip(path, offset + (length // 2 if where == "content" else 30))
    if restarted:
        node.kill("persist")
    done = node.rnx("job", "log", job, "--no-follow")
    assert done.returncode == 0, done.stderr
    everything = printed(f"for i in $(seq {MEMBERS}); do seq {MEMBER_LINES}; done").splitlines(keepends=True)
    assert done.stdout == b"".join(everything[: first - 1] + everything[last:])
    assert f"entries {first} to {last}".encode() in done.stderr, done.stderr
    assert done.stderr.count(b"\n") == 1
    assert verify(node, job).returncode == 1
    if where == "content":  # gzip does not look at what is in an extra field
        assert subprocess.run(["gzip", "-t", path], capture_output=True, check=False).returncode != 0
    node.ok("job", "delete", job)


STEPS: Final = (
    "step() { while [ ! -e /tmp/$1 ]; do sleep 0.02; done; }; "
    "seq 1 100; step a; seq 101 200; step b; seq 201 300; step c; seq 301 400; step d; exit 6"
)


@pytest.mark.threat("F11")
@pytest.mark.parametrize("ended", [False, True], ids=["running", "ended"])
def test_one_flipped_bit_in_a_journal(damaged_node: Node, *, ended: bool) -> None:
    """What stands in that record is told as a gap, by entry; all before and behind it is stored; its end is true."""
    node = damaged_node
    persist = node.service("persist")
    job = node.detached("--", "sh", "-c", STEPS)
    inside = Path(f"/proc/{node.wait_for_state(job, 'running')['pid']}/root/tmp")
    journal = node.base / "jobs" / job / "journal"
    wait_for(lambda: b"\n100\n" in journal.read_bytes(), what="the first hundred")
    wait_for(lambda: len(node.entries(job)) == 100, what="the first hundred to be stored")
    os.kill(persist, signal.SIGSTOP)
    try:
        for step, last in (("a", b"200"), ("b", b"300"), ("c", b"400")):
            (inside / step).touch()
            wait_for(lambda last=last: b"\n" + last + b"\n" in journal.read_bytes(), what=f"line {last!r}")  # type: ignore[misc]
        if ended:
            (inside / "d").touch()
            assert node.wait_for_state(job, "failed")["exit_code"] == 6
        position, damaged = 0, None
        for record in decode_all(journal.read_bytes()):
            if record.type == RecordType.OUTPUT and record.sequence <= 250 <= record.last_sequence:
                damaged = record
                break
            position += 36 + len(record.payload)
        assert damaged is not None
        flip(journal, position + 36 + len(damaged.payload) // 2)
        node.kill("persist")  # with what was sent to it before the flip
    except BaseException:
        os.kill(persist, signal.SIGCONT)
        raise
    if not ended:
        (inside / "d").touch()
        assert node.wait_for_state(job, "failed")["exit_code"] == 6
    wait_until_stored(node, [job])
    first, last_one = damaged.sequence, damaged.last_sequence
    done = node.rnx("job", "log", job, "--no-follow")
    assert done.returncode == 0, done.stderr
    assert numbers(done.stdout) == [n for n in range(1, 401) if not first <= n <= last_one]
    assert f"entries {first} to {last_one}".encode() in done.stderr
    assert WORDS["journal_damaged"].encode() in done.stderr
    assert f"{last_one - first + 1} entries in gaps".encode() in verify(node, job).stdout
    node.ok("job", "delete", job)


DATABASE_DAMAGES: Final[dict[str, Callable[[bytes], bytes]]] = {
    "nothing left": lambda content: content[:0],
    "half a header": lambda content: content[:50],
    "cut": lambda content: content[: len(content) // 2],
    "zeros": lambda content: content[:4096] + bytes(8192) + content[12288:],
    "one bit": lambda content: flipped(content, content.index(b"\xa4word\xa7FLIPPED") + 8),
}


def flipped(content: bytes, offset: int) -> bytes:
    """`content` with one bit changed."""
    return content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :]


@pytest.mark.threat("F11")
def test_a_damaged_job_database() -> None:
    """The file is kept, the service says what is wrong, answers nothing wrong, and jobs that run are not touched."""
    with fresh_node("database") as node:
        ended = [node.detached("--", "sh", "-c", f"echo {number}; exit 7") for number in range(5)]
        wait_for_states(node, ended, "failed")
        wait_until_stored(node, ended)
        script = "echo begun; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo over"
        running = node.detached("--label", "word=FLIPPED", "--", "sh", "-c", script)
        before = node.wait_for_state(running, "running")
        true_states = {job["id"]: (job["state"], job["exit_code"]) for job in node.jobs()}
        node.stop()
        database = node.base / "state" / "jobs.db"
        whole = database.read_bytes()
        for name, damage in DATABASE_DAMAGES.items():
            database.write_bytes(damage(whole))
            said = len(node.log_text())
            node.start()
            told = node.log_text()[said:]
            assert "damaged" in told or "empty" in told, f"{name}: {told}"
            assert Path(f"/proc/{before['pid']}").exists(), f"{name}: a running job ended"
            for job in node.jobs():
                assert (job["state"], job["exit_code"]) == true_states[job["id"]], name
            if name not in ("nothing left", "one bit"):
                assert list(database.parent.glob("jobs.db.damaged-*")), name
            node.stop()
            for each in database.parent.iterdir():
                each.unlink()
        database.write_bytes(whole)
        node.start()
        assert {job["id"]: (job["state"], job["exit_code"]) for job in node.jobs()} == true_states
        Path(f"/proc/{before['pid']}/root/tmp/go").touch()
        node.ok("job", "wait", running)
        assert node.ok("job", "log", running) == b"begun\nover\n"
        wait_until_stored(node, [running])
        assert_nothing_of_jobs_left(node)
