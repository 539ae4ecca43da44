"""The service dies at every step of a volume's life and begins anew: nothing is lost, and nothing is left over."""

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.bus.memory import Memory
from common.errors import Reason
from common.identifiers import JobId, VolumeId, new_job_id, new_volume_id
from common.messages.volumes import (
    CloneVolume,
    CreateSnapshot,
    CreateVolume,
    DeleteSnapshot,
    DeleteVolume,
    Direction,
    Enforcement,
    ListSnapshots,
    ListVolumes,
    OpenVolumeStream,
    ReleaseVolumes,
    ResizeVolume,
    RestoreSnapshot,
    SnapshotList,
    SyncVolumes,
    VolumeFound,
    VolumeKind,
    VolumePage,
    VolumeRecord,
    VolumeStatus,
    VolumeUse,
)
from services.volumes.events import Volume, Work, WorkKind
from services.volumes.ports import Found
from services.volumes.reconcile import (
    Damage,
    LetGo,
    Mount,
    Recheck,
    Resume,
    Tell,
    Unmount,
    plan_reconciliation,
)
from services.volumes.service import Volumes
from tests.unit.volumes_fakes import (
    MIB,
    Clock,
    FakeDisk,
    FakeStreams,
    Killed,
    Node,
    OnDisk,
    make_service,
    prepare_request,
    refusal,
    running_volumes,
    volume_settings,
)

FILE = f"volume-stream-{'a' * 32}.sock"
JOB = new_job_id()


class Killer:
    """Kills at the n-th step, of those that have names and of calls of the storage alike."""

    def __init__(self, nth: int) -> None:
        self._left = nth
        self.place = ""

    def reached(self, place: str) -> None:
        """See failpoints.reached."""
        self._left -= 1
        if self.place or self._left == 0:
            self.place = self.place or place
            raise Killed(place)


class Story:
    """What was asked for and answered: this is what the next start has to keep."""

    def __init__(self) -> None:
        self.volumes: dict[VolumeId, str] = {}
        self.sizes: dict[VolumeId, int] = {}
        self.snapshots: dict[VolumeId, set[str]] = {}
        self.used: set[VolumeId] = set()
        self.going: set[VolumeId] = set()  # their removal was asked for

    async def run(self, service: Volumes, disk: FakeDisk) -> None:
        """Everything that can be done to volumes, one after the other."""
        ask: Callable[[Any], Any] = service.answer
        data = await self._made(ask(_create("data")), disk)
        memory = await self._made(ask(_create("memory", kind=VolumeKind.MEMORY)), disk)
        prepared = await ask(prepare_request("data", "memory", job=JOB))
        self.used |= {each.id for each in prepared.volumes}
        self.snapshots[data] = set()
        self.snapshots[data].add((await ask(CreateSnapshot(volume=data, name="s"))).snapshot.id)
        await self._made(ask(CloneVolume(volume=data, name="copy")), disk)
        await self._made(ask(CloneVolume(volume=data, name="older", snapshot="s")), disk)
        self.sizes[data] = (await ask(ResizeVolume(volume=data, size_bytes=3 * MIB))).volume.size_bytes
        self.used.clear()  # the release may have happened, or not
        await ask(ReleaseVolumes(job=JOB))
        await ask(RestoreSnapshot(volume=data, name="s"))
        await ask(OpenVolumeStream(volume=data, direction=Direction.EXPORT, file=FILE))
        await ask(OpenVolumeStream(volume=data, direction=Direction.EXPORT, file=FILE, snapshot="s"))
        self.snapshots[data].clear()
        await ask(DeleteSnapshot(volume=data, name="s"))
        for volume in (memory, data):
            self.going.add(volume)
            await ask(DeleteVolume(volume=volume))

    async def _made(self, making: Any, disk: FakeDisk) -> VolumeId:
        made = (await making).volume
        there_is = disk.volumes[made.id]
        there_is.content = there_is.content or b"of " + made.name.encode()
        self.volumes[made.id], self.sizes[made.id] = made.name, made.size_bytes
        return VolumeId(made.id)


def _create(name: str, kind: VolumeKind = VolumeKind.FILESYSTEM) -> CreateVolume:
    return CreateVolume(owner="ann", name=name, kind=kind, size_bytes=MIB, encrypted=kind is VolumeKind.FILESYSTEM)


async def live(base: Path, disk: FakeDisk, story: Story | None, killer: Killer) -> bool:
    """One life of the service, with or without a story. False: it was killed."""
    disk.watch = killer.reached
    settings, transport, streams = volume_settings(base), Memory(), FakeStreams()
    service = make_service(settings, disk, transport=transport, streams=streams, clock=Clock(), reached=killer.reached)
    try:
        await service.start()
        if story is not None:
            await story.run(service, disk)
    except Killed:
        return False
    finally:
        await service.close()
    return True


