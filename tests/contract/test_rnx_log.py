"""`rnx job log`: what is asked for, how it is shown, and that a broken stream goes on without hole or repeat."""

import json
import os
import pty
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from proto.joblet.v1 import job_pb2, persist_pb2
from tests.contract.rnx_fake_node import FakeNode, fake_node
from tests.contract.rnx_fake_services import STARTED_NS, chunk
from tests.waiting import SLOWNESS, wait_for

ID = "00000001-0000-4000-8000-000000000000"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FakeNode]:
    """A node with one job."""
    with fake_node(tmp_path) as served:
        served.jobs.add(1, state=job_pb2.RUNNING)
        yield served


def on_a_terminal(node: FakeNode, *arguments: str) -> bytes:
    """What rnx writes when stdout is a terminal."""
    leader, follower = pty.openpty()
    process = node.start(*arguments, stdout=follower)
    os.close(follower)
    shown = b""
    while True:
        try:
            data = os.read(leader, 65536)
        except OSError:  # EIO: the other side is closed, pty(7)
            break
        if not data:
            break
        shown += data
    os.close(leader)
    process.communicate(timeout=20)
    assert process.returncode == 0
    return shown


def test_both_streams_come_to_stdout_in_their_order(node: FakeNode) -> None:
    """Bytes are exact when stdout is no terminal."""
    node.jobs.chunks = [chunk(1, b"a\x1b[1m\n"), chunk(2, b"\xff\n", stream=persist_pb2.STDERR), chunk(3, b"c\n")]
    assert node.rnx("job", "log", ID[:8]) == (0, b"a\x1b[1m\n\xff\nc\n", "")


@pytest.mark.requirement("S0.47", "S0.48", "S0.49", "S0.50")
def test_every_option_reaches_the_node(node: FakeNode) -> None:
    """Stream, filter, expression, times, tail, sequence, offset and limit are sent as they were said."""
    node.rnx(
        *("job", "log", ID, "--stream=stderr", "--filter=ERROR", "--since=2024-01-01T00:00:00Z"),
        *("--until=2024-01-02T00:00:00Z", "--tail", "5", "--from-seq", "7", "--limit", "9", "--no-follow"),
    )
    node.rnx("job", "log", ID)
    node.rnx("job", "log", ID, "--grep", "^a+$", "--offset", "3")
    asked, plain, searched = node.jobs.of(job_pb2.StreamLogsRequest)
    assert searched == job_pb2.StreamLogsRequest(job_id=ID, regex="^a+$", offset=3, follow=True)
    assert asked == job_pb2.StreamLogsRequest(
        job_id=ID,
        stream=persist_pb2.STDERR,
        from_sequence=7,
        tail=5,
        start_time=1_704_067_200_000_000_000,
        end_time=1_704_153_600_000_000_000,
        filter="ERROR",
        limit=9,
        follow=False,
    )
    assert plain == job_pb2.StreamLogsRequest(job_id=ID, follow=True)


@pytest.mark.parametrize(
    ("option", "time", "sent"),
    [
        ("--since", "0001-01-01T00:00:00Z", 10**11),
        ("--since", "1970-01-01T00:00:00Z", 10**11),
        ("--until", "1970-01-01T00:00:30Z", 10**11),
        ("--until", "9999-12-31T23:59:59Z", 2**63 - 1),
    ],
)
def test_the_first_and_the_last_time_that_other_programs_know(
    node: FakeNode, option: str, time: str, sent: int
) -> None:
    """What scripts write for "always" is sent as what the request has room for; 0 would be no bound at all."""
    assert node.rnx("job", "log", ID, option, time, "--no-follow").err == ""
    (request,) = node.jobs.of(job_pb2.StreamLogsRequest)
    assert (request.start_time, request.end_time) == ((sent, 0) if option == "--since" else (0, sent))


def test_json_lines(node: FakeNode) -> None:
    """One object an entry with stable keys; content_b64 where the bytes are no UTF-8; partial only where it is true."""
    node.jobs.chunks = [
        chunk(1, 'é "\x1b\n{"sequence":9}\n'.encode()),
        chunk(3, b"\xff\n", stream=persist_pb2.STDERR),
        chunk(4, b"rest", partial=True),
    ]
    outcome = node.rnx("job", "log", ID, "--json")
    assert outcome.out.isascii()
    assert [json.loads(line) for line in outcome.out.splitlines()] == [
        {"sequence": 1, "timestamp": STARTED_NS, "stream": "stdout", "content": 'é "\x1b'},
        {"sequence": 2, "timestamp": STARTED_NS, "stream": "stdout", "content": '{"sequence":9}'},
        {"sequence": 3, "timestamp": STARTED_NS, "stream": "stderr", "content_b64": "/w=="},
        {"sequence": 4, "timestamp": STARTED_NS, "stream": "stdout", "content": "rest", "partial": True},
    ]


