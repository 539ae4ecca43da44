"""The file of an image: made whole or not at all, with every block of it on the disk, and looked at before it is used.

Not here: its size and its format (`ext4.py`), its loop device (`loops.py`), its mount (`imagemount.py`).
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from common.errors import JobletError, Reason, precondition
from common.linux import files
from services.volumes.storage import ext4, places, programs
from services.volumes.storage.ext4 import Superblock

IMAGE: Final = "image"
NEW: Final = "image.new"

_TEMPLATE: Final = "template"
_CHECKED: Final = frozenset({0, 1})  # e2fsck: clean, or repaired
_REPAIR: Final = "unmount it, make a copy of the image, then repair it: e2fsck -f"


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor of the image, to read and write. DATA_LOSS: it is missing, or something else is in its place."""
    with places.opened_file(path, os.O_RDWR) as image:
        yield image


@contextmanager
def created(path: Path, size_bytes: int) -> Iterator[int]:
    """A descriptor of a new image of zeros. EXHAUSTED: no room on the disk."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    image = os.open(path, flags, 0o600)
    try:
        allocate(image, size_bytes)
        yield image
    finally:
        os.close(image)


def allocate(image: int, size_bytes: int) -> None:
    """Every block from 0 to `size_bytes` is there, and what was there is kept. EXHAUSTED: and nothing is changed.

    A hole would be a promise that the disk may not keep: the file system in the image takes a write, and loses it.
    """
    before = os.fstat(image).st_size
    try:
        with places.enough_room(f"an image of {size_bytes} bytes"):
            files.allocate(image, size_bytes)
    except JobletError:
        os.ftruncate(image, before)
        raise
    except OSError as cause:
        if cause.errno not in {errno.EOPNOTSUPP, errno.ENOSYS}:
            raise
        raise precondition(
            "the file system below the volumes cannot set space aside (fallocate)",
            "set joblet.volumes.directory to a directory on ext4 or xfs",
        ) from cause
    os.fsync(image)
    status = os.fstat(image)
    if status.st_blocks * 512 < status.st_size:
        raise precondition(
            "the file system below the volumes gives a file less room than it asked for",
            "switch compression off there, or set joblet.volumes.directory to a directory on ext4 or xfs",
        )


def format_device(device: str, home: Path, *, size_bytes: int, identity: str, features: tuple[str, ...]) -> int:
    """Make the file system on `device`. How many blocks it is too small for a volume of `size_bytes`; 0: it is not."""
    template = places.make_in(home, _TEMPLATE)
    template.chmod(0o755)
    data = places.make_in(template, places.DATA)
    data.chmod(0o755)
    arguments = ext4.make_arguments(
        device,
        size_bytes,
        identity=identity,
        template=str(template),
        features=features,
        zeroed=device.endswith(NEW),
    )
    programs.run("mkfs.ext4", *arguments, environment=ext4.MAKE_ENVIRONMENT)
    places.discard(template)
    made = read_superblock(device)
    assert made is not None
    needed = ext4.round_up(size_bytes) // ext4.BLOCK_BYTES + ext4.reserve_min(size_bytes)
    return max(0, needed - made.free_blocks)


def read_superblock(device: str | Path) -> Superblock | None:
    """Of an image or a block device; None: there is no file system of ours on it."""
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return ext4.parse_superblock(os.pread(descriptor, 1024, ext4.SUPERBLOCK_OFFSET))
    finally:
        os.close(descriptor)


def check(device: str, identity: str) -> Superblock:
    """What is on `device` is the file system `identity`, and all of it. DATA_LOSS."""
    found = read_superblock(device)
    if found is None or found.uuid != identity:
        raise places.data_loss(
            f"what is in the image is not the file system of volume {identity}",
            "put the image back from a backup, or remove the volume; of an encrypted one the key may be another",
        )
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)
    if found.blocks * ext4.BLOCK_BYTES > size:
        raise places.data_loss(
            f"the image of volume {identity} has {size} bytes, its file system {found.blocks * ext4.BLOCK_BYTES}",
            "put the image back from a backup, or remove the volume",
        )
    return found


def replay(device: str) -> None:
    """What is only in the journal is brought into the file system, as a mount would. It is not mounted."""
    found = read_superblock(device)
    if found is not None and found.needs_recovery:
        programs.run("e2fsck", "-p", "-E", "journal_only", device, good=_CHECKED)


def rename(device: str, identity: str) -> None:
    """The file system on `device`, which is not mounted, is another one from now on."""
    replay(device)
    programs.run("tune2fs", "-U", identity, device)


def enlarge(device: str) -> None:
    """The file system, which is not mounted anywhere, becomes as large as `device`."""
    try:
        programs.run("e2fsck", "-f", "-p", device, good=_CHECKED)
    except programs.ProgramFailed as cause:
        raise JobletError(Reason.DATA_LOSS, cause.message, detail=_REPAIR) from cause
    programs.run("resize2fs", device)


def damaged(identity: str, cause: str) -> JobletError:
    """The kernel does not take the file system as it is."""
    return places.data_loss(f"the file system of volume {identity} is damaged: {cause}", _REPAIR)
