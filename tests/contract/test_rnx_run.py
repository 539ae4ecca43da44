"""`rnx job run`: bytes, exit codes, and that no job runs twice. Against a fake node over real TLS."""

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from proto.joblet.v1 import job_pb2, persist_pb2
from tests.contract.rnx_fake_node import FakeNode, fake_node
from tests.contract.rnx_fake_services import chunk


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FakeNode]:
    """A node of this test alone."""
    with fake_node(tmp_path) as served:
        yield served


def test_streams_are_kept_apart_byte_for_byte(node: FakeNode) -> None:
    """Standard output goes to stdout and errors to stderr; NUL, CR, invalid UTF-8 and an unfinished line survive."""
    node.jobs.chunks = [
        chunk(1, b"out \x00\xff\r\n"),
        chunk(2, b"err\x1b[2J\n", stream=persist_pb2.STDERR),
        chunk(3, b"no end", partial=True),
    ]
    outcome = node.rnx("job", "run", "--", "sh", "-c", "whatever")
    assert outcome == (0, b"out \x00\xff\r\nno end", "err\x1b[2J\n")


def test_many_random_bytes_come_through_unchanged(node: FakeNode) -> None:
    """32 MiB of noise have the same SHA-256 on the other side of a pipe."""
    noise = random.Random(7).randbytes(2**20)  # noqa: S311  # noise, no secret
    sequence = 1
    for _ in range(32):
        node.jobs.chunks.append(chunk(sequence, noise, partial=not noise.endswith(b"\n")))
        sequence += node.jobs.chunks[-1].lines
    outcome = node.rnx("run", "cat")
    assert outcome.code == 0
    assert hashlib.sha256(outcome.out).digest() == hashlib.sha256(noise * 32).digest()


@pytest.mark.parametrize(
    ("end", "code", "told"),
    [
        (job_pb2.Job(state=job_pb2.COMPLETED, exit_code=0), 0, ""),
        (job_pb2.Job(state=job_pb2.FAILED, exit_code=7), 7, ""),
        (job_pb2.Job(state=job_pb2.FAILED, signal=9), 137, ""),
        (job_pb2.Job(state=job_pb2.FAILED, signal=9, oom_killed=True), 137, "ran out of memory"),
        (job_pb2.Job(state=job_pb2.STOPPED, signal=15), 143, ""),
        (job_pb2.Job(state=job_pb2.TIMED_OUT, signal=15), 143, "run time limit"),
        (job_pb2.Job(state=job_pb2.FAILED, reason="exec: no-such: not found"), 1, "failed: exec: no-such"),
        (job_pb2.Job(state=job_pb2.LOST), 1, "was lost"),
        (job_pb2.Job(state=job_pb2.CANCELED), 1, "canceled"),
    ],
)
def test_exits_as_the_job_did(node: FakeNode, end: job_pb2.Job, code: int, told: str) -> None:
    """Every end of a job has its exit code, and a line where the code alone would not tell."""
    node.jobs.end = end
    outcome = node.rnx("run", "--", "x")
    assert outcome.code == code
    assert told in outcome.err
    assert outcome.err.count("\n") == (1 if told else 0)


def test_everything_behind_the_command_is_the_jobs(node: FakeNode) -> None:
    """Options behind COMMAND are not rnx's, with and without "--"; a later "--" reaches the job."""
    assert node.rnx("run", "-d", "ls", "-d", "--json", "--", "--help").code == 0
    assert node.rnx("run", "-d", "--", "-odd", "--node", "x").code == 0
    first, second = node.jobs.of(job_pb2.RunJobRequest)
    assert (first.spec.command, [*first.spec.args]) == ("ls", ["-d", "--json", "--", "--help"])
    assert (second.spec.command, [*second.spec.args]) == ("-odd", ["--node", "x"])


