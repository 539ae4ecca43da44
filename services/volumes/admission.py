"""Whether a volume may be made, or made larger: its form, and the limits of the node and of its owner. Pure."""

import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from common.config.settings import Volumes as Settings
from common.errors import JobletError, exhausted, invalid
from common.identifiers import parse_name, parse_volume_id
from common.messages.jobs import VolumeMount
from common.messages.volumes import SnapshotRecord, VolumeKind, VolumeStatus
from common.quantities import format_size
from services.volumes.events import Volume, WorkKind

SIZE_BYTES_MIN: Final = 2**20
"""A file system of its own takes some of it: below this nothing useful would be left."""
LABELS_MAX: Final = 64
LABEL_VALUE_CHARACTERS_MAX: Final = 256
OWNER_CHARACTERS_MAX: Final = 256
MOUNTS_MAX: Final = 64
"""Volumes of one job."""
PATH_BYTES_MAX: Final = 4095
"""PATH_MAX of include/uapi/linux/limits.h, without its NUL."""

_LABEL_VALUE: Final = re.compile(r"[A-Za-z0-9_./:@+ -]*")


class Room(NamedTuple):
    """What this host has for volumes."""

    disk_bytes: int  # free, for new ones
    memory_bytes: int  # of the machine


class Tally(NamedTuple):
    """What there is already. Sizes are those promised: of a volume that grows, the new one."""

    volumes: int
    owner_volumes: int
    owner_bytes: int  # with his snapshots
    memory_bytes: int  # of all memory volumes
    pending_bytes: int  # of those that are being made, and may not yet have taken their space


def tally(volumes: Iterable[Volume], owner: str, snapshots: Iterable[SnapshotRecord]) -> Tally:
    """Counted for a volume of `owner`, who has `snapshots`; one that is being taken counts already.

    A snapshot counts as what it may come to take: the size of its volume.
    """
    known = tuple(volumes)
    own = [volume for volume in known if volume.record.owner == owner]
    memory = [volume for volume in known if volume.record.kind is VolumeKind.MEMORY]
    pending = [
        volume
        for volume in known
        if volume.record.kind is VolumeKind.FILESYSTEM and volume.record.status is VolumeStatus.CREATING
    ]
    copied = [volume for volume in own if volume.work is not None and volume.work.kind is WorkKind.SNAPSHOT]
    copies_bytes = sum(volume.record.size_bytes for volume in copied) + sum(each.size_bytes for each in snapshots)
    return Tally(
        volumes=len(known),
        owner_volumes=len(own),
        owner_bytes=sum(volume.promised_bytes for volume in own) + copies_bytes,
        memory_bytes=sum(volume.promised_bytes for volume in memory),
        pending_bytes=sum(volume.promised_bytes for volume in pending),
    )


def check_owner(owner: str) -> None:
    """Refuse what can be nobody's name."""
    if not 0 < len(owner) <= OWNER_CHARACTERS_MAX or "\0" in owner:
        raise invalid(f"malformed owner {owner[:64]!r}", f"use 1 to {OWNER_CHARACTERS_MAX} characters without NUL")


def check_name(name: str) -> None:
    """Refuse what is no name, and what could be taken for the id of another volume."""
    parse_name(name, "volume")
    try:
        parse_volume_id(name)
    except JobletError:
        return
    raise invalid(f"the name {name} looks like the id of a volume", "use another name")


def check_labels(labels: Mapping[str, str]) -> None:
    """Refuse labels that a job could not have either."""
    if len(labels) > LABELS_MAX:
        raise invalid(f"{len(labels)} labels, at most {LABELS_MAX} are taken", "use fewer")
    for label, value in labels.items():
        parse_name(label, "label")
        if len(value) > LABEL_VALUE_CHARACTERS_MAX or not _LABEL_VALUE.fullmatch(value):
            raise invalid(
                f"malformed value {value[:40]!r} of label {label}",
                f"use at most {LABEL_VALUE_CHARACTERS_MAX} letters, digits, spaces and any of _ . / : @ + -",
            )


