"""What Ctrl-C and a reader that leaves do to an attached run."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from proto.joblet.v1 import job_pb2
from tests.contract.rnx_fake_node import FakeNode, fake_node
from tests.contract.rnx_fake_services import chunk
from tests.waiting import wait_for


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FakeNode]:
    """A node of this test alone."""
    with fake_node(tmp_path) as served:
        yield served


@pytest.mark.parametrize(
    ("policy", "stop"),
    [
        ("stop", job_pb2.StopJobRequest(job_id="00000001-0000-4000-8000-000000000000")),
        ("kill", job_pb2.StopJobRequest(job_id="00000001-0000-4000-8000-000000000000", signal="SIGKILL", grace_ms=0)),
        ("detach", None),
    ],
)
def test_interrupt(node: FakeNode, policy: str, stop: job_pb2.StopJobRequest | None) -> None:
    """Ctrl-C stops, kills or leaves the job as was asked for; the exit code is 130 and there is no traceback."""
    node.jobs.chunks = [chunk(1, b"begun\n")]
    node.jobs.end_gate.clear()
    process = node.start("run", "--on-interrupt", policy, "x")
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, b"")
    assert node.jobs.of(job_pb2.StopJobRequest) == ([] if stop is None else [stop])
    assert b"Traceback" not in err
    assert (b"--from-seq 2" in err) == (stop is None)


def test_a_second_interrupt_leaves_at_once(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the job does not want to end, Ctrl-C again leaves it, and says how to come back."""
    node.jobs.chunks = [chunk(1, b"begun\n")]
    node.jobs.end_gate.clear()
    monkeypatch.setattr(node.jobs.end_gate, "set", lambda: None)  # the fake's own switch: the job ignores the signal
    process = node.start("run", "x")
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    process.send_signal(signal.SIGINT)
    wait_for(lambda: node.jobs.of(job_pb2.StopJobRequest), what="the stop request")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    monkeypatch.undo()
    assert process.returncode == 130
    assert b"rnx job log 00000001-0000-4000-8000-000000000000 --from-seq 2" in err


@pytest.mark.parametrize("has_ended", [False, True])
def test_a_reader_that_leaves_ends_the_run_quietly(node: FakeNode, has_ended: bool) -> None:  # noqa: FBT001  # of pytest
    """`rnx run … | head -1`: no traceback, no message, and the job is stopped as by an interrupt if it still runs."""
    node.jobs.has_ended = has_ended
    node.jobs.chunks = [chunk(1 + n, b"x" * 65535 + b"\n") for n in range(64)]
    read, write = os.pipe()
    process = node.start("run", "x", stdout=write)
    os.close(write)
    assert os.read(read, 1) == b"x"
    os.close(read)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (141, b"")
    assert len(node.jobs.of(job_pb2.StopJobRequest)) == 1


def test_a_background_run_that_ignores_interrupts_keeps_ignoring_them(node: FakeNode) -> None:
    """With SIGINT ignored from the start, as a shell does for `&`, Ctrl-C at the terminal does not touch the job."""
    node.jobs.end_gate.clear()
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = node.command("run", "x")
    process = subprocess.Popen([command[0], "-c", ignoring, *command], stdout=subprocess.PIPE)
    assert node.jobs.streaming.wait(20)
    process.send_signal(signal.SIGINT)
    node.jobs.end_gate.set()
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert node.jobs.of(job_pb2.StopJobRequest) == []