async def check_after(base: Path, disk: FakeDisk, story: Story) -> None:
    """What a service finds and shows that begins now."""
    disk.watch = Killer(0).reached
    async with running_volumes(volume_settings(base), disk) as node:
        shown = {each.id: each for each in (await _list(node)).volumes}
        assert disk.leftovers(set(shown)) == []
        assert {each.status for each in shown.values()} <= {VolumeStatus.AVAILABLE, VolumeStatus.IN_USE}
        for volume, name in story.volumes.items():
            assert volume in shown or volume in story.going, f"{name} is lost"
            if volume in shown:
                assert disk.volumes[volume].size_bytes == shown[volume].size_bytes
                assert shown[volume].size_bytes >= story.sizes[volume]
            if volume in shown and shown[volume].kind is VolumeKind.FILESYSTEM:
                assert disk.volumes[volume].content == b"of data", f"{name} has lost its content"
        assert set(shown) >= story.used
        for volume, record in shown.items():
            listed = await node.api.request(ListSnapshots(volume=volume), SnapshotList)
            known = {each.id for each in listed.snapshots}
            assert known == disk.volumes[volume].snapshots.keys(), "a copy without a record, or the reverse"
            assert known >= story.snapshots.get(volume, set()) or volume in story.going
            assert (volume in disk.mounted) == bool(record.uses)
            assert not (volume in story.used and not record.uses), "a job has lost its volume"
        await node.service.answer(SyncVolumes(jobs=()))
        for volume in shown:
            await node.service.answer(DeleteVolume(volume=volume))
        assert disk.leftovers(set()) == []
        assert disk.volumes == {}


async def _list(node: Node) -> VolumePage:
    return await node.api.request(ListVolumes(visible_owner=None), VolumePage)


@pytest.mark.requirement("S1.49")
@pytest.mark.threat("F10")
@pytest.mark.parametrize("again", [0, 1, 2, 4])
def test_killed_at_every_step(tmp_path: Path, again: int) -> None:
    """And, for `again`, killed once more while it takes up what the first one left."""
    places = set()

    async def one(nth: int) -> bool:
        base, disk, story, killer = tmp_path / str(nth), FakeDisk(), Story(), Killer(nth)
        ended = await live(base, disk, story, killer)
        places.add(killer.place)
        if again:
            await live(base, disk, None, Killer(again))
        await check_after(base, disk, story)
        return ended

    nth = 1
    while not asyncio.run(one(nth)):
        nth += 1
    assert {
        "volumes.recorded",
        "volumes.allocated",
        "volumes.formatted",
        "volumes.use_recorded",
        "volumes.device",
        "volumes.mounted",
        "volumes.unmounted",
        "volumes.released",
        "volumes.deleting",
        "volumes.removed",
        "volumes.frozen",
        "volumes.copied",
        "volumes.resized",
    } <= places


def record(status: VolumeStatus = VolumeStatus.AVAILABLE, *, used: bool = False) -> VolumeRecord:
    """A volume of 1 MiB."""
    uses = (VolumeUse(job=JOB, path="/x", read_only=False, since_ns=1),) if used else ()
    return VolumeRecord(
        id=new_volume_id(),
        name="data",
        owner="ann",
        kind=VolumeKind.FILESYSTEM,
        size_bytes=MIB,
        enforcement=Enforcement.IMAGE,
        status=status,
        created_at_ns=1,
        uses=uses,
    )


def nothing_but(volume: VolumeId, *, mounted: bool = False, attached: bool = False) -> Found:
    """What is found when this is the only volume."""
    only = frozenset({volume})
    return Found(only, only if mounted else frozenset(), only if attached else frozenset())


NOTHING = Found(frozenset(), frozenset(), frozenset())


def test_the_plan_for_what_no_record_explains() -> None:
    """Mounts and devices are let go, files told of; of a record that cannot be read nothing is touched."""
    volume = new_volume_id()
    found = nothing_but(volume, mounted=True, attached=True)
    assert plan_reconciliation((), found) == (LetGo(volume=volume), Tell(volume=volume))
    assert plan_reconciliation((), nothing_but(volume)) == (Tell(volume=volume),)
    assert plan_reconciliation((), found, damaged=frozenset({volume})) == ()


def test_the_plan_for_each_status() -> None:
    """What was begun is ended; what jobs have is mounted, what nobody has is not; what is missing is damaged."""

    def plan(volume: Volume, *, mounted: bool = False, there: bool = True) -> list[type[object]]:
        found = nothing_but(volume.id, mounted=mounted) if there else NOTHING
        return [type(step) for step in plan_reconciliation((volume,), found)]

    idle, used = Volume(record=record()), Volume(record=record(VolumeStatus.IN_USE, used=True))
    damaged = Volume(record=record(VolumeStatus.DAMAGED))
    busy = Volume(record=record(VolumeStatus.BUSY), work=Work(kind=WorkKind.SNAPSHOT, snapshot="s"))
    for status in (VolumeStatus.CREATING, VolumeStatus.DELETING):
        for there in (True, False):
            assert plan(Volume(record=record(status)), there=there) == [Resume]
    assert plan(idle) == []
    assert plan(idle, mounted=True) == [Unmount]
    assert plan(used) == plan(used, mounted=True) == [Mount]
    assert plan(busy, mounted=True) == [Resume, Unmount]
    assert plan(idle, there=False) == plan(used, there=False) == [Damage]
    assert plan(damaged) == [Recheck]
    assert plan(damaged, there=False) == []


