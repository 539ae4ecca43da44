"""Jobs and their volumes: who gets one, who shares it, who leaves it, and what stays mounted."""

import asyncio
import threading
from pathlib import Path

import pytest

from common.errors import JobletError, Reason
from common.identifiers import JobId, new_job_id
from common.messages.jobs import VolumeMount
from common.messages.volumes import (
    CheckVolumes,
    CreateSnapshot,
    CreateVolume,
    DeleteVolume,
    PrepareVolumes,
    ReleaseVolumes,
    SnapshotFound,
    SyncVolumes,
    VolumeDeleted,
    VolumeFound,
    VolumeKind,
    VolumesChecked,
    VolumesPrepared,
    VolumesReleased,
    VolumeStatus,
)
from services.volumes.ports import Ids
from services.volumes.sharing import USES_MAX
from tests.unit.volumes_fakes import MIB, FakeDisk, Node, prepare_request, refusal, serve
from tests.waiting import SLOWNESS, await_for


async def check(node: Node, name: str = "data", owner: str = "ann", *, read_only: bool = False) -> None:
    """Whether a job could have it."""
    mounts = (VolumeMount(name=name, path="/x", read_only=read_only),)
    await node.executor.request(CheckVolumes(owner=owner, mounts=mounts), VolumesChecked)


@pytest.mark.requirement("S1.6")
@pytest.mark.requirement("S1.26")
@pytest.mark.requirement("S1.42")
def test_a_job_gets_its_volumes_mounted_in_the_order_asked_for(tmp_path: Path) -> None:
    """Each names where it is; the record names the job; a new one belongs to the owner's ids."""

    async def scenario(node: Node) -> None:
        first, second = await node.create("a"), await node.create("b")
        job = new_job_id()
        b, a = await node.prepare("b", "a", job=job)
        assert (b.id, a.id) == (second.id, first.id)
        assert (a.source, a.device, a.mount.path) == (f"/volumes/{first.id}/mount/data", "7:1", "/volumes/a")
        assert node.disk.mounted == {first.id, second.id}
        assert node.disk.volumes[first.id].owner == Ids(101_000, 101_000)
        shown = await node.get("a")
        assert (shown.status, [use.job for use in shown.uses]) == (VolumeStatus.IN_USE, [job])
        assert (shown.last_used_by, shown.last_used_at_ns) == (job, node.clock.wall_ns)
        assert (shown.metrics.mounts, shown.metrics.mount_us > 0, shown.metrics.write_bytes) == (1, True, 2)
        assert (shown.used_inodes, shown.inodes) == (3, 100)

    serve(scenario, tmp_path)


def test_asked_again_the_answer_is_the_same(tmp_path: Path) -> None:
    """The executor was answered and did not hear it; another path or mode of the same job is another wish."""

    async def scenario(node: Node) -> None:
        await node.create()
        job = new_job_id()
        assert await node.prepare("data", job=job) == await node.prepare("data", job=job)
        assert len((await node.get()).uses) == 1
        error = await refusal(node.prepare("data", job=job, read_only=True))
        assert (error.reason, "already" in error.message) == (Reason.PRECONDITION, True)

    serve(scenario, tmp_path)


@pytest.mark.requirement("S1.33")
def test_one_writer_or_many_readers(tmp_path: Path) -> None:
    """Refused with the name of the job that is in the way, at submission and at launch alike."""

    async def scenario(node: Node) -> None:
        await node.create()
        writer = await node.use("data")
        for read_only in (False, True):
            for asking in (check(node, read_only=read_only), node.use("data", read_only=read_only)):
                error = await refusal(asking)
                assert (error.reason, writer[:8] in error.message) == (Reason.PRECONDITION, True)
        await node.release(writer)
        readers = [await node.use("data", read_only=True) for _ in range(5)]
        assert readers[0][:8] in (await refusal(check(node))).message
        await check(node, read_only=True)
        for reader in readers:
            await node.release(reader)
        await check(node)

    serve(scenario, tmp_path)


def test_a_shared_volume_takes_any_number_up_to_a_bound(tmp_path: Path) -> None:
    """Readers and writers at once."""

    async def scenario(node: Node) -> None:
        await node.create(shared=True)
        jobs = [new_job_id() for _ in range(USES_MAX)]
        await asyncio.gather(*(node.prepare("data", job=job, read_only=n % 2 == 0) for n, job in enumerate(jobs)))
        assert len((await node.get()).uses) == USES_MAX
        assert (await refusal(node.use("data"))).reason is Reason.EXHAUSTED
        assert (await node.get()).metrics.mounts == 1

    serve(scenario, tmp_path)


@pytest.mark.requirement("S1.32")
@pytest.mark.threat("B16")
def test_a_job_gets_its_own_owners_volumes_only(tmp_path: Path) -> None:
    """Neither by name nor by id."""

    async def scenario(node: Node) -> None:
        hers = await node.create()
        for name in ("data", hers.id, "nothing"):
            for asking in (check(node, name, "bob"), node.use(name, owner="bob")):
                assert (await refusal(asking)).reason is Reason.NOT_FOUND
        assert node.disk.mounted == set()

    serve(scenario, tmp_path)


