"""Enforcement.TMPFS: a memory volume. It is made at the first mount and gone with the last.

Nothing of it is on the disk but an empty directory; from Linux 6.4 on it is not swapped out either. tmpfs(5).
"""

import errno
import os
from pathlib import Path

from common.config.layout import Layout
from common.errors import JobletError, invalid
from common.failpoints import reached
from common.linux import mounts
from common.messages.volumes import CopyMethod, Enforcement, VolumeRecord
from services.volumes.ports import Ids, Moved, Place, Space
from services.volumes.storage import mounting, places


class TmpfsStorage:
    """See ports.Storage."""

    enforcement = Enforcement.TMPFS

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def create(self, volume: VolumeRecord, key: bytes) -> None:  # noqa: ARG002  # never encrypted: never written
        """See ports.Storage.create. No memory is taken yet."""
        self.delete(volume)
        with places.enough_room(f"volume {volume.name}"):
            places.make(self._home(volume))

    def delete(self, volume: VolumeRecord) -> None:
        """See ports.Storage.delete."""
        mounting.detach_below(self._home(volume))
        places.discard(self._home(volume))

    def mount(self, volume: VolumeRecord, key: bytes, ids: Ids | None) -> Place:  # noqa: ARG002
        """See ports.Storage.mount."""
        with places.opened(self._home(volume)):
            pass
        point = self._point(volume)
        if not mounting.is_mounted(point):
            _mount(point, volume.size_bytes)
        with places.opened(point) as directory:
            places.give(directory, ids)
            return places.place(point, directory)

    def unmount(self, volume: VolumeRecord) -> None:
        """See ports.Storage.unmount. Its content is gone when the last job that has it has ended."""
        mounting.unmount(self._point(volume))
        reached("volumes.unmounted")

    def measure(self, volume: VolumeRecord) -> Space | None:
        """See ports.Storage.measure. One that is not mounted holds nothing, and that is known."""
        point = self._point(volume)
        if not mounting.is_mounted(point):
            return Space(used_bytes=0, used_inodes=0, inodes=_inodes(volume.size_bytes) - 1)
        with places.opened(point) as directory:
            figures = os.fstatvfs(directory)
        return Space(
            used_bytes=(figures.f_blocks - figures.f_bfree) * figures.f_frsize,
            used_inodes=figures.f_files - figures.f_ffree - 1,
            inodes=figures.f_files - 1,
        )

    def moved(self, volume: VolumeRecord) -> Moved:  # noqa: ARG002
        """It has no device."""
        return Moved()

    def resize(self, volume: VolumeRecord, size_bytes: int, key: bytes) -> None:  # noqa: ARG002
        """See ports.Storage.resize."""
        point = self._point(volume)
        if mounting.is_mounted(point):
            flags = mounting.FLAGS | mounts.MS_REMOUNT
            mounting.mount("tmpfs", point, "tmpfs", flags, _limits(size_bytes))
        reached("volumes.resized")

    def snapshot(self, volume: VolumeRecord, snapshot: str) -> CopyMethod:  # noqa: ARG002
        """Refused: a snapshot would put on the disk what was never to be there."""
        raise _refused(volume)

    def drop_snapshot(self, volume: VolumeRecord, snapshot: str) -> None:
        """There are none."""

    def restore(self, volume: VolumeRecord, snapshot: str, size_bytes: int) -> None:  # noqa: ARG002
        """Refused."""
        raise _refused(volume)

    def clone(self, source: VolumeRecord, snapshot: str, target: VolumeRecord, key: bytes) -> CopyMethod:  # noqa: ARG002
        """Refused."""
        raise _refused(source)

    def open_snapshot(self, volume: VolumeRecord, snapshot: str, key: bytes) -> Place:  # noqa: ARG002
        """Refused."""
        raise _refused(volume)

    def close_snapshot(self, volume: VolumeRecord, snapshot: str) -> None:
        """There are none."""

    def thaw(self, volume: VolumeRecord) -> None:
        """It is never frozen."""

    def _home(self, volume: VolumeRecord) -> Path:
        return self._layout.volume_dir(volume.id)

    def _point(self, volume: VolumeRecord) -> Path:
        return self._home(volume) / mounting.MOUNT


def _mount(point: Path, size_bytes: int) -> None:
    options = f"{_limits(size_bytes)},mode=755,uid=0,gid=0"
    try:
        mounting.mount("tmpfs", point, "tmpfs", mounting.FLAGS, f"{options},noswap")
    except OSError as cause:
        if cause.errno != errno.EINVAL:
            raise
        mounting.mount("tmpfs", point, "tmpfs", mounting.FLAGS, options)  # before Linux 6.4


def _limits(size_bytes: int) -> str:
    assert size_bytes > 0  # 0 would be no limit
    return f"size={size_bytes},nr_inodes={_inodes(size_bytes)}"


def _inodes(size_bytes: int) -> int:
    """Inodes cost memory that `size` does not count: about one for each KiB is more than small files need."""
    return 1024 + size_bytes // 1024


def _refused(volume: VolumeRecord) -> JobletError:
    return invalid(
        f"volume {volume.name} is in memory, and is never copied to the disk",
        "use a volume of type filesystem for snapshots and clones",
    )
