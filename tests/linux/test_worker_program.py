"""Programs that use the worker library: that of its manual, and one that looks at what it has loaded."""

import os
import re
import sys
from pathlib import Path

import pytest

from tests.leaks import OWN_MARK
from tests.linux.worker_library import run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

ROOT = Path(__file__).parents[2]
MANUAL = ROOT / "docs" / "library.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


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
def test_it_knows_nothing_of_the_network(tmp_path: Path) -> None:
    """A program that has run a job has loaded neither gRPC nor ZeroMQ, nor TLS or a cloud's client."""
    loaded = set(run([sys.executable, "-c", FRESH, OWN_MARK], tmp_path / "temporary").decode().split())
    assert {"worker", "services", "common"} <= loaded
    assert not loaded & {"grpc", "zmq", "boto3", "botocore", "cryptography", "cli", "proto"}
