# ruff: noqa: ARG002, N802  # the signatures are gRPC's
"""VolumeService: named storage for jobs. Nothing is behind it yet."""

from collections.abc import AsyncIterator
from typing import NoReturn

from common.errors import JobletError, Reason
from proto.joblet.v1 import volume_pb2, volume_pb2_grpc
from services.api.calls import Context


def _not_yet() -> NoReturn:
    detail = "jobs have /work and /tmp of their own"
    raise JobletError(Reason.UNIMPLEMENTED, "volumes are not available in this release", detail=detail)


class VolumeService(volume_pb2_grpc.VolumeServiceServicer):
    """Refuses everything, to those who would be allowed."""

    async def CreateVolume(self, request: volume_pb2.CreateVolumeRequest, context: Context) -> volume_pb2.Volume:
        """Refused."""
        _not_yet()

    async def ListVolumes(
        self, request: volume_pb2.ListVolumesRequest, context: Context
    ) -> volume_pb2.ListVolumesResponse:
        """Refused."""
        _not_yet()

    async def GetVolume(self, request: volume_pb2.GetVolumeRequest, context: Context) -> volume_pb2.Volume:
        """Refused."""
        _not_yet()

    async def DeleteVolume(
        self, request: volume_pb2.DeleteVolumeRequest, context: Context
    ) -> volume_pb2.DeleteVolumeResponse:
        """Refused."""
        _not_yet()

    async def AttachVolume(self, request: volume_pb2.AttachVolumeRequest, context: Context) -> volume_pb2.Volume:
        """Refused."""
        _not_yet()

    async def DetachVolume(self, request: volume_pb2.DetachVolumeRequest, context: Context) -> volume_pb2.Volume:
        """Refused."""
        _not_yet()

    async def ResizeVolume(self, request: volume_pb2.ResizeVolumeRequest, context: Context) -> volume_pb2.Volume:
        """Refused."""
        _not_yet()

    async def CreateSnapshot(self, request: volume_pb2.CreateSnapshotRequest, context: Context) -> volume_pb2.Snapshot:
        """Refused."""
        _not_yet()

    async def ListSnapshots(
        self, request: volume_pb2.ListSnapshotsRequest, context: Context
    ) -> volume_pb2.ListSnapshotsResponse:
        """Refused."""
        _not_yet()

    async def DeleteSnapshot(
        self, request: volume_pb2.DeleteSnapshotRequest, context: Context
    ) -> volume_pb2.DeleteSnapshotResponse:
        """Refused."""
        _not_yet()

    async def RestoreSnapshot(self, request: volume_pb2.RestoreSnapshotRequest, context: Context) -> volume_pb2.Volume:
        """Refused."""
        _not_yet()

    async def CloneVolume(self, request: volume_pb2.CloneVolumeRequest, context: Context) -> volume_pb2.Volume:
        """Refused."""
        _not_yet()

    async def ImportVolume(
        self, request: AsyncIterator[volume_pb2.ImportVolumeRequest], context: Context
    ) -> volume_pb2.Volume:
        """Refused."""
        _not_yet()

    async def ExportVolume(
        self, request: volume_pb2.ExportVolumeRequest, context: Context
    ) -> AsyncIterator[volume_pb2.VolumeChunk]:
        """Refused."""
        _not_yet()
        yield volume_pb2.VolumeChunk()
