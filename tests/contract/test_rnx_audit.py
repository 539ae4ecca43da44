"""`rnx node audit` against a scripted node: what is asked for, what is printed, and how a follower goes on."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proto.joblet.v1 import node_pb2
from tests.contract.rnx_fake_node import REPOSITORY, FakeNode, environment, fake_node

T0 = 1_767_323_045 * 10**9
JOB = "6fa459ea-ee8a-4ca4-894e-db77e160355e"


def entry(number: int, **fields: Any) -> node_pb2.AuditEntry:
    """A line of a call."""
    usual: dict[str, Any] = {
        "timestamp": T0 + number * 10**9,
        "who": "ann",
        "roles": ["user"],
        "serial": "54e2",
        "scheme": "organization",
        "method": "/joblet.v1.JobService/StopJob",
        "object": JOB,
        "peer": "ipv4:10.0.0.7:47198",
        "outcome": "allowed",
        "source": "api",
    }
    return node_pb2.AuditEntry(number=number, **usual | fields)


def answer(*entries: node_pb2.AuditEntry, unreadable: int = 0) -> node_pb2.QueryAuditResponse:
    """One message."""
    return node_pb2.QueryAuditResponse(entries=entries, unreadable=unreadable)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FakeNode]:
    """A node of this test alone."""
    with fake_node(tmp_path) as served:
        yield served
        served.nodes.audit_gate.set()


def test_what_is_asked_for_reaches_the_node(node: FakeNode) -> None:
    """Every option is a field of the request; times and the full name of a method are understood."""
    node.call("node", "audit")
    arguments = "--since=2026-01-02T03:04:05Z --until=2026-01-03T03:04:05Z --who=ann --method=RunJob --object=6fa459ea"
    node.call("node", "audit", *arguments.split(), "--outcome=denied", "--tail=7", "--source=persist")
    node.call("node", "audit", "--method=/joblet.v1.JobService/RunJob")
    plain, full, method = node.nodes.audit_requests
    assert plain == node_pb2.QueryAuditRequest(source="api")
    assert full == node_pb2.QueryAuditRequest(
        start_time=T0,
        end_time=T0 + 86_400 * 10**9,
        who="ann",
        method="RunJob",
        object="6fa459ea",
        outcome="denied",
        tail=7,
        source="persist",
    )
    assert method.method == "RunJob"


@pytest.mark.threat("C20")
def test_a_line_for_people(node: FakeNode) -> None:
    """Columns under a heading, dashes for what is not there, control characters written out."""
    evil = entry(2, who="", object="", outcome="denied", why="no \x1b]0;x\x07 such\nthing \u202e")
    node.nodes.audit = [answer(entry(1)), answer(evil)]
    outcome = node.rnx("node", "audit")
    assert (outcome.code, outcome.err) == (0, "")
    heading, first, second = outcome.out.decode().splitlines()
    assert heading.split() == ["TIME", "WHO", "METHOD", "OBJECT", "OUTCOME", "FROM", "WHY"]
    assert first.split() == ["2026-01-02T03:04:06Z", "ann", "StopJob", JOB, "allowed", "ipv4:10.0.0.7:47198"]
    assert second.index("denied") == first.index("allowed") == heading.index("OUTCOME")
    assert second.endswith(r"no \x1b]0;x\x07 such thing \u202e")
    assert second.split()[1:4] == ["-", "StopJob", "-"]


def test_json_has_stable_keys(node: FakeNode) -> None:
    """One object a line, always with all keys."""
    node.nodes.audit = [answer(entry(1), node_pb2.AuditEntry(number=2, outcome="missing", why="3 lines"))]
    full, bare = map(json.loads, node.rnx("--json", "node", "audit").out.splitlines())
    assert full == {
        "number": 1,
        "time": "2026-01-02T03:04:06Z",
        "source": "api",
        "who": "ann",
        "serial": "54e2",
        "roles": ["user"],
        "scheme": "organization",
        "method": "/joblet.v1.JobService/StopJob",
        "object": JOB,
        "peer": "ipv4:10.0.0.7:47198",
        "outcome": "allowed",
        "why": "",
    }
    assert bare.keys() == full.keys()


def test_lines_that_the_node_could_not_read_are_told_on_stderr(node: FakeNode) -> None:
    """Output goes on; the exit code is 0."""
    node.nodes.audit = [answer(entry(1)), answer(unreadable=3)]
    outcome = node.rnx("node", "audit", "--json")
    assert (outcome.code, len(outcome.out.splitlines())) == (0, 1)
    assert outcome.err == (
        "rnx: 3 lines of the audit log cannot be read: `joblet verify --audit` on the node tells which\n"
    )


@pytest.mark.parametrize("wrong", ["--tail=0", "--since=1h --until=2h", "--tail=-1", "--source=executor"])
def test_what_cannot_be_asked_for(node: FakeNode, wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, exit code 1 or 2, and the node is not asked."""
    assert node.call("node", "audit", *wrong.split()) in {1, 2}
    assert capsys.readouterr().err.count("\n") == 1
    assert node.nodes.audit_requests == []


def test_a_follower_goes_on_where_it_was_broken_off(node: FakeNode) -> None:
    """Each entry once, by its number, over two broken connections; then the node's refusal ends it."""
    node.nodes.audit = [answer(entry(number)) for number in range(5, 10)]
    node.nodes.audit_breaks = [2, 3]
    node.nodes.audit_gate.set()
    outcome = node.rnx("--json", "node", "audit", "--follow", "--who=ann", "--tail=5")
    assert [json.loads(line)["number"] for line in outcome.out.splitlines()] == [5, 6, 7, 8, 9]
    assert (outcome.code, outcome.err.count("\n")) == (4, 1)
    assert [(request.tail, request.who) for request in node.nodes.audit_requests] == [(5, "ann")] + 2 * [
        (10_000, "ann")
    ]


def test_without_follow_a_broken_connection_is_an_error(node: FakeNode) -> None:
    """Half of a log is not taken for all of it."""
    node.nodes.audit = [answer(entry(1)), answer(entry(2))]
    node.nodes.audit_breaks = [1]
    outcome = node.rnx("--json", "node", "audit")
    assert (outcome.code, len(outcome.out.splitlines())) == (5, 1)


def test_an_interrupted_follower_ends_at_once(node: FakeNode) -> None:
    """Ctrl-C: exit code 130, nothing on stderr."""
    node.nodes.audit = [answer(entry(1))]
    process = node.start("--json", "node", "audit", "--follow")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["number"] == 1
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, b"")


@pytest.mark.parametrize(("words", "proposal"), [("--outcome den", "denied"), ("--method StopJ", "StopJob")])
def test_outcomes_and_methods_are_completed(node: FakeNode, words: str, proposal: str) -> None:
    """By the shell, without a node."""
    line = f"rnx node audit {words}"
    done = subprocess.run(
        node.command()[:3],
        env=environment()
        | {"_RNX_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)},
        cwd=REPOSITORY,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert proposal in done.stdout.decode()
