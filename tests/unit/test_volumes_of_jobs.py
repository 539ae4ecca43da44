"""Volumes of jobs: what the executor asks the volumes service, how long it waits, and that it hears of every end."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from common.bus.memory import Memory
from common.bus.requests import Handler, Responder
from common.config.layout import Layout, layout_of
from common.config.settings import Joblet, Settings
from common.errors import JobletError, Reason, not_found, precondition, unavailable
from common.identifiers import JobId, new_job_id, new_volume_id
from common.messages.envelope import Body
from common.messages.jobs import (
    JobAccepted,
    JobPlan,
    JobRecord,
    JobSpec,
    Limits,
    PlanJob,
    RunJob,
    State,
    VolumeMount,
)
from common.messages.topics import API_REPLIES, EXECUTOR_REPLIES, VOLUME_COMMANDS, VOLUMES_COMMANDS
from common.messages.volumes import (
    CheckVolumes,
    PreparedVolume,
    PrepareVolumes,
    ReleaseVolumes,
    SyncVolumes,
    VolumesChecked,
    VolumesPrepared,
    VolumesReleased,
)
from services.executor.adapters import KernelLaunches, KernelTraces
from services.executor.cgroups.driver import CgroupPlan
from services.executor.cgroups.memory import MemoryDriver
from services.executor.cleanup import Cleanup
from services.executor.events import Job
from services.executor.identity import JobIdentity
from services.executor.launcher.task import Task
from services.executor.launcher.volumes import OpenVolume
from services.executor.launching import Begun
from services.executor.rootfs import Rootfs
from services.executor.rootless import RootlessNetworks
from services.executor.volumes import NoVolumes, VolumesOfJobs
from tests.unit.executor_asking import in_state
from tests.unit.executor_fakes import FakeVolumes, node_settings, running_node
from tests.waiting import await_for

IDENTITY = JobIdentity(101_000, 101_001, 100_000)
DATA = VolumeMount(name="data", path="/volumes/data")
CACHE = VolumeMount(name="cache", path="/cache", read_only=True)


def as_prepared(mount: VolumeMount) -> PreparedVolume:
    """What the service answers of one."""
    return PreparedVolume(id=new_volume_id(), mount=mount, source=f"/host/{mount.name}", root="7:0:2", device="7:0")


class FakeService:
    """The volumes service: answers as it is told, and remembers what it was asked."""

    def __init__(self, transport: Memory) -> None:
        self._transport = transport
        self.asked: list[Body] = []
        self.refusals: list[JobletError] = []  # of the next requests, one each
        self.silent: set[type[Body]] = set()
        self.users: dict[JobId, tuple[VolumeMount, ...]] = {}
        self.other: tuple[PreparedVolume, ...] | None = None
        self.failing: JobId | None = None  # its releases are refused
        self.gates: dict[JobId, asyncio.Event] = {}  # what is asked for these is done when the gate opens

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """It runs."""
        handlers: Mapping[type[Body], Handler] = dict.fromkeys(VOLUME_COMMANDS, self._answer)
        responder = Responder(self._transport, VOLUMES_COMMANDS, API_REPLIES, handlers, also=(EXECUTOR_REPLIES,))
        running = asyncio.create_task(responder.run())
        try:
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await responder.close()

    def of(self, kind: type[Body]) -> list[Any]:
        """What was asked of one kind."""
        return [body for body in self.asked if isinstance(body, kind)]

    async def _answer(self, body: Body) -> Body:
        self.asked.append(body)
        if type(body) in self.silent:
            await asyncio.Event().wait()
        if self.refusals and not isinstance(body, SyncVolumes):
            raise self.refusals.pop(0)
        if isinstance(body, PrepareVolumes | ReleaseVolumes) and body.job in self.gates:
            await self.gates[body.job].wait()
        match body:
            case CheckVolumes():
                return VolumesChecked()
            case PrepareVolumes(job=job) if job == self.failing:
                raise not_found("no volume data")
            case PrepareVolumes():
                self.users[body.job] = body.mounts
                return VolumesPrepared(
                    volumes=tuple(map(as_prepared, body.mounts)) if self.other is None else self.other
                )
            case ReleaseVolumes(job=job) if job == self.failing:
                raise JobletError(Reason.INTERNAL, "a bug")
            case ReleaseVolumes():
                self.users.pop(body.job, None)
            case SyncVolumes():
                self.users = {job: mounts for job, mounts in self.users.items() if job in body.jobs}
        return VolumesReleased()


@asynccontextmanager
async def asking(
    transport: Memory, *, before: Callable[[VolumesOfJobs], None] = lambda _: None
) -> AsyncIterator[VolumesOfJobs]:
    """The port over this transport; `before` it runs."""
    volumes = VolumesOfJobs(transport, answer_s_max=0.2, prepare_s_max=1.0)
    before(volumes)
    running = asyncio.create_task(volumes.run())
    try:
        yield volumes
    finally:
        assert not running.done(), running
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        volumes.close()


@asynccontextmanager
async def both() -> AsyncIterator[tuple[VolumesOfJobs, FakeService]]:
    """The port and a service that runs, behind the first sync."""
    transport = Memory()
    service = FakeService(transport)
    async with service.serving(), asking(transport) as volumes:
        await await_for(lambda: service.of(SyncVolumes), what="the sync at the start")
        yield volumes, service


def test_what_is_prepared_and_released_is_told() -> None:
    """With the owner and the ids of its jobs; the answer is in the order of what was asked for."""

    async def scenario() -> None:
        async with both() as (volumes, service):
            job = new_job_id()
            await volumes.check("ann", (DATA,))
            prepared = await volumes.prepare(job, "ann", IDENTITY, (DATA, CACHE))
            assert [each.mount for each in prepared] == [DATA, CACHE]
            assert service.of(CheckVolumes) == [CheckVolumes(owner="ann", mounts=(DATA,))]
            assert service.of(PrepareVolumes) == [
                PrepareVolumes(job=job, owner="ann", uid=101_000, gid=101_001, mounts=(DATA, CACHE))
            ]
            await volumes.release(job)
            assert service.users == {}
            await volumes.release(job)
            assert service.of(ReleaseVolumes) == [ReleaseVolumes(job=job)]

    asyncio.run(scenario())


def test_jobs_without_volumes_cost_nothing() -> None:
    """Not one message, also while no service runs."""

    async def scenario() -> None:
        async with both() as (volumes, service):
            del service.asked[:]
            job = new_job_id()
            await volumes.check("ann", ())
            assert await volumes.prepare(job, "ann", IDENTITY, ()) == ()
            await volumes.release(job)
            await asyncio.sleep(0)
            assert service.asked == []

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [not_found("no volume data"), precondition("in use by job x", "wait")])
def test_a_refusal_is_told_as_it_is_and_leaves_nothing(error: JobletError) -> None:
    """At once: only a service that is away is asked again. There is nothing to release."""

    async def scenario() -> None:
        async with both() as (volumes, service):
            job = new_job_id()
            service.refusals = [error, error]
            for asked in (volumes.check("ann", (DATA,)), volumes.prepare(job, "ann", IDENTITY, (DATA,))):
                with pytest.raises(JobletError) as raised:
                    await asked
                assert (raised.value.reason, str(raised.value)) == (error.reason, str(error))
            await volumes.release(job)
            assert [type(body) for body in service.asked] == [SyncVolumes, CheckVolumes, PrepareVolumes]

    asyncio.run(scenario())


@pytest.mark.parametrize("verb", ["check", "prepare"])
def test_who_asks_for_the_volume_of_an_ended_job_waits_until_it_has_left(verb: str) -> None:
    """The end of a job is known before its volumes are released. A job that has not ended is not waited for."""

    async def scenario() -> None:
        async with both() as (volumes, service):
            first, second = new_job_id(), new_job_id()
            await volumes.prepare(first, "ann", IDENTITY, (DATA,))
            del service.asked[:]
            in_use = precondition(f"in use by job {first}")

            async def ask() -> None:
                if verb == "check":
                    await volumes.check("ann", (DATA,))
                else:
                    await volumes.prepare(second, "ann", IDENTITY, (DATA,))

            service.refusals = [in_use]
            with pytest.raises(JobletError, match="in use"):
                await ask()
            assert len(service.asked) == 1
            service.refusals = [in_use]
            volumes.leaving(first)
            waiting = asyncio.create_task(ask())
            await await_for(lambda: not service.refusals, what="the refusal")
            await asyncio.sleep(0.05)
            assert not waiting.done()
            await volumes.release(first)
            await waiting
            assert isinstance(service.asked[-2], ReleaseVolumes)

    asyncio.run(scenario())


def test_an_ended_job_that_does_not_leave_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processes may be stuck in the kernel: the refusal is told then."""
    monkeypatch.setattr("services.executor.volumes.LEAVE_S_MAX", 0.05)

    async def scenario() -> None:
        async with both() as (volumes, service):
            first = new_job_id()
            await volumes.prepare(first, "ann", IDENTITY, (DATA,))
            volumes.leaving(first)
            service.refusals = [precondition("in use"), precondition("still in use")]
            with pytest.raises(JobletError, match="still in use"):
                await volumes.check("ann", (DATA,))

    asyncio.run(scenario())


