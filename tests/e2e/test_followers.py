"""Many clients of one job: everyone who reads gets every line, and one who does not harms nobody."""

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.node import AT_GATE, GATE, Node, end, numbers, read_all
from tests.waiting import wait_for

FOLLOWERS = 49
LINES = 20_000
LINE = "%08d this line is long enough to fill what stands between a client that does not read and the job"
API_GROWTH_BYTES_MAX = 200 * 2**20


def resident_bytes(pid: int) -> int:
    """VmRSS of a process."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


@pytest.mark.requirement("T.3")
@pytest.mark.requirement("S2.6")
@pytest.mark.requirement("S2.10")
@pytest.mark.threat("D17")
@pytest.mark.threat("E06")
def test_fifty_followers_one_of_which_never_reads(node: Node) -> None:
    """Forty-nine get every byte in order and the end; the api's memory stays bounded; unary calls are answered."""
    script = f"sleep 4; seq -f '{LINE.replace('%08d', '%08.0f')}' {LINES}"
    job = node.detached("--", "sh", "-c", script)
    api = node.service("api")
    before = resident_bytes(api)
    followers = subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.followers", str(node.config), job, str(FOLLOWERS), "1"],
        stdout=subprocess.PIPE,
    )
    reader = read_all(followers.stdout)
    peak = before

    def finished() -> bool:
        nonlocal peak
        peak = max(peak, resident_bytes(api))
        return followers.poll() is not None

    wait_for(finished, timeout_s=100, what="the followers to end")
    results = json.loads(reader.finished())
    expected = "".join(LINE % number + "\n" for number in range(1, LINES + 1)).encode()
    digest = hashlib.sha256(expected).hexdigest()
    assert [each["ended"] for each in results] == ["COMPLETED"] * FOLLOWERS
    # A job that loses its processor within a line leaves it in two entries, the first one partial.
    assert all(LINES <= each["entries"] == results[0]["entries"] for each in results)
    assert {each["sha256"] for each in results} == {digest}
    assert peak - before < API_GROWTH_BYTES_MAX
    assert node.service("api") == api
    assert node.ok("job", "log", job) == expected


@pytest.mark.requirement("S2.13")
def test_too_many_streams_are_refused_in_words(own_node: Callable[..., Node]) -> None:
    """At the configured number of streams the next one hears "Max capacity reached", and unary calls still work."""
    node = own_node({"joblet": {"grpc": {"active_streams_max": 2}}})
    job = node.detached("--", "sleep", "1000")
    node.wait_for_state(job, "running")
    followers = [node.background("job", "log", job) for _ in range(3)]
    try:
        refused = wait_for(
            lambda: next((each for each in followers if each.poll() is not None), None),
            timeout_s=30,
            what="one of three followers to be refused",
        )
        out, err = refused.communicate()
        assert (out, refused.returncode) == (b"", 4)
        assert b"Max capacity reached" in err
        assert node.status(job)["state"] == "running"
        assert sum(each.poll() is None for each in followers) == 2
    finally:
        for each in followers:
            end(each)
        node.ok("job", "stop", job, "--grace", "0s")
        node.rnx("job", "wait", job)


@pytest.mark.requirement("S2.10")
@pytest.mark.threat("F26")
def test_a_client_that_is_stopped_goes_on_without_a_gap(own_node: Callable[..., Node]) -> None:
    """Ctrl-Z in the middle of a flood: the job and the other client go on, and later it has missed nothing."""
    node = own_node({"joblet": {"grpc": {"follower_queue_bytes": 256 * 1024}}})
    rounds = 40
    a_round = "seq $((i * 5000 + 1)) $((i * 5000 + 5000)); i=$((i+1))"
    flood = f"while [ $i -lt {rounds} ]; do {a_round}; sleep 0.1; done"
    job = node.detached("--", "sh", "-c", f"{GATE}; i=0; {a_round}; {AT_GATE}; {flood}")
    sleepy, other = (node.background("job", "log", job) for _ in range(2))
    heard, heard_by_other = read_all(sleepy.stdout), read_all(other.stdout)
    try:
        wait_for(lambda: heard.data.count(b"\n") == 5000, timeout_s=30, what="the client to hear the first round")
        sleepy.send_signal(signal.SIGSTOP)
        node.open_gate(job)
        assert node.rnx("job", "wait", job).returncode == 0
        assert other.wait(timeout=60) == 0
        assert numbers(heard_by_other.finished()) == list(range(1, rounds * 5000 + 1))
        assert len(heard.data) < len(heard_by_other.data)
        sleepy.send_signal(signal.SIGCONT)
        assert sleepy.wait(timeout=60) == 0
        assert numbers(heard.finished()) == list(range(1, rounds * 5000 + 1))
    finally:
        for each in (sleepy, other):
            end(each)


