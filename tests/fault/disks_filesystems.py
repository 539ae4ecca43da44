"""Small file systems of a test's own, in the place of one of a node's directories: full, read-only, out of inodes.

Belongs here: making, changing and removing them. Does not belong here: nodes (`disks_nodes.py`). Each is mounted before
the node starts, and the services prepare its root as they would any directory. See tmpfs(5), mount(8), loop(4).
"""

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.waiting import wait_for

MIB: Final = 2**20
FILLER: Final = ".filler"
_BLOCK: Final = bytes(64 * 1024)
_PAGE: Final = bytes(4096)


class SmallFilesystem:
    """A file system at `where`, and what can be done to it while services use it."""

    def __init__(self, where: Path) -> None:
        self.where = where

    def resize(self, size_bytes: int) -> None:
        """Another size. Only a tmpfs can do that."""
        _remount(self.where, f"size={size_bytes}")

    def set_inodes(self, count: int) -> None:
        """Another number of inodes. Only a tmpfs can do that."""
        _remount(self.where, f"nr_inodes={count}")

    def set_read_only(self) -> None:
        """What is open for writing keeps a mount writable, so it is asked again until nothing is."""
        wait_for(lambda: _remounted(self.where, "ro"), what=f"{self.where} to become read-only")

    def set_writable(self) -> None:
        """As it was."""
        _remount(self.where, "rw")

    @property
    def free_bytes(self) -> int:
        """What an ordinary user may still write."""
        status = os.statvfs(self.where)
        return status.f_bavail * status.f_frsize

    @property
    def free_inodes(self) -> int:
        """How many files may still be made."""
        return os.statvfs(self.where).f_favail

    def fill(self, leave_bytes: int = 0) -> None:
        """Take all room that there is, to the last block, or all but `leave_bytes`."""
        if leave_bytes:
            with (self.where / FILLER).open("xb") as file:
                os.posix_fallocate(file.fileno(), 0, max(1, self.free_bytes - leave_bytes))
            return
        descriptor = os.open(self.where / FILLER, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            for block in (_BLOCK, _PAGE):
                while _taken(descriptor, block):
                    pass
            with contextlib.suppress(OSError):  # ext4 gives blocks to dirty pages late, and may find out only now
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def give_room(self) -> None:
        """Let go of what `fill` took."""
        (self.where / FILLER).unlink(missing_ok=True)


@contextlib.contextmanager
def small_tmpfs(where: Path, size_bytes: int) -> Iterator[SmallFilesystem]:
    """A tmpfs at `where` for as long as the block lasts; whoever uses it must have ended by then."""
    where.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0700", "joblet-test", where],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("this host does not let us mount a tmpfs")
    try:
        yield SmallFilesystem(where)
    finally:
        wait_for(lambda: _unmounted(where), what=f"{where} to be unmounted")


@contextlib.contextmanager
def small_ext4(where: Path, image: Path, size_bytes: int) -> Iterator[SmallFilesystem]:
    """An ext4 on a loop device at `where`; its image, every block of it allocated, is `image`."""
    where.mkdir(exist_ok=True)
    with image.open("xb") as file:
        os.posix_fallocate(file.fileno(), 0, size_bytes)
    # -m 0: nothing is kept back for root, who is not the one that stores logs here.
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True, capture_output=True)
    mounted = subprocess.run(["mount", "-t", "ext4", "-o", "loop", image, where], capture_output=True, check=False)
    if mounted.returncode:
        image.unlink()
        pytest.skip("this host needs a loop device with ext4 for that")
    try:
        yield SmallFilesystem(where)
    finally:
        wait_for(lambda: _unmounted(where), what=f"{where} to be unmounted")
        image.unlink()


def _remount(where: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", where], check=True, capture_output=True)


def _remounted(where: Path, option: str) -> bool:
    return subprocess.run(["mount", "-o", f"remount,{option}", where], check=False, capture_output=True).returncode == 0


def _unmounted(where: Path) -> bool:
    return subprocess.run(["umount", where], check=False, capture_output=True).returncode == 0


def _taken(descriptor: int, block: bytes) -> bool:
    try:
        return os.write(descriptor, block) == len(block)
    except OSError as cause:
        if cause.errno != errno.ENOSPC:
            raise
        return False
