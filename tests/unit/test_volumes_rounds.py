"""What goes on without being asked: idle mounts, measuring, memory volumes that nobody uses, leftovers."""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import Reason
from common.identifiers import VolumeId, new_volume_id
from common.messages.envelope import Body
from common.messages.volumes import (
    CreateSnapshot,
    DeleteSnapshot,
    DeleteVolume,
    Direction,
    Enforcement,
    ListVolumes,
    OpenVolumeStream,
    ResizeVolume,
    RestoreSnapshot,
    SnapshotDeleted,
    SnapshotFound,
    VolumeDeleted,
    VolumeFound,
    VolumeKind,
    VolumePage,
    VolumeStatus,
    VolumeStreamClosed,
)
from services.volumes.idle import overdue
from tests.unit.volumes_fakes import MIB, FakeDisk, Node, refusal, serve
from tests.waiting import await_for

A, B, C = (new_volume_id() for _ in range(3))
MS = 10**6


@pytest.mark.requirement("S1.40")
def test_idle_mounts_go_by_number_and_by_age() -> None:
    """Those left longest ago first; the rest at their time."""
    since = {A: 0, B: 10 * MS, C: 20 * MS}
    assert overdue(since, 30 * MS, mounts_max=3, mount_ms=100) == ((), 70 * MS)
    assert overdue(since, 30 * MS, mounts_max=1, mount_ms=100) == ((A, B), 90 * MS)
    assert overdue(since, 110 * MS, mounts_max=3, mount_ms=100) == ((A, B), 10 * MS)
    assert overdue(since, 30 * MS, mounts_max=0, mount_ms=100) == ((A, B, C), None)
    assert overdue({}, 0, mounts_max=3, mount_ms=100) == ((), None)


@given(st.dictionaries(st.uuids().map(str).map(VolumeId), st.integers(0, 1000)), st.integers(0, 9), st.integers(0, 9))
def test_idle_mounts_are_within_both_bounds(since: dict[VolumeId, int], mounts_max: int, mount_ms: int) -> None:
    """Whatever there is, what is left is few enough and young enough, and nothing else goes."""
    due, next_due_ns = overdue(since, 1000, mounts_max=mounts_max, mount_ms=mount_ms)
    stay = since.keys() - set(due)
    assert len(stay) <= mounts_max
    assert all(1000 - since[volume] < mount_ms * MS for volume in stay)
    assert (next_due_ns is None) == (not stay)
    assert mount_ms == 0 or len(stay) == min(mounts_max, len(since))


@pytest.mark.requirement("S1.40")
def test_a_volume_stays_mounted_for_the_next_job_and_not_for_ever(tmp_path: Path) -> None:
    """Those used last, and for a while; what they held then is in their records."""

    async def scenario(node: Node) -> None:
        ids = {}
        for name in ("a", "b", "c"):
            ids[name] = (await node.create(name)).id
            node.disk.used_bytes[ids[name]] = 7
            await node.release(await node.use(name))
            node.clock.go_on(10)

        async def unmounts() -> int:
            return (await node.get("a")).metrics.unmounts

        assert await await_for(unmounts, what="the oldest to go") == 1
        assert node.disk.mounted == {ids["b"], ids["c"]}
        shown = await node.get("a")
        assert (shown.used_bytes, shown.used_inodes) == (7, 3)
        mounts = (await node.get("c")).metrics.mounts
        job = await node.use("c")
        assert (await node.get("c")).metrics.mounts == mounts
        node.clock.go_on(60_000)
        await node.release(await node.use("a"))  # wakes whoever looks
        await await_for(lambda: node.disk.mounted == {ids["a"], ids["c"]}, what="the idle one to go")
        await node.release(job)

    serve(scenario, tmp_path, idle_mounts_max=2, idle_mount_ms=60_000)


def test_without_idle_mounts_a_volume_is_let_go_with_its_last_job(tmp_path: Path) -> None:
    """Before the executor is answered."""

    async def scenario(node: Node) -> None:
        await node.create()
        await node.release(await node.use("data"))
        assert (node.disk.mounted, node.disk.attached) == (set(), set())

    serve(scenario, tmp_path, idle_mounts_max=0)


