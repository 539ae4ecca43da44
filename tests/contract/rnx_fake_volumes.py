"""VolumeService by script, for what rnx is tested against.

Belongs here: what the fake answers. Does not belong here: serving it and calling rnx (`rnx_fake_node.py`). What this
fake promises is proto/joblet/v1 and nothing else; the real api has its own suite.
"""
# ruff: noqa: N802  # names of the methods are those of the generated classes

import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from proto.joblet.v1 import volume_pb2, volume_pb2_grpc
from tests.contract.rnx_fake_services import refuse

CREATED = Timestamp(seconds=1_700_000_000, nanos=250_000_000)
USED = Timestamp(seconds=1_700_000_100)
PAGE_SIZE_MAX = 2


class Refusal(NamedTuple):
    """What a method says instead of doing anything."""

    code: grpc.StatusCode
    text: str
    detail: str = ""


class FakeVolumes(volume_pb2_grpc.VolumeServiceServicer):
    """Keeps volumes by name. `requests` is what it was asked; `refusals` by method come instead of an answer."""

    def __init__(self) -> None:
        self.requests: list[Message] = []
        self.volumes: dict[str, volume_pb2.Volume] = {}
        self.snapshots: list[volume_pb2.Snapshot] = []
        self.refusals: dict[str, Refusal] = {}
        self.content = [b""]  # what an export sends, piece by piece
        self.breaks_off = False  # behind it
        self.gate = threading.Event()  # exports end, and imports are read, when it is set
        self.gate.set()
        self.begun = threading.Event()
        self.gone = threading.Event()
        self.imported: bytes | None = None  # all of it, when it came to its end

    def add(self, name: str, **fields: Any) -> volume_pb2.Volume:
        """A volume with a recognizable id."""
        given: dict[str, Any] = {
            "id": f"{len(self.volumes) + 1:08d}-0000-4000-8000-00000000000a",
            "name": name,
            "type": volume_pb2.FILESYSTEM,
            "size_bytes": 2**30,
            "status": "available",
            "created_at": CREATED,
            "owner": "alice",
            "enforcement": "image",
        }
        self.volumes[name] = volume_pb2.Volume(**(given | fields))
        return self.volumes[name]

    def of(self, kind: type[Message]) -> list[Any]:
        """The requests of one kind that came."""
        return [request for request in self.requests if isinstance(request, kind)]

    def _asked(self, method: str, request: Message, name: str, context: Any) -> volume_pb2.Volume:
        self.requests.append(request)
        refusal = self.refusals.get(name) or self.refusals.get(method)
        if refusal is not None:
            refuse(context, refusal.code, refusal.text, refusal.detail)
        if name not in self.volumes:
            refuse(context, grpc.StatusCode.NOT_FOUND, "no such volume", "rnx volume list shows them")
        return self.volumes[name]

    def CreateVolume(self, request: volume_pb2.CreateVolumeRequest, context: Any) -> volume_pb2.Volume:
        """As asked for."""
        self.add(request.name, type=request.type, size_bytes=request.size_bytes, labels=request.labels)
        return self._asked("CreateVolume", request, request.name, context)

    def ListVolumes(self, request: volume_pb2.ListVolumesRequest, context: Any) -> volume_pb2.ListVolumesResponse:
        """In small pages."""
        del context
        copy = volume_pb2.ListVolumesRequest()
        copy.CopyFrom(request)
        self.requests.append(copy)
        found = [*self.volumes.values()]
        start = int(request.page_token or 0)
        end = start + min(request.page_size, PAGE_SIZE_MAX)
        return volume_pb2.ListVolumesResponse(
            volumes=found[start:end], next_page_token=str(end) if end < len(found) else ""
        )

    def GetVolume(self, request: volume_pb2.GetVolumeRequest, context: Any) -> volume_pb2.Volume:
        """One."""
        return self._asked("GetVolume", request, request.name, context)

    def DeleteVolume(self, request: volume_pb2.DeleteVolumeRequest, context: Any) -> volume_pb2.DeleteVolumeResponse:
        """Gone."""
        self._asked("DeleteVolume", request, request.name, context)
        del self.volumes[request.name]
        return volume_pb2.DeleteVolumeResponse()

    def AttachVolume(self, request: volume_pb2.AttachVolumeRequest, context: Any) -> volume_pb2.Volume:
        """Used by the job."""
        volume = self._asked("AttachVolume", request, request.name, context)
        volume.uses.add(
            job_id=request.job_id, path=request.path or f"/volumes/{request.name}", read_only=request.read_only
        )
        return volume

    def DetachVolume(self, request: volume_pb2.DetachVolumeRequest, context: Any) -> volume_pb2.Volume:
        """Used by the others."""
        volume = self._asked("DetachVolume", request, request.name, context)
        left = [use for use in volume.uses if use.job_id != request.job_id]
        del volume.uses[:]
        volume.uses.extend(left)
        return volume

    def ResizeVolume(self, request: volume_pb2.ResizeVolumeRequest, context: Any) -> volume_pb2.Volume:
        """Of this size."""
        volume = self._asked("ResizeVolume", request, request.name, context)
        volume.size_bytes = request.size_bytes
        return volume

    def CreateSnapshot(self, request: volume_pb2.CreateSnapshotRequest, context: Any) -> volume_pb2.Snapshot:
        """One more."""
        volume = self._asked("CreateSnapshot", request, request.volume, context)
        snapshot = volume_pb2.Snapshot(
            id=f"{len(self.snapshots) + 1:08d}-0000-4000-8000-00000000000b",
            name=request.name or "20260102T030405Z",
            volume=volume.name,
            created_at=CREATED,
            size_bytes=volume.size_bytes,
            method="reflink",
        )
        self.snapshots.append(snapshot)
        return snapshot

    def ListSnapshots(self, request: volume_pb2.ListSnapshotsRequest, context: Any) -> volume_pb2.ListSnapshotsResponse:
        """All."""
        self._asked("ListSnapshots", request, request.volume, context)
        return volume_pb2.ListSnapshotsResponse(snapshots=self.snapshots)

    def DeleteSnapshot(
        self, request: volume_pb2.DeleteSnapshotRequest, context: Any
    ) -> volume_pb2.DeleteSnapshotResponse:
        """Gone."""
        self._asked("DeleteSnapshot", request, request.volume, context)
        self.snapshots = [one for one in self.snapshots if one.name != request.name]
        return volume_pb2.DeleteSnapshotResponse()

    def RestoreSnapshot(self, request: volume_pb2.RestoreSnapshotRequest, context: Any) -> volume_pb2.Volume:
        """The volume."""
        return self._asked("RestoreSnapshot", request, request.volume, context)

    def CloneVolume(self, request: volume_pb2.CloneVolumeRequest, context: Any) -> volume_pb2.Volume:
        """Another one."""
        self._asked("CloneVolume", request, request.volume, context)
        return self.add(request.name, labels=request.labels)

    def ExportVolume(self, request: volume_pb2.ExportVolumeRequest, context: Any) -> Iterator[volume_pb2.VolumeChunk]:
        """`content`, then the gate."""
        self._asked("ExportVolume", request, request.volume, context)
        context.add_callback(self.gone.set)
        for data in self.content:
            yield volume_pb2.VolumeChunk(data=data)
        self.begun.set()
        while context.is_active() and not self.gate.wait(0.05):
            pass
        if self.breaks_off:
            refuse(context, grpc.StatusCode.DATA_LOSS, "the volume cannot be read", "restore a snapshot")

    def ImportVolume(
        self, request_iterator: Iterator[volume_pb2.ImportVolumeRequest], context: Any
    ) -> volume_pb2.Volume:
        """Kept as it came."""

        def ended() -> None:
            if context._state.client == "cancelled":  # nothing public tells how a call came to its end
                self.imported = None  # it was broken off, which ends the iteration as well, and is told after it
            self.gone.set()

        context.add_callback(ended)
        volume = self._asked("ImportVolume", first := next(request_iterator), first.volume, context)
        self.begun.set()
        while context.is_active() and not self.gate.wait(0.05):
            pass
        received = first.data
        for one in request_iterator:
            assert not one.volume
            received += one.data
        self.imported = received
        volume.used_bytes = len(received)
        return volume
