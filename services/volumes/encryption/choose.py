"""Which encryption this host has for volumes, by trying. The one place that chooses."""

import os
from typing import Protocol

from common.errors import JobletError, precondition
from common.identifiers import VolumeId
from services.volumes.encryption import fscrypt
from services.volumes.encryption.dmcrypt import DmCrypt
from services.volumes.encryption.fscrypt import Fscrypt


class Encryption(Protocol):
    """One way to encrypt an image volume. Everything can be called again. All raise JobletError or OSError."""

    name: str
    """That of VolumeRecord.encryption."""

    def features(self) -> tuple[str, ...]:
        """Of ext4, which mkfs must switch on."""

    def open(self, device: str, volume: VolumeId, key: bytes) -> str:
        """The block device to make the file system on and to mount: that of a mapping of `device`, or `device`."""

    def unlock(self, directory: str, volume: VolumeId, key: bytes, *, fresh: bool) -> None:
        """After the mount: `directory` is the volume's data directory; `fresh`: it is new and empty.

        DATA_LOSS: what is in it was not encrypted with this key.
        """

    def grow(self, volume: VolumeId, key: bytes) -> None:
        """The device below has become larger."""

    def close(self, volume: VolumeId) -> None:
        """Let the mapping go, as soon as nothing uses it. Nothing when there is none."""

    def present(self) -> frozenset[VolumeId]:
        """Volumes with a mapping on this host, also those of another node on it."""

    def below(self, volume: VolumeId) -> str:
        """MAJ:MIN of the device that is mapped, which tells whose the mapping is; empty: there is no mapping."""


def choose_encryption() -> tuple[Encryption | None, str]:
    """How new volumes are encrypted here; None: they cannot be, and the reason with the repair.

    With a second choice the text says what it does not hide, and what is missing for the first.
    """
    if os.geteuid() != 0:
        return None, "only root can encrypt volumes: run the node as root"
    mapper = DmCrypt()
    try:
        mapper.try_out()
    except (JobletError, OSError) as refused:
        why = str(refused) if isinstance(refused, JobletError) else f"dm-crypt failed: {refused.strerror or refused}"
        if fscrypt.offered():
            return Fscrypt(), f"{fscrypt.VISIBLE}; for more: {why}"
        return None, f"{why}; and this kernel's ext4 cannot encrypt: {fscrypt.REPAIR}"
    return mapper, ""


def encryption_of(name: str) -> Encryption:
    """That of a volume, by VolumeRecord.encryption. Whether this host has it shows when the volume is opened."""
    match name:
        case DmCrypt.name:
            return DmCrypt()
        case Fscrypt.name:
            return Fscrypt()
        case _:
            raise precondition(f"unknown encryption {name[:32]!r} of a volume", "use the release that made the volume")