@pytest.mark.requirement("S1.49")
def test_a_launch_waits_while_the_service_is_started_again() -> None:
    """Whether it answers that it is not ready, or what was asked is lost with it."""

    async def scenario() -> None:
        async with both() as (volumes, service):
            service.refusals = [unavailable("starting"), unavailable("starting")]
            await volumes.prepare(new_job_id(), "ann", IDENTITY, (DATA,))
            service.silent = {PrepareVolumes}
            waiting = asyncio.create_task(volumes.prepare(new_job_id(), "ann", IDENTITY, (DATA,)))
            await await_for(lambda: len(service.of(PrepareVolumes)) == 4, what="the request that is lost")
            service.silent = set()
            assert len(await waiting) == 1

    asyncio.run(scenario())


def test_a_service_that_stays_away_fails_the_launch_and_is_told_of_its_end() -> None:
    """UNAVAILABLE, in bounded time; nobody knows whether the request arrived, so the end is told."""

    async def scenario() -> None:
        async with both() as (volumes, service):
            service.silent = {PrepareVolumes}
            job = new_job_id()
            with pytest.raises(JobletError) as raised:
                await volumes.prepare(job, "ann", IDENTITY, (DATA,))
            assert raised.value.reason is Reason.UNAVAILABLE
            assert 2 <= len(service.of(PrepareVolumes)) <= 6
            await volumes.release(job)
            assert service.of(ReleaseVolumes) == [ReleaseVolumes(job=job)]

    asyncio.run(scenario())


