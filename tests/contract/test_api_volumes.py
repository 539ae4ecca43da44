"""VolumeService on the wire: validation, visibility, attach and detach, long commands, streams of content."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest

from common.identifiers import JobId, VolumeId
from common.messages import jobs, topics, volumes
from proto.joblet.v1 import job_pb2
from proto.joblet.v1 import volume_pb2 as pb
from proto.joblet.v1.volume_pb2_grpc import VolumeServiceStub
from services.api import volume_streams
from tests.api_node import Client, Node, running_node
from tests.waiting import SLOWNESS, await_for

Code = grpc.StatusCode
STRANGER = "6fa459ea-ee8a-4ca4-894e-db77e160355e"
MIB = 2**20


def run(tmp_path: Path, scene: Callable[[Node], Awaitable[None]]) -> None:
    """One scene on a node of its own; behind it no wait, no stream and no socket is left."""

    async def bounded() -> None:
        async with asyncio.timeout(60 * SLOWNESS), running_node(tmp_path) as node:
            await scene(node)
            await await_for(lambda: not waiting(node), what="nobody to wait any more")
            await await_for(lambda: not node.api.capacity.streams, what="the places of streams to be free")
            assert [*node.layout.streams.iterdir()] == []

    asyncio.run(bounded())


def waiting(node: Node) -> int:
    """How many answers the api waits for."""
    return len(node.api._executor._replies.waiting)


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    """Status and text of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def wire(call: Any) -> tuple[object, ...]:
    """All that a refusal is made of."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details(), tuple(caught.value.trailing_metadata())


@pytest.mark.requirement("S1.18")
@pytest.mark.requirement("S1.19")
@pytest.mark.requirement("S1.20")
@pytest.mark.requirement("S1.28")
def test_a_volume_from_its_creation_to_its_end(tmp_path: Path) -> None:
    """Create tells the service what was asked for, in the caller's name; get, list and delete find the same volume."""

    async def scene(node: Node) -> None:
        ann = node.client("ann", "user").volumes
        made = await ann.CreateVolume(
            pb.CreateVolumeRequest(name="data", size_bytes=MIB, labels={"team": "ml"}, shared=True, encrypted=True)
        )
        (asked,) = node.volumes.of(volumes.CreateVolume)
        assert asked == volumes.CreateVolume(
            owner="ann",
            name="data",
            kind=volumes.VolumeKind.FILESYSTEM,
            size_bytes=MIB,
            labels={"team": "ml"},
            shared=True,
            encrypted=True,
        )
        assert (made.name, made.owner, made.type, made.size_bytes) == ("data", "ann", pb.FILESYSTEM, MIB)
        assert (made.status, made.enforcement, made.encryption) == ("available", "image", "dm-crypt")
        assert made == await ann.GetVolume(pb.GetVolumeRequest(name="data"))
        assert made == await ann.GetVolume(pb.GetVolumeRequest(name=made.id))
        assert [*(await ann.ListVolumes(pb.ListVolumesRequest())).volumes] == [made]
        memory = await ann.CreateVolume(pb.CreateVolumeRequest(name="m", type=pb.MEMORY, size_bytes=1, advisory=True))
        assert memory.type == pb.MEMORY
        assert node.volumes.of(volumes.CreateVolume)[1].advisory
        code, text = await refused(ann.CreateVolume(pb.CreateVolumeRequest(name="data", size_bytes=MIB)))
        assert (code, text) == (Code.ALREADY_EXISTS, "there is a volume data")
        await ann.DeleteVolume(pb.DeleteVolumeRequest(name="data"))
        assert (await refused(ann.GetVolume(pb.GetVolumeRequest(name="data"))))[0] is Code.NOT_FOUND

    run(tmp_path, scene)