@pytest.mark.requirement("S2.14")
@pytest.mark.threat("F27")
def test_a_connection_that_is_too_old_is_made_again(own_node: Callable[..., Node]) -> None:
    """The node cuts each connection after two seconds; the client goes on at its place, and its output is the log."""
    node = own_node({"joblet": {"grpc": {"connection_age_ms": 1000, "connection_age_grace_ms": 1000}}})
    job = node.detached("--", "sh", "-c", f"{GATE}; i=0; while [ -z $go ]; do i=$((i+1)); echo $i; sleep 0.01; done")
    node.wait_for_state(job, "running")
    follower = node.background("job", "log", job)
    heard = read_all(follower.stdout)

    def streams() -> int:
        whole, _, _ = (node.base / "audit" / "audit.jsonl").read_bytes().rpartition(b"\n")
        begun = [each for each in map(json.loads, whole.splitlines()) if each["outcome"] == "allowed"]
        return sum(each["method"].endswith("/StreamLogs") for each in begun)

    try:
        wait_for(lambda: streams() >= 4, timeout_s=60, what="three connections to be cut")
        node.open_gate(job)
        out = heard.finished()
        assert follower.wait(60) == 0
    finally:
        end(follower)
    assert numbers(out) == list(range(1, len(numbers(out)) + 1))
    assert node.ok("job", "log", job, "--no-follow") == out


@pytest.mark.requirement("S3.13")
@pytest.mark.requirement("T.3")
def test_both_streams_at_once_live_and_stored(node: Node) -> None:
    """Two processes of a job print as fast as they can, each to its stream: live order is stored order, and exact."""
    lines = 50_000
    job = node.detached("--", "sh", "-c", f"sleep 1; seq -f 'o%.0f' {lines} & seq -f 'e%.0f' {lines} >&2; wait")
    live = [json.loads(line) for line in node.ok("--json", "job", "log", job, timeout_s=100).splitlines()]
    assert [each["sequence"] for each in live] == list(range(1, len(live) + 1))
    for stream in ("stdout", "stderr"):
        # A process that pauses within a line leaves it in two entries, the first one partial.
        said = [each["content"] + ("" if each.get("partial") else "\n") for each in live if each["stream"] == stream]
        assert "".join(said) == "".join(f"{stream[3]}{number}\n" for number in range(1, lines + 1))
    assert node.entries(job) == live


@pytest.mark.requirement("S2.7")
@pytest.mark.requirement("S3.13")
def test_jobs_that_end_while_they_are_subscribed_to(node: Node) -> None:
    """Two hundred short jobs, followed at once: each stream has all output, and the ended job in its last message."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.short_jobs", str(node.config), "200"],
        stdout=subprocess.PIPE,
        timeout=110,
        check=True,
    )
    results = json.loads(done.stdout)
    assert len(results) == 200
    for each in results:
        assert each["data"] == "".join(f"{each['number']} {line}\n" for line in range(each["number"] % 3 + 1))
        assert (each["ended"], each["exit_code"]) == ("FAILED", 1 + each["number"] % 100)
        assert each["last_sequence"] == each["number"] % 3 + 1
        assert each["messages_after_the_end"] == 0
