"""Block devices by path and number, and the nodes of mappings on hosts with and without udev and devtmpfs.

Here: finding a node, or making one in a directory of ours; how large a device is. The directory is in /dev because that
is the one place that is never mounted nodev, as /run is and /var/lib may be: the kernel mounts nothing through a node
there. See mknod(2).
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from common.errors import invalid, precondition, unavailable
from common.identifiers import VolumeId
from services.volumes.linux.dm import CONTROL_MAJOR, CONTROL_MINOR, Control, open_control

DEV: Final = Path("/dev")
OURS: Final = "joblet-volumes"
"""Below /dev: root's only. A node is in it until its mapping is closed, and the directory is there while a node is."""

REPAIR: Final = "use a kernel with CONFIG_BLK_DEV_DM, CONFIG_DM_CRYPT and CONFIG_CRYPTO_XTS (modprobe dm_crypt)"
_NO_RIGHT: Final = "run the node as root, with CAP_SYS_ADMIN and CAP_MKNOD, where /dev can be written"
_ABSENT: Final = frozenset({errno.ENODEV, errno.ENXIO, errno.ENOENT})
_ATTEMPTS: Final = 64
_CONTROL: Final = os.makedev(CONTROL_MAJOR, CONTROL_MINOR)


class Nodes:
    """Those below `dev`."""

    def __init__(self, dev: Path = DEV) -> None:
        self._dev = dev
        self._ours = dev / OURS

    @contextmanager
    def control(self) -> Iterator[Control]:
        """The device mapper. Raises JobletError(PRECONDITION) when there is none for us."""
        try:
            descriptor = self._open_control()
        except OSError as cause:
            if cause.errno in _ABSENT:
                raise precondition("this kernel has no device mapper", REPAIR) from cause
            raise precondition(f"the device mapper cannot be opened: {cause.strerror}", _NO_RIGHT) from cause
        try:
            yield Control.on(descriptor)
        finally:
            os.close(descriptor)

    def number(self, path: str) -> int:
        """dev_t of the block device at `path`."""
        found = Path(path).stat()
        if not stat.S_ISBLK(found.st_mode):
            raise invalid(f"{path} is no block device")
        return found.st_rdev

    def sectors(self, device: int) -> int:
        """How large the block device is, in units of 512 bytes; 0: it has no content yet."""
        return int(Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/size").read_text())

    def of(self, device: int, volume: VolumeId) -> str:
        """The path of the block device with number `device`, which is the volume's mapping."""
        kernels = self._dev / f"dm-{os.minor(device)}"  # by devtmpfs or udev
        if _is(kernels, stat.S_IFBLK, device):
            return str(kernels)
        node = self._ours / volume
        if not _is(node, stat.S_IFBLK, device):
            node.unlink(missing_ok=True)  # of a mapping before this one
            self._make(node, stat.S_IFBLK, device)
        return str(node)

    def drop(self, volume: VolumeId) -> None:
        """Remove the node that was made for the volume. What is mounted through it stays mounted."""
        (self._ours / volume).unlink(missing_ok=True)
        self._remove_directory()

    def _open_control(self) -> int:
        kernels = self._dev / "mapper" / "control"
        if _is(kernels, stat.S_IFCHR, _CONTROL):
            return open_control(str(kernels))
        node = self._ours / f"control-{os.urandom(8).hex()}"
        self._make(node, stat.S_IFCHR, _CONTROL)
        try:
            return open_control(str(node))
        finally:
            node.unlink()
            self._remove_directory()

    def _make(self, node: Path, kind: int, device: int) -> None:
        for _ in range(_ATTEMPTS):
            with suppress(FileNotFoundError):  # who removed the last other node took the directory with it
                self._make_directory()
                os.mknod(node, kind | 0o600, device)
                return
        raise unavailable(f"{self._ours} is removed again and again", "look who does that")

    def _make_directory(self) -> None:
        with suppress(FileExistsError):
            self._ours.mkdir(mode=0o700)
        found = self._ours.lstat()
        if found.st_uid != os.geteuid() or not stat.S_ISDIR(found.st_mode) or stat.S_IMODE(found.st_mode) & 0o077:
            raise precondition(f"{self._ours} is not a directory of joblet's alone", f"remove {self._ours}")

    def _remove_directory(self) -> None:
        """While nobody has a node in it."""
        try:
            self._ours.rmdir()
        except OSError:  # another volume's node is in it, or another thread was here first
            return


def _is(path: Path, kind: int, device: int) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_IFMT(found.st_mode) == kind and found.st_rdev == device
