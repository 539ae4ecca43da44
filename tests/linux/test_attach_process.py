"""An executor process, a volumes service that a test plays, and jobs that get volumes: who dies in between."""

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from common.bus.requests import Responder
from common.bus.zeromq import ZeroMQ
from common.errors import JobletError, Reason, precondition
from common.identifiers import JobId, new_volume_id
from common.messages.envelope import Body
from common.messages.jobs import AttachVolume, DetachVolume, JobFound, State, VolumeMount
from common.messages.topics import API_REPLIES, EXECUTOR_REPLIES, VOLUMES_COMMANDS
from common.messages.volumes import (
    PreparedVolume,
    PrepareVolumes,
    ReleaseVolumes,
    SyncVolumes,
    VolumesPrepared,
    VolumesReleased,
)
from tests.linux.executor_process import Asker, ExecutorProcess, asking, wait_until_bound
from tests.waiting import await_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

DATA: Final = VolumeMount(name="data", path="/volumes/data")
ROUNDS: Final = 6


class VolumesService:
    """One volume, for one job at a time."""

    def __init__(self, transport: ZeroMQ, source: Path) -> None:
        self.source = source
        self.volume = new_volume_id()
        self.user: JobId | None = None
        self.synced: tuple[JobId, ...] | None = None
        handlers = dict.fromkeys(VOLUMES_COMMANDS.messages, self._refuse)
        handlers |= {PrepareVolumes: self._prepare, ReleaseVolumes: self._release, SyncVolumes: self._sync}
        self.responder = Responder(transport, VOLUMES_COMMANDS, API_REPLIES, handlers, also=(EXECUTOR_REPLIES,))

    async def _refuse(self, request: Body) -> Body:
        raise AssertionError(request)

    async def _prepare(self, request: Body) -> Body:
        assert isinstance(request, PrepareVolumes)
        if self.user not in (None, request.job):
            raise precondition(f"volume data is in use by job {self.user}", "wait")
        self.user = request.job
        os.chown(self.source, request.uid, request.gid)
        found = self.source.stat()
        root = f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}:{found.st_ino}"
        (mount,) = request.mounts
        prepared = PreparedVolume(id=self.volume, mount=mount, source=str(self.source), root=root, device="")
        return VolumesPrepared(volumes=(prepared,))

    async def _release(self, request: Body) -> Body:
        assert isinstance(request, ReleaseVolumes)
        if self.user == request.job and request.volume in (None, self.volume):
            self.user = None
        return VolumesReleased()

    async def _sync(self, request: Body) -> Body:
        assert isinstance(request, SyncVolumes)
        self.synced = request.jobs
        if self.user not in request.jobs:
            self.user = None
        return VolumesReleased()


@pytest.fixture
def executor() -> Iterator[ExecutorProcess]:
    """A running executor; killed in the end."""
    with tempfile.TemporaryDirectory(prefix="joblet-test-") as name:
        base = Path(name)
        base.chmod(0o755)
        (base / "source").mkdir()
        process = ExecutorProcess(base)
        process.start()
        try:
            wait_until_bound(base)
            yield process
        finally:
            process.close()


@asynccontextmanager
async def serving(executor: ExecutorProcess) -> AsyncIterator[tuple[Asker, VolumesService]]:
    """Someone who asks, and the volumes service."""
    async with asking(executor.base) as asker:
        service = VolumesService(asker.transport, executor.base / "source")
        answering = asyncio.create_task(service.responder.run())
        try:
            yield asker, service
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
            await service.responder.close()


async def running(asker: Asker) -> tuple[JobId, int]:
    """A job that runs, and its pid."""
    job = await asker.run("sleep 600")
    return job, (await asker.until(job, State.RUNNING)).pid


async def attach(asker: Asker, job: JobId) -> tuple[VolumeMount, ...]:
    """The volumes in the record that is the answer."""
    return (await asker.ask(AttachVolume(job=job, mount=DATA), JobFound)).job.spec.volumes


async def detach(asker: Asker, job: JobId) -> tuple[VolumeMount, ...]:
    """Likewise."""
    return (await asker.ask(DetachVolume(job=job, volume="data"), JobFound)).job.spec.volumes


def mounted(pid: int) -> bool:
    """Whether the job sees the volume."""
    return " /volumes/data " in Path(f"/proc/{pid}/mountinfo").read_text()


@pytest.mark.requirement("S1.18")
@pytest.mark.threat("F01")
def test_a_volume_stays_over_the_death_of_the_executor(executor: ExecutorProcess) -> None:
    """Record, use and mount agree before and after; then it can be detached, and another job can have it."""

    async def scenario() -> None:
        async with serving(executor) as (asker, service):
            (job, pid), (other, _) = await running(asker), await running(asker)
            assert await attach(asker, job) == (DATA,)
            assert (mounted(pid), service.user) == (True, job)
            with pytest.raises(JobletError, match=f"in use by job {job}") as refused:
                await attach(asker, other)
            assert refused.value.reason is Reason.PRECONDITION
            service.synced = None
            executor.end(signal.SIGKILL)
            executor.start()
            await await_for(lambda: service.synced is not None, timeout_s=30, what="the list of jobs")
            assert ((await asker.get(job)).spec.volumes, mounted(pid), service.user) == ((DATA,), True, job)
            assert await attach(asker, job) == (DATA,)
            assert await detach(asker, job) == ()
            assert (mounted(pid), service.user) == (False, None)
            assert await attach(asker, other) == (DATA,)
            await asker.stop(other)
            await await_for(lambda: service.user is None, what="the release at the job's end")
            assert (await asker.until(other, State.STOPPED)).spec.volumes == (DATA,)
            await asker.stop(job)
            await asker.until(job, State.STOPPED)

    asyncio.run(scenario())


@pytest.mark.threat("F01")
def test_an_executor_killed_at_any_moment_of_a_change_can_go_on(executor: ExecutorProcess) -> None:
    """Killed soon after the request: what is mounted is recorded and used, and the same again comes to its end."""

    async def scenario() -> None:
        async with serving(executor) as (asker, service):
            job, pid = await running(asker)
            await attach(asker, job)
            for number in range(ROUNDS):
                change = attach if number % 2 else detach
                asked = asyncio.create_task(change(asker, job))
                await asyncio.sleep(0.002 * number)
                executor.end(signal.SIGKILL)
                asked.cancel()
                await asyncio.gather(asked, return_exceptions=True)
                executor.start()
                recorded = (await asker.get(job)).spec.volumes == (DATA,)
                assert recorded or not mounted(pid)
                assert service.user == job or not recorded
                with contextlib.suppress(JobletError):  # it is done: it has no such volume any more
                    await change(asker, job)
                assert mounted(pid) == ((await asker.get(job)).spec.volumes == (DATA,)) == (change is attach)
                await (detach if change is attach else attach)(asker, job)
                await change(asker, job)
            await asker.stop(job)
            await asker.until(job, State.STOPPED)
            await await_for(lambda: service.user is None, what="the release at the job's end")

    asyncio.run(scenario())