@pytest.mark.requirement("S1.20")
@pytest.mark.requirement("S1.42")
def test_every_field_of_a_record_reaches_the_client(tmp_path: Path) -> None:
    """Each has a value that no other has; of several jobs the one that has it longest is the current one."""
    job, other = JobId(STRANGER), JobId(STRANGER.replace("6", "7"))
    use = volumes.VolumeUse(job=job, path="/data", read_only=False, since_ns=5_000_000_006)
    metrics = volumes.VolumeMetrics(
        **{name: number for number, name in enumerate(volumes.VolumeMetrics.__struct_fields__, 100)}
    )

    async def scene(node: Node) -> None:
        record = node.volumes.add("ann", "data", labels={"a": "b"}, shared=True, encryption="fscrypt", origin="x@y")
        node.volumes.change(
            record.id,
            uses=(use, msgspec.structs.replace(use, job=other, path="/other", read_only=True)),
            last_used_at_ns=7_000_000_008,
            last_used_by=other,
            used_bytes=9,
            used_inodes=10,
            inodes=11,
            reason="because",
            snapshots=12,
            metrics=metrics,
        )
        got = await node.client("ann", "user").volumes.GetVolume(pb.GetVolumeRequest(name="data"))
        assert (got.current_job_id, got.last_used_by, got.reason, got.origin) == (job, other, "because", "x@y")
        assert (got.last_used.seconds, got.last_used.nanos) == (7, 8)
        assert (got.used_bytes, got.used_inodes, got.inodes, got.snapshots) == (9, 10, 11, 12)
        assert (got.shared, got.encryption, dict(got.labels)) == (True, "fscrypt", {"a": "b"})
        assert [(one.job_id, one.path, one.read_only, one.since.nanos) for one in got.uses] == [
            (job, "/data", False, 6),
            (other, "/other", True, 6),
        ]
        assert [value for _, value in got.metrics.ListFields()] == [*range(100, 108)]
        assert {field.name for field in pb.VolumeMetrics.DESCRIPTOR.fields} == {*metrics.__struct_fields__}

    run(tmp_path, scene)


BAD = (
    ("CreateVolume", pb.CreateVolumeRequest(name="..", size_bytes=1)),
    ("CreateVolume", pb.CreateVolumeRequest(name="", size_bytes=1)),
    ("CreateVolume", pb.CreateVolumeRequest(name="-data", size_bytes=1)),
    ("CreateVolume", pb.CreateVolumeRequest(name="a/b", size_bytes=1)),
    ("CreateVolume", pb.CreateVolumeRequest(name="a\0b", size_bytes=1)),
    ("CreateVolume", pb.CreateVolumeRequest(name="dаta", size_bytes=1)),  # a Cyrillic letter
    ("CreateVolume", pb.CreateVolumeRequest(name="x" * 64, size_bytes=1)),
    ("CreateVolume", pb.CreateVolumeRequest(name="x" * 256, size_bytes=1)),
    ("CreateVolume", pb.CreateVolumeRequest(name="data")),
    ("CreateVolume", pb.CreateVolumeRequest(name="data", size_bytes=-1)),
    ("CreateVolume", pb.CreateVolumeRequest(name="data", size_bytes=1, type=7)),  # type: ignore[arg-type]
    ("CreateVolume", pb.CreateVolumeRequest(name="data", size_bytes=1, labels={"a b": ""})),
    ("CreateVolume", pb.CreateVolumeRequest(name="data", size_bytes=1, labels={"a": "x" * 257})),
    ("CreateVolume", pb.CreateVolumeRequest(name="data", size_bytes=1, labels={f"l{n}": "" for n in range(65)})),
    ("ListVolumes", pb.ListVolumesRequest(page_size=1001)),
    ("ListVolumes", pb.ListVolumesRequest(page_token="\x1b")),
    ("ListVolumes", pb.ListVolumesRequest(owner="x" * 257)),
    ("GetVolume", pb.GetVolumeRequest(name="../../etc")),
    ("DeleteVolume", pb.DeleteVolumeRequest(name="")),
    ("AttachVolume", pb.AttachVolumeRequest(name="there", job_id="x")),
    ("AttachVolume", pb.AttachVolumeRequest(name="there", job_id=STRANGER, path="data")),
    ("AttachVolume", pb.AttachVolumeRequest(name="there", job_id=STRANGER, path="/data/../etc")),
    ("AttachVolume", pb.AttachVolumeRequest(name="there", job_id=STRANGER, path="/proc/1")),
    ("AttachVolume", pb.AttachVolumeRequest(name="there", job_id=STRANGER, path="//proc/")),
    ("AttachVolume", pb.AttachVolumeRequest(name="there", job_id=STRANGER, path="//")),
    ("DetachVolume", pb.DetachVolumeRequest(name="there", job_id="../x")),
    ("ResizeVolume", pb.ResizeVolumeRequest(name="there")),
    ("CreateSnapshot", pb.CreateSnapshotRequest(volume="there", name="a/b")),
    ("DeleteSnapshot", pb.DeleteSnapshotRequest(volume="there")),
    ("RestoreSnapshot", pb.RestoreSnapshotRequest(volume="there", name="..")),
    ("CloneVolume", pb.CloneVolumeRequest(volume="there", name="")),
    ("CloneVolume", pb.CloneVolumeRequest(volume="there", name="x", snapshot="@")),
)


