"""Enforcement.IMAGE: a volume is an ext4 file system of its own, in a file that has all its blocks beforehand.

Writing past the size is ENOSPC at the last block, the number of files has its own bound, and what a job does to its
file system happens in its own file only. Everything that is made gets its name when it is whole and durable, so an
interrupted step leaves what was before or what is after.

Not here: the file (`imagefile.py`), the way from the file to the mount (`imagemount.py`), copying (`copies.py`).
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from common.config.layout import Layout
from common.errors import JobletError
from common.failpoints import reached
from common.identifiers import VolumeId
from common.linux import mounts
from common.messages.volumes import CopyMethod, Enforcement, VolumeRecord
from services.volumes.encryption.choose import Encryption
from services.volumes.ports import Ids, Moved, Place, Space
from services.volumes.storage import copies, devicestats, ext4, imagefile, loops, mounting, places
from services.volumes.storage.imagemount import ImageMount

_COPY: Final = "image.copy"
_MAKES_MAX: Final = 3
_MORE_BLOCKS: Final = 64


class ImageStorage:
    """See ports.Storage. `encryption_of`: by VolumeRecord.encryption."""

    enforcement = Enforcement.IMAGE

    def __init__(self, layout: Layout, encryption_of: Callable[[str], Encryption]) -> None:
        self._layout = layout
        self._encryption_of = encryption_of
        self._stats = devicestats.Baselines()

    def create(self, volume: VolumeRecord, key: bytes) -> None:
        """See ports.Storage.create."""
        with self._made(volume) as home:
            self._create(volume, home, key)
            self._name(home, imagefile.NEW)
            encryption = self._encryption(volume)
            if encryption is not None and encryption.features():
                # Only a mounted file system encrypts its directory, and tells whether this kernel has the ciphers.
                self.mount(volume, key, None)
                self.unmount(volume)
        reached("volumes.formatted")

    def delete(self, volume: VolumeRecord) -> None:
        """See ports.Storage.delete."""
        home = self._home(volume)
        self._stats.end(volume.id)
        mounting.detach_below(home)  # snapshots too; what is not as it was left must not be in the way either
        encryption = self._encryption(volume)
        if encryption is not None:
            encryption.close(volume.id)
        places.discard(home)

    def mount(self, volume: VolumeRecord, key: bytes, ids: Ids | None) -> Place:
        """See ports.Storage.mount."""
        mount = self._mount_of(volume)
        with places.opened(self._home(volume)):
            found = mount.is_mounted
        self._tidy(volume)
        mount.mount(key)
        try:
            place = self._settle(volume, mount.point / places.DATA, key, ids)
        except BaseException:
            if not found:
                mount.unmount()
            raise
        self._stats.begin(volume.id, place.device)
        return place

    def unmount(self, volume: VolumeRecord) -> None:
        """See ports.Storage.unmount."""
        self._stats.end(volume.id)
        self._mount_of(volume).unmount()

    def measure(self, volume: VolumeRecord) -> Space | None:
        """See ports.Storage.measure."""
        mount = self._mount_of(volume)
        if not mount.is_mounted:
            return None
        with places.opened(mount.point) as mounted:
            figures = os.fstatvfs(mounted)
        size = ext4.round_up(volume.size_bytes)
        return Space(
            used_bytes=max(0, size - figures.f_bavail * figures.f_frsize),
            used_inodes=figures.f_files - figures.f_ffree - ext4.EMPTY_INODES,
            inodes=figures.f_files - ext4.EMPTY_INODES,
        )

    def moved(self, volume: VolumeRecord) -> Moved:
        """See ports.Storage.moved."""
        return self._stats.since(volume.id)

    def resize(self, volume: VolumeRecord, size_bytes: int, key: bytes) -> None:
        """See ports.Storage.resize."""
        larger = msgspec.structs.replace(volume, size_bytes=size_bytes)
        mount = self._mount_of(volume)
        found = mount.is_mounted
        try:
            self.mount(larger, key, None)
        finally:
            if not found:
                self.unmount(volume)
        reached("volumes.resized")

    def snapshot(self, volume: VolumeRecord, snapshot: str) -> CopyMethod:
        """See ports.Storage.snapshot."""
        target = places.snapshot_path(self._home(volume), snapshot)
        method = self._copy(volume, self._home(volume) / imagefile.IMAGE, target, full=False)
        if not volume.encryption:
            imagefile.replay(str(target))
        reached("volumes.copied")
        return method

    def drop_snapshot(self, volume: VolumeRecord, snapshot: str) -> None:
        """See ports.Storage.drop_snapshot."""
        self.close_snapshot(volume, snapshot)
        path = places.snapshot_path(self._home(volume), snapshot)
        for each in (path, path.with_name(f"{path.name}.new")):  # the second: of a copy that was interrupted
            places.discard(each)

    def restore(self, volume: VolumeRecord, snapshot: str, size_bytes: int) -> None:  # noqa: ARG002  # the image tells
        """See ports.Storage.restore. A file system that is smaller than the volume is enlarged at the next mount."""
        home = self._home(volume)
        with imagefile.opened(home / imagefile.IMAGE) as image:
            present = os.fstat(image).st_size
        source = places.snapshot_path(home, snapshot)
        with places.opened_file(source, os.O_RDONLY):
            copies.copy_file(source, home / _COPY, full=True)
        try:
            with imagefile.opened(home / _COPY) as image:
                imagefile.allocate(image, present)
        except JobletError:
            places.discard(home / _COPY)
            raise
        self._name(home, _COPY)

    def clone(self, source: VolumeRecord, snapshot: str, target: VolumeRecord, key: bytes) -> CopyMethod:
        """See ports.Storage.clone."""
        home = self._home(source)
        original = places.snapshot_path(home, snapshot) if snapshot else home / imagefile.IMAGE
        with self._made(target) as new:
            method = self._copy(source, original, new / _COPY, full=True)
            with imagefile.opened(new / _COPY) as image:
                imagefile.allocate(image, os.fstat(image).st_size)
                with self._mount_of(target).device(image, key) as device:
                    imagefile.rename(device, target.id)
                os.fsync(image)
            self._name(new, _COPY)
        reached("volumes.copied")
        return method

    def open_snapshot(self, volume: VolumeRecord, snapshot: str, key: bytes) -> Place:
        """See ports.Storage.open_snapshot.

        An encrypted one is mapped under its own id, and writable: its journal, which nobody could replay without the
        key when it was taken, may have to be now. The mount is read-only in any case.
        """
        path = places.snapshot_path(self._home(volume), snapshot)
        point = path.with_name(f"{path.name}.{mounting.MOUNT}")
        encryption = self._encryption(volume)
        flags, options = mounting.FLAGS | mounts.MS_RDONLY, "" if encryption else "noload"
        with places.opened_file(path, os.O_RDWR if encryption else os.O_RDONLY) as image:
            if not mounting.is_mounted(point):
                with loops.attached(image, read_only=encryption is None) as device:
                    block = encryption.open(device, VolumeId(snapshot), key) if encryption else device
                    imagefile.check(block, volume.id)
                    mounting.mount(block, point, "ext4", flags, options)
        data = point / places.DATA
        if encryption is not None:
            encryption.unlock(str(data), volume.id, key, fresh=False)
        with places.opened(data) as directory:
            return places.place(data, directory)

    def close_snapshot(self, volume: VolumeRecord, snapshot: str) -> None:
        """See ports.Storage.close_snapshot."""
        path = places.snapshot_path(self._home(volume), snapshot)
        point = path.with_name(f"{path.name}.{mounting.MOUNT}")
        mounting.unmount(point)
        encryption = self._encryption(volume)
        if encryption is not None:
            encryption.close(VolumeId(snapshot))
        if point.is_dir():
            point.rmdir()

    def thaw(self, volume: VolumeRecord) -> None:
        """See ports.Storage.thaw."""
        mount = self._mount_of(volume)
        if mount.is_mounted:
            copies.thaw(mount.point)

    def _create(self, volume: VolumeRecord, home: Path, key: bytes) -> None:
        size = ext4.image_bytes(volume.size_bytes)
        encryption = self._encryption(volume)
        for _ in range(_MAKES_MAX):
            places.discard(home / imagefile.NEW)
            with imagefile.created(home / imagefile.NEW, size) as image:
                reached("volumes.allocated")
                features = () if encryption is None else encryption.features()
                with self._formatted_through(volume, home, image, key) as device:
                    short = imagefile.format_device(
                        device, home, size_bytes=volume.size_bytes, identity=volume.id, features=features
                    )
                imagefile.allocate(image, size)  # should mkfs have made a hole after all
            if not short:
                return
            size += (short + _MORE_BLOCKS) * ext4.BLOCK_BYTES
        raise imagefile.damaged(volume.id, f"no image of {size} bytes has room for {volume.size_bytes}")

    @contextmanager
    def _formatted_through(self, volume: VolumeRecord, home: Path, image: int, key: bytes) -> Iterator[str]:
        """Without encryption the file itself, which needs no loop device."""
        if not volume.encryption:
            yield str(home / imagefile.NEW)
            return
        with self._mount_of(volume).device(image, key) as device:
            yield device

    @contextmanager
    def _made(self, volume: VolumeRecord) -> Iterator[Path]:
        """The volume's directory, new. It is gone again when this fails."""
        self.delete(volume)
        home = self._home(volume)
        try:
            places.make(home)
            places.make_in(home, mounting.MOUNT)  # now: a disk that is full later must not be in the way of a mount
            yield home
        except Exception:
            self.delete(volume)
            raise

    def _tidy(self, volume: VolumeRecord) -> None:
        """What an interrupted restore left takes as much room as the volume."""
        for name in (_COPY, f"{_COPY}.new"):
            places.discard(self._home(volume) / name)

    def _name(self, home: Path, new: str) -> None:
        (home / new).rename(home / imagefile.IMAGE)
        places.synchronize(home)

    def _copy(self, volume: VolumeRecord, source: Path, target: Path, *, full: bool) -> CopyMethod:
        """Of a file system that changes meanwhile, as it is at one moment."""
        mount = self._mount_of(volume)
        with places.opened_file(source, os.O_RDONLY):
            pass
        if source.name != imagefile.IMAGE or not mount.is_mounted:
            return copies.copy_file(source, target, full=full)
        copies.freeze(mount.point)
        try:
            reached("volumes.frozen")
            return copies.copy_file(source, target, full=full)
        finally:
            copies.thaw(mount.point)

    def _settle(self, volume: VolumeRecord, data: Path, key: bytes, ids: Ids | None) -> Place:
        """What the job sees is unlocked and somebody's."""
        encryption = self._encryption(volume)
        if encryption is not None:
            with places.opened(data) as directory:
                fresh = places.is_new(directory)
            encryption.unlock(str(data), volume.id, key, fresh=fresh)
        with places.opened(data) as directory:
            places.give(directory, ids)
            return places.place(data, directory)

    def _home(self, volume: VolumeRecord) -> Path:
        return self._layout.volume_dir(volume.id)

    def _encryption(self, volume: VolumeRecord) -> Encryption | None:
        return self._encryption_of(volume.encryption) if volume.encryption else None

    def _mount_of(self, volume: VolumeRecord) -> ImageMount:
        return ImageMount(self._home(volume), volume.id, volume.size_bytes, self._encryption(volume))
