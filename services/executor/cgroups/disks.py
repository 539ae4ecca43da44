"""Which whole disks are behind a path: limits of input and output are set for those.

Here: from a path over its mount to the disk, and what schedules a disk. Not here: limits (`v1.py`, `v2.py`), and what
the kernel says to a disk (`io_offers.py`). The kernel takes no partition for a limit: its disk counts. A device mapper,
loop or md device is a disk by itself. tmpfs, overlay and the network file systems have no disk; what an overlay lies
on is not looked for. References: Documentation/admin-guide/cgroup-v2.rst (IO), Documentation/ABI/stable/sysfs-block.
"""

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from common.linux import mountinfo
from common.linux.mountinfo import Mount

_ACTIVE: Final = re.compile(r"\[([^\]]*)\]")


class Disk(NamedTuple):
    """A block device that is no partition."""

    device: str  # MAJ:MIN, as io.max and the blkio files name it
    name: str  # below /sys/block


class Reader(Protocol):
    """What is asked of the kernel."""

    def mounts(self) -> tuple[Mount, ...]:
        """All mounts, in the order of mounting."""

    def place(self, path: str) -> tuple[str, int]:
        """`path` without symbolic links, or its nearest directory that is there, and the id of its mount."""

    def whole_disk(self, device: str) -> Disk | None:
        """The disk that the block device MAJ:MIN is, or is a partition of; None: there is none."""

    def members(self, source: str) -> tuple[str, ...]:
        """MAJ:MIN of the devices of the btrfs file system that is on the device file `source`, among others."""


def disks_behind(paths: Iterable[str], reader: Reader | None = None) -> tuple[Disk, ...]:
    """The disks that reading and writing at or below `paths` can reach, each once. None for what has no disk."""
    reader = reader or KernelReader()
    mounts = reader.mounts()
    devices = [device for path in paths for mount in _seen(path, mounts, reader) for device in _devices(mount, reader)]
    disks = [reader.whole_disk(device) for device in dict.fromkeys(devices)]
    return tuple(dict.fromkeys(disk for disk in disks if disk is not None))


def whole_disks(devices: Iterable[str], reader: Reader | None = None) -> tuple[str, ...]:
    """MAJ:MIN of the disks that the block devices MAJ:MIN are or are partitions of, each once."""
    reader = reader or KernelReader()
    disks = [reader.whole_disk(device) for device in devices]
    return tuple(dict.fromkeys(disk.device for disk in disks if disk is not None))


def _seen(path: str, mounts: tuple[Mount, ...], reader: Reader) -> list[Mount]:
    """The mount that holds `path`, and those below it: a bind of the path brings them along."""
    place, identity = reader.place(path)
    return [mount for mount in mounts if mount.id == identity] + list(mountinfo.below(mounts, place))


def _devices(mount: Mount, reader: Reader) -> tuple[str, ...]:
    if not mount.device.startswith("0:"):
        return (mount.device,)
    if mount.kind == "btrfs":  # its files have a device number of their own, over one or several disks
        return reader.members(mount.source)
    return ()


def scheduler(disk: Disk, sysfs: Path = Path("/sys")) -> str:
    """The scheduler that the disk has now, such as "bfq"; "none" also for a device that has no choice of them."""
    try:
        text = (sysfs / "block" / disk.name / "queue/scheduler").read_text(encoding="ascii")
    except OSError:
        return "none"
    active = _ACTIVE.search(text)
    return active[1] if active else "none"


class KernelReader:
    """Reader over /proc and /sys."""

    def __init__(self, sysfs: Path = Path("/sys")) -> None:
        self._sysfs = sysfs

    def mounts(self) -> tuple[Mount, ...]:
        """See Reader.mounts."""
        return mountinfo.present()

    def place(self, path: str) -> tuple[str, int]:
        """See Reader.place."""
        real = Path(path).resolve()
        there = str(next(each for each in (real, *real.parents) if each.exists()))
        return there, mountinfo.mount_id_of(there)

    def whole_disk(self, device: str) -> Disk | None:
        """See Reader.whole_disk."""
        found = self._directory(device)
        if found is None:
            return None
        if (found / "partition").exists():
            found = found.parent
        return Disk((found / "dev").read_text(encoding="ascii").strip(), found.name)

    def members(self, source: str) -> tuple[str, ...]:
        """See Reader.members."""
        try:
            status = os.stat(source)  # noqa: PTH116  # what a mount names is followed as it is
        except OSError:
            return ()
        if not stat.S_ISBLK(status.st_mode):
            return ()
        device = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        own = self._directory(device)
        for devices in (self._sysfs / "fs/btrfs").glob("*/devices"):
            found = {entry.name: (entry / "dev").read_text(encoding="ascii").strip() for entry in devices.iterdir()}
            if own is not None and own.name in found:
                return tuple(sorted(found.values()))
        return (device,)

    def _directory(self, device: str) -> Path | None:
        link = self._sysfs / "dev/block" / device
        return link.resolve() if link.exists() else None
