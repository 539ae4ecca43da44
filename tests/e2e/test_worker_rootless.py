"""The worker library in a program of an ordinary user, on a host that delegates nothing to him."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.e2e.test_rootless import UID, as_user, processes_of_user
from tests.leaks import OWN_MARK
from tests.linux.worker_library import run
from tests.waiting import wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

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
