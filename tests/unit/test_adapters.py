"""What the real launches and traces give back when a step of theirs fails: a job that is gone keeps nothing."""

import asyncio
import functools
import os
import socket
from pathlib import Path

import pytest

from common.config.layout import layout_of
from common.config.settings import Joblet, Jobs, Settings
from common.errors import JobletError, exhausted
from common.identifiers import JobId, new_job_id
from common.messages.jobs import JobRecord, JobSpec, State
from services.executor.adapters import Identities, KernelLaunches, KernelTraces
from services.executor.cgroups.memory import MemoryDriver
from services.executor.cleanup import Cleanup
from services.executor.events import Job
from services.executor.identity import JobIdentity
from services.executor.launcher.task import Task, encode_beginning
from services.executor.launching import Begun
from services.executor.ports import Cleans
from services.executor.rootfs import Rootfs
from services.executor.rootless import RootlessNetworks, own_identity
from tests.unit.executor_fakes import FakeVolumes
from tests.waiting import await_for

SPEC = JobSpec(command="true")


class StuckNetworks(RootlessNetworks):
    """The kernel refuses to take a network away, as without a free descriptor for the socket to ask it by."""

    async def release(self, job: JobId) -> None:  # noqa: ARG002
        """See Networks.release."""
        raise OSError(24, os.strerror(24))


def test_volumes_are_released_though_the_network_cannot_be(tmp_path: Path) -> None:
    """Nobody else could have them, and nobody could delete them, until the executor is started again."""

    async def scenario() -> None:
        volumes = FakeVolumes()
        cleanup = Cleanup(MemoryDriver(), layout_of(Settings(joblet=Joblet(base_dir=str(tmp_path)))))
        traces = KernelTraces(cleanup, StuckNetworks(), volumes)
        job = new_job_id()
        assert await traces.end(job)
        assert volumes.released == [(job, None)]

    asyncio.run(scenario())


class Spared:
    """A launcher whose monitors wait for a task that never comes. `begun`: whose they are."""

    def __init__(self) -> None:
        self.begun: list[JobId] = []
        self._ends: list[socket.socket] = []

    async def begin(self, task: Task, *, network: int | None = None) -> Begun:  # noqa: ARG002
        """See launching.Launcher."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.settimeout(0)
        self.begun.append(JobId(Path(task.job_dir).name))
        self._ends.append(theirs)
        return Begun(ours, encode_beginning(task))

    async def finish(self, begun: Begun, task: Task) -> int:  # noqa: ARG002
        """See launching.Launcher."""
        raise AssertionError("no job is launched here")

    def die(self, number: int) -> None:
        """That monitor ends by itself."""
        self._ends[number].close()

    def ended(self, number: int) -> bool:
        """Whether that monitor was told that there will be no job, and ends."""
        try:
            told = not self._ends[number].recv(1)
        except BlockingIOError:
            return False
        if told:
            self.die(number)
        return told


def no_range(owner: str) -> JobIdentity:
    """Every range is taken, or the disk does not take one more."""
    if owner:
        raise exhausted("the owner's uid range cannot be recorded")
    return own_identity(owner)


class Held:
    """See ports.Cleans: nothing ends before `go`."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.asked: list[JobId] = []

    async def end(self, job: JobId) -> bool:
        """See ports.Cleans."""
        self.asked.append(job)
        await self.go.wait()
        return True

    async def forget(self, job: JobId) -> None:
        """See ports.Cleans."""


def launching(
    tmp_path: Path, launcher: Spared, cleans: Cleans, *, spares: int, identities: Identities = own_identity
) -> KernelLaunches:
    """Launches with a pool of spares, which is not filled yet."""
    settings = Settings(joblet=Joblet(base_dir=str(tmp_path), jobs=Jobs(spares=spares)))
    return KernelLaunches(
        launcher=launcher,
        driver=MemoryDriver(),
        identities=identities,
        networks=RootlessNetworks(),
        rootfs=Rootfs(settings.joblet.jobs),
        cleans=cleans,
        volumes=FakeVolumes(),
        rootless=True,
        settings=settings,
        layout=layout_of(settings),
    )


def record_of(launches: KernelLaunches) -> JobRecord:
    """A job that takes a spare when there is one."""
    job = launches.new_id(SPEC)
    return JobRecord(id=job, owner="ann", node_id="n", state=State.STARTING, spec=SPEC, created_at_ns=0)


def test_a_launch_that_fails_before_it_asks_for_its_spare_leaves_none(tmp_path: Path) -> None:
    """The spare whose id the job has ends, and another one takes its place."""

    async def scenario() -> None:
        launcher, cleans = Spared(), Held()
        cleans.go.set()
        launches = launching(tmp_path, launcher, cleans, spares=1, identities=no_range)
        launches.spares.refill()
        await await_for(lambda: launcher.begun, what="a spare")
        record = record_of(launches)
        assert record.id == launcher.begun[0], "the job has the spare's id"
        failing = asyncio.create_task(launches.launch(Job(record=record), {}))
        await await_for(lambda: launcher.ended(0), what="the spare to end")
        with pytest.raises(JobletError, match="uid range"):
            await failing
        await await_for(lambda: len(launcher.begun) == 2, what="the next spare")
        closing = asyncio.create_task(launches.spares.close())
        await await_for(lambda: launcher.ended(1), what="the next one to end")
        await closing

    asyncio.run(scenario())


def test_a_dead_spare_that_is_taken_while_another_is_removed_harms_no_other(tmp_path: Path) -> None:
    """The launch of its job finds out; the pool is filled up all the same."""

    async def scenario() -> None:
        launcher, cleans = Spared(), Held()
        launches = launching(tmp_path, launcher, cleans, spares=3)
        launches.spares.refill()
        await await_for(lambda: len(launcher.begun) == 3, what="three spares")
        for number in range(3):
            launcher.die(number)
        taken = [launches.new_id(SPEC)]
        launches.spares.refill()
        await await_for(lambda: cleans.asked, what="the removal of a dead one")
        taken.append(launches.new_id(SPEC))
        assert {*taken, *cleans.asked} == set(launcher.begun[:3])
        cleans.go.set()
        await await_for(lambda: len(launcher.begun) == 6, what="three new spares")
        closing = asyncio.create_task(launches.spares.close())
        for number in range(3, 6):
            await await_for(functools.partial(launcher.ended, number), what="a new one to end")
        await closing

    asyncio.run(scenario())
