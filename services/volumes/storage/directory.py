"""Enforcement.ADVISORY: a mere directory. Nobody stops a job at the size; what the volume holds is counted and told.

For a node without root, or a host where nothing else can be had. Nothing is mounted.
"""

import stat
from typing import Final

from common.config.layout import Layout
from common.failpoints import reached
from common.messages.volumes import CopyMethod, Enforcement, VolumeRecord
from services.volumes.descent import Found, walk
from services.volumes.descent import Moved as DirectoryMoved
from services.volumes.ports import Ids, Moved, Place, Space
from services.volumes.storage import places, trees

ENTRIES_MAX: Final = 1_000_000
"""With more than these a volume is told to hold what was counted until then: the count must end."""

_LINKED_MAX: Final = 100_000
_STAT_BLOCK_BYTES: Final = 512


class DirectoryStorage:
    """See ports.Storage."""

    enforcement = Enforcement.ADVISORY

    def __init__(self, layout: Layout, entries_max: int = ENTRIES_MAX) -> None:
        self._layout = layout
        self._entries_max = entries_max

    def create(self, volume: VolumeRecord, key: bytes) -> None:  # noqa: ARG002  # never encrypted
        """See ports.Storage.create."""
        trees.create(self._layout.volume_dir(volume.id), _prepare)

    def delete(self, volume: VolumeRecord) -> None:
        """See ports.Storage.delete."""
        places.discard(self._layout.volume_dir(volume.id))

    def mount(self, volume: VolumeRecord, key: bytes, ids: Ids | None) -> Place:  # noqa: ARG002
        """See ports.Storage.mount."""
        return trees.mount(self._layout.volume_dir(volume.id), ids)

    def unmount(self, volume: VolumeRecord) -> None:
        """Nothing is mounted."""

    def measure(self, volume: VolumeRecord) -> Space | None:
        """See ports.Storage.measure. None: it changes so fast that nobody can count it."""
        count = _Count(self._entries_max)
        try:
            with places.opened(self._layout.volume_dir(volume.id) / places.DATA) as directory:
                walk(directory, count)
        except _Enough:
            pass
        except (DirectoryMoved, FileNotFoundError):
            return None
        return Space(used_bytes=count.used_bytes, used_inodes=count.entries, inodes=0)

    def moved(self, volume: VolumeRecord) -> Moved:  # noqa: ARG002
        """It has no device of its own."""
        return Moved()

    def resize(self, volume: VolumeRecord, size_bytes: int, key: bytes) -> None:  # noqa: ARG002
        """Nothing on the disk says how large it may be."""
        reached("volumes.resized")

    def snapshot(self, volume: VolumeRecord, snapshot: str) -> CopyMethod:
        """See ports.Storage.snapshot."""
        return trees.snapshot(self._layout.volume_dir(volume.id), snapshot)

    def drop_snapshot(self, volume: VolumeRecord, snapshot: str) -> None:
        """See ports.Storage.drop_snapshot."""
        trees.drop_snapshot(self._layout.volume_dir(volume.id), snapshot)

    def restore(self, volume: VolumeRecord, snapshot: str, size_bytes: int) -> None:  # noqa: ARG002
        """See ports.Storage.restore."""
        trees.restore(self._layout.volume_dir(volume.id), snapshot, _prepare)

    def clone(self, source: VolumeRecord, snapshot: str, target: VolumeRecord, key: bytes) -> CopyMethod:  # noqa: ARG002
        """See ports.Storage.clone."""
        homes = self._layout.volume_dir(source.id), self._layout.volume_dir(target.id)
        return trees.clone(homes[0], snapshot, homes[1], _prepare)

    def open_snapshot(self, volume: VolumeRecord, snapshot: str, key: bytes) -> Place:  # noqa: ARG002
        """See ports.Storage.open_snapshot. That nobody writes to it is up to who opened it."""
        return trees.snapshot_place(self._layout.volume_dir(volume.id), snapshot)

    def close_snapshot(self, volume: VolumeRecord, snapshot: str) -> None:
        """It is not open in any sense."""

    def thaw(self, volume: VolumeRecord) -> None:
        """It is never frozen."""


def _prepare(directory: int) -> None:
    """Any directory will do."""


class _Enough(Exception):
    """More was counted than will be."""


class _Count:
    """Visitor: what everything below takes on the disk."""

    def __init__(self, entries_max: int) -> None:
        self._entries_max = entries_max
        self._linked: set[int] = set()
        self.used_bytes = 0
        self.entries = 0

    def enter(self, found: Found, opened: int) -> bool:  # noqa: ARG002
        self._add(found)
        return True

    def leave(self, found: Found) -> None:
        pass

    def entry(self, found: Found) -> None:
        if stat.S_ISREG(found.status.st_mode) and found.status.st_nlink > 1:
            if found.status.st_ino in self._linked:
                return
            if len(self._linked) < _LINKED_MAX:
                self._linked.add(found.status.st_ino)
        self._add(found)

    def unreadable(self, parent: int, name: str, cause: OSError) -> bool:  # noqa: ARG002
        return False  # its owner closed it; it is not opened for counting

    def _add(self, found: Found) -> None:
        if self.entries >= self._entries_max:
            raise _Enough
        self.entries += 1
        self.used_bytes += found.status.st_blocks * _STAT_BLOCK_BYTES
