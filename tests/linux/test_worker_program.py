"""Programs that use the worker library: that of its manual, a fresh interpreter, and one of an ordinary user."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.test_rootless import UID, as_user, processes_of_user
from tests.leaks import OWN_MARK
from tests.linux.worker_library import nothing_left
from tests.waiting import SLOWNESS, wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

ROOT = Path(__file__).parents[2]
MANUAL = ROOT / "docs" / "library.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


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


@pytest.mark.requirement("S4.2")
@pytest.mark.requirement("S4.10")
def test_the_program_of_the_manual_prints_what_the_manual_says(tmp_path: Path) -> None:
    """Run as a reader would: copied into a file, with nothing configured."""
    blocks = BLOCK.findall(MANUAL.read_text(encoding="utf-8"))
    program, printed = (text for language, text in blocks[:2])
    assert blocks[0][0] == "python"
    (tmp_path / "example.py").write_text(program)
    assert run([sys.executable, str(tmp_path / "example.py")], tmp_path / "temporary") == printed.encode()


FRESH = """
import asyncio, sys
import worker
async def main():
    async with worker.Worker(cgroup_parent=sys.argv[1]) as our:
        job = await our.start(worker.Command("echo", ["hello"]))
        pieces = [piece.data async for piece in our.stream(job)]
        assert pieces == [b"hello\\n"], pieces
        assert (await our.wait(job)).exit_code == 0
asyncio.run(main())
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.mark.requirement("T.1")
@pytest.mark.requirement("S3.9")
def test_it_knows_nothing_of_the_network(tmp_path: Path) -> None:
    """A program that has run a job has loaded neither gRPC nor ZeroMQ, nor TLS or a cloud's client."""
    loaded = set(run([sys.executable, "-c", FRESH, OWN_MARK], tmp_path / "temporary").decode().split())
    assert {"worker", "services", "common"} <= loaded
    assert not loaded & {"grpc", "zmq", "boto3", "botocore", "cryptography", "cli", "proto"}


ROOTLESS = """
import asyncio, json
from worker import Command, JobletError, Resources, Worker
async def main():
    async with Worker() as worker:
        job = await worker.start(Command("sh", ["-c", "id -u; exit 5"]))
        printed = b"".join([piece.data async for piece in worker.stream(job)]).decode()
        status = await worker.wait(job)
        try:
            await worker.start(Command("true", resources=Resources(memory_bytes=2**26)))
            refused = ""
        except JobletError as error:
            refused = str(error)
        forever = await worker.start(Command("sleep", ["1000"]))
    print(json.dumps([printed, status.exit_code, refused]))
asyncio.run(main())
"""


def test_an_ordinary_user_can_run_jobs() -> None:
    """In a user namespace of his; a limit that nobody delegated to him is refused by name; nothing of him is left."""
    place = Path(f"/tmp/{OWN_MARK}-worker")  # the directories above tmp_path are closed to him
    try:
        printed, exit_code, refused = json.loads(run(as_user(sys.executable, "-c", ROOTLESS), place))
    finally:
        place.rmdir()
    assert (printed, exit_code) == ("1000\n", 5)
    assert "memory_bytes" in refused
    assert "no control group is delegated" in refused
    wait_for(lambda: not processes_of_user(), what=f"processes of {UID} to end")