def test_a_volume_whose_files_are_missing_is_damaged_until_they_are_back(tmp_path: Path) -> None:
    """As of a disk that was not mounted; nothing is made in its place, and the next start finds it whole."""
    disk, clock = FakeDisk(), Clock()

    async def life(work: Callable[[Node], Any]) -> None:
        async with running_volumes(volume_settings(tmp_path), disk, clock=clock) as node:
            await work(node)

    async def begin(node: Node) -> None:
        await node.create()
        await node.use("data")

    async def lost(node: Node) -> None:
        shown = await node.get()
        assert (shown.status, "missing" in shown.reason) == (VolumeStatus.DAMAGED, True)
        assert len(shown.uses) == 1
        assert disk.volumes == {}

    async def back(node: Node) -> None:
        shown = await node.get()
        assert (shown.status, shown.reason) == (VolumeStatus.IN_USE, "")

    asyncio.run(life(begin))
    kept, disk.volumes = disk.volumes, {}
    disk.mounted.clear()
    asyncio.run(life(lost))
    disk.volumes = kept
    asyncio.run(life(back))


def test_after_a_reboot_volumes_in_use_are_mounted_until_their_jobs_are_known_to_be_gone(tmp_path: Path) -> None:
    """Those nobody uses are not."""
    disk = FakeDisk()

    async def begin() -> tuple[VolumeId, JobId]:
        async with running_volumes(volume_settings(tmp_path), disk) as node:
            used = await node.create("used")
            await node.create("idle")
            await node.release(await node.use("idle"))
            return VolumeId(used.id), await node.use("used")

    async def after(volume: VolumeId) -> None:
        async with running_volumes(volume_settings(tmp_path), disk) as node:
            assert disk.mounted == {volume}
            await node.service.answer(SyncVolumes(jobs=()))
            assert (await node.get("used")).status is VolumeStatus.AVAILABLE

    volume, _ = asyncio.run(begin())
    disk.mounted.clear()
    disk.attached.clear()
    asyncio.run(after(volume))


@pytest.mark.threat("F11")
def test_a_damaged_database_costs_no_volume(tmp_path: Path) -> None:
    """It is set aside, the service starts, files stay where they are, and mounts that nobody explains go."""
    disk = FakeDisk()

    async def begin() -> None:
        async with running_volumes(volume_settings(tmp_path), disk) as node:
            await node.create()
            await node.use("data")

    async def after() -> None:
        async with running_volumes(volume_settings(tmp_path), disk) as node:
            assert (await _list(node)).volumes == ()
            await node.create()  # the name is free: whose the old one was is not known
            assert len(disk.volumes) == 2
            assert disk.mounted == set()

    asyncio.run(begin())
    database = next(tmp_path.rglob("volumes.db"))
    database.write_bytes(b"hello")
    asyncio.run(after())
    assert b"hello" in [file.read_bytes() for file in database.parent.glob("volumes.db.damaged-*")]


@pytest.mark.threat("F11")
@pytest.mark.parametrize("damage", ["data=CAST(data || x'00' AS BLOB)", "data=data || x'00'", "owner='eve'"])
def test_a_damaged_row_costs_its_own_volume_only(tmp_path: Path, damage: str) -> None:
    """It is not shown, its name stays taken, nothing of it is touched; the others are served."""
    disk = FakeDisk()

    async def begin() -> tuple[VolumeId, VolumeId]:
        async with running_volumes(volume_settings(tmp_path), disk) as node:
            made = await node.create("bad"), await node.create("good")
            await node.use("bad")
            return made[0].id, made[1].id

    async def after(bad: VolumeId, good: VolumeId) -> None:
        async with running_volumes(volume_settings(tmp_path), disk) as node:
            assert [each.id for each in (await _list(node)).volumes] == [good]
            assert (await refusal(node.get("bad"))).reason is Reason.NOT_FOUND
            if damage.startswith("data"):
                assert (await refusal(node.create("bad"))).reason is Reason.EXISTS
            assert bad in disk.mounted
            assert bad in disk.volumes
            await node.use("good")

    ids = asyncio.run(begin())
    database = sqlite3.connect(next(tmp_path.rglob("volumes.db")))
    database.execute(f"UPDATE volumes SET {damage} WHERE id=?", (ids[0],))  # noqa: S608  # from above
    database.commit()
    database.close()
    asyncio.run(after(*ids))


def test_files_that_no_record_explains_are_left_alone(tmp_path: Path) -> None:
    """Whatever they are."""
    disk, stranger = FakeDisk(), new_volume_id()
    disk.volumes[stranger] = OnDisk(MIB)
    disk.mounted.add(stranger)
    disk.attached.add(stranger)

    async def scenario() -> None:
        async with running_volumes(volume_settings(tmp_path), disk) as node:
            assert (disk.mounted, disk.attached) == (set(), set())
            assert stranger in disk.volumes
            answer = await node.service.answer(_create("data"))
            assert isinstance(answer, VolumeFound)

    asyncio.run(scenario())
