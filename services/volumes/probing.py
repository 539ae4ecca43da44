"""What this host can do for volumes, one capability each: level, and if it is not "enforced", why and the repair. Pure.

The names are stable, docs/operations.md lists them. Not here: trying (`storage/select.py`, `encryption/choose.py`),
showing (`joblet doctor`).
"""

from typing import Final, Protocol

import msgspec

from common.messages.jobs import Capability
from services.volumes.encryption import fscrypt, nodes
from services.volumes.encryption.choose import Encryption
from services.volumes.encryption.dmcrypt import DmCrypt

ENFORCED: Final = "enforced"
DEGRADED: Final = "degraded"
MISSING: Final = "missing"

_ADVISORY: Final = (
    "without it, project quotas or images, a volume is a directory whose size nobody enforces (--advisory)"
)
_IMAGES: Final = "volumes are images"


class Ways(Protocol):
    """What was found by trying. A text is the reason why not, with the repair; empty: it can be done."""

    @property
    def memory(self) -> str:
        """Volumes on tmpfs."""

    @property
    def image(self) -> str:
        """Volumes that are images on loop devices."""

    @property
    def project(self) -> str:
        """Volumes that are directories with a project quota."""

    @property
    def encryption(self) -> Encryption | None:
        """How images are encrypted."""

    @property
    def no_encryption(self) -> str:
        """Why they are not."""


def report(ways: Ways) -> str:
    """The capabilities as one line of JSON: what `joblet-volumes --probe` prints."""
    return msgspec.json.encode(capabilities(ways)).decode()


def capabilities(ways: Ways) -> tuple[Capability, ...]:
    """In the order in which they are shown."""
    return (
        _plain("volume.memory", ways.memory),
        _plain("volume.image", ways.image, "" if not ways.project else _ADVISORY),
        _plain("volume.project_quota", ways.project, _IMAGES if not ways.image else ""),
        _encryption(ways),
    )


def _plain(name: str, reason: str, otherwise: str = "") -> Capability:
    if not reason:
        return Capability(name=name, level=ENFORCED)
    return Capability(name=name, level=MISSING, detail="; ".join(filter(None, (reason, otherwise))))


def _encryption(ways: Ways) -> Capability:
    name = "volume.encryption"
    if ways.image or ways.encryption is None:
        why = f"only images are encrypted: {ways.image}" if ways.image else ways.no_encryption
        return Capability(name=name, level=MISSING, detail=why)
    if ways.encryption.name == DmCrypt.name:
        return Capability(name=name, level=ENFORCED)
    told = f"by {ways.encryption.name}: {fscrypt.VISIBLE}; for more {nodes.REPAIR}"
    return Capability(name=name, level=DEGRADED, detail=told)