def test_other_volumes_than_asked_for_are_not_taken() -> None:
    """Order and options are what was asked for: nothing is bound in a place where it does not belong."""

    async def scenario() -> None:
        async with both() as (volumes, service):
            service.other = (as_prepared(VolumeMount(name="data", path="/other")),)
            job = new_job_id()
            with pytest.raises(JobletError, match="other volumes"):
                await volumes.prepare(job, "ann", IDENTITY, (DATA,))
            await volumes.release(job)
            assert service.users == {}

    asyncio.run(scenario())


@pytest.mark.requirement("S1.7")
def test_a_release_is_repeated_until_it_is_heard() -> None:
    """Over a service that is away and comes back; it never raises."""

    async def scenario() -> None:
        transport = Memory()
        service = FakeService(transport)
        async with asking(transport) as volumes:
            async with service.serving():
                jobs = [new_job_id() for _ in range(3)]
                for job in jobs:
                    await volumes.prepare(job, "ann", IDENTITY, (DATA,))
                service.silent = {ReleaseVolumes}
                await asyncio.gather(*(volumes.release(job) for job in jobs))
                assert set(service.users) == set(jobs)
            service.silent = set()
            service.refusals = [unavailable("starting")]
            async with service.serving():
                await await_for(lambda: not service.users, what="all releases")
                assert volumes._unheard == {}

    asyncio.run(scenario())


def test_a_release_that_always_fails_holds_up_no_other() -> None:
    """The service has a bug with one job: the others' releases are heard."""

    async def scenario() -> None:
        async with both() as (volumes, service):
            jobs = [new_job_id() for _ in range(3)]
            for job in jobs:
                await volumes.prepare(job, "ann", IDENTITY, (DATA,))
            service.failing = jobs[0]
            service.refusals = [unavailable("starting")] * 2
            for job in jobs:
                await volumes.release(job)
            await await_for(lambda: set(service.users) == {jobs[0]}, what="the releases of the others")

    asyncio.run(scenario())


