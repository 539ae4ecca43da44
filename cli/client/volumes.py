"""What can be asked of VolumeService about volumes and their jobs, as typed functions over a session.

Here: requests, paging, and which calls are repeated: those that only look. Not here: copies and snapshots
(`volume_copies.py`), content (`volume_content.py`). All raise JobletError.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from cli.client.session import WORK_TIMEOUT_S, Session
from common.identifiers import parse_job_reference, parse_name
from proto.joblet.v1 import volume_pb2

PAGE_SIZE: Final = 1000


def create_volume(session: Session, request: volume_pb2.CreateVolumeRequest) -> volume_pb2.Volume:
    """A new, empty volume."""
    volume_name(request.name)
    return session.ask(session.volumes.CreateVolume, request, most_s=WORK_TIMEOUT_S)


def list_volumes(
    session: Session,
    *,
    labels: Mapping[str, str] | None = None,
    owner: str = "",
    everybody: bool = False,
    limit: int | None = None,
) -> Iterator[volume_pb2.Volume]:
    """Volumes with all of `labels` by owner and name, page by page as they are consumed; at most `limit`, None: all.

    The caller's own, those of `owner`, or of `everybody`, as far as the caller may see them.
    """
    left, token = limit, ""
    while left is None or left > 0:
        size = PAGE_SIZE if left is None else min(PAGE_SIZE, left)
        request = volume_pb2.ListVolumesRequest(
            labels=labels or {}, owner=owner, all=everybody, page_size=size, page_token=token
        )
        page = session.ask_again(session.volumes.ListVolumes, request)
        volumes = page.volumes if left is None else page.volumes[:left]
        yield from volumes
        left = None if left is None else left - len(volumes)
        token = page.next_page_token
        if not token:
            return


def get_volume(session: Session, name: str) -> volume_pb2.Volume:
    """The volume of this name, or of this id."""
    return session.ask_again(session.volumes.GetVolume, volume_pb2.GetVolumeRequest(name=volume_name(name)))


def remove_volume(session: Session, name: str, *, force: bool) -> None:
    """Remove it; `force` even while a job uses it."""
    request = volume_pb2.DeleteVolumeRequest(name=volume_name(name), force=force)
    session.ask(session.volumes.DeleteVolume, request, most_s=WORK_TIMEOUT_S)


def resize_volume(session: Session, name: str, *, size_bytes: int) -> volume_pb2.Volume:
    """Make it larger."""
    request = volume_pb2.ResizeVolumeRequest(name=volume_name(name), size_bytes=size_bytes)
    return session.ask(session.volumes.ResizeVolume, request, most_s=WORK_TIMEOUT_S)


def attach_volume(session: Session, name: str, job: str, *, path: str, read_only: bool = False) -> volume_pb2.Volume:
    """Give it to a running job at `path`; empty: /volumes/<name>."""
    request = volume_pb2.AttachVolumeRequest(
        name=volume_name(name), job_id=_reference(job), path=path, read_only=read_only
    )
    return session.ask(session.volumes.AttachVolume, request, most_s=WORK_TIMEOUT_S)


def detach_volume(session: Session, name: str, job: str, *, force: bool = False) -> volume_pb2.Volume:
    """Take it from a job; `force` also while the job has something open in it."""
    request = volume_pb2.DetachVolumeRequest(name=volume_name(name), job_id=_reference(job), force=force)
    return session.ask(session.volumes.DetachVolume, request, most_s=WORK_TIMEOUT_S)


def volume_name(text: str) -> str:
    """`text`, when it can be the name or id of a volume. Raises JobletError(INVALID)."""
    return parse_name(text, "volume")


def _reference(job: str) -> str:
    return parse_job_reference(job.strip().lower())
