"""Many clients of one job: everyone who reads gets every line, and one who does not harms nobody."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.node import Node, end, read_all
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
    assert [each["entries"] for each in results] == [LINES] * FOLLOWERS
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
