"""VolumeService: from a request to a command for the volumes service, and from its answer to the client's.

Belongs here: one short method for each RPC. Does not belong here: checking fields (`requests.py`), permissions
(`gate.py`, `volume_access.py`), what volumes and jobs have with each other (`volume_jobs.py`), streams of content
(`volume_streams.py`). Names of volumes are looked up as the caller may see them; commands go by id.
"""
# ruff: noqa: N802, ARG002  # names and arguments of the methods are those of the generated classes

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Final

from common.bus.requests import Asker
from common.errors import invalid
from common.identifiers import parse_name
from common.messages import volumes
from common.quantities import SIZE_BYTES_MAX
from proto.joblet.v1 import volume_pb2, volume_pb2_grpc
from services.api import requests
from services.api.calls import Context, current
from services.api.volume_access import VolumeAccess, visible_owner
from services.api.volume_convert import KINDS, snapshot_to_proto, volume_to_proto
from services.api.volume_jobs import VolumeJobs
from services.api.volume_streams import VolumeStreams
from services.api.volume_work import VolumeWork

_KINDS: Final[Mapping[int, volumes.VolumeKind]] = {
    volume_pb2.VOLUME_TYPE_UNSPECIFIED: volumes.VolumeKind.FILESYSTEM,
    **{number: kind for kind, number in KINDS.items()},
}


