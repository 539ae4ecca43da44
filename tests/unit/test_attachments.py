"""Volumes of running jobs, around the kernel: the order of the steps, and what holds whoever is killed between them."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.bus.events import Subscriber
from common.bus.memory import Memory
from common.errors import JobletError, Reason, invalid, not_found, precondition, unavailable
from common.identifiers import JobId, VolumeId, new_job_id, new_volume_id
from common.messages.jobs import (
    AttachVolume,
    DetachVolume,
    JobChanged,
    JobFound,
    JobRecord,
    JobSpec,
    State,
    VolumeMount,
)
from common.messages.volumes import PreparedVolume
from services.executor.attaching import Attaching
from services.executor.identity import JobIdentity
from services.executor.launcher.attach import Change, decode
from services.executor.mount_points import VOLUMES_MAX
from services.executor.rootless import own_identity
from tests.unit.executor_asking import got, in_state, launched
from tests.unit.executor_fakes import FakeMonitor, Node, node_settings, running_node
from tests.waiting import await_for

DATA: Final = VolumeMount(name="data", path="/volumes/data")
LOGS: Final = VolumeMount(name="logs", path="/work/logs", read_only=True)


class World:
    """See ports.Volumes and ports.Attachments: the volumes service and the jobs' mounts, which outlive an executor.

    `steps`: what was done, in order. `stop_at`: a step that waits for `goes_on`. `fail_at`: what a step raises.
    """

    def __init__(self) -> None:
        self.ids: dict[str, VolumeId] = {}
        self.uses: dict[JobId, set[str]] = {}
        self.mounted: dict[JobId, set[str]] = {}
        self.steps: list[str] = []
        self.stop_at = ""
        self.goes_on = asyncio.Event()
        self.fail_at: dict[str, JobletError] = {}
        self.at_step: Callable[[str], None] = lambda _: None
        self.changing = 0
        self.changing_max = 0

    async def _step(self, name: str) -> None:
        self.steps.append(name)
        self.at_step(name)
        if name == self.stop_at:
            self.steps.append("stopped")
            await self.goes_on.wait()
        if name in self.fail_at:
            raise self.fail_at[name]

    async def check(self, owner: str, mounts: tuple[VolumeMount, ...]) -> None:
        """See ports.Volumes."""

    async def prepare(
        self,
        job: JobId,
        owner: str,
        identity: JobIdentity,
        mounts: tuple[VolumeMount, ...],
    ) -> tuple[PreparedVolume, ...]:
        """See ports.Volumes."""
        assert (owner, identity) == ("ann", own_identity("ann"))
        await self._step("prepare")
        for mount in mounts:
            if any(mount.name in names for other, names in self.uses.items() if other != job):
                raise precondition(f"volume {mount.name} is in use", "wait")
            self.uses.setdefault(job, set()).add(mount.name)
        await self._step("prepared")
        return tuple(self._prepared(mount) for mount in mounts)

    def _prepared(self, mount: VolumeMount) -> PreparedVolume:
        volume = self.ids.setdefault(mount.name, new_volume_id())
        root = f"0:1:{len(mount.name)}"
        return PreparedVolume(id=volume, mount=mount, source=f"/base/{volume}/data", root=root, device="")

    def keep(self, job: JobId) -> None:
        """See ports.Volumes."""

    def leaving(self, job: JobId) -> None:
        """See ports.Volumes."""

    async def release(self, job: JobId, volume: VolumeId | None = None) -> None:
        """See ports.Volumes."""
        await self._step("release")
        for name in [name for name in self.uses.get(job, ()) if volume in (None, self.ids[name])]:
            self.uses[job].remove(name)

    @contextmanager
    def _change(self) -> Iterator[None]:
        self.changing += 1
        self.changing_max = max(self.changing, self.changing_max)
        try:
            yield
        finally:
            self.changing -= 1

    async def attach(self, job: JobId, job_pid: int, prepared: PreparedVolume, identity: JobIdentity) -> None:
        """See ports.Attachments."""
        assert (job_pid, identity) == (4711, own_identity("ann"))
        with self._change():
            await self._step("mount")
            await asyncio.sleep(0)
            self.mounted.setdefault(job, set()).add(prepared.mount.name)
            await self._step("mounted")

    async def detach(self, job: JobId, job_pid: int, prepared: PreparedVolume, *, force: bool) -> None:
        """See ports.Attachments."""
        assert job_pid == 4711
        with self._change():
            await self._step("force unmount" if force else "unmount")
            await asyncio.sleep(0)
            if prepared.mount.name not in self.mounted.get(job, ()):
                raise not_found(f"volume {prepared.mount.name} is not mounted")
            self.mounted[job].remove(prepared.mount.name)
            await self._step("unmounted")


def test_a_volume_is_prepared_recorded_mounted_and_back(tmp_path: Path) -> None:
    """The record that is durable has it before it is mounted, and until it is unmounted; each change is announced."""

    async def scenario() -> None:
        world, transport = World(), Memory()
        changes = Subscriber(transport)
        changes.subscribe("job.")
        async with running_node(node_settings(tmp_path), transport, volumes=world, attachments=world) as node:
            job, _ = await running(node)
            world.at_step = lambda step: states.append((step, stored(node, job)))
            states: list[tuple[str, tuple[str, ...]]] = []
            assert (await attach(node, job, DATA)).spec.volumes == (DATA,)
            assert (await attach(node, job, LOGS)).spec.volumes == (DATA, LOGS)
            assert (await detach(node, job, "data")).spec.volumes == (LOGS,)
            assert states == [
                *(("prepare", ()), ("prepared", ()), ("mount", ("data",)), ("mounted", ("data",))),
                *(("prepare", ("data",)), ("prepared", ("data",))),
                *(("mount", ("data", "logs")), ("mounted", ("data", "logs"))),
                *(("prepare", ("data", "logs")), ("prepared", ("data", "logs"))),
                *(("unmount", ("data", "logs")), ("unmounted", ("data", "logs")), ("release", ("logs",))),
            ]
            assert (await got(node, job)).spec.volumes == (LOGS,)
            seen: list[tuple[VolumeMount, ...]] = []
            messages = changes.messages()
            while seen[-3:] != [(DATA,), (DATA, LOGS), (LOGS,)]:
                _, message = await asyncio.wait_for(anext(messages), 30)
                assert isinstance(message.body, JobChanged)
                seen.append(message.body.job.spec.volumes)
        changes.close()

    asyncio.run(scenario())


def test_only_running_jobs_get_and_leave_volumes(tmp_path: Path) -> None:
    """Before its start, after its end and without a record: refused before anything is asked of others."""

    async def scenario() -> None:
        world = World()
        async with running_node(node_settings(tmp_path), Memory(), volumes=world, attachments=world) as node:
            early, _ = await launched(node)
            over, monitor = await running(node)
            monitor.exit()
            await in_state(node, over, State.COMPLETED)
            for job, reason in (
                (early, Reason.PRECONDITION),
                (over, Reason.PRECONDITION),
                (new_job_id(), Reason.NOT_FOUND),
            ):
                for request in (attach(node, job, DATA), detach(node, job, "data")):
                    with pytest.raises(JobletError) as refused:
                        await request
                    assert (refused.value.reason, bool(refused.value.detail)) == (reason, True)
            assert not [step for step in world.steps if step != "release"]

    asyncio.run(scenario())


def test_what_a_job_has_is_refused_or_the_same(tmp_path: Path) -> None:
    """The same mount: the same answer. The name at another path, the path for another name: refused."""

    async def scenario() -> None:
        world = World()
        async with running_node(node_settings(tmp_path), Memory(), volumes=world, attachments=world) as node:
            job, _ = await running(node)
            first = await attach(node, job, DATA)
            assert await attach(node, job, DATA) == first
            world.steps.clear()
            for mount in (
                VolumeMount(name="data", path="/volumes/other"),
                VolumeMount(name="data", path="/volumes/data", read_only=True),
                VolumeMount(name="other", path="/volumes/data"),
            ):
                with pytest.raises(JobletError, match="has the volume data") as refused:
                    await attach(node, job, mount)
                assert (refused.value.reason, world.steps) == (Reason.PRECONDITION, [])
            with pytest.raises(JobletError, match="has no volume other") as unknown:
                await detach(node, job, "other")
            assert (unknown.value.reason, world.steps) == (Reason.NOT_FOUND, [])
            assert agreed(world, node, job, {"data"})

    asyncio.run(scenario())


def test_a_job_has_a_bounded_number_of_volumes(tmp_path: Path) -> None:
    """One more than the most is refused, whenever it comes."""

    async def scenario() -> None:
        world = World()
        async with running_node(node_settings(tmp_path), Memory(), volumes=world, attachments=world) as node:
            job, _ = await running(node)
            for number in range(VOLUMES_MAX):
                await attach(node, job, VolumeMount(name=f"v{number}", path=f"/volumes/v{number}"))
            with pytest.raises(JobletError, match=f"has {VOLUMES_MAX} volumes"):
                await attach(node, job, DATA)
            await detach(node, job, "v7")
            await attach(node, job, DATA)

    asyncio.run(scenario())


@pytest.mark.threat("D25")
@pytest.mark.parametrize(
    "path",
    [
        *("", "data", "/", "/volumes", "/volumes/", "/volumes/../etc", "/work//x", "/work/./x", "/work/x/"),
        *("/proc/x", "/etc/x", "/dev/shm/x", "/usr/x", "/work/\0", "/work/\n", "/work/\udcff"),
        *("/work/" + 256 * "x", "/work" + 1000 * "/abcd"),
    ],
)
def test_paths_that_cannot_be_are_refused(tmp_path: Path, path: str) -> None:
    """By the words alone, with a repair: nothing is asked of anybody."""

    async def scenario() -> None:
        world = World()
        async with running_node(node_settings(tmp_path), Memory(), volumes=world, attachments=world) as node:
            job, _ = await running(node)
            with pytest.raises(JobletError) as refused:
                await node.executor.commands.attaching.attach(job, VolumeMount(name="data", path=path))
            assert (refused.value.reason, bool(refused.value.detail)) == (Reason.INVALID, True)
            assert not world.steps

    asyncio.run(scenario())


@pytest.mark.parametrize(("step", "known"), [("prepare", False), ("mount", True)])
def test_an_attach_that_fails_leaves_nothing(tmp_path: Path, step: str, known: bool) -> None:  # noqa: FBT001
    """The reason is told; the job does not have the volume, and another may."""

    async def scenario() -> None:
        world = World()
        async with running_node(node_settings(tmp_path), Memory(), volumes=world, attachments=world) as node:
            job, _ = await running(node)
            world.fail_at = {step: invalid("there is no such directory", "use another")}
            with pytest.raises(JobletError, match="no such directory"):
                await attach(node, job, DATA)
            assert agreed(world, node, job, set())
            assert ("release" in world.steps) == known
            assert "force unmount" not in world.steps
            world.fail_at = {}
            other, _ = await running(node)
            await attach(node, other, DATA)

    asyncio.run(scenario())


def test_an_attach_again_that_fails_takes_nothing_away(tmp_path: Path) -> None:
    """The job had it before, and has it still."""

    async def scenario() -> None:
        world = World()
        async with running_node(node_settings(tmp_path), Memory(), volumes=world, attachments=world) as node:
            job, _ = await running(node)
            await attach(node, job, DATA)
            for error in (unavailable("no answer", "look"), precondition("something is there", "look")):
                world.fail_at = {"mount": error}
                with pytest.raises(JobletError):
                    await attach(node, job, DATA)
            assert agreed(world, node, job, {"data"})

    asyncio.run(scenario())


@pytest.mark.parametrize("done", [False, True])
def test_an_attach_without_an_answer_is_taken_back(tmp_path: Path, done: bool) -> None:  # noqa: FBT001
    """Nobody knows whether it was mounted: it is unmounted before another job can have it."""

    async def scenario() -> None:
        world = World()
        async with running_node(node_settings(tmp_path), Memory(), volumes=world, attachments=world) as node:
            job, _ = await running(node)
            world.fail_at = {"mounted" if done else "mount": unavailable("no answer", "look")}
            with pytest.raises(JobletError, match="no answer"):
                await attach(node, job, DATA)
            assert agreed(world, node, job, set())
            assert world.steps[-2:] == (["unmounted", "release"] if done else ["force unmount", "release"])

    asyncio.run(scenario())


def test_what_cannot_be_taken_back_stays_told(tmp_path: Path) -> None:
    """It may be mounted: then the record says so, nobody else gets it, and a detach mends it."""

    async def scenario() -> None:
        world = World()
        async with running_node(node_settings(tmp_path), Memory(), volumes=world, attachments=world) as node:
            job, _ = await running(node)
            no_answer = unavailable("no answer", "look")
            world.fail_at = {"mounted": no_answer, "force unmount": no_answer}
            with pytest.raises(JobletError, match="no answer"):
                await attach(node, job, DATA)
            assert agreed(world, node, job, {"data"})
            world.fail_at = {}
            await detach(node, job, "data")
            assert agreed(world, node, job, set())

    asyncio.run(scenario())


def test_a_busy_volume_stays(tmp_path: Path) -> None:
    """Record, use and mount are as they were."""

    async def scenario() -> None:
        world = World()
        async with running_node(node_settings(tmp_path), Memory(), volumes=world, attachments=world) as node:
            job, _ = await running(node)
            await attach(node, job, DATA)
            world.fail_at = {"unmount": precondition("something is open", "close it")}
            with pytest.raises(JobletError, match="something is open"):
                await detach(node, job, "data")
            assert agreed(world, node, job, {"data"})
            assert (await detach(node, job, "data", force=True)).spec.volumes == ()
            assert agreed(world, node, job, set())

    asyncio.run(scenario())


def test_a_volume_of_the_jobs_start_can_be_detached(tmp_path: Path) -> None:
    """It is in the record, and that is all that is asked."""

    async def scenario() -> None:
        world = World()
        async with running_node(node_settings(tmp_path), Memory(), volumes=world, attachments=world) as node:
            job, _ = await running(node, spec=JobSpec(command="true", volumes=(DATA,)))
            world.mounted[job], world.uses[job] = {"data"}, {"data"}
            await detach(node, job, "data")
            assert agreed(world, node, job, set())

    asyncio.run(scenario())


@pytest.mark.parametrize(("step", "words"), [("prepared", "is completed"), ("mount", "has ended")])
def test_a_job_that_ends_meanwhile_has_no_volume(tmp_path: Path, step: str, words: str) -> None:
    """All that it had was released at its end: what was prepared for it after that is released by itself."""

    async def scenario() -> None:
        world = World()
        async with running_node(node_settings(tmp_path), Memory(), volumes=world, attachments=world) as node:
            job, monitor = await running(node)
            world.stop_at = step
            world.fail_at = {"mount": precondition("the job has ended", "it is over")}
            asked = asyncio.create_task(attach(node, job, DATA))
            await await_for(lambda: world.steps[-1:] == ["stopped"], what="the step")
            monitor.exit()
            await in_state(node, job, State.COMPLETED)
            world.goes_on.set()
            with pytest.raises(JobletError, match=words):
                await asked
            assert (world.uses[job], job in world.mounted) == (set(), False)
            assert world.steps[-1] == "release"

    asyncio.run(scenario())


@pytest.mark.threat("F01")
@pytest.mark.parametrize("step", ["prepare", "prepared", "mount", "mounted"])
def test_an_executor_killed_in_an_attach_leaves_what_can_be_mended(tmp_path: Path, step: str) -> None:
    """Nothing is mounted that the record does not have, nothing recorded without a use; and the same again mends it."""

    async def scenario() -> None:
        settings, world, transport = node_settings(tmp_path), World(), Memory()
        async with running_node(settings, transport, volumes=world, attachments=world) as node:
            job, _ = await running(node)
            await killed_at(step, world, attach(node, job, DATA))
            host = node.host
        world.stop_at = ""
        async with running_node(settings, transport, host, volumes=world, attachments=world) as node:
            recorded = set(stored(node, job))
            assert world.mounted.get(job, set()) <= recorded <= world.uses.get(job, set())
            await attach(node, job, DATA)
            assert agreed(world, node, job, {"data"})
            await detach(node, job, "data")
            assert agreed(world, node, job, set())

    asyncio.run(scenario())


@pytest.mark.threat("F01")
@pytest.mark.parametrize("step", ["prepare", "prepared", "unmount", "unmounted"])
def test_an_executor_killed_in_a_detach_leaves_what_can_be_mended(tmp_path: Path, step: str) -> None:
    """The record has it as long as it may be mounted; the same again finds that it is not."""

    async def scenario() -> None:
        settings, world, transport = node_settings(tmp_path), World(), Memory()
        async with running_node(settings, transport, volumes=world, attachments=world) as node:
            job, _ = await running(node)
            await attach(node, job, DATA)
            await killed_at(step, world, detach(node, job, "data"))
            host = node.host
        world.stop_at = ""
        async with running_node(settings, transport, host, volumes=world, attachments=world) as node:
            assert world.mounted[job] <= set(stored(node, job)) == world.uses[job] == {"data"}
            await detach(node, job, "data")
            assert agreed(world, node, job, set())

    asyncio.run(scenario())


def test_an_executor_killed_before_the_release_leaves_a_use_only(tmp_path: Path) -> None:
    """Not mounted, not recorded; the job can have it again, and its end releases it."""

    async def scenario() -> None:
        settings, world, transport = node_settings(tmp_path), World(), Memory()
        async with running_node(settings, transport, volumes=world, attachments=world) as node:
            job, _ = await running(node)
            await attach(node, job, DATA)
            await killed_at("release", world, detach(node, job, "data"))
            host = node.host
        world.stop_at = ""
        async with running_node(settings, transport, host, volumes=world, attachments=world) as node:
            assert (world.mounted[job], stored(node, job), world.uses[job]) == (set(), (), {"data"})
            await attach(node, job, DATA)
            assert agreed(world, node, job, {"data"})

    asyncio.run(scenario())


def test_changes_of_one_job_come_one_after_the_other(tmp_path: Path) -> None:
    """However many ask at once; other jobs do not wait for it, and at the end everything agrees."""

    async def scenario() -> None:
        world = World()
        async with running_node(node_settings(tmp_path), Memory(), volumes=world, attachments=world) as node:
            job, _ = await running(node)
            asked = [attach(node, job, DATA), detach(node, job, "data"), attach(node, job, LOGS)] * 10
            outcomes = await asyncio.gather(*asked, return_exceptions=True)
            assert not [each for each in outcomes if not isinstance(each, JobRecord | JobletError)]
            assert world.changing_max == 1
            assert agreed(world, node, job, set(stored(node, job)))
            other, _ = await running(node)
            world.stop_at = "mount"
            blocked = asyncio.create_task(attach(node, other, VolumeMount(name="x", path="/volumes/x")))
            await await_for(lambda: world.steps[-1:] == ["stopped"], what="the step")
            world.stop_at = ""
            await attach(node, job, VolumeMount(name="y", path="/volumes/y"))
            blocked.cancel()
            await asyncio.gather(blocked, return_exceptions=True)

    asyncio.run(scenario())


def test_without_a_durable_record_nothing_is_mounted(tmp_path: Path) -> None:
    """The disk takes nothing: the client is told after a while, and the volume is free again."""

    async def scenario() -> None:
        world = World()
        async with running_node(node_settings(tmp_path), Memory(), volumes=world, attachments=world) as node:
            job, _ = await running(node)
            attaching = attaching_of(node, world, durable_s_max=0.05)
            node.executor.store.connection.execute("PRAGMA query_only=ON")
            with pytest.raises(JobletError) as refused:
                await attaching.attach(job, DATA)
            node.executor.store.connection.execute("PRAGMA query_only=OFF")
            assert refused.value.reason is Reason.EXHAUSTED
            assert world.steps == ["prepare", "prepared", "release"]
            await await_for(node.executor.writer.flush, what="the disk")
            assert agreed(world, node, job, set())

    asyncio.run(scenario())


@given(
    st.builds(
        Change,
        root=st.text(),
        path=st.text(),
        source=st.text(),
        read_only=st.booleans(),
        uid=st.integers(0, 2**32),
        gid=st.integers(0, 2**32),
        force=st.booleans(),
    )
)
def test_a_change_survives_the_wire(change: Change) -> None:
    """Whatever is in its strings."""
    assert decode(change.encode()) == change


@pytest.mark.parametrize("encoded", [b"", b"[]", b'{"path": "/"}', b'{"root": "", "other": 1}', b"\xff", b"5"])
def test_what_is_no_change_is_refused(encoded: bytes) -> None:
    """Nothing is guessed."""
    with pytest.raises((TypeError, ValueError)):
        decode(encoded)


async def running(node: Node, spec: JobSpec | None = None) -> tuple[JobId, FakeMonitor]:
    """A job that runs, and its monitor."""
    job, monitor = await launched(node, spec=spec or JobSpec(command="true"))
    monitor.start()
    await in_state(node, job, State.RUNNING)
    return job, monitor


async def attach(node: Node, job: JobId, mount: VolumeMount) -> JobRecord:
    """What the executor answers."""
    return (await node.ask.request(AttachVolume(job=job, mount=mount), JobFound)).job


async def detach(node: Node, job: JobId, name: str, *, force: bool = False) -> JobRecord:
    """What the executor answers."""
    return (await node.ask.request(DetachVolume(job=job, volume=name, force=force), JobFound)).job


def attaching_of(node: Node, world: World, *, durable_s_max: float = 5.0) -> Attaching:
    """One on the node's records, with other neighbours."""
    return Attaching(
        jobs=node.executor.jobs,
        registry=node.executor.commands.registry,
        writer=node.executor.writer,
        volumes=world,
        attachments=world,
        limit=lambda _, prepared: world.steps.append(f"limit {prepared.mount.name}"),
        identities=own_identity,
        read_only_paths=(),
        clock_ns=lambda: 5,
        durable_s_max=durable_s_max,
    )


async def killed_at(step: str, world: World, asked: Coroutine[Any, Any, JobRecord]) -> None:
    """Ask, and go no further than `step`; the caller ends the executor."""
    world.stop_at = step
    world.steps.clear()
    task = asyncio.create_task(asked)
    await await_for(lambda: world.steps[-1:] == ["stopped"], what=step)
    task.cancel()


def stored(node: Node, job: JobId) -> tuple[str, ...]:
    """Names of the volumes in the job's record on the disk."""
    found = node.executor.store.get(job)
    assert found is not None
    return tuple(mount.name for mount in found.record.spec.volumes)


def agreed(world: World, node: Node, job: JobId, names: set[str]) -> bool:
    """Whether record, uses and mounts of the job are these."""
    return set(stored(node, job)) == world.uses.get(job, set()) == world.mounted.get(job, set()) == names
