"""What can be asked of VolumeService, as typed functions over a session. All raise JobletError."""

from collections.abc import Iterator, Mapping

from cli.client.session import Session
from common.identifiers import parse_job_reference, parse_name
from proto.joblet.v1 import volume_pb2


def create_volume(
    session: Session, name: str, *, size_bytes: int, kind: volume_pb2.VolumeType, labels: Mapping[str, str]
) -> volume_pb2.Volume:
    """A new, empty volume."""
    request = volume_pb2.CreateVolumeRequest(name=_name(name), type=kind, size_bytes=size_bytes, labels=labels)
    return session.ask(session.volumes.CreateVolume, request)


def list_volumes(session: Session, *, labels: Mapping[str, str]) -> Iterator[volume_pb2.Volume]:
    """Every volume with all of `labels`, page by page."""
    token = ""
    while True:
        page = session.ask_again(
            session.volumes.ListVolumes, volume_pb2.ListVolumesRequest(labels=labels, page_token=token)
        )
        yield from page.volumes
        token = page.next_page_token
        if not token:
            return


def get_volume(session: Session, name: str) -> volume_pb2.Volume:
    """The volume of this name."""
    return session.ask_again(session.volumes.GetVolume, volume_pb2.GetVolumeRequest(name=_name(name)))


def remove_volume(session: Session, name: str, *, force: bool) -> None:
    """Remove it; `force` even while a job uses it."""
    session.ask(session.volumes.DeleteVolume, volume_pb2.DeleteVolumeRequest(name=_name(name), force=force))


def attach_volume(session: Session, name: str, job: str, *, path: str) -> volume_pb2.Volume:
    """Give it to a running job at `path`; empty: /volumes/<name>."""
    request = volume_pb2.AttachVolumeRequest(name=_name(name), job_id=parse_job_reference(job.lower()), path=path)
    return session.ask(session.volumes.AttachVolume, request)


def detach_volume(session: Session, name: str, job: str) -> volume_pb2.Volume:
    """Take it from a job."""
    request = volume_pb2.DetachVolumeRequest(name=_name(name), job_id=parse_job_reference(job.lower()))
    return session.ask(session.volumes.DetachVolume, request)


def _name(text: str) -> str:
    return parse_name(text, "volume")