def test_one_volume_of_a_job_can_be_released() -> None:
    """Also of a job that this process did not prepare any for; what else it has stays until its end."""

    async def scenario() -> None:
        async with both() as (volumes, service):
            job, volume = new_job_id(), new_volume_id()
            await volumes.release(job, volume)
            await volumes.prepare(job, "ann", IDENTITY, (DATA,))
            await volumes.release(job, volume)
            await volumes.release(job)
            one, all_of_it = ReleaseVolumes(job=job, volume=volume), ReleaseVolumes(job=job)
            assert service.of(ReleaseVolumes) == [one, one, all_of_it]

    asyncio.run(scenario())


def test_a_release_of_before_does_not_take_what_the_job_has_again() -> None:
    """Detached while the service did not hear it, attached again when it did: nobody repeats that release."""

    async def scenario() -> None:
        async with both() as (volumes, service):
            job = new_job_id()
            service.other = (as_prepared(DATA),)
            (first,) = await volumes.prepare(job, "ann", IDENTITY, (DATA,))
            service.refusals = [unavailable("starting")]
            await volumes.release(job, first.id)
            assert list(volumes._unheard) == [(job, first.id)]
            await volumes.prepare(job, "ann", IDENTITY, (DATA,))
            assert volumes._unheard == {}

    asyncio.run(scenario())


def test_a_release_that_is_under_way_does_not_take_what_the_job_has_again() -> None:
    """It was lost with the service, which shows only after the volume is attached again. A later one is repeated."""

    async def scenario() -> None:
        async with both() as (volumes, service):
            job = new_job_id()
            service.other = (as_prepared(DATA),)
            (first,) = await volumes.prepare(job, "ann", IDENTITY, (DATA,))
            service.silent = {ReleaseVolumes}
            lost = asyncio.create_task(volumes.release(job, first.id))
            await await_for(lambda: service.of(ReleaseVolumes), what="the release that is lost")
            service.silent = set()
            await volumes.prepare(job, "ann", IDENTITY, (DATA,))
            await lost
            assert volumes._unheard == {}
            assert job in service.users
            service.refusals = [unavailable("starting")]
            await volumes.release(job, first.id)
            await await_for(lambda: job not in service.users, what="the release that was not heard")

    asyncio.run(scenario())


def test_a_release_that_was_heard_is_not_taken_for_a_later_one() -> None:
    """The answer comes when the volume was attached and detached again, and nobody heard of the second time."""

    async def scenario() -> None:
        async with both() as (volumes, service):
            job = new_job_id()
            service.other = (as_prepared(DATA),)
            (first,) = await volumes.prepare(job, "ann", IDENTITY, (DATA,))
            service.gates[job] = gate = asyncio.Event()
            slow = asyncio.create_task(volumes.release(job, first.id))
            await await_for(lambda: service.of(ReleaseVolumes), what="the release whose answer is late")
            del service.gates[job]
            await volumes.prepare(job, "ann", IDENTITY, (DATA,))
            service.silent = {ReleaseVolumes}
            again = asyncio.create_task(volumes.release(job, first.id))
            await await_for(lambda: len(service.of(ReleaseVolumes)) == 2, what="the release that is lost")
            gate.set()
            await asyncio.gather(slow, again)
            assert list(volumes._unheard) == [(job, first.id)]

    asyncio.run(scenario())


