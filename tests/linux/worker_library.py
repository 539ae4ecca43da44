"""What the tests of the worker library share. No claims."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.leaks import OWN_MARK, own_parents
from tests.waiting import SLOWNESS, await_for
from worker import Command, JobId, Output, Resources, Status, Stream, Worker

ROOT = Path(__file__).parents[2]


def sh(script: str, resources: Resources | None = None, **options: Any) -> Command:
    """`sh -c script`."""
    return Command("sh", ("-c", script), resources or Resources(), **options)


def worker(directory: Path | None = None, **options: Any) -> Worker:
    """A worker whose control groups are ours to find."""
    return Worker(directory, cgroup_parent=OWN_MARK, **options)


async def output(of: Worker, job: JobId) -> list[Output]:
    """All of it."""
    return [piece async for piece in of.stream(job)]


def text(pieces: list[Output], stream: Stream = Stream.STDOUT) -> bytes:
    """What was written to one of the streams."""
    return b"".join(piece.data for piece in pieces if piece.stream is stream)


async def running(of: Worker, job: JobId) -> Status:
    """Its status as soon as it runs."""

    async def runs() -> Status | bool:
        status = await of.query(job)
        assert not status.exited, status
        return status if status.pid else False

    await await_for(runs, timeout_s=30, what="the job to run")
    return await of.query(job)


def work_of(status: Status) -> Path:
    """The directory /work of a running job."""
    return Path(f"/proc/{status.pid}/root/work")


@contextlib.contextmanager
def nothing_left(temporary: Path) -> Iterator[None]:
    """Of a worker that is closed in here there is nothing: no temporary directory, no control group."""
    before = own_parents()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(temporary))
        yield
    assert list(temporary.iterdir()) == []
    assert own_parents() == before


def run(command: list[str], temporary: Path) -> bytes:
    """What it prints; nothing is left of it."""
    temporary.mkdir()
    temporary.chmod(0o1777)
    with nothing_left(temporary):
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=60 * SLOWNESS,
            check=False,
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)},
        )
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout
