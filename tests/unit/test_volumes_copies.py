"""Snapshots, restored volumes, clones, exports and imports, as their askers see them."""

import asyncio
import errno
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common.errors import JobletError, Reason
from common.identifiers import VolumeId
from common.messages.volumes import (
    CloneVolume,
    CopyMethod,
    CreateSnapshot,
    DeleteSnapshot,
    DeleteVolume,
    Direction,
    ListSnapshots,
    OpenVolumeStream,
    ResizeVolume,
    RestoreSnapshot,
    SnapshotDeleted,
    SnapshotFound,
    SnapshotList,
    SnapshotRecord,
    VolumeDeleted,
    VolumeFound,
    VolumeKind,
    VolumeRecord,
    VolumeStatus,
    VolumeStreamClosed,
)
from services.volumes.ports import Ids
from services.volumes.transfers import NOBODY
from tests.unit.volumes_fakes import MIB, FakeDisk, Node, refusal, running_volumes, serve, volume_settings
from tests.waiting import await_for

FILE = f"volume-stream-{'a' * 32}.sock"


async def take(node: Node, volume: VolumeId, name: str = "") -> SnapshotRecord:
    """A snapshot."""
    return (await node.api.request(CreateSnapshot(volume=volume, name=name), SnapshotFound)).snapshot


async def listed(node: Node, volume: VolumeId) -> list[str]:
    """Names of the snapshots."""
    return [each.name for each in (await node.api.request(ListSnapshots(volume=volume), SnapshotList)).snapshots]


async def clone(node: Node, volume: VolumeId, name: str, snapshot: str = "") -> VolumeRecord:
    """A clone."""
    request = CloneVolume(volume=volume, name=name, snapshot=snapshot, labels={"a": "b"})
    return (await node.api.request(request, VolumeFound)).volume


async def stream(
    node: Node, volume: VolumeId, direction: Direction = Direction.EXPORT, snapshot: str = "", file: str = FILE
) -> VolumeStreamClosed:
    """A stream to its end."""
    request = OpenVolumeStream(volume=volume, direction=direction, file=file, snapshot=snapshot)
    return await node.api.request(request, VolumeStreamClosed)