def test_releases_that_are_repeated_take_nothing_that_a_job_has_again() -> None:
    """While another's is heard the job gets the volume again; and while it is asked for, nothing of it is released."""

    async def scenario() -> None:
        async with both() as (volumes, service):
            other, job = new_job_id(), new_job_id()
            service.other = (as_prepared(DATA),)
            await volumes.prepare(other, "ann", IDENTITY, (DATA,))
            (first,) = await volumes.prepare(job, "ann", IDENTITY, (DATA,))
            service.refusals = [unavailable("starting")] * 2
            service.gates = {other: asyncio.Event(), job: asyncio.Event()}
            await volumes.release(other)
            await volumes.release(job, first.id)
            await await_for(lambda: len(service.of(ReleaseVolumes)) == 3, what="the other's release, repeated")
            attaching = asyncio.create_task(volumes.prepare(job, "ann", IDENTITY, (DATA,)))
            await await_for(lambda: len(service.of(PrepareVolumes)) == 3, what="the volume asked for again")
            service.gates[other].set()
            await await_for(lambda: other not in service.users, what="the other's release")
            await asyncio.sleep(0.05)
            service.gates[job].set()
            await attaching
            await asyncio.sleep(0.05)
            assert job in service.users
            assert volumes._unheard == {}

    asyncio.run(scenario())


def test_a_job_that_left_without_a_volume_is_waited_for_no_more() -> None:
    """It ended while it was refused one: nothing is released then, and nobody may wait for that."""

    async def scenario() -> None:
        async with both() as (volumes, service):
            job = new_job_id()
            service.gates[job] = asyncio.Event()
            attaching = asyncio.create_task(volumes.prepare(job, "ann", IDENTITY, (DATA,)))
            await await_for(lambda: service.of(PrepareVolumes), what="the request")
            volumes.leaving(job)
            service.failing = job
            service.gates[job].set()
            with pytest.raises(JobletError):
                await attaching
            await volumes.release(job)
            began = asyncio.get_running_loop().time()
            service.refusals = [precondition("in use by job x")]
            with pytest.raises(JobletError, match="in use"):
                await volumes.check("ann", (DATA,))
            assert asyncio.get_running_loop().time() - began < 1
            assert len(service.of(CheckVolumes)) == 1

    asyncio.run(scenario())


@pytest.mark.requirement("S1.31")
def test_the_service_learns_at_the_start_who_has_volumes() -> None:
    """Those that were kept, whose volumes stay; what others had is released."""

    async def scenario() -> None:
        transport = Memory()
        service = FakeService(transport)
        ours, gone = new_job_id(), new_job_id()
        service.users = {ours: (DATA,), gone: (CACHE,)}
        async with service.serving(), asking(transport, before=lambda volumes: volumes.keep(ours)) as volumes:
            await await_for(lambda: service.of(SyncVolumes), what="the sync")
            assert service.of(SyncVolumes) == [SyncVolumes(jobs=(ours,))]
            assert set(service.users) == {ours}
            await volumes.release(ours)
            assert service.users == {}

    asyncio.run(scenario())


