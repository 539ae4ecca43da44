"""Spare sandboxes against the real launcher: taken, refused, dead, and none of them left."""

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from common.identifiers import JobId
from common.messages.jobs import JobRecord, JobSpec, Limits, Network, State, Upload, VolumeMount
from services.executor.cgroups.memory import MemoryDriver
from services.executor.launcher.task import encode_beginning
from services.executor.launching import Begun
from services.executor.plan import Launch, NetworkPlan, plan_launch
from services.executor.rootfs import Rootfs
from services.executor.spares import Spares
from tests.leaks import children_of
from tests.linux.sandboxes import IDENTITY, NO_GROUPS, Sandboxes
from tests.waiting import wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

SPEC = JobSpec(command="true")


class Cleaned:
    """Stands in for cleanup.Cleanup, and remembers."""

    def __init__(self, jobs: Path) -> None:
        self.jobs = jobs
        self.ended: list[JobId] = []
        self.forgotten: list[JobId] = []

    async def end(self, job: JobId) -> bool:
        """See ports.Cleans."""
        self.ended.append(job)
        return True

    async def forget(self, job: JobId) -> None:
        """See ports.Cleans."""
        shutil.rmtree(self.jobs / job, ignore_errors=True)
        self.forgotten.append(job)


class Bench:
    """A pool over a launcher. `plan` is what a job that asks for nothing would be launched by."""

    def __init__(self, sandboxes: Sandboxes, count: int) -> None:
        self.sandboxes = sandboxes
        self.cleaned = Cleaned(sandboxes.layout.jobs)
        self.driver = MemoryDriver()
        self.spares = Spares(sandboxes.launcher, self.driver, self.cleaned, self.plan, count=count)

    def plan(self, job: JobId, **spec: Any) -> Launch:
        """The launch of a job by its id."""
        settings = self.sandboxes.settings
        spec = {"command": "true", **spec}
        record = JobRecord(id=job, owner="a", node_id="n", state=State.STARTING, spec=JobSpec(**spec), created_at_ns=0)
        return plan_launch(
            record,
            identity=IDENTITY,
            cgroup=NO_GROUPS,
            settings=settings,
            layout=self.sandboxes.layout,
            rootfs=Rootfs(settings.joblet.jobs).parts(IDENTITY.range_first),
            network=NetworkPlan(),
        )

    async def filled(self) -> None:
        """Wait until the pool is full."""
        self.spares.refill()
        while self.spares._refilling is not None:
            await asyncio.shield(self.spares._refilling)

    async def claim(self, job: JobId) -> Begun | None:
        """What a launch of the job would claim."""
        return await self.spares.claim(job, encode_beginning(self.plan(job).task))


@asynccontextmanager
async def bench(sandboxes: Sandboxes, count: int = 2) -> AsyncIterator[Bench]:
    """A full pool; every process of it has ended afterwards."""
    made = Bench(sandboxes, count)
    await made.filled()
    launcher = sandboxes.launcher.pid
    try:
        monitors = wait_for(lambda: len(found := children_of(launcher)) == count and found, what="the spares' monitors")
        yield made
    finally:
        await made.spares.close()
    wait_for(lambda: not monitors & children_of(launcher), what="spare monitors to end")


@pytest.fixture
def sandboxes(tmp_path: Path) -> Iterator[Sandboxes]:
    """A launcher of this test's own."""
    with Sandboxes(tmp_path) as opened:
        yield opened
        shutil.rmtree(opened.layout.jobs)


def test_a_job_becomes_what_was_prepared_for_it(sandboxes: Sandboxes) -> None:
    """The id is the spare's, its processes run the job, and the pool is filled up again."""

    async def run() -> None:
        async with bench(sandboxes) as made:
            monitors = children_of(made.sandboxes.launcher.pid)
            job = made.spares.take(SPEC)
            begun = await made.claim(job)
            assert begun is not None
            launch = made.plan(job, command="echo", args=("it", "runs"))
            pid = await made.sandboxes.launcher.finish(begun, launch.task)
            assert pid in monitors
            journal = Path(launch.task.job_dir, "journal")
            wait_for(lambda: b"it runs" in journal.read_bytes(), what="the job's output")
            wait_for(lambda: pid not in children_of(made.sandboxes.launcher.pid), what="the monitor to end")
            await made.filled()
            wait_for(lambda: len(children_of(made.sandboxes.launcher.pid)) == 2, what="another spare")

    asyncio.run(run())


@pytest.mark.parametrize(
    "spec",
    [
        JobSpec(command="true", network=Network.BRIDGE),
        JobSpec(command="true", uploads=(Upload(id="u", bytes=1, entries=1),)),
        JobSpec(command="true", volumes=(VolumeMount(name="data", path="/data"),)),
        JobSpec(command="true", limits=Limits(cpu_cores="0")),
        JobSpec(command="true", limits=Limits(memory_bytes=2**20)),
    ],
    ids=["network", "uploads", "volumes", "cpus", "little memory"],
)
def test_a_job_that_begins_otherwise_takes_no_spare(sandboxes: Sandboxes, spec: JobSpec) -> None:
    """It gets an id of its own."""

    async def run() -> None:
        async with bench(sandboxes, 1) as made:
            assert await made.claim(made.spares.take(spec)) is None
            assert await made.claim(made.spares.take(SPEC)) is not None

    asyncio.run(run())


def test_an_id_that_no_job_got_is_taken_again(sandboxes: Sandboxes) -> None:
    """A record that cannot be written costs no spare."""

    async def run() -> None:
        async with bench(sandboxes, 1) as made:
            job = made.spares.take(SPEC)
            made.spares.give_back(job)
            assert made.spares.take(SPEC) == job
            assert made.spares.take(SPEC) != job

    asyncio.run(run())


def test_a_spare_of_another_kind_or_a_dead_one_is_removed(sandboxes: Sandboxes) -> None:
    """The launch begins from the start then, and finds nothing of the spare in its way."""

    async def run() -> None:
        async with bench(sandboxes) as made:
            other = made.spares.take(SPEC)
            assert await made.spares.claim(other, b"something else") is None
            dead = made.spares.take(SPEC)
            for pid in children_of(made.sandboxes.launcher.pid):
                with contextlib.suppress(ProcessLookupError):  # the first one's is ending
                    os.kill(pid, signal.SIGKILL)
            wait_for(lambda: not children_of(made.sandboxes.launcher.pid), what="the monitors to die")
            assert await made.claim(dead) is None
            assert made.cleaned.ended == [other, dead]

    asyncio.run(run())


def test_nothing_is_left_of_spares_that_nobody_took(sandboxes: Sandboxes) -> None:
    """At the end their groups and directories are removed, and no more are made."""

    async def run() -> None:
        async with bench(sandboxes) as made:
            ready = set(made.spares._ready)
            await made.spares.close()
            assert set(made.cleaned.ended) == set(made.cleaned.forgotten) == ready
            made.spares.refill()
            assert made.spares._refilling is None

    asyncio.run(run())


def test_what_cannot_be_prepared_is_left_for_the_job_to_tell(sandboxes: Sandboxes) -> None:
    """A launcher that does not start makes no spares; the pool stays empty, and takes no harm."""

    async def run() -> None:
        made = Bench(sandboxes, 1)

        async def refuse(*_: object, **__: object) -> Begun:
            raise OSError(11, "Resource temporarily unavailable")

        sandboxes.launcher.begin = refuse  # type: ignore[method-assign]
        await made.filled()
        assert await made.claim(made.spares.take(SPEC)) is None
        assert len(made.cleaned.ended) == len(made.cleaned.forgotten) == 1

    asyncio.run(run())
