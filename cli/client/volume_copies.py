"""Snapshots and clones, as typed functions over a session. All raise JobletError; what only looks is asked again."""

from collections.abc import Mapping

from cli.client.session import WORK_TIMEOUT_S, Session
from cli.client.volumes import volume_name
from common.identifiers import parse_name
from proto.joblet.v1 import volume_pb2


def create_snapshot(session: Session, volume: str, name: str) -> volume_pb2.Snapshot:
    """Keep the volume's content as it is now. An empty name: the node takes the time."""
    request = volume_pb2.CreateSnapshotRequest(volume=volume_name(volume), name=_snapshot(name) if name else "")
    return session.ask(session.volumes.CreateSnapshot, request, most_s=WORK_TIMEOUT_S)


def list_snapshots(session: Session, volume: str) -> list[volume_pb2.Snapshot]:
    """All of a volume, the oldest first."""
    request = volume_pb2.ListSnapshotsRequest(volume=volume_name(volume))
    return [*session.ask_again(session.volumes.ListSnapshots, request).snapshots]


def remove_snapshot(session: Session, volume: str, name: str) -> None:
    """Remove a snapshot."""
    request = volume_pb2.DeleteSnapshotRequest(volume=volume_name(volume), name=_snapshot(name))
    session.ask(session.volumes.DeleteSnapshot, request, most_s=WORK_TIMEOUT_S)


def restore_snapshot(session: Session, volume: str, name: str) -> volume_pb2.Volume:
    """The volume's content becomes the snapshot's."""
    request = volume_pb2.RestoreSnapshotRequest(volume=volume_name(volume), name=_snapshot(name))
    return session.ask(session.volumes.RestoreSnapshot, request, most_s=WORK_TIMEOUT_S)


def clone_volume(
    session: Session, volume: str, name: str, *, snapshot: str, labels: Mapping[str, str]
) -> volume_pb2.Volume:
    """A new volume `name` with the content of `volume`, or of its snapshot."""
    request = volume_pb2.CloneVolumeRequest(
        volume=volume_name(volume),
        snapshot=_snapshot(snapshot) if snapshot else "",
        name=volume_name(name),
        labels=labels,
    )
    return session.ask(session.volumes.CloneVolume, request, most_s=WORK_TIMEOUT_S)


def _snapshot(text: str) -> str:
    return parse_name(text, "snapshot")