def test_timestamps(node: FakeNode) -> None:
    """The time stands before each line once, also when it came in pieces or the other stream came between."""
    node.jobs.chunks = [
        chunk(1, b"a\n\n"),
        chunk(3, b"be", partial=True),
        chunk(4, b"gun\n"),
        chunk(5, b"open", partial=True),
        chunk(6, b"err\n", stream=persist_pb2.STDERR),
    ]
    time = b"2023-11-14T22:13:20.25Z "
    expected = [time + b"a", time, time + b"begun", time + b"open", time + b"err", b""]
    assert node.rnx("job", "log", ID, "--timestamps").out == b"\n".join(expected)


@pytest.mark.threat("C20")
def test_a_terminal_gets_no_control_characters(node: FakeNode) -> None:
    """OSC, CSI, carriage returns, C1 and bidirectional overrides are shown, not obeyed; text stays text."""
    node.jobs.chunks = [
        chunk(1, b"\x1b]52;c;aGk=\x07\x1b[2Jover\rwrite\x9b\n"),
        chunk(2, "tab\té\u202e \x85\r\n".encode()),
        chunk(3, "ü".encode()[:1], partial=True),
        chunk(4, "ü".encode()[1:] + b"\n"),
    ]
    shown = on_a_terminal(node, "job", "log", ID)
    assert shown.replace(b"\r\n", b"\n").decode() == (
        "\\x1b]52;c;aGk=\\x07\\x1b[2Jover\\x0dwrite\\x9b\ntab\té\\u202e \\x85\nü\n"
    )


@pytest.mark.threat("C20")
def test_raw_on_a_terminal_is_raw(node: FakeNode) -> None:
    """--raw says that the user wants it so."""
    node.jobs.chunks = [chunk(1, b"\x1b[1mbold\n")]
    assert on_a_terminal(node, "job", "log", ID, "--raw") == b"\x1b[1mbold\r\n"


def test_gaps_are_told(node: FakeNode) -> None:
    """Entries that the node lost are a line on stderr with from, to and why; stdout has what there is."""
    gap = job_pb2.LogChunk(first_sequence=2, lines=3, gap=job_pb2.Gap(reason="journal_full", bytes=2048))
    node.jobs.chunks = [chunk(1, b"1\n"), gap, chunk(5, b"5\n")]
    outcome = node.rnx("job", "log", ID)
    told = "entries 2 to 4 (3 entries, 2.0 KiB): dropped by the node: the job's journal was full"
    assert outcome == (0, b"1\n5\n", f"rnx: output is missing: {told}\n")
    node.jobs.chunks[1].CopyFrom(
        job_pb2.LogChunk(stream=persist_pb2.STDERR, first_sequence=4, lines=1, gap=job_pb2.Gap(reason="x\x1b[2J"))
    )
    for options in ([], ["--json"], ["--timestamps"], ["--filter", "nothing"]):
        outcome = node.rnx("job", "log", ID, *options)
        assert (outcome.code, outcome.err) == (0, "rnx: output is missing: entry 4 of stderr (1 entry): x\\x1b[2J\n")


def test_a_broken_stream_goes_on(node: FakeNode) -> None:
    """Whatever breaks: each line once, in order; tail is not asked again and limit counts what came before."""
    node.jobs.chunks = [chunk(1 + 2 * n, b"%d\n%d\n" % (1 + 2 * n, 2 + 2 * n)) for n in range(5)]
    node.jobs.stream_breaks = [2, 0, 1, 1]
    outcome = node.rnx("job", "log", ID, "--tail", "10", "--limit", "10")
    assert outcome == (0, b"".join(b"%d\n" % n for n in range(1, 11)), "")
    asked = node.jobs.of(job_pb2.StreamLogsRequest)
    assert [(r.from_sequence, r.limit) for r in asked] == [(0, 10), (5, 6), (5, 6), (7, 4), (9, 2)]
    assert [r.HasField("tail") for r in asked] == [True, False, False, False, False]


def test_a_killed_and_restarted_server_is_found_again(node: FakeNode) -> None:
    """The connection is refused for a while, then the stream goes on where it was."""
    node.jobs.chunks = [chunk(1, b"1\n")]
    node.jobs.end_gate.clear()
    process = node.start("job", "log", ID)
    assert process.stdout is not None
    assert process.stdout.readline() == b"1\n"
    node.stop()
    node.jobs.chunks.append(chunk(2, b"2\n"))
    node.jobs.end_gate.set()
    node.serve()
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, b"2\n", b"")