@pytest.mark.requirement("S1.45")
def test_snapshots_are_named_by_the_time_and_listed_by_age(tmp_path: Path) -> None:
    """A second one in the same second gets a number; names are unique; what cannot be a name is none."""

    async def scenario(node: Node) -> None:
        made = await node.create()
        stamp = datetime.fromtimestamp(node.clock.wall_ns // 10**9, UTC).strftime("%Y%m%dT%H%M%SZ")
        first = await take(node, made.id)
        assert (first.name, first.size_bytes, first.method) == (stamp, MIB, CopyMethod.COPY)
        await take(node, made.id)
        node.clock.go_on(5000)
        await take(node, made.id, "mine")
        assert await listed(node, made.id) == [stamp, f"{stamp}-2", "mine"]
        assert (await node.get()).snapshots == 3
        assert (await refusal(take(node, made.id, "mine"))).reason is Reason.EXISTS
        assert (await refusal(take(node, made.id, "../x"))).reason is Reason.INVALID
        assert len(node.disk.volumes[made.id].snapshots) == 3
        await node.api.request(DeleteSnapshot(volume=made.id, name="mine"), SnapshotDeleted)
        assert await listed(node, made.id) == [stamp, f"{stamp}-2"]
        gone = DeleteSnapshot(volume=made.id, name="mine")
        assert (await refusal(node.api.request(gone, SnapshotDeleted))).reason is Reason.NOT_FOUND
        await node.api.request(DeleteVolume(volume=made.id), VolumeDeleted)
        assert (await refusal(listed(node, made.id))).reason is Reason.NOT_FOUND

    serve(scenario, tmp_path)


def test_snapshots_have_a_bound_and_memory_volumes_have_none(tmp_path: Path) -> None:
    """At the bound and one above it."""

    async def scenario(node: Node) -> None:
        made = await node.create()
        for _ in range(2):
            await take(node, made.id)
        assert (await refusal(take(node, made.id))).reason is Reason.EXHAUSTED
        assert (await node.get()).status is VolumeStatus.AVAILABLE
        memory = await node.create("memory", kind=VolumeKind.MEMORY)
        assert (await refusal(take(node, memory.id))).reason is Reason.INVALID
        assert (await refusal(clone(node, memory.id, "x"))).reason is Reason.INVALID

    serve(scenario, tmp_path, snapshots_max=2)


@pytest.mark.threat("C07")
def test_snapshots_count_among_the_bytes_of_their_owner(tmp_path: Path) -> None:
    """Each as large as its volume, also while several are taken at once; what is removed counts no more."""

    async def scenario(node: Node) -> None:
        one, other = await node.create("one"), await node.create("other")
        at_once = await asyncio.gather(take(node, one.id), take(node, other.id), return_exceptions=True)
        assert [type(each) for each in at_once].count(SnapshotRecord) == 1
        (refused,) = (each for each in at_once if isinstance(each, JobletError))
        assert refused.reason is Reason.EXHAUSTED
        assert (await refusal(node.create("third"))).reason is Reason.EXHAUSTED
        assert (await refusal(clone(node, one.id, "third"))).reason is Reason.EXHAUSTED
        (taken,) = (each for each in at_once if isinstance(each, SnapshotRecord))
        await node.api.request(DeleteSnapshot(volume=taken.volume, name=taken.name), SnapshotDeleted)
        await clone(node, one.id, "third")

    serve(scenario, tmp_path, owner_bytes_max=3 * MIB)


def test_a_snapshot_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """No record, no copy, not frozen, not busy."""
    disk = FakeDisk()

    async def scenario(node: Node) -> None:
        made = await node.create()
        disk.trouble["snapshot"] = OSError(errno.ENOSPC, "full")
        disk.frozen.add(made.id)
        assert (await refusal(take(node, made.id))).reason is Reason.EXHAUSTED
        shown = await node.get()
        assert (shown.status, shown.snapshots) == (VolumeStatus.AVAILABLE, 0)
        assert disk.volumes[made.id].snapshots == {}
        assert disk.frozen == set()

    serve(scenario, tmp_path, disk)


def test_a_restored_volume_has_the_content_of_its_snapshot(tmp_path: Path) -> None:
    """Unmounted for it; not while a job has it."""
    disk = FakeDisk()

    async def scenario(node: Node) -> None:
        made = await node.create()
        disk.volumes[made.id].content = b"old"
        await take(node, made.id, "s")
        job = await node.use("data")
        disk.volumes[made.id].content = b"new"
        restore = RestoreSnapshot(volume=made.id, name="s")
        assert job[:8] in (await refusal(node.api.request(restore, VolumeFound))).message
        await node.release(job)
        assert made.id in disk.mounted
        assert (await node.api.request(restore, VolumeFound)).volume.status is VolumeStatus.AVAILABLE
        assert disk.volumes[made.id].content == b"old"
        assert disk.mounted == set()
        missing = RestoreSnapshot(volume=made.id, name="nope")
        assert (await refusal(node.api.request(missing, VolumeFound))).reason is Reason.NOT_FOUND

    serve(scenario, tmp_path, disk)


@pytest.mark.requirement("S1.47")
def test_a_clone_is_a_volume_of_its_own(tmp_path: Path) -> None:
    """With the content of the volume or of a snapshot, its size, its key, and a name that is free."""
    disk = FakeDisk()

    async def scenario(node: Node) -> None:
        made = await node.create(encrypted=True)
        disk.volumes[made.id].content = b"old"
        await take(node, made.id, "s")
        disk.volumes[made.id].content = b"new"
        await node.api.request(ResizeVolume(volume=made.id, size_bytes=2 * MIB), VolumeFound)
        await node.use("data")
        copy, older = await clone(node, made.id, "copy"), await clone(node, made.id, "older", "s")
        assert [disk.volumes[each.id].content for each in (copy, older)] == [b"new", b"old"]
        assert [each.size_bytes for each in (copy, older)] == [2 * MIB, MIB]
        assert [each.origin for each in (copy, older)] == ["data", "data@s"]
        assert (copy.status, copy.encryption, copy.labels) == (VolumeStatus.AVAILABLE, "dm-crypt", {"a": "b"})
        assert disk.keys[copy.id] == disk.keys[made.id]
        await node.use("copy", "older")
        again = await clone(node, copy.id, "again")
        assert disk.keys[again.id] == disk.keys[made.id]
        assert (await refusal(clone(node, made.id, "copy"))).reason is Reason.EXISTS
        assert (await refusal(clone(node, made.id, "one-more"))).reason is Reason.EXHAUSTED
        assert (await refusal(clone(node, made.id, "-x"))).reason is Reason.INVALID
        assert (await node.get()).status is VolumeStatus.IN_USE

    serve(scenario, tmp_path, disk, owner_count_max=4)


def test_a_clone_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """Neither of the new volume nor at the old one."""
    disk = FakeDisk()

    async def scenario(node: Node) -> None:
        made = await node.create()
        disk.trouble["clone"] = OSError(errno.ENOSPC, "full")
        assert (await refusal(clone(node, made.id, "copy"))).reason is Reason.EXHAUSTED
        assert (await refusal(node.get("copy"))).reason is Reason.NOT_FOUND
        assert disk.leftovers({made.id}) == []
        assert (await node.get()).status is VolumeStatus.AVAILABLE

    serve(scenario, tmp_path, disk)


def test_an_export_reads_beside_readers_and_keeps_writers_out(tmp_path: Path) -> None:
    """It is a reader for its time; its numbers are answered; whose files they are is known from the owner's jobs."""

    async def scenario(node: Node) -> None:
        made = await node.create()
        writer = await node.use("data")
        assert writer[:8] in (await refusal(stream(node, made.id))).message
        await node.release(writer)
        node.streams.gate = asyncio.Event()
        exporting = asyncio.create_task(stream(node, made.id))
        await await_for(lambda: node.streams.runs, what="the stream")
        source, direction, socket, ids = node.streams.runs[0]
        assert (source, direction) == (f"/volumes/{made.id}/mount/data", Direction.EXPORT)
        assert (Path(socket).name, Path(socket).parent.name) == (FILE, "streams")
        assert ids == Ids(101_000, 101_000)
        assert (await node.get()).status is VolumeStatus.BUSY
        await node.use("data", read_only=True)
        assert "busy with an export" in (await refusal(node.use("data"))).message
        assert "busy with an export" in (await refusal(stream(node, made.id))).message
        node.streams.gate.set()
        assert await exporting == VolumeStreamClosed(entries=3, bytes=4096)
        assert (await node.get()).status is VolumeStatus.IN_USE

    serve(scenario, tmp_path)


def test_an_import_is_the_one_writer(tmp_path: Path) -> None:
    """Nobody else has the volume meanwhile, unless it is shared; one that fails is over too."""

    async def scenario(node: Node) -> None:
        made, shared = await node.create(), await node.create("shared", shared=True)
        reader = await node.use("data", read_only=True)
        assert reader[:8] in (await refusal(stream(node, made.id, Direction.IMPORT))).message
        await node.release(reader)
        await node.use("shared")
        node.streams.gate = asyncio.Event()
        tasks = [asyncio.create_task(stream(node, each.id, Direction.IMPORT)) for each in (made, shared)]
        await await_for(lambda: len(node.streams.runs) == 2, what="the streams")
        assert "busy with an import" in (await refusal(node.use("data", read_only=True))).message
        await node.use("shared")
        node.streams.trouble = OSError(errno.ECONNRESET, "gone")
        node.streams.gate.set()
        for task in tasks:
            assert (await refusal(task)).reason is Reason.INTERNAL
        await node.use("data")

    serve(scenario, tmp_path)


def test_before_a_job_had_a_volume_nothing_is_imported_and_the_export_is_nobodys(tmp_path: Path) -> None:
    """Whose files they would be is not known, and said; it is known from the first job on, of any volume of theirs."""

    async def scenario(node: Node) -> None:
        made = await node.create()
        error = await refusal(stream(node, made.id, Direction.IMPORT))
        assert (error.reason, "rnx run" in error.detail) == (Reason.PRECONDITION, True)
        await stream(node, made.id)
        assert node.streams.runs[0][3] == NOBODY
        assert node.disk.volumes[made.id].owner is None
        await node.create("other")
        await node.use("other")
        await stream(node, made.id, Direction.IMPORT)
        assert node.disk.volumes[made.id].owner == node.streams.runs[1][3] == Ids(101_000, 101_000)

    serve(scenario, tmp_path)


def test_without_root_everything_is_the_callers(tmp_path: Path) -> None:
    """There is nothing to know."""

    async def scenario() -> None:
        async with running_volumes(volume_settings(tmp_path), own=Ids(1000, 1000)) as node:
            made = await node.create()
            await stream(node, made.id, Direction.IMPORT)
            assert node.streams.runs[0][3] == Ids(1000, 1000)

    asyncio.run(scenario())


def test_a_snapshot_is_exported_apart_from_its_volume(tmp_path: Path) -> None:
    """Jobs come and go meanwhile; the snapshot and the volume cannot be removed; it is closed in the end."""

    async def scenario(node: Node) -> None:
        made = await node.create()
        snapshot = await take(node, made.id, "s")
        node.streams.gate = asyncio.Event()
        exporting = asyncio.create_task(stream(node, made.id, snapshot="s"))
        await await_for(lambda: node.streams.runs, what="the stream")
        assert node.disk.shown == {(made.id, snapshot.id)}
        await node.release(await node.use("data"))
        drop = DeleteSnapshot(volume=made.id, name="s")
        assert (await refusal(node.api.request(drop, SnapshotDeleted))).reason is Reason.PRECONDITION
        node.streams.gate.set()
        await exporting
        assert node.disk.shown == set()
        node.streams.trouble = JobletError(Reason.UNAVAILABLE, "gone")
        assert (await refusal(stream(node, made.id, snapshot="s"))).reason is Reason.UNAVAILABLE
        assert node.disk.shown == set()
        assert (await refusal(stream(node, made.id, Direction.IMPORT, "s"))).reason is Reason.INVALID
        await node.api.request(drop, SnapshotDeleted)

    serve(scenario, tmp_path)


@pytest.mark.threat("D25")
@pytest.mark.parametrize("file", ["", "../x.sock", "api-replies-1.sock", f"volume-stream-{'A' * 32}.sock", FILE + "\n"])
def test_a_stream_goes_to_a_socket_of_its_own_kind_only(tmp_path: Path, file: str) -> None:
    """Never to a path."""

    async def scenario(node: Node) -> None:
        made = await node.create()
        assert (await refusal(stream(node, made.id, file=file))).reason is Reason.INVALID
        assert node.streams.runs == []

    serve(scenario, tmp_path)


def test_a_memory_volume_is_streamed_while_a_job_has_it(tmp_path: Path) -> None:
    """Unused it holds nothing; a stream that outlasts the job keeps the content, and its end clears it."""

    async def scenario(node: Node) -> None:
        made = await node.create(kind=VolumeKind.MEMORY, shared=True)
        assert (await refusal(stream(node, made.id))).reason is Reason.PRECONDITION
        job = await node.use("data")
        node.disk.volumes[made.id].content = b"x"
        node.streams.gate = asyncio.Event()
        exporting = asyncio.create_task(stream(node, made.id))
        await await_for(lambda: node.streams.runs, what="the stream")
        await node.release(job)
        assert node.disk.volumes[made.id].content == b"x"
        found: list[bytes] = []
        node.disk.watch = lambda what: (
            found.append(node.disk.volumes[made.id].content) if what[:6] == "mount " else None
        )
        gate = node.disk.gates["measure"] = threading.Event()
        looking = asyncio.create_task(node.get())
        await await_for(lambda: node.disk.times("measure"), what="somebody to have the volume when the stream ends")
        node.streams.gate.set()
        await asyncio.sleep(0.05)
        coming = asyncio.create_task(node.use("data"))
        await asyncio.sleep(0.05)
        gate.set()
        await asyncio.gather(exporting, looking, coming)
        assert found[-1] == b""

    serve(scenario, tmp_path)


def test_of_a_damaged_volume_the_snapshots_can_be_had(tmp_path: Path) -> None:
    """Cloned and exported; nothing that touches the volume itself is done."""
    disk = FakeDisk()

    async def scenario(node: Node) -> None:
        made = await node.create()
        await take(node, made.id, "s")
        disk.damaged[made.id] = "torn"
        assert (await refusal(stream(node, made.id))).reason is Reason.DATA_LOSS
        assert (await node.get()).status is VolumeStatus.DAMAGED
        await clone(node, made.id, "rescued", "s")
        await stream(node, made.id, snapshot="s")
        for refused in (take(node, made.id), clone(node, made.id, "x"), stream(node, made.id)):
            assert "torn" in (await refusal(refused)).message
        assert (await node.get()).status is VolumeStatus.DAMAGED

    serve(scenario, tmp_path, disk)