def test_a_service_that_is_stopped_leaves_what_jobs_have(tmp_path: Path) -> None:
    """What nobody has is unmounted, however lately it was left: nobody would look after it."""
    disk = FakeDisk()
    kept: set[str] = set()

    async def scenario(node: Node) -> None:
        held = await node.create("held")
        await node.create("idle")
        await node.use("held")
        await node.release(await node.use("idle"))
        assert len(node.disk.mounted) == 2
        kept.add(held.id)

    serve(scenario, tmp_path, disk, idle_mounts_max=10)
    assert disk.mounted == kept


def test_an_unmount_that_fails_is_no_end(tmp_path: Path) -> None:
    """The job is released, the volume can be used again and removed."""
    disk = FakeDisk()

    async def scenario(node: Node) -> None:
        made = await node.create()
        job = await node.use("data")
        disk.trouble["unmount"] = OSError(16, "busy")
        await node.release(job)
        job = await node.use("data")
        disk.trouble.clear()
        await node.release(job)
        await node.api.request(DeleteVolume(volume=made.id), VolumeDeleted)

    serve(scenario, tmp_path, disk, idle_mounts_max=0)


@pytest.mark.requirement("S1.31")
def test_a_memory_volume_that_nobody_uses_is_removed(tmp_path: Path) -> None:
    """After its time since its last job, not before, and never one that is in use, nor one on the disk."""

    async def scenario(node: Node) -> None:
        for name, kind in (("idle", VolumeKind.MEMORY), ("used", VolumeKind.MEMORY), ("disk", VolumeKind.FILESYSTEM)):
            await node.create(name, kind=kind)
        await node.use("used")
        node.clock.go_on(900)
        await node.release(await node.use("idle"))
        node.clock.go_on(900)
        await asyncio.sleep(0.1)  # several rounds
        assert (await node.get("idle")).status is VolumeStatus.AVAILABLE
        node.clock.go_on(200)

        async def gone() -> bool:
            listed = await node.api.request(ListVolumes(visible_owner=None), VolumePage)
            return "idle" not in {each.name for each in listed.volumes}

        await await_for(gone, what="the idle one to go")
        assert (await node.get("used")).status is VolumeStatus.IN_USE
        assert (await node.get("disk")).status is VolumeStatus.AVAILABLE

    serve(scenario, tmp_path, memory_idle_ms=1000, interval_ms=10)


@pytest.mark.requirement("S1.15")
def test_what_nothing_enforces_is_watched_and_told(tmp_path: Path) -> None:
    """An advisory volume over its size says so, until it is below it again."""
    disk = FakeDisk()
    disk.enforcement = Enforcement.ADVISORY

    async def scenario(node: Node) -> None:
        made = await node.create(advisory=True)
        await node.use("data")
        disk.used_bytes[made.id] = 3 * MIB

        async def told() -> str:
            return (await node.get()).reason

        assert await await_for(told, what="the warning") == "holds 3.0 MiB of 1.0 MiB: nothing enforces its size"
        assert (await node.get()).used_bytes == 3 * MIB
        disk.used_bytes[made.id] = MIB

        async def silent() -> bool:
            return not await told()

        await await_for(silent, what="the warning to go")

    serve(scenario, tmp_path, disk, interval_ms=10)


@pytest.mark.requirement("S1.42")
def test_what_a_volume_holds_is_told_when_nobody_has_it(tmp_path: Path) -> None:
    """Of one that is only counted what was counted last; of a memory volume nothing, as there is nothing left."""
    disk = FakeDisk()
    disk.enforcement = Enforcement.ADVISORY

    async def scenario(node: Node) -> None:
        kept = await node.create("kept", advisory=True)
        gone = await node.create("gone", kind=VolumeKind.MEMORY)
        disk.used_bytes = {kept.id: MIB, gone.id: MIB}
        job = await node.use("kept", "gone")

        async def used(name: str) -> tuple[int, int]:
            volume = await node.get(name)
            return volume.used_bytes, volume.used_inodes

        async def measured() -> bool:
            return [await used(name) for name in ("kept", "gone")] == [(MIB, 3), (MIB, 3)]

        await await_for(measured, what="both to be measured")
        await node.release(job)
        assert disk.mounted == set()
        assert [await used(name) for name in ("kept", "gone")] == [(MIB, 3), (0, 0)]

    serve(scenario, tmp_path, disk, interval_ms=10, idle_mounts_max=0)