def test_all_or_none(tmp_path: Path) -> None:
    """When the third cannot be had the first two are free again; what the job had before it keeps."""

    async def scenario(node: Node) -> None:
        for name in ("a", "b", "c", "kept"):
            await node.create(name)
        holder, job = await node.use("c"), new_job_id()
        await node.prepare("kept", job=job)
        assert holder[:8] in (await refusal(node.prepare("kept", "a", "b", "c", job=job))).message
        assert [(await node.get(name)).uses for name in ("a", "b")] == [(), ()]
        assert [use.job for use in (await node.get("kept")).uses] == [job]
        twice = prepare_request("a", "a", job=job)
        assert (await refusal(node.executor.request(twice, VolumesPrepared))).reason is Reason.INVALID
        many = PrepareVolumes(
            job=job, owner="ann", uid=1, gid=1, mounts=tuple(VolumeMount(name=f"v{n}", path="/") for n in range(65))
        )
        assert (await refusal(node.executor.request(many, VolumesPrepared))).reason is Reason.INVALID

    serve(scenario, tmp_path)


def test_a_mount_that_fails_leaves_no_use(tmp_path: Path) -> None:
    """The volume is as it was, and nothing of it stays mounted or attached."""
    disk = FakeDisk()

    async def scenario(node: Node) -> None:
        await node.create()
        disk.trouble["mount"] = JobletError(Reason.PRECONDITION, "no loop device", detail="load the module")
        assert "no loop device" in (await refusal(node.use("data"))).message
        shown = await node.get()
        assert (shown.status, shown.uses) == (VolumeStatus.AVAILABLE, ())
        assert disk.attached == set()
        disk.trouble.clear()
        await node.use("data")

    serve(scenario, tmp_path, disk)


def test_damaged_content_is_told_and_nothing_is_done_to_it(tmp_path: Path) -> None:
    """The job is refused, the volume says why, takes no other job, and can be removed."""
    disk = FakeDisk()

    async def scenario(node: Node) -> None:
        made = await node.create()
        disk.damaged[made.id] = "its superblock is gone"
        assert (await refusal(node.use("data"))).reason is Reason.DATA_LOSS
        shown = await node.get()
        assert (shown.status, shown.reason) == (VolumeStatus.DAMAGED, "its superblock is gone")
        mounts = disk.times("mount")
        assert "superblock" in (await refusal(node.use("data"))).message
        assert disk.times("mount") == mounts
        await node.api.request(DeleteVolume(volume=made.id), VolumeDeleted)

    serve(scenario, tmp_path, disk)


@pytest.mark.requirement("S1.4")
@pytest.mark.threat("C06")
@pytest.mark.threat("B17")
def test_a_memory_volume_is_cleared_when_its_last_job_leaves(tmp_path: Path) -> None:
    """Unmounted before the answer; the next job finds it empty. While one stays, nothing goes."""
    disk = FakeDisk()

    async def scenario(node: Node) -> None:
        made = await node.create(kind=VolumeKind.MEMORY, shared=True)
        first, second = await node.use("data"), await node.use("data")
        disk.volumes[made.id].content = b"secret"
        await node.release(first)
        assert disk.volumes[made.id].content == b"secret"
        await node.release(second)
        assert (disk.volumes[made.id].content, disk.mounted) == (b"", set())

    serve(scenario, tmp_path, disk)


def test_who_comes_while_a_volume_is_let_go_has_it_afterwards(tmp_path: Path) -> None:
    """The last job leaves, the next one comes: unmounted and mounted one after the other, never both at once."""
    disk = FakeDisk()

    async def scenario(node: Node) -> None:
        made = await node.create(kind=VolumeKind.MEMORY, shared=True)
        first, second = await node.use("data"), new_job_id()
        gate = disk.gates["unmount"] = threading.Event()
        leaving = asyncio.create_task(node.release(first))
        await await_for(lambda: disk.times("unmount"), what="the unmount to begin")
        coming = asyncio.create_task(node.prepare("data", job=second))
        await asyncio.sleep(0.05)  # as long as it takes to be wrong
        gate.set()
        await asyncio.gather(leaving, coming)
        assert disk.mounted == {made.id}
        assert [use.job for use in (await node.get()).uses] == [second]

    serve(scenario, tmp_path, disk)


@pytest.mark.threat("B17")
def test_a_memory_volume_that_cannot_be_cleared_keeps_its_job(tmp_path: Path) -> None:
    """The executor hears of it and tries again; the next job does not find what this one left."""
    disk = FakeDisk()

    async def scenario(node: Node) -> None:
        made = await node.create(kind=VolumeKind.MEMORY)
        job = await node.use("data")
        disk.volumes[made.id].content = b"secret"
        disk.trouble["unmount"] = OSError(16, "busy")
        assert (await refusal(node.release(job))).reason is Reason.INTERNAL
        assert [use.job for use in (await node.get()).uses] == [job]
        disk.trouble.clear()
        await node.release(job)
        assert disk.volumes[made.id].content == b""

    serve(scenario, tmp_path, disk)


