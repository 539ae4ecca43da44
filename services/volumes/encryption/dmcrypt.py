"""dm-crypt: a mapping over the whole image, AES-256 in XTS mode, sector by sector.

Here: making, finding, growing and removing the mapping of a volume. Not here: the calls (`linux/dm.py`), nodes
(`nodes.py`), and where the key comes from (`keys.py`). What is on the disk is noise from the first sector to the last;
docs/adr/0027-volume-encryption.md has what that does not hide. Documentation/admin-guide/device-mapper/dm-crypt.rst.

    create ──▶ load ──▶ resume          an interrupted one has no table, nobody can have opened it, and it is made anew
"""

import errno
import os
from contextlib import AbstractContextManager, suppress
from typing import Final, Protocol

from common.errors import JobletError, precondition, unavailable
from common.identifiers import VolumeId, parse_volume_id
from services.volumes.encryption.nodes import REPAIR, Nodes
from services.volumes.linux.dm import Control, Mapping

KEY_BYTES: Final = 64
"""Two keys of 256 bits: one for the content of a sector, one for its place."""

_PREFIX: Final = "joblet-"
_TARGET: Final = "crypt"
_CIPHER: Final = b"aes-xts-plain64"
_HEX: Final = b"0123456789abcdef"
_TRIAL_SECTORS: Final = 8
_BUSY: Final = "another job or program has it open: try again when that has ended"


class Host(Protocol):
    """What of the host is needed; `nodes.Nodes` is the real one."""

    def control(self) -> AbstractContextManager[Control]:
        """The device mapper."""

    def number(self, path: str) -> int:
        """dev_t of the block device at `path`."""

    def sectors(self, device: int) -> int:
        """How large it is."""

    def of(self, device: int, volume: VolumeId) -> str:
        """The path of a volume's mapping."""

    def drop(self, volume: VolumeId) -> None:
        """That path is not needed any more."""


class DmCrypt:
    """See `choose.Encryption`. Holds nothing: what there is, the kernel knows."""

    name = "dm-crypt"

    def __init__(self, host: Host | None = None) -> None:
        self._host = host or Nodes()

    def features(self) -> tuple[str, ...]:
        """None: the file system knows nothing of it."""
        return ()

    def open(self, device: str, volume: VolumeId, key: bytes) -> str:
        """Map `device`, or find it mapped. A wrong key shows when the file system on it is looked for.

        The key of a mapping that is there is not compared: the kernel would have to hand it out for that.
        """
        below = self._host.number(device)
        sectors = self._host.sectors(below)
        with self._host.control() as control:
            mapping = _find(control, volume, below)
            if mapping is None:
                mapping = _make(control, volume, below, sectors, key)
            elif self._host.sectors(mapping.device) < sectors:  # who enlarged the image was interrupted before `grow`
                _load(control, volume, below, sectors, key)
        return self._host.of(mapping.device, volume)

    def unlock(self, directory: str, volume: VolumeId, key: bytes, *, fresh: bool) -> None:
        """Nothing: what is mapped is open."""

    def grow(self, volume: VolumeId, key: bytes) -> None:
        """Map all of the device below. Nothing when the volume is not mapped."""
        with self._host.control() as control:
            mapping = control.status(_name(volume))
            if mapping is None or not mapping.active:
                return
            (below,) = control.under(_name(volume))
            _load(control, volume, below, self._host.sectors(below), key)

    def close(self, volume: VolumeId) -> None:
        """Remove the mapping, as soon as nothing is mounted on it any more."""
        self._host.drop(volume)
        try:
            with self._host.control() as control:
                control.remove(_name(volume), deferred=True)
        except JobletError:  # no device mapper, no mapping
            return
        except OSError as cause:
            if cause.errno != errno.ENXIO:
                raise

    def present(self) -> frozenset[VolumeId]:
        """Mappings of volumes, also of other nodes on this host, and such as only a job still has open."""
        try:
            with self._host.control() as control:
                return frozenset(filter(None, map(_volume, control.names())))
        except JobletError:  # no device mapper, no mappings
            return frozenset()

    def below(self, volume: VolumeId) -> str:
        """MAJ:MIN of the device that is mapped, which tells whose the mapping is; empty: there is no mapping."""
        try:
            with self._host.control() as control:
                return "".join(_text(device) for device in control.under(_name(volume))[:1])
        except JobletError:
            return ""
        except OSError as cause:
            if cause.errno != errno.ENXIO:
                raise
            return ""

    def try_out(self) -> None:
        """Load a table such as volumes have, and remove it. Raises JobletError, OSError when this host cannot.

        It lies on a mapping of our own without content (`error`, which the device mapper always has), so that no block
        device is needed. Neither is resumed: nobody gets to see a device that one could read.
        """
        lower = f"{_PREFIX}trial-{os.urandom(8).hex()}"
        upper = f"{lower}-crypt"
        with self._host.control() as control:
            try:
                below = control.create(lower, lower).device
                control.load(lower, _TRIAL_SECTORS, "error", bytearray())
                control.create(upper, upper)
                _load_table(control, upper, below, _TRIAL_SECTORS, os.urandom(KEY_BYTES))
            finally:
                for name in (upper, lower):
                    with suppress(OSError):  # it was not made
                        control.remove(name, deferred=True)


