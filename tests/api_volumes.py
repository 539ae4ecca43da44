"""The volumes service as the api's tests need it: records in a dictionary, and tar streams that are mere bytes.

It keeps the rules that the api relies on (names by owner, visibility, PRECONDITION while in use) and can be told to
break what may break: to hold its answers back, to fail in the middle of a stream.
"""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from common.bus.requests import Responder
from common.bus.transport import Transport
from common.errors import JobletError, Reason, exhausted, not_found, precondition
from common.identifiers import JobId, VolumeId, new_volume_id
from common.messages import topics, volumes
from common.messages.envelope import Body


class FakeVolumes:
    """Keeps volumes and snapshots in dictionaries. `requests` is what it was asked, in order."""

    def __init__(self, transport: Transport, streams: Path) -> None:
        self.volumes: dict[VolumeId, volumes.VolumeRecord] = {}
        self.snapshots: dict[VolumeId, list[volumes.SnapshotRecord]] = {}
        self.content: dict[VolumeId, bytes] = {}
        self.requests: list[Body] = []
        self.gate = asyncio.Event()  # commands that change something are answered when it is set
        self.gate.set()
        self.deaf = asyncio.Event()  # while it is clear, nothing is answered: the process is stopped
        self.deaf.set()
        self.failing = False  # streams fail when they have begun
        self.silent = False  # and their end is told to nobody
        self.streams_ended = 0
        self._streams = streams
        self.instance = "first"
        handlers: Mapping[type[Body], Any] = {
            volumes.GetVolumesService: self._service,
            volumes.CreateVolume: self._create,
            volumes.GetVolume: self._get,
            volumes.ListVolumes: self._list,
            volumes.DeleteVolume: self._delete,
            volumes.ResizeVolume: self._resize,
            volumes.CreateSnapshot: self._snapshot,
            volumes.ListSnapshots: self._list_snapshots,
            volumes.DeleteSnapshot: self._drop,
            volumes.RestoreSnapshot: self._restore,
            volumes.CloneVolume: self._clone,
            volumes.OpenVolumeStream: self._stream,
            volumes.CheckVolumes: self._nothing,
            volumes.PrepareVolumes: self._nothing,
            volumes.ReleaseVolumes: self._nothing,
            volumes.SyncVolumes: self._nothing,
        }
        self._responder = Responder(transport, topics.VOLUMES_COMMANDS, topics.API_REPLIES, handlers)

    async def run(self) -> None:
        """Answer for ever."""
        await self._responder.run()

    async def close(self) -> None:
        """Stop answering."""
        await self._responder.close()

    def of(self, kind: type[Body]) -> list[Any]:
        """The requests of one kind that came."""
        return [request for request in self.requests if isinstance(request, kind)]

    def add(self, owner: str, name: str, **fields: Any) -> volumes.VolumeRecord:
        """A volume that there is already."""
        volume = new_volume_id()
        fields.setdefault("kind", volumes.VolumeKind.FILESYSTEM)
        fields.setdefault("size_bytes", 2**20)
        fields.setdefault("enforcement", volumes.Enforcement.IMAGE)
        fields.setdefault("status", volumes.VolumeStatus.AVAILABLE)
        self.volumes[volume] = volumes.VolumeRecord(
            id=volume, name=name, owner=owner, created_at_ns=1_700_000_000 * 10**9 + len(self.volumes), **fields
        )
        self.snapshots[volume] = []
        self.content[volume] = b""
        return self.volumes[volume]

    def change(self, volume: VolumeId, **fields: Any) -> volumes.VolumeRecord:
        """A new version of a record."""
        self.volumes[volume] = msgspec.structs.replace(self.volumes[volume], **fields)
        return self.volumes[volume]

    def use(self, volume: VolumeId, job: JobId, path: str = "/data", *, read_only: bool = False) -> None:
        """`job` has it from now on."""
        use = volumes.VolumeUse(job=job, path=path, read_only=read_only, since_ns=1_700_000_001 * 10**9)
        uses = (*self.volumes[volume].uses, use)
        self.change(volume, uses=uses, status=volumes.VolumeStatus.IN_USE)

    def leave(self, job: JobId, name: str) -> None:
        """`job` has it no more."""
        for record in [*self.volumes.values()]:
            if record.name == name:
                self.change(record.id, uses=tuple(use for use in record.uses if use.job != job))

    def keep(self, volume: VolumeId, name: str) -> volumes.SnapshotRecord:
        """A snapshot that there is already."""
        snapshot = volumes.SnapshotRecord(
            id=str(new_volume_id()),
            name=name,
            volume=volume,
            created_at_ns=1_700_000_002 * 10**9,
            size_bytes=self.volumes[volume].size_bytes,
            method=volumes.CopyMethod.COPY,
        )
        self.snapshots[volume].append(snapshot)
        self.change(volume, snapshots=len(self.snapshots[volume]))
        return snapshot

    async def _begin(self, request: Body) -> None:
        await self.deaf.wait()
        self.requests.append(request)
        await self.gate.wait()

    def _named(self, owner: str, name: str) -> volumes.VolumeRecord | None:
        return next((one for one in self.volumes.values() if (one.owner, one.name) == (owner, name)), None)

    def _free(self, volume: VolumeId) -> volumes.VolumeRecord:
        record = self.volumes[volume]
        if record.uses:
            raise precondition(f"volume {record.name} is in use by job {record.uses[0].job}", "stop the job, or detach")
        return record

    def _kept(self, volume: VolumeId, name: str) -> volumes.SnapshotRecord:
        for snapshot in self.snapshots[volume]:
            if snapshot.name == name:
                return snapshot
        raise not_found(f"no snapshot {name}", "rnx volume snapshot list shows them")

    async def _service(self, request: volumes.GetVolumesService) -> Body:  # noqa: ARG002  # it has no fields
        await self.deaf.wait()
        return volumes.VolumesService(instance=self.instance)

    async def _create(self, request: volumes.CreateVolume) -> Body:
        await self._begin(request)
        if self._named(request.owner, request.name):
            raise JobletError(Reason.EXISTS, f"there is a volume {request.name}", detail="choose another name")
        made = self.add(
            request.owner,
            request.name,
            kind=request.kind,
            size_bytes=request.size_bytes,
            labels=request.labels,
            shared=request.shared,
            encryption="dm-crypt" if request.encrypted else "",
        )
        return volumes.VolumeFound(volume=made)

    async def _get(self, request: volumes.GetVolume) -> Body:
        await self.deaf.wait()
        found = self._named(request.owner, request.volume) or self.volumes.get(VolumeId(request.volume))
        if found is None or request.visible_owner not in {None, found.owner}:
            raise not_found(f"no volume {request.volume}")
        return volumes.VolumeFound(volume=found)

    async def _list(self, request: volumes.ListVolumes) -> Body:
        await self.deaf.wait()
        found = [
            record
            for record in sorted(self.volumes.values(), key=lambda record: (record.owner, record.name))
            if request.visible_owner in {None, record.owner}
            and request.owner in {"", record.owner}
            and request.labels.items() <= record.labels.items()
        ]
        start = int(request.page_token) if request.page_token.isdecimal() else 0
        end = start + request.page_size
        return volumes.VolumePage(volumes=tuple(found[start:end]), next_page_token=str(end) if end < len(found) else "")

    async def _delete(self, request: volumes.DeleteVolume) -> Body:
        await self._begin(request)
        self._free(request.volume)
        del self.volumes[request.volume]
        return volumes.VolumeDeleted(volume=request.volume)

    async def _resize(self, request: volumes.ResizeVolume) -> Body:
        await self._begin(request)
        if request.size_bytes < self.volumes[request.volume].size_bytes:
            raise JobletError(Reason.INVALID, "a volume cannot become smaller", detail="clone what you need")
        return volumes.VolumeFound(volume=self.change(request.volume, size_bytes=request.size_bytes))

    async def _snapshot(self, request: volumes.CreateSnapshot) -> Body:
        await self._begin(request)
        return volumes.SnapshotFound(snapshot=self.keep(request.volume, request.name or "20260102T030405Z"))

    async def _list_snapshots(self, request: volumes.ListSnapshots) -> Body:
        return volumes.SnapshotList(snapshots=tuple(self.snapshots[request.volume]))

    async def _drop(self, request: volumes.DeleteSnapshot) -> Body:
        await self._begin(request)
        self.snapshots[request.volume].remove(self._kept(request.volume, request.name))
        return volumes.SnapshotDeleted(volume=request.volume, name=request.name)

    async def _restore(self, request: volumes.RestoreSnapshot) -> Body:
        await self._begin(request)
        self._kept(request.volume, request.name)
        return volumes.VolumeFound(volume=self._free(request.volume))

    async def _clone(self, request: volumes.CloneVolume) -> Body:
        await self._begin(request)
        source = self.volumes[request.volume]
        if request.snapshot:
            self._kept(request.volume, request.snapshot)
        if self._named(source.owner, request.name):
            raise JobletError(Reason.EXISTS, f"there is a volume {request.name}", detail="choose another name")
        origin = f"{source.name}@{request.snapshot}" if request.snapshot else source.name
        made = self.add(source.owner, request.name, labels=request.labels, origin=origin)
        return volumes.VolumeFound(volume=made)

    async def _stream(self, request: volumes.OpenVolumeStream) -> Body:
        await self._begin(request)
        assert topics.STREAM_FILE.fullmatch(request.file)
        if request.snapshot:
            self._kept(request.volume, request.snapshot)
        directory = os.open(self._streams, os.O_PATH | os.O_DIRECTORY)
        try:
            reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{directory}/{request.file}")
        finally:
            os.close(directory)
        try:
            if request.direction is volumes.Direction.EXPORT:
                await self._export(request.volume, writer)
            else:
                await self._import(request.volume, reader)
        finally:
            self.streams_ended += 1
            writer.close()
        if self.silent:
            await asyncio.Event().wait()
        return volumes.VolumeStreamClosed(entries=1, bytes=len(self.content[request.volume]))

    async def _export(self, volume: VolumeId, writer: asyncio.StreamWriter) -> None:
        content = self.content[volume]
        if self.failing:
            writer.write(content[:1000])
            await writer.drain()
            raise JobletError(Reason.DATA_LOSS, "the volume cannot be read", detail="restore a snapshot")
        for start in range(0, len(content), 65536):
            writer.write(content[start : start + 65536])
            await writer.drain()

    async def _import(self, volume: VolumeId, reader: asyncio.StreamReader) -> None:
        received = b""
        while data := await reader.read(65536):
            received += data
            if self.failing:
                raise exhausted("the volume is full", "make it larger: rnx volume resize")
        self.content[volume] = received

    async def _nothing(self, request: Body) -> Body:
        raise JobletError(Reason.UNIMPLEMENTED, f"{type(request).__name__} is the executor's to ask")
