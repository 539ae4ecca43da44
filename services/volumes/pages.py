"""Pages of volumes, by owner and name. Pure: over what is in memory, of which there is little."""

import base64
import binascii
from collections.abc import Iterable
from typing import Final

import msgspec

from common.errors import JobletError, invalid
from common.identifiers import parse_name
from common.messages.volumes import ListVolumes, VolumePage, VolumeRecord
from services.volumes.admission import LABELS_MAX, check_owner

PAGE_SIZE_MAX: Final = 1000
PAGE_SIZE_DEFAULT: Final = 100
PAGE_BYTES_MAX: Final = 2 * 2**20
"""A page ends behind the volume that reaches it: it must fit into one message of gRPC (4 MiB by default)."""

Position = tuple[str, str]
"""Owner and name: the order of pages. A position is no secret, and gives nobody a look at what he may not see."""

_ENCODER: Final = msgspec.msgpack.Encoder()
_TOKEN: Final = msgspec.msgpack.Decoder(Position)


def page(volumes: Iterable[VolumeRecord], request: ListVolumes) -> VolumePage:
    """The page that `request` asks for. Raises INVALID for a token that this module did not make."""
    if len(request.labels) > LABELS_MAX:
        raise invalid(f"{len(request.labels)} labels in a filter", f"use at most {LABELS_MAX}")
    size = min(request.page_size or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)
    if size < 1:
        raise invalid(f"page size {request.page_size} is negative", f"use 1 to {PAGE_SIZE_MAX}; 0 is the default")
    behind = _parse_token(request.page_token) if request.page_token else ("", "")
    matching = sorted(
        (volume for volume in volumes if _position(volume) > behind and _matches(volume, request)), key=_position
    )
    found: list[VolumeRecord] = []
    found_bytes = 0
    for volume in matching:
        if len(found) == size or found_bytes >= PAGE_BYTES_MAX:
            return VolumePage(volumes=tuple(found), next_page_token=_token(_position(found[-1])))
        found.append(volume)
        found_bytes += len(_ENCODER.encode(volume))
    return VolumePage(volumes=tuple(found))


def _position(volume: VolumeRecord) -> Position:
    return volume.owner, volume.name


def _matches(volume: VolumeRecord, request: ListVolumes) -> bool:
    visible = request.visible_owner is None or volume.owner == request.visible_owner
    wanted = not request.owner or volume.owner == request.owner
    return visible and wanted and request.labels.items() <= volume.labels.items()


def _token(position: Position) -> str:
    return base64.urlsafe_b64encode(_ENCODER.encode(position)).decode().rstrip("=")


def _parse_token(text: str) -> Position:
    padding = "=" * (-len(text) % 4)
    try:
        owner, name = _TOKEN.decode(base64.b64decode(text + padding, altchars=b"-_", validate=True))
        check_owner(owner)
        return owner, parse_name(name, "volume")
    except (binascii.Error, msgspec.MsgspecError, ValueError, JobletError) as cause:
        raise invalid("malformed page token", "use the next_page_token of the page before, unchanged") from cause