def _find(control: Control, volume: VolumeId, below: int) -> Mapping | None:
    """The mapping of this device; None: there is none any more. One of another device goes, unless it is open."""
    name = _name(volume)
    mapping = control.status(name)
    if mapping is None:
        return None
    if mapping.active and control.under(name) == (below,):
        return mapping if not mapping.leaving or _stays(control, name) else None
    try:
        control.remove(name, deferred=False)
    except OSError as cause:
        if cause.errno == errno.EBUSY:
            raise unavailable(f"volume {volume} is still mapped to another device", _BUSY) from cause
        if cause.errno != errno.ENXIO:
            raise
    return None


def _stays(control: Control, name: str) -> bool:
    """Whether a mapping that was to go with its last opener stays now; else it has gone."""
    try:
        control.stay(name)
    except OSError as cause:
        if cause.errno not in {errno.EBUSY, errno.ENXIO}:
            raise
        return False
    return True


def _make(control: Control, volume: VolumeId, below: int, sectors: int, key: bytes) -> Mapping:
    name = _name(volume)
    try:
        mapping = control.create(name, f"JOBLET-CRYPT-{volume}")
    except OSError as cause:
        if cause.errno == errno.EBUSY:
            raise unavailable(f"the old mapping of volume {volume} is not gone yet", _BUSY) from cause
        raise
    try:
        _load(control, volume, below, sectors, key)
    except BaseException:
        with suppress(OSError):  # the first failure is the one to tell
            control.remove(name, deferred=True)
        raise
    return mapping


def _load(control: Control, volume: VolumeId, below: int, sectors: int, key: bytes) -> None:
    _load_table(control, _name(volume), below, sectors, key)
    control.resume(_name(volume))


def _load_table(control: Control, name: str, below: int, sectors: int, key: bytes) -> None:
    try:
        control.load(name, sectors, _TARGET, _parameters(key, below))
    except OSError as cause:
        if cause.errno == errno.EBUSY:
            raise unavailable(f"device {_text(below)} is in use already", _BUSY) from cause
        if cause.errno in {errno.EINVAL, errno.ENOENT}:  # no such target, no such cipher
            raise precondition("this kernel has no dm-crypt with AES-256-XTS", REPAIR) from cause
        raise


def _parameters(key: bytes, below: int) -> bytearray:
    """`aes-xts-plain64 KEY 0 MAJ:MIN 0`. No discards: they would show which blocks are used."""
    assert len(key) == KEY_BYTES
    digits = bytearray(2 * len(key))  # bytes.hex() would leave a copy that cannot be wiped
    for at, value in enumerate(key):
        digits[2 * at], digits[2 * at + 1] = _HEX[value >> 4], _HEX[value & 15]
    parameters = bytearray(len(_CIPHER) + len(digits) + 64)
    rest = f" 0 {_text(below)} 0".encode()
    at = 0
    for part in (_CIPHER, b" ", digits, rest):
        parameters[at : at + len(part)] = part
        at += len(part)
    digits[:] = bytes(len(digits))
    del parameters[at:]
    return parameters


def _name(volume: VolumeId) -> str:
    return f"{_PREFIX}{volume}"


def _volume(name: str) -> VolumeId | None:
    try:
        return parse_volume_id(name.removeprefix(_PREFIX)) if name.startswith(_PREFIX) else None
    except JobletError:  # somebody else's
        return None


def _text(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"