def test_a_job_is_on_the_list_from_before_it_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync that overtakes the answer takes nothing from a job whose launch is under way."""
    monkeypatch.setattr("services.executor.volumes.SYNC_S", 0.01)

    async def scenario() -> None:
        async with both() as (volumes, service):
            service.silent = {PrepareVolumes}
            job = new_job_id()
            preparing = asyncio.create_task(volumes.prepare(job, "ann", IDENTITY, (DATA,)))
            await await_for(lambda: SyncVolumes(jobs=(job,)) in service.asked, what="a sync that names the job")
            preparing.cancel()
            await asyncio.gather(preparing, return_exceptions=True)

    asyncio.run(scenario())


def test_where_no_service_is_volumes_are_refused() -> None:
    """By a typed error that says what to do; everything else is allowed, and does nothing."""

    async def scenario() -> None:
        volumes = NoVolumes()
        await volumes.check("ann", ())
        assert await volumes.prepare(new_job_id(), "ann", IDENTITY, ()) == ()
        volumes.keep(new_job_id())
        await volumes.release(new_job_id())
        for asked in (volumes.check("ann", (DATA,)), volumes.prepare(new_job_id(), "ann", IDENTITY, (DATA,))):
            with pytest.raises(JobletError) as raised:
                await asked
            assert raised.value.reason is Reason.UNIMPLEMENTED
            assert raised.value.detail

    asyncio.run(scenario())


# The commands


@pytest.mark.parametrize("reason", list(Reason))
@pytest.mark.parametrize("later", [False, True])
def test_what_would_fail_at_the_launch_is_refused_at_once(tmp_path: Path, reason: Reason, *, later: bool) -> None:
    """As it is, and nothing is recorded. What is in use now may be free when a job starts that is to start later."""

    async def scenario() -> None:
        volumes = FakeVolumes()
        volumes.refused["data"] = JobletError(reason, "volume data is in use by job x", detail="wait")
        async with running_node(node_settings(tmp_path), Memory(), volumes=volumes) as node:
            start_at_ns = node.executor.commands.clock_ns() + 10**12 if later else 0
            spec = JobSpec(command="true", volumes=(DATA,), start_at_ns=start_at_ns)
            asked = node.ask.request(RunJob(owner="ann", spec=spec), JobAccepted)
            if later and reason is Reason.PRECONDITION:
                assert (await asked).job.state is State.SCHEDULED
            else:
                with pytest.raises(JobletError) as raised:
                    await asked
                assert (raised.value.reason, raised.value.detail) == (reason, "wait")
                assert list(node.executor.store.unended()) == []
            assert volumes.checked == [("ann", (DATA,))]

    asyncio.run(scenario())


def test_a_plan_asks_for_no_volume(tmp_path: Path) -> None:
    """It may not exist yet."""

    async def scenario() -> None:
        volumes = FakeVolumes()
        volumes.refused["data"] = not_found("no volume data")
        async with running_node(node_settings(tmp_path), Memory(), volumes=volumes) as node:
            spec = JobSpec(command="true", volumes=(DATA,))
            await node.ask.request(PlanJob(owner="ann", spec=spec), JobPlan)
            with pytest.raises(JobletError, match="twice"):
                await node.ask.request(
                    PlanJob(owner="ann", spec=JobSpec(command="true", volumes=(DATA, DATA))), JobPlan
                )
            assert volumes.checked == []

    asyncio.run(scenario())


def test_a_launch_that_gets_no_volume_fails_with_the_reason(tmp_path: Path) -> None:
    """Somebody else was first: the job is FAILED, and says who has it."""

    async def scenario() -> None:
        async with running_node(node_settings(tmp_path), Memory()) as node:
            node.host.fail_launch = precondition("volume data is in use by job x", "wait for its end")
            spec = JobSpec(command="true", volumes=(DATA,))
            job = (await node.ask.request(RunJob(owner="ann", spec=spec), JobAccepted)).job.id
            record = await in_state(node, job, State.FAILED)
            assert "in use by job x" in record.reason
            await await_for(lambda: job in node.host.cleaned, what="the cleanup, which releases")

    asyncio.run(scenario())


# The launch and the end


class FakeLauncher:
    """Remembers tasks; begins nothing."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    async def begin(self, task: Task, *, network: int | None = None) -> Begun:  # noqa: ARG002
        """See launching.Launcher."""
        self.tasks.append(task)
        raise unavailable("no launcher here")

    async def finish(self, begun: Begun, task: Task) -> int:  # noqa: ARG002
        """See launching.Launcher."""
        raise AssertionError("nothing was begun")


class SeenDriver(MemoryDriver):
    """Remembers the devices of its plans."""

    devices: tuple[str, ...] = ()

    def plan(self, job: JobId, limits: Limits, *, devices: tuple[str, ...] = ()) -> CgroupPlan:
        """See CgroupDriver.plan."""
        self.devices = devices
        return super().plan(job, limits, devices=devices)


def launching(
    tmp_path: Path, volumes: FakeVolumes, launcher: FakeLauncher, driver: MemoryDriver
) -> tuple[KernelLaunches, Layout]:
    """Launches that end at the launcher."""
    settings = Settings(joblet=Joblet(base_dir=str(tmp_path)))
    layout = layout_of(settings)
    layout.jobs.mkdir()
    traces = KernelTraces(Cleanup(driver, layout), RootlessNetworks(), volumes)
    launches = KernelLaunches(
        launcher=launcher,
        driver=driver,
        identities=lambda _: IDENTITY,
        networks=RootlessNetworks(),
        rootfs=Rootfs(settings.joblet.jobs),
        cleans=traces,
        volumes=volumes,
        rootless=True,
        settings=settings,
        layout=layout,
    )
    return launches, layout