@pytest.mark.requirement("S1.25")
def test_every_option_reaches_the_node(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole contract of cli.md is sent as it was said."""
    monkeypatch.setenv("FROM_HERE", "copied")
    words = (
        "job start --name n --label a=b --env K=V=W --env FROM_HERE --secret-env S=t --workdir /w --work-size 10MB "
        "--cpus 1.5 --cpu-weight 200 --cpu-cores 0-1 --max-memory 64 --pids 20 --io-weight 300 --read-bps 1MB "
        "--write-bps 2MB --read-iops 3 --write-iops 4 --open-files 256 --file-size 1GB --timeout 1m30s "
        "--volume data:/data --volume cache:ro "
        "--network none --schedule 2030-01-01T00:00:00Z --priority -7 --grace 5s --stop-signal INT --on-full drop "
        "--idempotency-key k1 -- cmd arg"
    )
    outcome = node.rnx(*words.split())
    assert outcome.err == ""
    (request,) = node.jobs.of(job_pb2.RunJobRequest)
    expected = job_pb2.JobSpec(
        command="cmd",
        args=["arg"],
        name="n",
        labels={"a": "b"},
        environment={"K": "V=W", "FROM_HERE": "copied"},
        secret_environment={"S": "t"},
        workdir="/w",
        work_bytes=10 * 2**20,
        limits=job_pb2.Limits(
            cpu_percent=150,
            cpu_weight=200,
            cpu_cores="0-1",
            memory_bytes=64 * 2**20,
            pids=20,
            io_weight=300,
            read_bytes_per_s=2**20,
            write_bytes_per_s=2 * 2**20,
            read_ops_per_s=3,
            write_ops_per_s=4,
            open_files=256,
            file_bytes=2**30,
            timeout_ms=90_000,
        ),
        volumes=[job_pb2.VolumeMount(name="data", path="/data"), job_pb2.VolumeMount(name="cache", read_only=True)],
        network=job_pb2.NONE,
        grace_ms=5000,
        stop_signal="SIGINT",
        on_full=job_pb2.DROP,
        priority=-7,
    )
    expected.start_at.FromJsonString("2030-01-01T00:00:00Z")
    assert request.spec == expected
    assert request.idempotency_key == "k1"
    assert outcome.out.decode().strip() in node.jobs.jobs


@pytest.mark.parametrize("accepted", [False, True])
def test_a_job_never_runs_twice(node: FakeNode, accepted: bool) -> None:  # noqa: FBT001  # a parameter of pytest
    """RunJob is repeated on UNAVAILABLE under one key; also when the node had taken it before the connection broke."""
    node.jobs.run_failures = [grpc.StatusCode.UNAVAILABLE] * 2
    node.jobs.accept_before_failure = accepted
    if not accepted:
        node.jobs.run_failures = [grpc.StatusCode.UNAVAILABLE]
    outcome = node.rnx("run", "-d", "x")
    requests = node.jobs.of(job_pb2.RunJobRequest)
    if accepted:
        assert outcome.code == 0
        assert len({request.idempotency_key for request in requests}) == 1
        assert len(requests) == 3
        assert len(node.jobs.jobs) == 1
    else:
        # The fake says that it is not retryable: what the node says counts.
        assert (outcome.code, len(requests)) == (5, 1)
        assert outcome.err == "rnx: not now: later\n"


def test_two_runs_have_two_keys(node: FakeNode) -> None:
    """The same command twice is two jobs."""
    node.rnx("run", "-d", "x")
    node.rnx("run", "-d", "x")
    assert len(node.jobs.jobs) == 2


def test_an_attached_run_survives_a_restart_of_the_front_door(node: FakeNode) -> None:
    """The stream is taken up at the next sequence; overlapping chunks are cut; no byte comes twice."""
    node.jobs.chunks = [chunk(1, b"1\n2\n3\n"), chunk(4, b"4\n5\n"), chunk(6, b"6\n")]
    node.jobs.stream_breaks = [1, 1, 0]
    outcome = node.rnx("run", "x")
    assert outcome == (0, b"1\n2\n3\n4\n5\n6\n", "")
    assert [request.from_sequence for request in node.jobs.of(job_pb2.StreamLogsRequest)] == [0, 4, 6, 6]


def test_dry_run_prints_the_plan_and_starts_nothing(node: FakeNode) -> None:
    """--dry-run asks PlanJob only."""
    assert node.rnx("run", "--dry-run", "x").out == b"make a mount namespace\nexec x\n"
    assert node.jobs.of(job_pb2.RunJobRequest) == []


def test_what_no_node_offers_is_refused_here(node: FakeNode) -> None:
    """--max-iobps has no field in the contract: exit code 4 and what to use instead."""
    outcome = node.rnx("run", "--max-iobps", "1MB", "x")
    assert outcome.code == 4
    assert "--read-bps" in outcome.err
    assert outcome.err.count("\n") == 1


def test_an_attached_run_tells_what_is_missing(node: FakeNode) -> None:
    """In words, on stderr; its exit code is the job's all the same."""
    gap = job_pb2.LogChunk(first_sequence=2, lines=3, gap=job_pb2.Gap(reason="journal_full", bytes=10))
    node.jobs.chunks = [chunk(1, b"1\n"), gap, chunk(5, b"5\n")]
    told = "entries 2 to 4 (3 entries, 10 B): dropped by the node: the job's journal was full"
    assert node.rnx("run", "--", "x") == (0, b"1\n5\n", f"rnx: output is missing: {told}\n")