@pytest.mark.threat("D25")
@pytest.mark.requirement("S1.48")
def test_malformed_requests_reach_nobody(tmp_path: Path) -> None:
    """Names, sizes, labels, paths: INVALID_ARGUMENT, and no command has gone to any service."""

    async def scene(node: Node) -> None:
        node.volumes.add("ann", "there")
        ann = node.client("ann", "user").volumes
        for method, request in BAD:
            code, text = await refused(getattr(ann, method)(request))
            assert code is Code.INVALID_ARGUMENT, (method, request, text)
        bad = pb.ExportVolumeRequest(volume="there", snapshot="a b")
        assert (await refused(ann.ExportVolume(bad).read()))[0] is Code.INVALID_ARGUMENT
        assert (await asyncio.to_thread(refused_import, node, []))[0] is Code.INVALID_ARGUMENT
        bad_name = [pb.ImportVolumeRequest(volume="../x")]
        assert (await asyncio.to_thread(refused_import, node, bad_name))[0] is Code.INVALID_ARGUMENT
        assert node.volumes.requests == []
        assert node.executor.requests == []

    run(tmp_path, scene)


def calls_about(client: Client, name: str, job: str) -> list[Any]:
    """A call of every method about one volume."""
    stub = client.volumes
    # One message as if it were all there can be, which is the same on the wire: see `refused_import`.
    importing = client.channel.unary_unary(
        "/joblet.v1.VolumeService/ImportVolume", pb.ImportVolumeRequest.SerializeToString, pb.Volume.FromString
    )
    return [
        stub.GetVolume(pb.GetVolumeRequest(name=name)),
        stub.DeleteVolume(pb.DeleteVolumeRequest(name=name, force=True)),
        stub.AttachVolume(pb.AttachVolumeRequest(name=name, job_id=job)),
        stub.DetachVolume(pb.DetachVolumeRequest(name=name, job_id=job)),
        stub.ResizeVolume(pb.ResizeVolumeRequest(name=name, size_bytes=2 * MIB)),
        stub.CreateSnapshot(pb.CreateSnapshotRequest(volume=name)),
        stub.ListSnapshots(pb.ListSnapshotsRequest(volume=name)),
        stub.DeleteSnapshot(pb.DeleteSnapshotRequest(volume=name, name="s")),
        stub.RestoreSnapshot(pb.RestoreSnapshotRequest(volume=name, name="s")),
        stub.CloneVolume(pb.CloneVolumeRequest(volume=name, name="new")),
        stub.ExportVolume(pb.ExportVolumeRequest(volume=name)).read(),
        importing(pb.ImportVolumeRequest(volume=name)),
    ]


@pytest.mark.threat("B16")
@pytest.mark.threat("B09")
@pytest.mark.requirement("S1.32")
def test_another_owners_volume_does_not_exist(tmp_path: Path) -> None:
    """By name, by id, by every method: the very bytes of a volume that nobody has, and no command is sent."""

    async def scene(node: Node) -> None:
        bobs = node.volumes.add("bob", "data")
        node.volumes.keep(bobs.id, "s")
        job = node.executor.add("ann").id
        for role in ("user", "writer"):
            ann = node.client("ann", role)
            nowhere = [await wire(call) for call in calls_about(ann, STRANGER, job)]
            assert {answer[0] for answer in nowhere} == {Code.NOT_FOUND}
            assert [await wire(call) for call in calls_about(ann, bobs.id, job)] == nowhere
            assert [await wire(call) for call in calls_about(ann, "data", job)] == nowhere
        assert node.volumes.requests == []
        assert node.executor.requests == []

    run(tmp_path, scene)


