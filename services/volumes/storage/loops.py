"""Which loop device an image has: one at most, whatever was interrupted and whoever still uses the last one.

Two devices over one file would be two caches over the same blocks, which destroys a file system. So first the device
is looked for that has the file already, and it is used again: a job that has not ended yet may hold it.

A device lets its image go at its last close (LO_FLAGS_AUTOCLEAR): when the file system is unmounted everywhere and the
descriptor of whoever attached it is closed. So nothing is left of a service that was killed in between.

Images must keep every block that they have. The driver makes holes in the file where the file system discards blocks,
as fstrim on the host has it do, and also where it wants zeros (sb_issue_zeroout: tables of inodes, pieces of extents).
With discard_max_bytes at 0 the driver refuses both, and zeros are written (Linux 5.19). The limit stays with the device
also for who takes it next, until it is removed (LOOP_CTL_REMOVE): the kernel then knows no granularity to raise it by.

Not here: the calls (`linux/loop.py`).
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from common.errors import precondition, unavailable
from common.linux.files import write_once
from services.volumes.linux import loop
from services.volumes.storage.ext4 import BLOCK_BYTES

_ATTEMPTS: Final = 64
"""How often another process may take the free device before us."""

_BLOCK: Final = Path("/sys/block")
_DEVICES: Final = Path("/sys/dev/block")
_DEEP_MAX: Final = 4


class Attached(NamedTuple):
    """A loop device, and the file behind it."""

    path: str  # /dev/loopN
    file: str  # as the kernel tells it; a removed one ends in " (deleted)"


@contextmanager
def attached(image: int, *, read_only: bool = False) -> Iterator[str]:
    """The path of the loop device of this file. It lives as long as this, and as anything that is mounted meanwhile."""
    with _held(image, read_only=read_only) as (path, _):
        yield path


@contextmanager
def _held(image: int, *, read_only: bool) -> Iterator[tuple[str, int]]:
    found = _find(image) or _attach(image, read_only=read_only)
    path, descriptor = found
    try:
        if not read_only:
            _refuse_discards(path)
        yield path, descriptor
    finally:
        os.close(descriptor)


def take_size(image: int) -> None:
    """The image has become larger: so does its device, if it has one."""
    found = _find(image)
    if found is not None:
        try:
            loop.take_size(found[1])
        finally:
            os.close(found[1])


def release(image: int) -> None:
    """Let its device go at its last close, whoever attached it. Nothing when it has none."""
    found = _find(image)
    if found is not None:
        try:
            loop.clear(found[1])
        finally:
            os.close(found[1])


def holds(device: str, image: int) -> bool:
    """Whether the block device MAJ:MIN is the loop device of this file, or a mapping over it."""
    name = _loop_below(_DEVICES / device)
    if name is None:
        return False
    descriptor = os.open(f"/dev/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _is_behind(image, descriptor)
    finally:
        os.close(descriptor)


def present() -> tuple[Attached, ...]:
    """All loop devices of this host that have a file."""
    found = []
    for entry in _BLOCK.glob("loop*"):
        try:
            file = (entry / "loop/backing_file").read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            continue
        found.append(Attached(f"/dev/{entry.name}", file.removesuffix("\n")))
    return tuple(found)


def clear(path: str) -> None:
    """Let the file of this device go, at once or at its last close."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        loop.clear(descriptor)
    finally:
        os.close(descriptor)


def _find(image: int) -> tuple[str, int] | None:
    """The device that has this file, open: it cannot lose the file before it is closed."""
    for candidate in present():
        try:
            descriptor = os.open(candidate.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # gone meanwhile
            continue
        if _is_behind(image, descriptor):  # asked only now: before the open it could have been cleared
            return candidate.path, descriptor
        os.close(descriptor)
    return None


def _is_behind(image: int, descriptor: int) -> bool:
    status, backing = os.fstat(image), loop.backing(descriptor)
    return backing is not None and (backing.device, backing.inode) == (status.st_dev, status.st_ino)


def _attach(image: int, *, read_only: bool) -> tuple[str, int]:
    flags = loop.LO_FLAGS_AUTOCLEAR | loop.LO_FLAGS_DIRECT_IO | (loop.LO_FLAGS_READ_ONLY if read_only else 0)
    for _ in range(_ATTEMPTS):
        path = f"/dev/loop{_free_number()}"
        try:
            descriptor = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        except FileNotFoundError as cause:
            raise precondition(
                f"there is no {path}", "mount devtmpfs on /dev, or make more loop devices: modprobe loop max_loop=64"
            ) from cause
        except OSError as cause:
            if cause.errno != errno.ENXIO:
                raise
            continue  # somebody removed it meanwhile: LOOP_CTL_REMOVE
        try:
            loop.configure(descriptor, image, block_bytes=BLOCK_BYTES, flags=flags)
        except OSError as cause:
            os.close(descriptor)
            if cause.errno != errno.EBUSY:
                raise
            continue
        return path, descriptor
    raise unavailable(
        f"a free loop device was taken by somebody else {_ATTEMPTS} times", "look for what attaches them: losetup -a"
    )


def _free_number() -> int:
    try:
        return loop.free_number()
    except OSError as cause:
        raise precondition(
            f"no loop device is to be had: {cause}", "run as root on a kernel with CONFIG_BLK_DEV_LOOP: modprobe loop"
        ) from cause


def _refuse_discards(path: str) -> None:
    limit = _BLOCK / Path(path).name / "queue/discard_max_bytes"
    try:
        if limit.read_text(encoding="ascii").strip() != "0":  # a write stops the device for some milliseconds
            write_once(str(limit), "0")
    except OSError as cause:
        raise precondition(
            f"the kernel could give blocks of images away: {cause}", "mount /sys so that it can be written"
        ) from cause


def _loop_below(device: Path, deep: int = 0) -> str | None:
    """The name of the loop device that this entry of /sys is, or lies on."""
    real = device.resolve()
    if (real / "loop").is_dir():
        return real.name
    below = sorted((real / "slaves").glob("*")) if deep < _DEEP_MAX else []
    return next((name for each in below if (name := _loop_below(each, deep + 1)) is not None), None)
