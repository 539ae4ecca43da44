"""How a volume begins, grows and ends: what the machine asks for, done in the order in which it is durable.

    create   record says creating ─▶ made on the disk ─▶ record says available
    resize   record has the size that is to be ─▶ made larger ─▶ record has the size
    delete   record says deleting ─▶ removed from the disk ─▶ no record

Whatever is interrupted is found by its record and ended by `resume`. The volume's lock is held throughout.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import structlog

from common.config.settings import Volumes as Settings
from common.errors import JobletError
from common.identifiers import VolumeId, new_volume_id
from common.messages.volumes import CreateVolume, VolumeRecord, VolumeStatus
from services.volumes.admission import (
    Room,
    Tally,
    admit,
    admit_bytes,
    admit_owned,
    check_encryption,
    check_labels,
    check_name,
    check_owner,
    check_size,
    tally,
)
from services.volumes.disk import Disk
from services.volumes.events import (
    Created,
    CreateFailed,
    Deleted,
    DeleteFailed,
    DeleteRequested,
    IdleTooLong,
    Remove,
    Resize,
    Resized,
    ResizeFailed,
    ResizeRequested,
    Restarted,
    Volume,
    asks,
)
from services.volumes.records import Records

log = structlog.get_logger(__name__)


class Life:
    """Begins, changes and ends volumes."""

    def __init__(
        self,
        records: Records,
        disk: Disk,
        *,
        settings: Settings,
        clock_ns: Callable[[], int],
        reached: Callable[[str], None],
    ) -> None:
        self._records = records
        self._disk = disk
        self._settings = settings
        self._clock_ns = clock_ns
        self._reached = reached
        self._admitting = asyncio.Lock()  # from counting what there is until the new volume counts too

    async def create(self, request: CreateVolume) -> VolumeId:
        """A new, empty volume."""
        check_owner(request.owner)
        check_name(request.name)
        check_labels(request.labels)
        check_size(request.size_bytes, self._settings)
        check_encryption(request.kind, encrypted=request.encrypted)
        kind, volume_id = request.kind, new_volume_id()
        async with self._disk.locks.of(volume_id):
            async with self._admitting:
                enforcement, encryption = await self._disk.choose(
                    kind, encrypted=request.encrypted, advisory=request.advisory
                )
                record = VolumeRecord(
                    id=volume_id,
                    name=request.name,
                    owner=request.owner,
                    kind=kind,
                    size_bytes=request.size_bytes,
                    enforcement=enforcement,
                    status=VolumeStatus.CREATING,
                    created_at_ns=self._clock_ns(),
                    labels=request.labels,
                    shared=request.shared,
                    encryption=encryption,
                )
                self._admit(record, await self._disk.room())
                key, sealed = await self._disk.new_key(volume_id) if encryption else (b"", b"")
                volume = Volume(record=record)
                await self._records.insert(volume, sealed)
            async with self._making(volume):
                await self._disk.create(volume, key)
        return volume_id

    @contextlib.asynccontextmanager
    async def copying(self, target: Volume, sealed: bytes) -> AsyncIterator[None]:
        """Admit and record a volume that is made by the block, from another one."""
        async with self._disk.locks.of(target.id):
            async with self._admitting:
                self._admit(target.record, await self._disk.room())
                await self._records.insert(target, sealed)
            async with self._making(target):
                yield

    async def resize(self, volume: VolumeId, size_bytes: int) -> None:
        """Make the volume larger."""
        check_size(size_bytes, self._settings)
        event = ResizeRequested(at_ns=self._clock_ns(), size_bytes=size_bytes)
        self._records.check(volume, event)
        async with self._disk.locks.of(volume):
            async with self._admitting:
                record = self._records.get(volume).record
                if size_bytes > record.size_bytes:
                    room = await self._disk.room()
                    more_bytes = size_bytes - record.size_bytes
                    admit_bytes(record.kind, more_bytes, self._tally(record.owner), room, self._settings)
                decision = await self._records.apply(volume, event)
            if asks(decision, Resize):
                await self._resize(volume)

    def admit_snapshot(self, owner: str) -> None:
        """Refuse a snapshot that is being taken if `owner` has too much with it: EXHAUSTED."""
        admit_owned(self._tally(owner).owner_bytes, self._settings)

    async def delete(self, volume: VolumeId) -> None:
        """Remove the volume, unless somebody has it."""
        event = DeleteRequested(at_ns=self._clock_ns())
        self._records.check(volume, event)
        async with self._disk.locks.of(volume):
            await self._records.apply(volume, event)
            await self._remove(volume)

    async def expire(self, volume: VolumeId) -> None:
        """Remove a memory volume that was idle for too long, unless somebody has it again."""
        async with self._disk.locks.of(volume):
            decision = await self._records.apply(volume, IdleTooLong(at_ns=self._clock_ns()))
            if asks(decision, Remove):
                log.info("memory volume removed: nobody used it", volume=volume)
                await self._remove(volume)

    async def resume(self, volume: VolumeId) -> None:
        """End what was not ended: of a volume that nobody is making, removing or resizing now."""
        async with self._disk.locks.of(volume):
            decision = await self._records.apply(volume, Restarted(at_ns=self._clock_ns()))
            if asks(decision, Remove):
                await self._remove(volume)
            if asks(decision, Resize):
                await self._resize(volume)

    def _admit(self, record: VolumeRecord, room: Room) -> None:
        if self._records.named(record.owner, record.name) is None:  # else `insert` says so
            admit(record.kind, record.size_bytes, self._tally(record.owner), room, self._settings)

    def _tally(self, owner: str) -> Tally:
        return tally(self._records.all(), owner, self._records.snapshots_of(owner))

    @contextlib.asynccontextmanager
    async def _making(self, volume: Volume) -> AsyncIterator[None]:
        self._reached("volumes.recorded")
        try:
            yield
            await self._records.apply(volume.id, Created(at_ns=self._clock_ns()))
        except JobletError:
            await self._discard(volume)
            raise
        record = volume.record
        log.info("volume made", volume=volume.id, name=record.name, owner=record.owner, size_bytes=record.size_bytes)

    async def _discard(self, volume: Volume) -> None:
        try:
            await self._disk.delete(volume)
            await self._records.apply(volume.id, CreateFailed(at_ns=self._clock_ns()))
        except JobletError as error:  # its record says creating: the next round takes it up
            log.error("what is left of a new volume cannot be removed yet", volume=volume.id, problem=str(error))

    async def _remove(self, volume: VolumeId) -> None:
        self._reached("volumes.deleting")
        try:
            await self._disk.delete(self._records.get(volume))
        except JobletError as error:
            await self._records.apply(volume, DeleteFailed(at_ns=self._clock_ns(), reason=str(error)))
            raise
        self._reached("volumes.removed")
        await self._records.apply(volume, Deleted(at_ns=self._clock_ns()))
        log.info("volume removed", volume=volume)

    async def _resize(self, volume: VolumeId) -> None:
        known = self._records.get(volume)
        try:
            await self._disk.resize(known, known.resizing_bytes)
        except JobletError:
            await self._records.apply(volume, ResizeFailed(at_ns=self._clock_ns()))
            raise
        self._reached("volumes.resized")
        await self._records.apply(volume, Resized(at_ns=self._clock_ns()))