@pytest.mark.threat("B16")
def test_a_name_is_its_callers_own(tmp_path: Path) -> None:
    """Two owners have `data`: each gets his; an admin gets his own by name, another's by id."""

    async def scene(node: Node) -> None:
        anns, bobs = node.volumes.add("ann", "data"), node.volumes.add("bob", "data")
        for name, role, mine in (("ann", "user", anns), ("bob", "writer", bobs), ("ann", "admin", anns)):
            got = await node.client(name, role).volumes.GetVolume(pb.GetVolumeRequest(name="data"))
            assert got.id == mine.id
        admin = node.client("ann", "admin").volumes
        assert (await admin.GetVolume(pb.GetVolumeRequest(name=bobs.id))).owner == "bob"
        await admin.DeleteVolume(pb.DeleteVolumeRequest(name=bobs.id))
        assert node.volumes.of(volumes.DeleteVolume) == [volumes.DeleteVolume(volume=bobs.id)]

    run(tmp_path, scene)


@pytest.mark.threat("B11")
@pytest.mark.requirement("S1.22")
def test_lists_hold_what_the_caller_may_see(tmp_path: Path) -> None:
    """One's own; with `all` everybody's for an admin and one's own for the others; labels, owners and pages."""

    async def scene(node: Node) -> None:
        for owner in ("ann", "bob"):
            for name in ("a", "b", "c"):
                node.volumes.add(owner, name, labels={"name": name})

        async def listed(role: str, **fields: Any) -> list[str]:
            found: list[str] = []
            request = pb.ListVolumesRequest(**fields)
            while True:
                page = await node.client("ann", role).volumes.ListVolumes(request)
                assert len(page.volumes) <= (request.page_size or 100)
                found += [f"{one.owner}/{one.name}" for one in page.volumes]
                if not page.next_page_token:
                    return found
                request.page_token = page.next_page_token

        own, bobs = ["ann/a", "ann/b", "ann/c"], ["bob/a", "bob/b", "bob/c"]
        for role in ("writer", "user", "reader"):
            assert await listed(role) == own
            assert await listed(role, all=True, page_size=2) == own
            assert await listed(role, owner="bob") == []
        assert await listed("admin") == own
        assert await listed("admin", all=True, page_size=4) == own + bobs
        assert await listed("admin", owner="bob") == bobs
        assert await listed("admin", all=True, labels={"name": "b"}) == ["ann/b", "bob/b"]

    run(tmp_path, scene)


@pytest.mark.requirement("S1.6")
def test_attach_and_detach(tmp_path: Path) -> None:
    """The executor is told the job's full id and the volume's name and place; the answer shows the volume in use."""

    async def scene(node: Node) -> None:
        record = node.volumes.add("ann", "data")
        job = node.executor.add("ann").id
        ann = node.client("ann", "user").volumes
        got = await ann.AttachVolume(pb.AttachVolumeRequest(name=record.id, job_id=job[:8], read_only=True))
        assert node.executor.requests == [
            jobs.AttachVolume(job=job, mount=jobs.VolumeMount(name="data", path="/volumes/data", read_only=True))
        ]
        assert (got.current_job_id, got.status, got.uses[0].path) == (job, "in use", "/volumes/data")
        node.executor.busy = True
        code, text = await refused(ann.DetachVolume(pb.DetachVolumeRequest(name="data", job_id=job)))
        assert (code, "busy" in text) == (Code.FAILED_PRECONDITION, True)
        got = await ann.DetachVolume(pb.DetachVolumeRequest(name="data", job_id=job, force=True))
        assert node.executor.requests[-1] == jobs.DetachVolume(job=job, volume="data", force=True)
        assert (got.current_job_id, [*got.uses]) == ("", [])
        await ann.AttachVolume(pb.AttachVolumeRequest(name="data", job_id=job, path="/data"))
        assert node.volumes.volumes[record.id].uses[0].path == "/data"

    run(tmp_path, scene)