def check_size(size_bytes: int, settings: Settings) -> None:
    """Refuse a size that no volume may have."""
    if size_bytes < SIZE_BYTES_MIN:
        raise invalid(
            f"a size of {size_bytes} bytes is too small for a volume",
            f"use at least 1MB ({SIZE_BYTES_MIN} bytes); a number without a unit counts bytes",
        )
    if size_bytes > settings.size_bytes_max:
        raise invalid(
            f"a size of {format_size(size_bytes)} ({size_bytes} bytes) is too large for a volume",
            f"use at most {format_size(settings.size_bytes_max)} (joblet.volumes.size_bytes_max)",
        )


def check_encryption(kind: VolumeKind, *, encrypted: bool) -> None:
    """Only what is on a disk can be encrypted at rest."""
    if encrypted and kind is not VolumeKind.FILESYSTEM:
        raise invalid(f"a {kind.value} volume cannot be encrypted", "it is never on a disk: leave encryption out")


def check_mounts(mounts: tuple[VolumeMount, ...]) -> None:
    """Refuse what a job cannot ask for. Whether a path can be in the job is the executor's to say."""
    if len(mounts) > MOUNTS_MAX:
        raise invalid(f"{len(mounts)} volumes of one job, at most {MOUNTS_MAX} are possible", "use fewer")
    names = set()
    for mount in mounts:
        parse_name(mount.name, "volume")
        if mount.name in names:
            raise invalid(f"volume {mount.name} is asked for twice", "a job has it at one path only")
        names.add(mount.name)
        if len(mount.path.encode(errors="surrogatepass")) > PATH_BYTES_MAX or "\0" in mount.path:
            raise invalid(f"malformed path of volume {mount.name}", f"use at most {PATH_BYTES_MAX} bytes without NUL")


def admit(kind: VolumeKind, size_bytes: int, there_is: Tally, room: Room, settings: Settings) -> None:
    """Refuse a new volume that would be one too many: EXHAUSTED."""
    if there_is.volumes >= settings.count_max:
        raise exhausted(
            f"this node has {there_is.volumes} volumes, no more are made", "remove some (joblet.volumes.count_max)"
        )
    if there_is.owner_volumes >= settings.owner_count_max:
        raise exhausted(
            f"you have {there_is.owner_volumes} volumes, no more are made",
            "remove some (joblet.volumes.owner_count_max)",
        )
    admit_bytes(kind, size_bytes, there_is, room, settings)


def admit_owned(size_bytes: int, settings: Settings) -> None:
    """Refuse that all of an owner together has so much: EXHAUSTED."""
    if settings.owner_bytes_max is not None and size_bytes > settings.owner_bytes_max:
        raise exhausted(
            f"your volumes and their snapshots would have {format_size(size_bytes)} together, "
            f"at most {format_size(settings.owner_bytes_max)} are given",
            "remove some, or ask for less (joblet.volumes.owner_bytes_max)",
        )


def admit_bytes(kind: VolumeKind, more_bytes: int, there_is: Tally, room: Room, settings: Settings) -> None:
    """Refuse `more_bytes` of volume, new or in a present one, for which there is no room: EXHAUSTED."""
    admit_owned(there_is.owner_bytes + more_bytes, settings)
    if kind is VolumeKind.MEMORY:
        share_bytes = room.memory_bytes * settings.memory_share_percent // 100
        if there_is.memory_bytes + more_bytes > share_bytes:
            raise exhausted(
                f"all memory volumes would have {format_size(there_is.memory_bytes + more_bytes)} together, "
                f"at most {format_size(share_bytes)} are given",
                "remove some, or ask for less (joblet.volumes.memory_share_percent)",
            )
        return
    left_bytes = room.disk_bytes - there_is.pending_bytes - more_bytes
    if left_bytes < settings.reserve_bytes:
        raise exhausted(
            f"{format_size(more_bytes)} more do not fit on the disk of the volumes: "
            f"{format_size(max(0, room.disk_bytes - there_is.pending_bytes))} are free, "
            f"{format_size(settings.reserve_bytes)} of them kept in reserve",
            "ask for less, or free space there (joblet.volumes.reserve_bytes)",
        )
