"""`joblet tap`: patterns, and what is printed for each kind of message."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cli.joblet.main import run
from cli.joblet.tap import lines, parse_pattern
from common import records
from common.bus.events import Publisher
from common.bus.zeromq import ZeroMQ
from common.errors import JobletError
from common.identifiers import JobId
from common.messages.jobs import JobChanged, JobRecord, JobSpec, State, Usage
from common.messages.logs import LogMarker, LogRecords, StoreMetric
from common.messages.topics import log_topic

JOB = JobId("6fa459ea-ee8a-4ca4-894e-db77e160355e")
TOPIC = log_topic(JOB)
NOW = 1_700_000_000_000_000_000
ESCAPES = b"\x1b]52;c;AAAA\x07 \x1b[2J\rroot# "


def output(payload: bytes, *, sequence: int = 1, partial: bool = False, stream: int = 1) -> bytes:
    """One OUTPUT record."""
    return records.encode(
        records.RecordType.OUTPUT,
        payload,
        time_ns=NOW,
        sequence=sequence,
        lines=1 if partial else payload.count(b"\n"),
        stream=records.Stream(stream),
        flags=records.Flags.PARTIAL if partial else records.Flags.NONE,
    )


@pytest.mark.parametrize(
    ("text", "topic", "matches"),
    [
        ("log.*", TOPIC, True),
        ("log.*", f"metrics.{JOB}", False),
        ("*", TOPIC, True),
        ("job.*", f"job.{JOB}", True),
        (TOPIC, TOPIC, True),
        (TOPIC, TOPIC + "x", False),
        ("log.6fa4*", TOPIC, True),
    ],
)
def test_patterns_match_topics(text: str, topic: str, *, matches: bool) -> None:
    """A star at the end is a prefix; without one the topic is exact."""
    assert parse_pattern(text).matches(topic) is matches


@pytest.mark.parametrize("text", ["", "log", "log.**", "secret.*", "log.*x", "log.../..", "log." + "a" * 40])
def test_other_patterns_are_refused(text: str) -> None:
    """With what could be meant."""
    with pytest.raises(JobletError, match="malformed pattern"):
        parse_pattern(text)


def test_records_become_one_line_an_entry_with_consecutive_sequences() -> None:
    """Time, topic, stream, sequence, text; a partial piece says so in JSON."""
    body = LogRecords(job=JOB, records=output(b"one\ntwo\n", sequence=7) + output(b"half", sequence=9, partial=True))
    assert list(lines(TOPIC, body, as_json=False)) == [
        f"2023-11-14T22:13:20Z {TOPIC} output stdout #7 one",
        f"2023-11-14T22:13:20Z {TOPIC} output stdout #8 two",
        f"2023-11-14T22:13:20Z {TOPIC} output stdout #9 partial=True half",
    ]
    decoded = [json.loads(line) for line in lines(TOPIC, body, as_json=True)]
    assert [(each["sequence"], each["content"], each.get("partial")) for each in decoded] == [
        (7, "one", None),
        (8, "two", None),
        (9, "half", True),
    ]


@pytest.mark.threat("C20")
def test_what_a_job_prints_cannot_drive_the_terminal() -> None:
    """Escape sequences, carriage returns and bytes that are no UTF-8 are shown, and kept exact in JSON."""
    body = LogRecords(job=JOB, records=output(ESCAPES + b"\n") + output(b"\xff\x1b\n", sequence=2))
    for line in lines(TOPIC, body, as_json=False):
        assert line.isprintable(), line
    decoded = [json.loads(line) for line in lines(TOPIC, body, as_json=True)]
    assert decoded[0]["content"] == ESCAPES.decode()
    assert decoded[1]["content_b64"] == "/xs="


def test_other_messages_are_printed_too() -> None:
    """Start and exit records, markers, samples, changes of state, and damage."""
    start = records.encode(records.RecordType.START, b'{"pid":7}', time_ns=NOW, sequence=1)
    job = JobRecord(
        id=JOB, owner="alice\x1b", node_id="n", state=State.RUNNING, spec=JobSpec(command="sh\n"), created_at_ns=NOW
    )
    metric = StoreMetric(job=JOB, time_ns=NOW, cpu_percent=12.5, memory_bytes=2048)
    texts = [
        next(lines(TOPIC, LogRecords(job=JOB, records=start), as_json=False)),
        next(lines(TOPIC, LogMarker(job=JOB, marker="m", last_sequence=4), as_json=False)),
        next(lines(f"metrics.{JOB}", metric, as_json=False)),
        next(lines(f"job.{JOB}", JobChanged(job=job), as_json=False)),
        next(lines(TOPIC, LogRecords(job=JOB, records=b"garbage" * 10), as_json=False)),
    ]
    assert all(text.isprintable() for text in texts)
    assert 'start #1 {"pid":7}' in texts[0]
    assert "last_sequence=4" in texts[1]
    assert "cpu_percent=12.5" in texts[2]
    assert "memory_bytes=2.0 KiB" in texts[2]
    assert "running" in texts[3]
    assert "corrupt" in texts[4]


def test_figures_that_not_every_job_has_are_told_where_there_are_any() -> None:
    """Disk, network and pressure: in text where they are not zero, in JSON always; usage when a job has ended."""
    quiet = StoreMetric(job=JOB, time_ns=NOW, cpu_percent=0.0, memory_bytes=0)
    busy = StoreMetric(
        job=JOB, time_ns=NOW, cpu_percent=1.0, memory_bytes=1, network_tx_bytes=2048, io_read_ops=3, io_pressure=4.5
    )
    told = [next(lines("metrics.x", each, as_json=False)) for each in (quiet, busy)]
    assert told[0].split()[2:] == ["metric", f"job={JOB}", "cpu_percent=0.0", "memory_bytes=0", "B", "pids=0"]
    assert {"network_tx_bytes=2.0", "io_read_ops=3", "io_pressure=4.5"} < set(told[1].split())
    assert {"io_write_ops", "memory_pressure"} < set(json.loads(next(lines("metrics.x", quiet, as_json=True))))

    running = JobRecord(
        id=JOB, owner="a", node_id="n", state=State.RUNNING, spec=JobSpec(command="sh"), created_at_ns=NOW
    )
    ended = msgspec.structs.replace(running, usage=Usage(cpu_time_us=5, io_write_bytes=1024))
    assert json.loads(next(lines("job.x", JobChanged(job=running), as_json=True)))["usage"] is None
    assert json.loads(next(lines("job.x", JobChanged(job=ended), as_json=True)))["usage"]["oom_kills"] == 0
    text = next(lines("job.x", JobChanged(job=ended), as_json=False))
    assert "cpu_time_us=5 memory_peak_bytes=0 B io_write_bytes=1.0 KiB" in text
    assert "oom_kills" not in text


@pytest.mark.threat("C20")
def test_a_change_of_state_cannot_drive_the_terminal() -> None:
    """Owner, reason and command of a job, in text and in JSON."""
    hostile = ESCAPES.decode() + "\u202e\x9b"
    job = JobRecord(
        id=JOB,
        owner=hostile,
        node_id=hostile,
        state=State.FAILED,
        reason=hostile,
        spec=JobSpec(command=hostile, args=(hostile,), name=hostile, labels={hostile: hostile}),
        created_at_ns=NOW,
    )
    for as_json in (False, True):
        assert all(line.isprintable() for line in lines(f"job.{hostile}", JobChanged(job=job), as_json=as_json))


@pytest.fixture
def base() -> Iterator[Path]:
    """A base directory with a run directory and a short path."""
    with tempfile.TemporaryDirectory(prefix="joblet-test-") as directory:
        (Path(directory) / "run").mkdir()
        yield Path(directory)


def test_the_command_prints_what_is_published_and_ends_cleanly_at_ctrl_c(base: Path) -> None:
    """A real socket, a real process: the first line arrives, SIGINT ends it with 0 and without a word."""

    async def publish_until_seen(tap: subprocess.Popen[str]) -> str:
        transport = ZeroMQ(base / "run")
        publisher = Publisher(transport)
        assert tap.stdout is not None
        reading = asyncio.get_running_loop().run_in_executor(None, tap.stdout.readline)
        async with asyncio.timeout(30):
            while not reading.done():  # a subscription takes effect when it does
                publisher.publish(TOPIC, LogRecords(job=JOB, records=output(b"hello\n")))
                await asyncio.sleep(0.05)
        transport.close()
        return await reading

    (base / "run" / "events.sock").touch()
    tap = subprocess.Popen(
        [sys.executable, "-m", "cli.joblet.main", "tap", "log.*", "--base-dir", str(base)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert asyncio.run(publish_until_seen(tap)).endswith("output stdout #1 hello\n")
    tap.send_signal(signal.SIGINT)
    _, errors = tap.communicate(timeout=20)
    assert (tap.returncode, errors) == (0, "")


def test_without_a_node_it_says_so(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 5, one line."""
    assert run(["tap", "log.*", "--base-dir", str(base)]) == 5
    assert "no node runs" in capsys.readouterr().err