@pytest.mark.threat("B16")
@pytest.mark.requirement("S1.32")
def test_volumes_and_jobs_of_two_owners_do_not_meet(tmp_path: Path) -> None:
    """Who sees the job but is no admin learns of no volume; an admin is told why; a job unseen does not exist."""

    async def scene(node: Node) -> None:
        record = node.volumes.add("ann", "data")
        bobs = node.executor.add("bob").id
        for method, kind in (("AttachVolume", pb.AttachVolumeRequest), ("DetachVolume", pb.DetachVolumeRequest)):
            request = kind(name="data", job_id=bobs)
            user, writer, admin = (
                getattr(node.client("ann", role).volumes, method) for role in ("user", "writer", "admin")
            )
            assert await refused(user(request)) == (Code.NOT_FOUND, "no such job")
            assert await refused(writer(request)) == (Code.NOT_FOUND, "no such volume")
            code, text = await refused(admin(request))
            assert (code, text) == (Code.FAILED_PRECONDITION, f"volume data is ann's, job {bobs} is bob's")
            both = node.client("ann", "user", "reader")  # sees bob's job, and may not change it
            assert (await refused(getattr(both.volumes, method)(request)))[0] is Code.PERMISSION_DENIED
        assert node.executor.requests == []
        theirs = node.volumes.add("bob", "data")
        await node.client("ann", "admin").volumes.AttachVolume(pb.AttachVolumeRequest(name=theirs.id, job_id=bobs))
        assert node.volumes.volumes[theirs.id].uses[0].job == bobs
        assert not node.volumes.volumes[record.id].uses

    run(tmp_path, scene)


@pytest.mark.requirement("S1.24")
def test_removal_of_a_volume_in_use(tmp_path: Path) -> None:
    """Refused, naming the job; with force it is taken from each job that lives, and removed."""

    async def scene(node: Node) -> None:
        record = node.volumes.add("ann", "data", shared=True)
        alive, ended = node.executor.add("ann").id, node.executor.add("ann").id
        for job in (alive, ended):
            node.volumes.use(record.id, job)
        ann = node.client("ann", "user").volumes
        code, text = await refused(ann.DeleteVolume(pb.DeleteVolumeRequest(name="data")))
        assert (code, text) == (Code.FAILED_PRECONDITION, f"volume data is in use by job {alive}")
        node.executor.finish(ended)
        code, text = await refused(ann.DeleteVolume(pb.DeleteVolumeRequest(name="data", force=True)))
        assert (code, text) == (Code.FAILED_PRECONDITION, f"volume data is in use by job {ended}")
        node.volumes.leave(ended, "data")
        node.volumes.use(record.id, alive)
        node.volumes.use(record.id, JobId(STRANGER))
        node.volumes.leave(JobId(STRANGER), "data")
        await ann.DeleteVolume(pb.DeleteVolumeRequest(name="data", force=True))
        assert node.volumes.volumes == {}
        assert jobs.DetachVolume(job=alive, volume="data", force=True) in node.executor.requests

    run(tmp_path, scene)


