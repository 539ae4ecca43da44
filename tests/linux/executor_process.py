"""A real executor process on a base directory of its own, and someone who asks it over real sockets.

Belongs here: what the tests of the executor process share. Does not belong here: any claim.
"""

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

from common.bus.requests import Requester
from common.bus.zeromq import ZeroMQ
from common.config.load import load_settings
from common.identifiers import JobId
from common.messages.envelope import Body
from common.messages.jobs import TERMINAL, GetJob, JobAccepted, JobFound, JobRecord, JobSpec, RunJob, State, StopJob
from common.messages.topics import API_REPLIES, EXECUTOR_COMMANDS
from services.executor.cgroups.select import parent_name
from tests.leaks import CGROUP_ROOT
from tests.waiting import SLOWNESS, await_for, wait_for

SOURCE = Path(__file__).parents[2]
Answer = TypeVar("Answer", bound=Body)


READY: Final = "executor ready"


class ExecutorProcess:
    """The service as its supervisor starts it. Killed and started again at will.

    It keeps no spares: what is there is the jobs' own. tests/linux/test_spares.py is about spares.
    """

    def __init__(self, base: Path, *, journal: str = "") -> None:
        """`journal`: settings of that section, as YAML between braces."""
        self.base = base
        self._configuration = base / "joblet-config.yml"
        self._configuration.write_text(
            'version: "3.0"\nserver: { nodeId: node-1 }\n'
            f"joblet: {{ jobs: {{ spares: 0 }}, journal: {{ {journal} }} }}\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it serves, or has ended, when this returns: a request that waits too long for it is dropped."""
        ready_before = self.log().count(READY)
        command = [sys.executable, "-m", "services.executor", "--base-dir", str(self.base)]
        with (self.base / "executor.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--config", str(self._configuration)], cwd=SOURCE, stdout=log, stderr=log
            )
        process = self._process
        wait_for(
            lambda: self.log().count(READY) > ready_before or process.poll() is not None,
            timeout_s=30,
            what="the executor to serve",
        )

    def end(self, number: int) -> int:
        """Send `number`, and wait for the end; the exit status."""
        assert self._process is not None
        self._process.send_signal(number)
        status = self._process.wait(timeout=15 * SLOWNESS)
        self._process = None
        return status

    def log(self) -> str:
        """All that it wrote."""
        file = self.base / "executor.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def close(self) -> None:
        """End it if it runs, and show what it said, for the reader of a failure."""
        if self._process is not None:
            self.end(signal.SIGKILL)
        print(self.log())  # noqa: T201
        parent = parent_name(load_settings(self._configuration, base_dir=self.base))
        for group in CGROUP_ROOT.glob(f"*/{parent}"):
            for below in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
                _remove(below)
            _remove(group)


def _remove(group: Path) -> None:
    """Remove a control group; one whose last process has only just died is busy for a moment."""

    def gone() -> bool:
        try:
            group.rmdir()
        except OSError as cause:
            if cause.errno != errno.EBUSY:
                raise
            return False
        return True

    wait_for(gone, what=f"{group} to be empty: {group.joinpath('cgroup.procs').read_text().split()}")


class Asker:
    """Asks the executor as api would."""

    def __init__(self, transport: ZeroMQ) -> None:
        self.transport = transport
        self._requester = Requester(
            transport, commands=EXECUTOR_COMMANDS, replies=API_REPLIES, reply_file=f"api-replies-{os.getpid()}.sock"
        )
        self._answers = asyncio.create_task(self._requester.run())

    async def ask(self, body: Body, answer: type[Answer]) -> Answer:
        """The answer."""
        return await self._requester.request(body, answer, timeout_s=15 * SLOWNESS)

    async def run(self, script: str, **spec: object) -> JobId:
        """Start `sh -c script`."""
        job_spec = JobSpec(command="sh", args=("-c", script), **spec)  # type: ignore[arg-type]
        return (await self.ask(RunJob(owner="ann", spec=job_spec), JobAccepted)).job.id

    async def get(self, job: JobId) -> JobRecord:
        """The job's record."""
        return (await self.ask(GetJob(job=job, visible_owner=None), JobFound)).job

    async def until(self, job: JobId, *states: State) -> JobRecord:
        """The record as soon as the job is in one of `states`."""

        async def there() -> JobRecord | bool:
            record = await self.get(job)
            assert record.state in states or record.state not in TERMINAL, record
            return record if record.state in states else False

        await await_for(there, timeout_s=30, what=f"{states}")
        return await self.get(job)

    async def stop(self, job: JobId) -> None:
        """Stop at once."""
        await self.ask(StopJob(job=job, signal=9, grace_ms=0), JobFound)

    async def close(self) -> None:
        """Ask no more."""
        self._answers.cancel()
        await asyncio.gather(self._answers, return_exceptions=True)
        self._requester.close()


@asynccontextmanager
async def asking(base: Path) -> AsyncIterator[Asker]:
    """Someone who asks the executor of `base`."""
    transport = ZeroMQ(base / "run")
    asker = Asker(transport)
    try:
        yield asker
    finally:
        await asker.close()
        transport.close()


def root_of(pid: int) -> Path:
    """The root directory that a job sees."""
    return Path(f"/proc/{pid}/root")


def wait_until_bound(base: Path) -> None:
    """Until the run directory is there: sockets are connected to whenever they come."""
    wait_for((base / "run" / EXECUTOR_COMMANDS.file).exists, what="the executor's sockets")