def test_who_gives_up_says_how_to_go_on(node: FakeNode) -> None:
    """A stream that the deadline ends names the next sequence, with exit code 5."""
    node.jobs.chunks = [chunk(1, b"1\n2\n")]
    node.jobs.end_gate.clear()
    outcome = node.rnx("job", "log", ID, "--timeout", f"{10 * SLOWNESS:.0f}s")
    assert (outcome.code, outcome.out) == (5, b"1\n2\n")
    assert f"rnx job log {ID} --from-seq 3" in outcome.err
    assert outcome.err.count("\n") == 1


def test_interrupt_and_broken_pipe_are_quiet(node: FakeNode) -> None:
    """Ctrl-C: 130, nothing on stderr. A reader that leaves: 141, nothing on stderr."""
    node.jobs.chunks = [chunk(1, b"1\n")]
    node.jobs.end_gate.clear()
    process = node.start("job", "log", ID)
    assert process.stdout is not None
    assert process.stdout.readline() == b"1\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20) == (b"", b"")
    assert process.returncode == 130
    node.jobs.streaming.clear()
    process = node.start("job", "log", ID)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"1\n"
    process.stdout.close()
    node.jobs.chunks.append(chunk(2, b"2\n"))
    node.jobs.stream_breaks = []
    node.stop()
    node.serve()
    assert wait_for(lambda: process.poll() is not None, what="rnx to notice that nobody reads")
    assert process.returncode == 141
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--filter", "a", "--grep", "b"), "--filter and --grep exclude each other"),
        (("--tail", "3", "--offset", "1"), "--tail and --offset exclude each other"),
        (("--offset", "-1"), "malformed number"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(node: FakeNode, arguments: tuple[str, ...], words: str) -> None:
    """2, in one line, and the node is not asked."""
    outcome = node.rnx("job", "log", ID, *arguments)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, b"", 1)
    assert words in outcome.err
    assert node.jobs.requests == []


GAP = job_pb2.LogChunk(first_sequence=1, lines=4, gap=job_pb2.Gap(reason="removed", bytes=9))


@pytest.mark.threat("F27")
@pytest.mark.parametrize(
    ("arguments", "chunks", "breaks", "asked"),
    [
        # Nothing came: the whole offset again. Something came: it is done with.
        (
            ("--offset", "5"),
            [chunk(6, b"6\n"), chunk(7, b"7\n")],
            [0, 1],
            [(0, 5, None, 0), (0, 5, None, 0), (7, 0, None, 0)],
        ),
        # With nothing selected a gap is entries: it was behind the offset, and takes part in the limit.
        (("--offset", "2", "--limit", "5"), [GAP, chunk(5, b"5\n")], [1], [(0, 2, None, 5), (5, 0, None, 1)]),
        # Among selected entries it is told and begins nothing, and nothing of it is told twice.
        (
            ("--offset", "2", "--grep", "x"),
            [GAP, chunk(8, b"x8\n")],
            [1, 2],
            [(0, 2, None, 0), (0, 2, None, 0), (9, 0, None, 0)],
        ),
        (("--tail", "2", "--filter", "x"), [GAP, chunk(8, b"x8\n")], [1], [(0, 0, 2, 0), (0, 0, 2, 0)]),
        (
            ("--limit", "2", "--stream", "stdout"),
            [GAP, chunk(8, b"x8\n"), chunk(9, b"x9\n")],
            [1, 2],
            [(0, 0, None, 2), (0, 0, None, 2), (9, 0, None, 1)],
        ),
        # A tail without entries: the node says where it goes on.
        (
            ("--tail", "0"),
            [job_pb2.LogChunk(stream=persist_pb2.STDOUT, first_sequence=8), chunk(8, b"x8\n")],
            [1, 0],
            [(0, 0, 0, 0), (8, 0, None, 0), (8, 0, None, 0)],
        ),
    ],
)
def test_what_is_asked_again_after_a_break(
    node: FakeNode,
    arguments: tuple[str, ...],
    chunks: list[job_pb2.LogChunk],
    breaks: list[int],
    asked: list[tuple[int, int, int | None, int]],
) -> None:
    """Offset, tail and limit mean the same as without the break: nothing is skipped twice, left out or told twice."""
    node.jobs.chunks = chunks
    node.jobs.stream_breaks = breaks
    outcome = node.rnx("job", "log", ID, *arguments)
    assert (outcome.code, outcome.out) == (0, b"".join(one.data for one in chunks))
    assert outcome.err.count("\n") == sum(one.HasField("gap") for one in chunks)
    requests = node.jobs.of(job_pb2.StreamLogsRequest)
    assert [
        (one.from_sequence, one.offset, one.tail if one.HasField("tail") else None, one.limit) for one in requests
    ] == asked