@pytest.mark.requirement("S1.45")
@pytest.mark.requirement("S1.47")
def test_snapshots_clones_and_sizes(tmp_path: Path) -> None:
    """Each by its own command about the volume's id; what the volumes service refuses reaches the client as it is."""

    async def scene(node: Node) -> None:
        record = node.volumes.add("ann", "data")
        ann = node.client("ann", "user").volumes
        taken = await ann.CreateSnapshot(pb.CreateSnapshotRequest(volume="data", name="before"))
        assert (taken.name, taken.volume, taken.size_bytes, taken.method) == ("before", "data", MIB, "copy")
        assert (await ann.CreateSnapshot(pb.CreateSnapshotRequest(volume="data"))).name == "20260102T030405Z"
        shown = (await ann.ListSnapshots(pb.ListSnapshotsRequest(volume=record.id))).snapshots
        assert [(one.name, one.volume) for one in shown] == [("before", "data"), ("20260102T030405Z", "data")]
        clone = await ann.CloneVolume(
            pb.CloneVolumeRequest(volume="data", snapshot="before", name="copy", labels={"a": "b"})
        )
        assert (clone.name, clone.owner, clone.origin, dict(clone.labels)) == ("copy", "ann", "data@before", {"a": "b"})
        assert (await ann.RestoreSnapshot(pb.RestoreSnapshotRequest(volume="data", name="before"))).name == "data"
        await ann.DeleteSnapshot(pb.DeleteSnapshotRequest(volume="data", name="before"))
        code, text = await refused(ann.RestoreSnapshot(pb.RestoreSnapshotRequest(volume="data", name="before")))
        assert (code, text) == (Code.NOT_FOUND, "no snapshot before")
        assert (await ann.ResizeVolume(pb.ResizeVolumeRequest(name="data", size_bytes=4 * MIB))).size_bytes == 4 * MIB
        assert (await refused(ann.ResizeVolume(pb.ResizeVolumeRequest(name="data", size_bytes=1))))[0] is (
            Code.INVALID_ARGUMENT
        )
        node.volumes.use(record.id, JobId(STRANGER))
        late = pb.RestoreSnapshotRequest(volume="data", name="20260102T030405Z")
        code, text = await refused(ann.RestoreSnapshot(late))
        assert (code, STRANGER in text) == (Code.FAILED_PRECONDITION, True)

    run(tmp_path, scene)


def test_a_service_that_ends_over_a_command_is_noticed(tmp_path: Path) -> None:
    """Nobody would answer any more: the caller is told, and not only after an hour."""

    async def scene(node: Node) -> None:
        node.volumes.add("ann", "data")
        node.volumes.gate.clear()
        making = node.client("ann", "user").volumes.CreateSnapshot(pb.CreateSnapshotRequest(volume="data"), timeout=60)
        await await_for(lambda: waiting(node) == 1, what="the command to wait")
        node.volumes.instance = "second"
        status, words = await refused(making)
        assert status is Code.UNAVAILABLE
        assert "ended before this was done" in words
        assert waiting(node) == 0

    run(tmp_path, scene)


def test_long_commands_wait_and_who_leaves_waits_no_more(tmp_path: Path) -> None:
    """A snapshot may take its time; a caller that is gone, or whose time is over, leaves no waiting answer behind."""

    async def scene(node: Node) -> None:
        node.volumes.add("ann", "data")
        node.volumes.gate.clear()
        ann = node.client("ann", "user").volumes
        request = pb.CreateSnapshotRequest(volume="data")
        gone, patient = (ann.CreateSnapshot(request, timeout=40 * SLOWNESS) for _ in range(2))
        await await_for(lambda: waiting(node) == 2, what="two to wait")
        # The connection is there: this one comes to the service before its time is over.
        late = ann.CreateSnapshot(request, timeout=10 * SLOWNESS)
        await await_for(lambda: len(node.volumes.of(volumes.CreateSnapshot)) == 3, what="the third to be asked for")
        gone.cancel()
        assert (await refused(late))[0] is Code.DEADLINE_EXCEEDED
        await await_for(lambda: waiting(node) == 1, what="one to wait")
        node.volumes.gate.set()
        assert (await patient).volume == "data"

    run(tmp_path, scene)


async def parts(name: str, *data: bytes) -> AsyncIterator[pb.ImportVolumeRequest]:
    """An import."""
    yield pb.ImportVolumeRequest(volume=name)
    for one in data:
        yield pb.ImportVolumeRequest(data=one)


async def exported(call: Any) -> bytes:
    """All that an export gives."""
    received = b""
    async for one in call:
        assert 0 < len(one.data) <= volume_streams.CHUNK_BYTES
        received += one.data
    return received