@pytest.mark.requirement("S1.3")
@pytest.mark.requirement("S1.7")
def test_release_is_heard_once_and_answered_always(tmp_path: Path) -> None:
    """One volume or all, of a job that has some or none; data stays."""

    async def scenario(node: Node) -> None:
        a, _ = await node.create("a"), await node.create("b")
        job = new_job_id()
        await node.prepare("a", "b", job=job)
        node.disk.volumes[a.id].content = b"kept"
        await node.release(job, a.id)
        assert [(await node.get(name)).status for name in "ab"] == [VolumeStatus.AVAILABLE, VolumeStatus.IN_USE]
        await asyncio.gather(*(node.release(job) for _ in range(5)))
        await node.release(new_job_id())
        assert (await node.get("b")).uses == ()
        assert node.disk.volumes[a.id].content == b"kept"
        bad = ReleaseVolumes(job=JobId("x"))
        assert (await refusal(node.executor.request(bad, VolumesReleased))).reason is Reason.INVALID

    serve(scenario, tmp_path)


@pytest.mark.requirement("S1.31")
def test_what_jobs_had_that_are_gone_is_taken_back(tmp_path: Path) -> None:
    """The executor names the jobs that have volumes; others had them."""

    async def scenario(node: Node) -> None:
        await node.create(shared=True)
        stays, gone = await node.use("data"), await node.use("data")
        await node.executor.request(SyncVolumes(jobs=(stays, new_job_id())), VolumesReleased)
        assert [use.job for use in (await node.get()).uses] == [stays]
        assert gone != stays

    serve(scenario, tmp_path)


def test_a_job_leaves_without_waiting_for_a_copy(tmp_path: Path) -> None:
    """A snapshot of a volume in use may take long: the end of a job is heard meanwhile, a new one is told why not."""
    disk = FakeDisk()

    async def scenario(node: Node) -> None:
        made = await node.create()
        job = await node.use("data")
        gate = disk.gates["snapshot"] = threading.Event()
        copying = asyncio.create_task(node.api.request(CreateSnapshot(volume=made.id), SnapshotFound))
        await await_for(lambda: disk.times("snapshot"), what="the copy")
        async with asyncio.timeout(10 * SLOWNESS):
            assert (await node.get()).status is VolumeStatus.BUSY
            await node.release(job)
            for read_only in (True, False):
                assert "busy with a snapshot" in (await refusal(node.use("data", read_only=read_only))).message
            delete = DeleteVolume(volume=made.id)
            assert "busy with a snapshot" in (await refusal(node.api.request(delete, VolumeDeleted))).message
        gate.set()
        await copying
        assert (await node.get()).status is VolumeStatus.AVAILABLE
        await node.use("data")

    serve(scenario, tmp_path, disk)


@pytest.mark.requirement("S1.49")
def test_fifty_jobs_contend_for_one_volume(tmp_path: Path) -> None:
    """One of them has it at any time, the others are told who, and in the end nobody has it."""

    async def scenario(node: Node) -> None:
        made = await node.create()
        done: list[JobId] = []
        holders: set[JobId] = set()

        async def contend() -> None:
            job = new_job_id()
            while True:
                try:
                    await node.prepare("data", job=job)
                    break
                except JobletError:
                    await asyncio.sleep(0)
            holders.add(job)
            assert holders == {job}
            await asyncio.sleep(0)
            holders.discard(job)
            await node.release(job)
            done.append(job)

        await asyncio.gather(*(contend() for _ in range(50)))
        assert len(set(done)) == 50
        assert (await node.get()).uses == ()
        assert node.disk.mounted == {made.id}

    serve(scenario, tmp_path)


@pytest.mark.requirement("S1.50")
def test_five_hundred_volumes_are_made_used_and_removed(tmp_path: Path) -> None:
    """All at once; nothing of them is left, and at no time were more mounted and idle than may be."""

    async def scenario(node: Node) -> None:
        async def one(n: int) -> None:
            request = CreateVolume(owner="ann", name=f"v{n}", kind=VolumeKind.FILESYSTEM, size_bytes=MIB)
            made = (await node.api.request(request, VolumeFound, timeout_s=100)).volume
            job = new_job_id()
            await node.executor.request(prepare_request(f"v{n}", job=job), VolumesPrepared, timeout_s=100)
            await node.executor.request(ReleaseVolumes(job=job), VolumesReleased, timeout_s=100)
            await node.api.request(DeleteVolume(volume=made.id), VolumeDeleted, timeout_s=100)

        await asyncio.gather(*(one(n) for n in range(500)))
        assert node.disk.leftovers(set()) == []

    serve(scenario, tmp_path, owner_count_max=500)