class VolumeService(volume_pb2_grpc.VolumeServiceServicer):
    """The methods of proto/joblet/v1/volume.proto. Errors leave as JobletError; the gate makes statuses of them."""

    def __init__(
        self, *, service: Asker, access: VolumeAccess, volume_jobs: VolumeJobs, streams: VolumeStreams
    ) -> None:
        self._service = service
        self._work = VolumeWork(service)
        self._access = access
        self._jobs = volume_jobs
        self._streams = streams

    async def CreateVolume(self, request: volume_pb2.CreateVolumeRequest, context: Context) -> volume_pb2.Volume:
        """A new, empty volume of the caller's own."""
        kind = _KINDS.get(request.type)
        if kind is None:
            raise invalid(f"type: no such type {request.type}", "see VolumeType in proto/joblet/v1/volume.proto")
        owner = current().principal.name
        wanted = volumes.CreateVolume(
            owner=owner,
            name=parse_name(request.name, "volume"),
            kind=kind,
            size_bytes=requests.within("size_bytes", request.size_bytes, 1, SIZE_BYTES_MAX),
            labels=requests.labels("labels", request.labels),
            shared=request.shared,
            advisory=request.advisory,
            encrypted=request.encrypted,
        )
        return volume_to_proto((await self._work.done(wanted, volumes.VolumeFound)).volume)

    async def ListVolumes(
        self, request: volume_pb2.ListVolumesRequest, context: Context
    ) -> volume_pb2.ListVolumesResponse:
        """One page of the caller's volumes, or of all that he may see."""
        owner = requests.owner("owner", request.owner)
        query = volumes.ListVolumes(
            visible_owner=visible_owner(),
            owner=owner or ("" if request.all else current().principal.name),
            labels=requests.labels("labels", request.labels),
            page_size=requests.page_size(request.page_size),
            page_token=requests.page_token(request.page_token),
        )
        page = await self._service.request(query, volumes.VolumePage)
        return volume_pb2.ListVolumesResponse(
            volumes=[volume_to_proto(record) for record in page.volumes], next_page_token=page.next_page_token
        )

    async def GetVolume(self, request: volume_pb2.GetVolumeRequest, context: Context) -> volume_pb2.Volume:
        """One volume as it is now."""
        return volume_to_proto(await self._access.volume(request.name))

    async def DeleteVolume(
        self, request: volume_pb2.DeleteVolumeRequest, context: Context
    ) -> volume_pb2.DeleteVolumeResponse:
        """Remove a volume; with `force` its jobs lose it first. Without, the refusal names one of them."""
        record = await self._access.volume(request.name)
        if request.force:
            await self._jobs.take_from_all(record)
        await self._work.done(volumes.DeleteVolume(volume=record.id), volumes.VolumeDeleted)
        return volume_pb2.DeleteVolumeResponse()

    async def AttachVolume(self, request: volume_pb2.AttachVolumeRequest, context: Context) -> volume_pb2.Volume:
        """Let a volume appear in a running job of its owner."""
        record = await self._access.volume(request.name)
        mount = requests.volume_mount("path", record.name, request.path, read_only=request.read_only)
        await self._jobs.attach(record, request.job_id, mount)
        return volume_to_proto(await self._access.again(record.id))

    async def DetachVolume(self, request: volume_pb2.DetachVolumeRequest, context: Context) -> volume_pb2.Volume:
        """Take a volume from a running job."""
        record = await self._access.volume(request.name)
        await self._jobs.detach(record, request.job_id, force=request.force)
        return volume_to_proto(await self._access.again(record.id))

    async def ResizeVolume(self, request: volume_pb2.ResizeVolumeRequest, context: Context) -> volume_pb2.Volume:
        """Make a volume larger."""
        size_bytes = requests.within("size_bytes", request.size_bytes, 1, SIZE_BYTES_MAX)
        record = await self._access.volume(request.name)
        wanted = volumes.ResizeVolume(volume=record.id, size_bytes=size_bytes)
        return volume_to_proto((await self._work.done(wanted, volumes.VolumeFound)).volume)

    async def CreateSnapshot(self, request: volume_pb2.CreateSnapshotRequest, context: Context) -> volume_pb2.Snapshot:
        """Keep the content as it is now."""
        name = parse_name(request.name, "snapshot") if request.name else ""
        record = await self._access.volume(request.volume)
        found = await self._work.done(volumes.CreateSnapshot(volume=record.id, name=name), volumes.SnapshotFound)
        return snapshot_to_proto(found.snapshot, record.name)

    async def ListSnapshots(
        self, request: volume_pb2.ListSnapshotsRequest, context: Context
    ) -> volume_pb2.ListSnapshotsResponse:
        """All snapshots of a volume."""
        record = await self._access.volume(request.volume)
        found = await self._service.request(volumes.ListSnapshots(volume=record.id), volumes.SnapshotList)
        return volume_pb2.ListSnapshotsResponse(
            snapshots=[snapshot_to_proto(snapshot, record.name) for snapshot in found.snapshots]
        )

    async def DeleteSnapshot(
        self, request: volume_pb2.DeleteSnapshotRequest, context: Context
    ) -> volume_pb2.DeleteSnapshotResponse:
        """Remove a snapshot."""
        name = parse_name(request.name, "snapshot")
        record = await self._access.volume(request.volume)
        await self._work.done(volumes.DeleteSnapshot(volume=record.id, name=name), volumes.SnapshotDeleted)
        return volume_pb2.DeleteSnapshotResponse()

    async def RestoreSnapshot(self, request: volume_pb2.RestoreSnapshotRequest, context: Context) -> volume_pb2.Volume:
        """The content becomes a snapshot's."""
        name = parse_name(request.name, "snapshot")
        record = await self._access.volume(request.volume)
        restored = await self._work.done(volumes.RestoreSnapshot(volume=record.id, name=name), volumes.VolumeFound)
        return volume_to_proto(restored.volume)

    async def CloneVolume(self, request: volume_pb2.CloneVolumeRequest, context: Context) -> volume_pb2.Volume:
        """A new volume of the same owner."""
        name = parse_name(request.name, "volume")
        snapshot = parse_name(request.snapshot, "snapshot") if request.snapshot else ""
        labels = requests.labels("labels", request.labels)
        record = await self._access.volume(request.volume)
        wanted = volumes.CloneVolume(volume=record.id, name=name, snapshot=snapshot, labels=labels)
        return volume_to_proto((await self._work.done(wanted, volumes.VolumeFound)).volume)

    async def ExportVolume(  # type: ignore[override]  # a generator, after the access check
        self, request: volume_pb2.ExportVolumeRequest, context: Context
    ) -> AsyncGenerator[volume_pb2.VolumeChunk, None]:
        """The content as a tar stream."""
        snapshot = parse_name(request.snapshot, "snapshot") if request.snapshot else ""
        record = await self._access.volume(request.volume)
        return self._streams.export(record.id, snapshot)

    async def ImportVolume(
        self, request_iterator: AsyncIterator[volume_pb2.ImportVolumeRequest], context: Context
    ) -> volume_pb2.Volume:
        """Unpack a tar stream into a volume. The first message names it."""
        async for first in request_iterator:
            record = await self._access.volume(first.volume)
            current().allowed()
            content = _content(first, request_iterator)
            await self._streams.fill(record.id, content)
            return volume_to_proto(await self._access.again(record.id))
        raise invalid("the import is empty", "name the volume in the first message")


async def _content(
    first: volume_pb2.ImportVolumeRequest, others: AsyncIterator[volume_pb2.ImportVolumeRequest]
) -> AsyncGenerator[bytes, None]:
    yield first.data
    async for other in others:
        if other.volume:
            raise invalid("volume: only the first message names it", "send an import for each volume")
        yield other.data