def test_content_goes_in_and_comes_out_byte_for_byte(tmp_path: Path) -> None:
    """More than any buffer holds, empty, and in the first message; each stream has a socket of its own that is gone."""
    content = bytes(range(256)) * 4096 * 5

    async def scene(node: Node) -> None:
        record = node.volumes.add("ann", "data")
        node.volumes.keep(record.id, "s")
        ann = node.client("ann", "user").volumes
        pieces = [content[start : start + 100_000] for start in range(0, len(content), 100_000)]
        got = await ann.ImportVolume(parts("data", *pieces))
        assert (got.name, node.volumes.content[record.id]) == ("data", content)
        assert await exported(ann.ExportVolume(pb.ExportVolumeRequest(volume="data"))) == content
        assert await exported(ann.ExportVolume(pb.ExportVolumeRequest(volume="data", snapshot="s"))) == content
        await ann.ImportVolume(iter([pb.ImportVolumeRequest(volume="data", data=b"only")]))
        assert node.volumes.content[record.id] == b"only"
        await ann.ImportVolume(parts("data"))
        assert await exported(ann.ExportVolume(pb.ExportVolumeRequest(volume="data"))) == b""
        opened = node.volumes.of(volumes.OpenVolumeStream)
        assert len({one.file for one in opened}) == len(opened) == 6
        assert all(topics.STREAM_FILE.fullmatch(one.file) for one in opened)
        assert [(one.direction, one.snapshot) for one in opened[1:3]] == [("export", ""), ("export", "s")]

    run(tmp_path, scene)


def refused_import(node: Node, sent: Iterable[pb.ImportVolumeRequest]) -> tuple[grpc.StatusCode, str]:
    """Status and text of an import that must fail, by the client that rnx has.

    That of asyncio tells a status of its own, INTERNAL, when a call is over while it still writes.
    """
    identity = node.authority.client("ann", "user")
    credentials = grpc.ssl_channel_credentials(node.authority.pem, identity.key, identity.cert)
    options = (("grpc.ssl_target_name_override", "localhost"), ("grpc.use_local_subchannel_pool", 1))
    with grpc.secure_channel(f"127.0.0.1:{node.api.port}", credentials, options) as channel:
        call = VolumeServiceStub(channel).ImportVolume.future(iter(sent), timeout=30)
        with pytest.raises(grpc.RpcError):
            call.result()
        return call.code(), call.details()


def test_a_stream_that_fails_ends_with_the_reason(tmp_path: Path) -> None:
    """An export that breaks off is no export; an import that fails is refused while its sender sends, or waits."""

    async def scene(node: Node) -> None:
        record = node.volumes.add("ann", "data")
        node.volumes.content[record.id] = bytes(MIB)
        ann = node.client("ann", "user").volumes
        absent = pb.ExportVolumeRequest(volume="data", snapshot="none")
        assert await refused(exported(ann.ExportVolume(absent))) == (Code.NOT_FOUND, "no snapshot none")
        node.volumes.failing = True
        broken = exported(ann.ExportVolume(pb.ExportVolumeRequest(volume="data")))
        assert await refused(broken) == (Code.DATA_LOSS, "the volume cannot be read")
        named, more = pb.ImportVolumeRequest(volume="data", data=b"x"), pb.ImportVolumeRequest(data=bytes(100_000))
        told = threading.Event()

        def silent() -> Iterator[pb.ImportVolumeRequest]:
            yield named
            told.wait(30)

        full = (Code.RESOURCE_EXHAUSTED, "the volume is full")
        assert await asyncio.to_thread(refused_import, node, [named, *[more] * 100]) == full
        assert await asyncio.to_thread(refused_import, node, silent()) == full
        told.set()
        node.volumes.failing = False
        twice = [named, pb.ImportVolumeRequest(volume="other")]
        assert (await asyncio.to_thread(refused_import, node, twice))[0] is Code.INVALID_ARGUMENT
        lines = [json.loads(line) for line in (node.layout.audit / "audit.jsonl").read_text().splitlines()]
        outcomes = [line["outcome"] for line in lines if line.get("method", "").endswith("ImportVolume")]
        assert outcomes == ["allowed", "exhausted", "allowed", "exhausted", "allowed", "invalid"]

    run(tmp_path, scene)