def test_a_round_ends_what_was_left(tmp_path: Path) -> None:
    """A removal that failed is made again without being asked for."""
    disk = FakeDisk()

    async def scenario(node: Node) -> None:
        made = await node.create()
        disk.trouble["delete"] = OSError(16, "busy")
        await refusal(node.api.request(DeleteVolume(volume=made.id), VolumeDeleted))
        await await_for(lambda: disk.times("delete") >= 3, what="it to be tried again")
        disk.trouble.clear()
        await await_for(lambda: not disk.volumes, what="it to go")

    serve(scenario, tmp_path, disk, interval_ms=10)


@contextlib.contextmanager
def full_state_disk(base: Path) -> Iterator[None]:
    """What is known of volumes can be read, and nothing of it be changed."""
    with contextlib.closing(sqlite3.connect(next(base.rglob("volumes.db")))) as database:
        refusing = "CREATE TRIGGER full BEFORE UPDATE ON volumes BEGIN SELECT RAISE(ABORT, 'disk is full'); END"
        database.execute(refusing)
        yield
        database.execute("DROP TRIGGER full")


@pytest.mark.parametrize("verb", ["snapshot", "drop_snapshot", "restore", "resize", "export"])
def test_what_ended_while_the_state_could_not_be_written_is_ended_by_a_round(tmp_path: Path, verb: str) -> None:
    """Nothing is busy for ever. A snapshot that its asker was refused is gone, a volume that was to grow has grown."""
    disk = FakeDisk()

    async def scenario(node: Node) -> None:
        made = await node.create()
        await node.api.request(CreateSnapshot(volume=made.id, name="first"), SnapshotFound)
        gate = disk.gates[verb] = threading.Event()
        node.streams.gate = asyncio.Event()
        file = f"volume-stream-{'0' * 32}.sock"
        asked: dict[str, tuple[Body, type[Body]]] = {
            "snapshot": (CreateSnapshot(volume=made.id, name="second"), SnapshotFound),
            "drop_snapshot": (DeleteSnapshot(volume=made.id, name="first"), SnapshotDeleted),
            "restore": (RestoreSnapshot(volume=made.id, name="first"), VolumeFound),
            "resize": (ResizeVolume(volume=made.id, size_bytes=2 * MIB), VolumeFound),
            "export": (OpenVolumeStream(volume=made.id, direction=Direction.EXPORT, file=file), VolumeStreamClosed),
        }
        doing = asyncio.create_task(refusal(node.api.request(*asked[verb])))
        await await_for(lambda: disk.times(verb) or node.streams.runs, what="it to begin")
        await asyncio.sleep(0.05)  # rounds go by, which have nothing to do with it yet
        with full_state_disk(tmp_path):
            gate.set()
            node.streams.gate.set()
            assert (await doing).reason is Reason.EXHAUSTED

        async def grown_or_idle() -> bool:
            now = await node.get()
            return now.status is VolumeStatus.AVAILABLE and (verb != "resize" or now.size_bytes == 2 * MIB)

        await await_for(grown_or_idle, what="the end to be recorded")
        now = await node.get()
        assert (now.status, now.size_bytes) == (VolumeStatus.AVAILABLE, (2 if verb == "resize" else 1) * MIB)
        assert now.snapshots == len(disk.volumes[made.id].snapshots) == (0 if verb == "drop_snapshot" else 1)
        await node.api.request(DeleteVolume(volume=made.id), VolumeDeleted)

    serve(scenario, tmp_path, disk, interval_ms=10)
