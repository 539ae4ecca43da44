"""Snapshots of volumes, and what is made of them: restored volumes and clones."""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime

from common.config.settings import Volumes as Settings
from common.errors import JobletError, Reason, exhausted, invalid
from common.identifiers import VolumeId, new_volume_id, parse_name
from common.messages.volumes import CloneVolume, SnapshotRecord, VolumeKind, VolumeRecord, VolumeStatus
from services.volumes.admission import check_labels, check_name
from services.volumes.disk import Disk
from services.volumes.events import Volume, Work, WorkKind
from services.volumes.life import Life
from services.volumes.records import Records
from services.volumes.works import Works

NS_PER_S = 1_000_000_000


class Copies:
    """Makes and uses copies of volumes."""

    def __init__(
        self,
        records: Records,
        disk: Disk,
        works: Works,
        life: Life,
        *,
        settings: Settings,
        clock_ns: Callable[[], int],
    ) -> None:
        self._records = records
        self._disk = disk
        self._works = works
        self._life = life
        self._settings = settings
        self._clock_ns = clock_ns

    async def take(self, volume: VolumeId, name: str) -> SnapshotRecord:
        """A snapshot of the volume as it is now. An empty name: the time."""
        if name:
            parse_name(name, "snapshot")
        self._on_disk(volume)
        snapshot = str(uuid.uuid4())
        async with self._works.alone(volume, Work(kind=WorkKind.SNAPSHOT, snapshot=snapshot)) as (known, outcome):
            now_ns = self._clock_ns()
            chosen = self._free_name(known, name, now_ns)
            self._life.admit_snapshot(known.record.owner)
            method = await self._disk.snapshot(known, snapshot)
            outcome.adds = SnapshotRecord(
                id=snapshot,
                name=chosen,
                volume=volume,
                created_at_ns=now_ns,
                size_bytes=known.record.size_bytes,
                method=method,
            )
        return outcome.adds

    async def drop(self, volume: VolumeId, name: str) -> None:
        """Remove a snapshot."""
        snapshot = self._records.snapshot(volume, name)
        async with self._works.alone(volume, Work(kind=WorkKind.DROP, snapshot=snapshot.id)) as (known, outcome):
            outcome.drops = self._records.snapshot(volume, name)  # unless somebody was faster
            await self._disk.drop_snapshot(known, outcome.drops.id)

    async def restore(self, volume: VolumeId, name: str) -> None:
        """Give the volume the content of its snapshot."""
        snapshot = self._records.snapshot(volume, name)
        async with self._works.alone(volume, Work(kind=WorkKind.RESTORE, snapshot=snapshot.id)) as (known, _):
            self._records.snapshot(volume, name)  # unless it was removed meanwhile
            await self._disk.unmount(known)
            await self._disk.restore(self._records.get(volume), snapshot)

    async def clone(self, request: CloneVolume) -> VolumeId:
        """A new volume of the same owner, with the content of this one or of its snapshot."""
        check_name(request.name)
        check_labels(request.labels)
        self._on_disk(request.volume)
        snapshot = self._records.snapshot(request.volume, request.snapshot) if request.snapshot else None
        snapshot_id = "" if snapshot is None else snapshot.id
        async with self._works.alone(request.volume, Work(kind=WorkKind.COPY, snapshot=snapshot_id)) as (source, _):
            if snapshot is not None:
                self._records.snapshot(request.volume, request.snapshot)  # unless it was removed meanwhile
            size_bytes = source.record.size_bytes if snapshot is None else snapshot.size_bytes
            target = self._target(source, request, size_bytes)
            key, sealed = await self._disk.same_key(source, target.id)
            async with self._life.copying(target, sealed):
                await self._disk.clone(source, snapshot_id, target, key)
        return target.id

    def _target(self, source: Volume, request: CloneVolume, size_bytes: int) -> Volume:
        origin = source.record
        record = VolumeRecord(
            id=new_volume_id(),
            name=request.name,
            owner=origin.owner,
            kind=origin.kind,
            size_bytes=size_bytes,
            enforcement=origin.enforcement,
            status=VolumeStatus.CREATING,
            created_at_ns=self._clock_ns(),
            labels=request.labels,
            shared=origin.shared,
            encryption=origin.encryption,
            origin=f"{origin.name}@{request.snapshot}" if request.snapshot else origin.name,
        )
        return Volume(record=record)

    def _on_disk(self, volume: VolumeId) -> None:
        record = self._records.get(volume).record
        if record.kind is not VolumeKind.FILESYSTEM:
            raise invalid(f"volume {record.name} is a {record.kind.value} volume", "only filesystem volumes are copied")

    def _free_name(self, volume: Volume, name: str, now_ns: int) -> str:
        taken = {snapshot.name for snapshot in self._records.snapshots(volume.id)}
        if len(taken) >= self._settings.snapshots_max:
            raise exhausted(
                f"volume {volume.record.name} has {len(taken)} snapshots, no more are taken",
                "remove some (joblet.volumes.snapshots_max)",
            )
        if name in taken:
            raise JobletError(
                Reason.EXISTS, f"volume {volume.record.name} has a snapshot {name}", detail="use another name"
            )
        return name or _by_time(taken, now_ns)


def _by_time(taken: set[str], now_ns: int) -> str:
    stamp = datetime.fromtimestamp(now_ns // NS_PER_S, UTC).strftime("%Y%m%dT%H%M%SZ")
    name, number = stamp, 1
    while name in taken:
        number += 1
        name = f"{stamp}-{number}"
    return name
