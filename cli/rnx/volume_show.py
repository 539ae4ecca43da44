"""Volumes and snapshots as a person reads them: rows of tables, lists of fields.

Here: wording and units. Not here: how they are printed (`tables.py`), the keys of --json (`cli/client/views.py`).
"""

from collections.abc import Iterator
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from cli.client.views import time_text, volume_type_word
from common.quantities import format_size, format_time_ns
from proto.joblet.v1 import volume_pb2

OWNER: Final = "OWNER"
VOLUME_HEADINGS: Final = ("NAME", OWNER, "TYPE", "SIZE", "USED", "STATUS", "QUOTA", "CREATED", "JOB")
SNAPSHOT_HEADINGS: Final = ("NAME", "CREATED", "SIZE", "METHOD")
_NS_PER_S: Final = 1_000_000_000
_US_PER_MS: Final = 1000

_ENFORCEMENTS: Final = {
    "project-quota": "by the kernel: a project quota",
    "image": "by the kernel: a file system of its own in an image",
    "tmpfs": "by the kernel: a tmpfs",
    "advisory": "not enforced: measured from time to time, and told",
}


def volume_row(volume: volume_pb2.Volume, *, with_owner: bool) -> tuple[str, ...]:
    """Under VOLUME_HEADINGS; without the owner where all are the caller's."""
    return (
        volume.name,
        volume.owner if with_owner else "",
        volume_type_word(volume.type),
        format_size(volume.size_bytes),
        format_size(volume.used_bytes),
        volume.status,
        volume.enforcement,
        _seconds(volume.created_at),
        volume.current_job_id,
    )


def snapshot_row(snapshot: volume_pb2.Snapshot) -> tuple[str, ...]:
    """Under SNAPSHOT_HEADINGS."""
    return (snapshot.name, _seconds(snapshot.created_at), format_size(snapshot.size_bytes), snapshot.method)


def volume_fields(volume: volume_pb2.Volume) -> Iterator[tuple[str, str]]:
    """Everything known, in words; what is not known has an empty value."""
    yield "id", volume.id
    yield "name", volume.name
    yield "owner", volume.owner
    yield "type", volume_type_word(volume.type)
    yield "status", f"{volume.status}: {volume.reason}" if volume.reason else volume.status
    yield "size", format_size(volume.size_bytes)
    yield "used", f"{format_size(volume.used_bytes)} ({_percent(volume.used_bytes, volume.size_bytes)})"
    yield "inodes", _inodes(volume)
    yield "size is enforced", _ENFORCEMENTS.get(volume.enforcement, volume.enforcement)
    yield "shared", "yes: several jobs at once may write" if volume.shared else "no: one job that writes, or readers"
    yield "encryption", volume.encryption
    yield "labels", ", ".join(f"{key}={value}" for key, value in sorted(volume.labels.items()))
    yield "made from", volume.origin
    yield "snapshots", str(volume.snapshots or "")
    yield "created", _time(volume.created_at)
    yield "last used", _last_used(volume)
    for use in volume.uses:
        yield "used by", f"job {use.job_id} at {use.path}{', read-only' if use.read_only else ''}{_since(use)}"
    yield from _metrics(volume.metrics)


def _inodes(volume: volume_pb2.Volume) -> str:
    if not volume.inodes:
        return str(volume.used_inodes or "")
    return f"{volume.used_inodes} of {volume.inodes} ({_percent(volume.used_inodes, volume.inodes)})"


def _last_used(volume: volume_pb2.Volume) -> str:
    by = f" by job {volume.last_used_by}" if volume.last_used_by else ""
    return f"{_time(volume.last_used)}{by}" if volume.HasField("last_used") else ""


def _since(use: volume_pb2.VolumeUse) -> str:
    return f", since {_time(use.since)}" if use.HasField("since") else ""


def _metrics(metrics: volume_pb2.VolumeMetrics) -> Iterator[tuple[str, str]]:
    yield "mounts", _times(metrics.mounts, metrics.mount_us)
    yield "unmounts", _times(metrics.unmounts, metrics.unmount_us)
    yield "read", _moved(metrics.read_bytes, metrics.read_ops)
    yield "written", _moved(metrics.write_bytes, metrics.write_ops)


def _times(count: int, last_us: int) -> str:
    return f"{count}, the last in {last_us / _US_PER_MS:.1f} ms" if count else ""


def _moved(size_bytes: int, operations: int) -> str:
    return f"{format_size(size_bytes)} in {operations} operations" if size_bytes or operations else ""


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "0.0 %"


def _seconds(time: Timestamp) -> str:
    return format_time_ns(time.ToNanoseconds() // _NS_PER_S * _NS_PER_S) if time.ByteSize() else ""


def _time(time: Timestamp) -> str:
    return time_text(time) if time.ByteSize() else ""
