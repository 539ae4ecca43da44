"""Images of file systems on loop devices, for tests of what a disk gives away.

Here: making, attaching, mounting and reading them raw; each ends with its context. See losetup(8), mkfs.ext4(8).
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from common.linux import mounts
from tests.waiting import wait_for

IMAGE_BYTES: Final = 24 * 2**20
TEXT: Final = b"the-text-that-nobody-may-find-5f2c"
NAME: Final = "the-name-that-nobody-may-find-81ab"


def make_image(path: Path, size_bytes: int = IMAGE_BYTES) -> Path:
    """A file with all its blocks."""
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size_bytes)
    return path


@contextmanager
def attached(image: Path) -> Iterator[str]:
    """The loop device that has it, which goes with its last user."""
    done = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("needs a loop device")
    device = done.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
        backing = Path("/sys/block", Path(device).name, "loop", "backing_file")
        wait_for(lambda: not backing.exists() or str(image) not in backing.read_text(), what="the loop device to go")


def make_file_system(device: str, features: tuple[str, ...] = ()) -> None:
    """An ext4 on `device`."""
    switched = ("-O", ",".join(features)) if features else ()
    subprocess.run(["mkfs.ext4", "-q", "-F", *switched, device], stdin=subprocess.DEVNULL, check=True)


@contextmanager
def mounted(device: str, directory: Path) -> Iterator[Path]:
    """Its file system at `directory`, made for it."""
    directory.mkdir(exist_ok=True)
    mounts.mount(device, str(directory), "ext4", mounts.MS_NOSUID | mounts.MS_NODEV)
    try:
        yield directory
    finally:
        mounts.umount2(str(directory), mounts.MNT_DETACH)


def content_of(image: Path) -> bytes:
    """All that is on the disk now."""
    descriptor = os.open(image, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return image.read_bytes()
