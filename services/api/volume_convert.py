"""Records of volumes and snapshots to protobuf. Pure, and total: see `convert.py`."""

from typing import Final

import msgspec

from common.messages import volumes
from proto.joblet.v1 import volume_pb2
from services.api.convert import timestamp

KINDS: Final[dict[volumes.VolumeKind, volume_pb2.VolumeType]] = {
    volumes.VolumeKind.FILESYSTEM: volume_pb2.FILESYSTEM,
    volumes.VolumeKind.MEMORY: volume_pb2.MEMORY,
}


def volume_to_proto(record: volumes.VolumeRecord) -> volume_pb2.Volume:
    """The whole record of a volume."""
    return volume_pb2.Volume(
        id=record.id,
        name=record.name,
        type=KINDS[record.kind],
        size_bytes=record.size_bytes,
        status=record.status,
        created_at=timestamp(record.created_at_ns),
        last_used=timestamp(record.last_used_at_ns),
        current_job_id=record.uses[0].job if record.uses else "",
        owner=record.owner,
        labels=record.labels,
        enforcement=record.enforcement,
        shared=record.shared,
        encryption=record.encryption,
        used_bytes=record.used_bytes,
        used_inodes=record.used_inodes,
        inodes=record.inodes,
        uses=[
            volume_pb2.VolumeUse(job_id=use.job, path=use.path, read_only=use.read_only, since=timestamp(use.since_ns))
            for use in record.uses
        ],
        last_used_by=record.last_used_by,
        reason=record.reason,
        origin=record.origin,
        snapshots=record.snapshots,
        metrics=volume_pb2.VolumeMetrics(**msgspec.structs.asdict(record.metrics)),
    )


def snapshot_to_proto(record: volumes.SnapshotRecord, volume: str) -> volume_pb2.Snapshot:
    """A snapshot of the volume with the name `volume`."""
    return volume_pb2.Snapshot(
        id=record.id,
        name=record.name,
        volume=volume,
        created_at=timestamp(record.created_at_ns),
        size_bytes=record.size_bytes,
        method=record.method,
    )
