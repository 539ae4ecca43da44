"""What a volume's block device has moved since it was mounted: Documentation/block/stat.rst.

The kernel counts from the device's first use on; a baseline taken at the mount is subtracted. After a restart of the
service it is taken again when the volume is found mounted.
"""

from pathlib import Path
from typing import Final

from common.identifiers import VolumeId
from services.volumes.ports import Moved

_SECTOR_BYTES: Final = 512


def read(device: str) -> Moved:
    """Of the block device MAJ:MIN; zeros when it is gone."""
    try:
        fields = Path(f"/sys/dev/block/{device}/stat").read_text(encoding="ascii").split()
    except OSError:
        return Moved()
    return Moved(
        read_bytes=int(fields[2]) * _SECTOR_BYTES,
        write_bytes=int(fields[6]) * _SECTOR_BYTES,
        read_ops=int(fields[0]),
        write_ops=int(fields[4]),
    )


class Baselines:
    """The figures at the time of the mount, of each mounted volume."""

    def __init__(self) -> None:
        self._begun: dict[VolumeId, tuple[str, Moved]] = {}

    def begin(self, volume: VolumeId, device: str) -> None:
        """It is mounted from now on. Nothing when it was already."""
        known = self._begun.get(volume)
        if known is None or known[0] != device:
            self._begun[volume] = device, read(device)

    def end(self, volume: VolumeId) -> None:
        """It is mounted no more."""
        self._begun.pop(volume, None)

    def since(self, volume: VolumeId) -> Moved:
        """Zeros when it is not mounted."""
        known = self._begun.get(volume)
        if known is None:
            return Moved()
        device, begun = known
        # Less than at the beginning: another device has that number by now.
        return Moved(*(max(0, now - then) for now, then in zip(read(device), begun, strict=True)))
