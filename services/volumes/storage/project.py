"""Enforcement.PROJECT_QUOTA: a directory of the host's file system whose content the kernel holds to a size.

Each volume has a project of its own, which its directory names; that is the only record of it. All that is made below
inherits it. Neither the owner of a file nor a job's root can change that: a change of the project from within a user
namespace is refused (fs/ioctl.c, fileattr_set_prepare), and jobs live in one. The host's root could, and is not held to
limits (CAP_SYS_RESOURCE). A file cannot be moved or linked in from another project (EXDEV).

Not here: the calls (`linux/quota.py`). ext4(5) prjquota, xfs_quota(8).
"""

import os
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from common.config.layout import Layout
from common.errors import exhausted
from common.failpoints import reached
from common.messages.volumes import CopyMethod, Enforcement, VolumeRecord
from services.volumes.linux import quota
from services.volumes.ports import Ids, Moved, Place, Space
from services.volumes.storage import ext4, places, trees

FIRST: Final = 0x4000_0000
"""Above what administrators write into /etc/projid by hand."""

LAST: Final = 0x7FFF_FFFF
_TRIES_MAX: Final = 1000


class ProjectStorage:
    """See ports.Storage. Only on a file system that enforces project quotas (`possible`)."""

    enforcement = Enforcement.PROJECT_QUOTA

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._choosing = threading.Lock()  # from the look whether a project is free to the first directory that has it

    def create(self, volume: VolumeRecord, key: bytes) -> None:  # noqa: ARG002  # never encrypted
        """See ports.Storage.create."""
        with places.enough_room(f"volume {volume.name}"):
            trees.create(self._home(volume), self._preparing(volume))

    def delete(self, volume: VolumeRecord) -> None:
        """See ports.Storage.delete."""
        home = self._home(volume)
        project = _project(home / places.DATA)
        places.discard(home)
        self._forget(project)

    def mount(self, volume: VolumeRecord, key: bytes, ids: Ids | None) -> Place:  # noqa: ARG002
        """See ports.Storage.mount."""
        home = self._home(volume)
        place = trees.mount(home, ids)
        with places.opened(home / places.DATA) as data:
            project = quota.project_of(data)
            if not project or not quota.enforced(data):
                raise places.data_loss(
                    f"volume {volume.id} is held to its size by nobody",
                    f"mount the file system below {home.parent} with prjquota, or remove the volume",
                )
            _limit(data, project, volume.size_bytes)
        return place

    def unmount(self, volume: VolumeRecord) -> None:
        """Nothing is mounted."""

    def measure(self, volume: VolumeRecord) -> Space | None:
        """See ports.Storage.measure."""
        data = self._home(volume) / places.DATA
        if not os.path.lexists(data):
            return None
        with places.opened(data) as directory:
            counted = quota.usage(directory, quota.project_of(directory))
            own = os.fstatvfs(directory).f_frsize
        return Space(
            used_bytes=max(0, counted.used_bytes - own),
            used_inodes=max(0, counted.used_inodes - 1),
            inodes=max(0, counted.inodes_max - 1),
        )

    def moved(self, volume: VolumeRecord) -> Moved:  # noqa: ARG002
        """It has no device of its own."""
        return Moved()

    def resize(self, volume: VolumeRecord, size_bytes: int, key: bytes) -> None:  # noqa: ARG002
        """See ports.Storage.resize. No space is set aside for it, so none can be missing."""
        with places.opened(self._home(volume) / places.DATA) as data:
            _limit(data, quota.project_of(data), size_bytes)
        reached("volumes.resized")

    def snapshot(self, volume: VolumeRecord, snapshot: str) -> CopyMethod:
        """See ports.Storage.snapshot. It does not count for the volume."""
        return trees.snapshot(self._home(volume), snapshot)

    def drop_snapshot(self, volume: VolumeRecord, snapshot: str) -> None:
        """See ports.Storage.drop_snapshot."""
        trees.drop_snapshot(self._home(volume), snapshot)

    def restore(self, volume: VolumeRecord, snapshot: str, size_bytes: int) -> None:  # noqa: ARG002
        """See ports.Storage.restore. It gets a new project: for a while there are both contents."""
        home = self._home(volume)
        before = _project(home / places.DATA)
        trees.restore(home, snapshot, self._preparing(volume))
        self._forget(before)

    def clone(self, source: VolumeRecord, snapshot: str, target: VolumeRecord, key: bytes) -> CopyMethod:  # noqa: ARG002
        """See ports.Storage.clone."""
        return trees.clone(self._home(source), snapshot, self._home(target), self._preparing(target))

    def open_snapshot(self, volume: VolumeRecord, snapshot: str, key: bytes) -> Place:  # noqa: ARG002
        """See ports.Storage.open_snapshot. That nobody writes to it is up to who opened it."""
        return trees.snapshot_place(self._home(volume), snapshot)

    def close_snapshot(self, volume: VolumeRecord, snapshot: str) -> None:
        """It is not open in any sense."""

    def thaw(self, volume: VolumeRecord) -> None:
        """It is never frozen: others use its file system."""

    def _preparing(self, volume: VolumeRecord) -> Callable[[int], None]:
        def prepare(directory: int) -> None:
            with self._choosing:
                project = _free(directory, volume.id)
                _limit(directory, project, volume.size_bytes)
                quota.set_project(directory, project)

        return prepare

    def _forget(self, project: int) -> None:
        """No limits for a project that has nothing any more."""
        if project and self._layout.volumes.is_dir():
            with places.opened(self._layout.volumes) as directory:
                if not quota.usage(directory, project).used_inodes:
                    quota.limit(directory, project, bytes_max=0, inodes_max=0)

    def _home(self, volume: VolumeRecord) -> Path:
        return self._layout.volume_dir(volume.id)


def possible(directory: Path) -> bool:
    """Whether the file system of this directory, or of the nearest above it that is there, enforces project quotas."""
    there = next(each for each in (directory, *directory.parents) if each.is_dir())
    descriptor = os.open(there, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return quota.enforced(descriptor)
    finally:
        os.close(descriptor)


def _limit(directory: int, project: int, size_bytes: int) -> None:
    """The block and the inode of the volume's own directory are not the owner's."""
    own = os.fstatvfs(directory).f_frsize
    inodes = ext4.inodes(size_bytes) + 1
    quota.limit(directory, project, bytes_max=ext4.round_up(size_bytes) + own, inodes_max=inodes)


def _free(directory: int, volume: str) -> int:
    """A project that nobody uses, always the same one for a volume as far as that goes."""
    candidate = zlib.crc32(volume.encode())
    for step in range(_TRIES_MAX):
        project = FIRST + (candidate + step) % (LAST - FIRST + 1)
        if not any(quota.usage(directory, project)):
            return project
    raise exhausted("no project number is free for the volume", "look for what uses them: repquota -P, xfs_quota")


def _project(data: Path) -> int:
    """0: there is none."""
    if not data.is_dir():
        return 0
    with places.opened(data) as directory:
        return quota.project_of(directory)
