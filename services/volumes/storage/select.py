"""Which ways to keep volumes this host has, found by trying, once. The one place that chooses.

Not here: any of the ways.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from common.config.layout import Layout
from common.config.settings import Settings
from common.errors import JobletError, invalid, precondition
from common.identifiers import VolumeId, parse_volume_id
from common.messages.volumes import Enforcement, VolumeKind, VolumeRecord
from services.volumes.encryption.choose import Encryption, choose_encryption, encryption_of
from services.volumes.linux import loop
from services.volumes.ports import Found, Storage
from services.volumes.storage import loops, mounting, programs, project
from services.volumes.storage.directory import DirectoryStorage
from services.volumes.storage.image import ImageStorage
from services.volumes.storage.places import SNAPSHOTS
from services.volumes.storage.project import ProjectStorage
from services.volumes.storage.tmpfs import TmpfsStorage

_PROGRAMS: Final = ("mkfs.ext4", "e2fsck", "resize2fs", "tune2fs")
_NO_ROOT: Final = "only root can mount volumes"
_NO_ROOT_REPAIR: Final = "run the node as root, or ask for a volume whose size is not enforced: --advisory"


class Possible(NamedTuple):
    """What was found. A text is the reason why not; empty: it can be done."""

    memory: str
    image: str
    project: str
    encryption: Encryption | None
    no_encryption: str


class HostStorages:
    """See ports.Storages."""

    def __init__(self, settings: Settings, layout: Layout, possible: Possible) -> None:
        self._quota = settings.joblet.volumes.quota
        self._layout = layout
        self._possible = possible
        self._ways: dict[Enforcement, Storage] = {
            each.enforcement: each
            for each in (
                TmpfsStorage(layout),
                ImageStorage(layout, encryption_of),
                ProjectStorage(layout),
                DirectoryStorage(layout),
            )
        }

    def choose(self, volume_kind: str, *, encrypted: bool, advisory: bool) -> tuple[Enforcement, str]:
        """See ports.Storages.choose. What is to be encrypted is never kept in clear instead."""
        if volume_kind == VolumeKind.MEMORY:
            return self._memory(encrypted=encrypted)
        if encrypted:
            return self._encrypted()
        reasons = []
        if self._quota in {"auto", "project"}:
            if not self._possible.project:
                return Enforcement.PROJECT_QUOTA, ""
            reasons.append(self._possible.project)
        if self._quota in {"auto", "image"}:
            if not self._possible.image:
                return Enforcement.IMAGE, ""
            reasons.append(self._possible.image)
        if advisory:
            return Enforcement.ADVISORY, ""
        raise precondition(f"no size can be enforced on this host: {'; '.join(reasons)}", _NO_ROOT_REPAIR)

    def of(self, volume: VolumeRecord) -> Storage:
        """See ports.Storages.of."""
        reason = {
            Enforcement.TMPFS: self._possible.memory,
            Enforcement.IMAGE: self._possible.image,
            Enforcement.PROJECT_QUOTA: self._possible.project,
            Enforcement.ADVISORY: "",
        }[volume.enforcement]
        if reason:
            raise precondition(
                f"volume {volume.name} is kept by {volume.enforcement}, which this host cannot any more: {reason}",
                "make it possible again, or remove the volume",
            )
        return self._ways[volume.enforcement]

    def remover(self, volume: VolumeRecord) -> Storage:
        """See ports.Storages.remover."""
        return self._ways[volume.enforcement]

    def found(self) -> Found:
        """See ports.Storages.found."""
        points = mounting.below(self._layout.volumes.resolve())
        return Found(
            directories=frozenset(self._directories()),
            mounted=self._volumes_of(point for point in points if point.name == mounting.MOUNT),
            attached=self._volumes_of(Path(each.file) for each in self._loops()) | self._mappings(),
        )

    def let_go(self, volume: VolumeId) -> None:
        """See ports.Storages.let_go."""
        home = self._layout.volume_dir(volume)
        mounting.detach_below(home)
        if self._possible.encryption is not None and volume in self._mappings():
            self._possible.encryption.close(volume)
        for each in self._loops():
            if volume in self._volumes_of([Path(each.file)]):
                loops.clear(each.path)

    def close_snapshots(self) -> None:
        """At the start nobody has one open: what is mounted or mapped was left by a service that was killed."""
        for point in mounting.below(self._layout.volumes.resolve()):
            if point.parent.name == SNAPSHOTS:
                mounting.unmount(point)
                point.rmdir()
        encryption = self._possible.encryption
        for identity in self._mappings() - frozenset(self._directories()):
            assert encryption is not None
            encryption.close(identity)  # that of a snapshot is mapped under its own id

    def room_bytes(self) -> int:
        """See ports.Storages.room_bytes."""
        figures = os.statvfs(_nearest(self._layout.volumes))
        return figures.f_bavail * figures.f_frsize

    def memory_bytes(self) -> int:
        """See ports.Storages.memory_bytes."""
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def _memory(self, *, encrypted: bool) -> tuple[Enforcement, str]:
        if encrypted:
            raise invalid(
                "a memory volume is never on the disk, so there is nothing to encrypt", "leave --encrypted out"
            )
        if self._possible.memory:
            raise precondition(f"no memory volume can be made here: {self._possible.memory}", "run the node as root")
        return Enforcement.TMPFS, ""

    def _encrypted(self) -> tuple[Enforcement, str]:
        reason = self._possible.image or self._possible.no_encryption
        if self._quota == "project":
            reason = "only images are encrypted, and joblet.volumes.quota says project"
        if self._possible.encryption is None or reason:
            raise precondition(
                f"no volume can be encrypted here: {reason}", "leave --encrypted out, or repair the host"
            )
        return Enforcement.IMAGE, self._possible.encryption.name

    def _directories(self) -> Iterable[VolumeId]:
        if self._layout.volumes.is_dir():
            for entry in os.scandir(self._layout.volumes):
                volume = _parsed(entry.name)
                if volume is not None:
                    yield volume

    def _volumes_of(self, paths: Iterable[Path]) -> frozenset[VolumeId]:
        """Those in whose directories the paths lie."""
        root = self._layout.volumes.resolve()
        inside = (path.relative_to(root).parts for path in paths if path.is_relative_to(root))
        return frozenset(volume for parts in inside if parts and (volume := _parsed(parts[0])) is not None)

    def _loops(self) -> tuple[loops.Attached, ...]:
        """Those of volumes here. One whose image is removed goes with the job that still has it."""
        return tuple(
            each
            for each in loops.present()
            if not each.file.endswith(" (deleted)") and self._volumes_of([Path(each.file)])
        )

    def _mappings(self) -> frozenset[VolumeId]:
        """Those over loop devices of volumes here; another node on this host has its own."""
        encryption = self._possible.encryption
        if encryption is None:
            return frozenset()
        own = {_number(each.path) for each in self._loops()}
        return frozenset(volume for volume in encryption.present() if encryption.below(volume) in own)


def open_storages(settings: Settings, layout: Layout) -> HostStorages:
    """What this host can, found by trying."""
    storages = HostStorages(settings, layout, possible_here(layout))
    storages.close_snapshots()
    return storages


def possible_here(layout: Layout) -> Possible:
    """The same without a service: nothing of one that runs is touched."""
    encryption, reason = choose_encryption()
    root = os.geteuid() == 0
    return Possible(
        memory="" if root else _NO_ROOT,
        image=_no_image() if root else _NO_ROOT,
        project=_no_project(layout) if root else _NO_ROOT,
        encryption=encryption,
        no_encryption="" if encryption is not None else reason,
    )


def _no_image() -> str:
    try:
        loop.free_number()
    except OSError as cause:
        return f"there are no loop devices ({cause}): modprobe loop"
    try:
        for name in _PROGRAMS:
            programs.find(name)
    except JobletError as cause:
        return str(cause)
    return ""


def _no_project(layout: Layout) -> str:
    try:
        if project.possible(layout.volumes):
            return ""
    except OSError as cause:
        return f"project quotas cannot be asked for ({cause})"
    return f"the file system below {layout.volumes} does not enforce project quotas (mount option prjquota)"


def _nearest(path: Path) -> Path:
    return next(each for each in (path, *path.parents) if each.is_dir())


def _number(device: str) -> str:
    number = os.stat(device).st_rdev  # noqa: PTH116
    return f"{os.major(number)}:{os.minor(number)}"


def _parsed(name: str) -> VolumeId | None:
    try:
        return parse_volume_id(name)
    except JobletError:
        return None