def test_a_stream_whose_end_nobody_tells_is_given_up(tmp_path: Path) -> None:
    """The volumes service dies with the socket, or before it connects: UNAVAILABLE in a bounded time, not an OK."""

    async def scene(node: Node) -> None:
        streams = node.api._volume_streams
        streams._begin_s = streams._answer_s = 0.2 * SLOWNESS
        node.volumes.add("ann", "data")
        node.volumes.silent = True
        ann = node.client("ann", "user").volumes
        assert (await refused(exported(ann.ExportVolume(pb.ExportVolumeRequest(volume="data")))))[0] is Code.UNAVAILABLE
        filling = [pb.ImportVolumeRequest(volume="data", data=b"x")]
        assert (await asyncio.to_thread(refused_import, node, filling))[0] is Code.UNAVAILABLE
        node.volumes.gate.clear()
        assert (await refused(exported(ann.ExportVolume(pb.ExportVolumeRequest(volume="data")))))[0] is Code.UNAVAILABLE

    run(tmp_path, scene)


def test_who_does_not_read_holds_the_sender_and_who_leaves_ends_it(tmp_path: Path) -> None:
    """Of an export that nobody reads little is taken from the volume; who leaves ends both kinds of stream."""
    content = bytes(64 * MIB)
    taken = 0

    async def scene(node: Node) -> None:
        record = node.volumes.add("ann", "data")
        node.volumes.content[record.id] = content
        ann = node.client("ann", "user").volumes
        call = ann.ExportVolume(pb.ExportVolumeRequest(volume="data"))
        nonlocal taken
        taken = len((await call.read()).data)
        await asyncio.sleep(0.5)  # what would be read without back-pressure is read by then
        assert node.volumes.streams_ended == 0
        assert node.api.capacity.streams == 1
        call.cancel()
        await await_for(lambda: node.volumes.streams_ended == 1, what="the export to end")

        async def stopping() -> AsyncIterator[pb.ImportVolumeRequest]:
            yield pb.ImportVolumeRequest(volume="data", data=b"x")
            await asyncio.Event().wait()

        filling = ann.ImportVolume(stopping())
        await await_for(lambda: len(node.volumes.of(volumes.OpenVolumeStream)) == 2, what="the import to begin")
        await await_for(lambda: not [*node.layout.streams.iterdir()], what="the connection")
        filling.cancel()
        await await_for(lambda: node.volumes.streams_ended == 2, what="the import to end")

    run(tmp_path, scene)
    assert 0 < taken <= volume_streams.CHUNK_BYTES


def test_sockets_that_a_killed_api_left_are_removed(tmp_path: Path) -> None:
    """At the next start; what is not named like one stays."""
    (tmp_path / "run" / "streams").mkdir(parents=True)
    left = tmp_path / "run" / "streams" / f"volume-stream-{'0' * 32}.sock"
    left.touch()

    async def scene(node: Node) -> None:
        assert not left.exists()
        assert VolumeId(STRANGER) not in node.volumes.volumes

    run(tmp_path, scene)


def test_without_the_volumes_service_callers_are_told_soon(tmp_path: Path) -> None:
    """UNAVAILABLE after the time of one question, also for what may work long; jobs go on."""

    async def scene(node: Node) -> None:
        node.volumes.add("ann", "data")
        node.volumes.deaf.clear()
        client = node.client("ann", "user")
        calls = (
            client.volumes.CreateVolume(pb.CreateVolumeRequest(name="new", size_bytes=1)),
            client.volumes.GetVolume(pb.GetVolumeRequest(name="data")),
            client.volumes.CreateSnapshot(pb.CreateSnapshotRequest(volume="data")),
        )
        assert (await client.jobs.RunJob(job_pb2.RunJobRequest(spec=job_pb2.JobSpec(command="true")))).job.id
        for code, text in await asyncio.gather(*(refused(call) for call in calls)):
            assert (code, "the volumes did not answer within 10 s" in text) == (Code.UNAVAILABLE, True)
        node.volumes.deaf.set()

    run(tmp_path, scene)