def record_of(**spec: Any) -> JobRecord:
    """A job that is to be launched."""
    return JobRecord(
        id=new_job_id(),
        owner="ann",
        node_id="n",
        state=State.STARTING,
        spec=JobSpec(command="true", **spec),
        created_at_ns=0,
    )


NO_SECRETS: Mapping[str, str] = {}


def test_a_launch_has_its_volumes_prepared_first(tmp_path: Path) -> None:
    """The task names their places; without them no group is made and nothing is begun. A plan prepares none."""

    async def scenario() -> None:
        volumes, launcher, driver = FakeVolumes(), FakeLauncher(), SeenDriver()
        launches, _ = launching(tmp_path, volumes, launcher, driver)
        record = record_of(volumes=(DATA,))
        assert any("volume data" in line for line in launches.describe(record))
        assert volumes.checked == []
        with pytest.raises(JobletError, match="no launcher here"):
            await launches.launch(Job(record=record), NO_SECRETS)
        assert list(volumes.having) == [record.id]
        (task,) = launcher.tasks
        assert [step.source for step in task.preparation if isinstance(step, OpenVolume)] == ["/volumes/data"]
        volumes.refused["data"] = precondition("in use by job x")
        other = record_of(volumes=(DATA,))
        with pytest.raises(JobletError, match="in use by job x"):
            await launches.launch(Job(record=other), NO_SECRETS)
        assert driver.present() == {record.id}
        assert len(launcher.tasks) == 1
        await launches.spares.close()

    asyncio.run(scenario())


@pytest.mark.requirement("S1.37")
def test_limits_of_input_and_output_count_for_the_disks_of_volumes(tmp_path: Path) -> None:
    """Whole disks: of a partition its disk. A device that this kernel does not have is none."""
    disks = sorted(Path("/sys/block").iterdir())
    if not disks:
        pytest.skip("this host shows no block device")
    device = (disks[0] / "dev").read_text().strip()

    class OnDisk(FakeVolumes):
        async def prepare(self, *arguments: Any) -> tuple[PreparedVolume, ...]:
            prepared = await super().prepare(*arguments)
            devices = (device, "", "4095:7")
            return tuple(
                PreparedVolume(id=each.id, mount=each.mount, source=each.source, root=each.root, device=of)
                for each, of in zip(prepared, devices, strict=True)
            )

    async def scenario() -> None:
        driver = SeenDriver()
        launches, _ = launching(tmp_path, OnDisk(), FakeLauncher(), driver)
        record = record_of(volumes=(DATA, CACHE, VolumeMount(name="third", path="/third")))
        with pytest.raises(JobletError):
            await launches.launch(Job(record=record), NO_SECRETS)
        assert driver.devices == (device,)
        await launches.spares.close()

    asyncio.run(scenario())


def test_a_job_that_was_launched_before_keeps_its_volumes(tmp_path: Path) -> None:
    """Also those that its spec does not name: they may have been attached."""

    async def scenario() -> None:
        volumes = FakeVolumes()
        launches, _ = launching(tmp_path, volumes, FakeLauncher(), MemoryDriver())
        records = [record_of(volumes=(DATA,)), record_of()]
        for record in records:
            launches.adopt(record)
        assert volumes.kept == [record.id for record in records]

    asyncio.run(scenario())


def test_volumes_are_released_when_every_process_is_gone(tmp_path: Path) -> None:
    """Not while a group holds one: who has the volume next must not meet it."""

    async def scenario() -> None:
        volumes, driver = FakeVolumes(), MemoryDriver(dying_removals=3)
        settings = Settings(joblet=Joblet(base_dir=str(tmp_path)))
        cleanup = Cleanup(driver, layout_of(settings), give_up_ms=0)
        traces = KernelTraces(cleanup, RootlessNetworks(), volumes)
        slow, quick = new_job_id(), new_job_id()
        driver.occupy(slow)
        assert await traces.end(quick)
        assert volumes.released == [(quick, None)]
        assert not await traces.end(slow)
        assert volumes.released == [(quick, None)]
        while cleanup.unfinished:
            assert volumes.released == [(quick, None)]
            await traces.retry()
        assert volumes.released == [(quick, None), (slow, None)]
        await traces.retry()
        assert len(volumes.released) == 2

    asyncio.run(scenario())
