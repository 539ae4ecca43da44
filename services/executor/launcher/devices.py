"""Steps for /dev and /proc: devices of the host, terminals, process information, masks.

The kind of step that `operations.py` describes. References: null(4), devpts in Documentation/filesystems/devpts.rst,
proc(5).
"""

import os
import stat
from typing import Final, NamedTuple

from common.linux import mounts
from services.executor.launcher.newroot import NewRoot

_ATTRIBUTES: Final = mounts.MOUNT_ATTR_RDONLY | mounts.MOUNT_ATTR_NOSUID | mounts.MOUNT_ATTR_NOEXEC


class BindDevice(NamedTuple):
    """A character device of the host, verified by its number: whatever lies at the path of the host is not trusted."""

    path: str
    major: int
    minor: int

    def describe(self) -> str:
        """The step in one line."""
        return f"bind {self.path} of the host (character device {self.major}:{self.minor})"

    def execute(self, root: NewRoot) -> None:
        """Do it."""
        tree = mounts.open_tree(self.path, recursive=False)
        try:
            found = os.fstat(tree)
            if not stat.S_ISCHR(found.st_mode) or found.st_rdev != os.makedev(self.major, self.minor):
                raise OSError(19, f"not the character device {self.major}:{self.minor}: {self.path}", self.path)
            # Read-only protects the inode (mode, times); a device is written to all the same.
            mounts.mount_setattr(tree, _ATTRIBUTES, recursive=False)
            root.make_file(self.path)
            with root.at(self.path) as target:
                mounts.move_mount(tree, target)
        finally:
            os.close(tree)


class MountTerminals(NamedTuple):
    """A devpts instance of its own."""

    path: str
    gid: int
    terminals_max: int

    def describe(self) -> str:
        """The step in one line."""
        return f"mount a new devpts on {self.path} (max={self.terminals_max} gid={self.gid} nosuid noexec)"

    def execute(self, root: NewRoot) -> None:
        """Do it."""
        options = f"newinstance,ptmxmode=0666,mode=0620,gid={self.gid},max={self.terminals_max}"
        with root.at(self.path) as target:
            flags = mounts.MS_NOSUID | mounts.MS_NOEXEC
            mounts.mount("devpts", f"/proc/self/fd/{target}", "devpts", flags, options)


class MountProc(NamedTuple):
    """The processes of this PID namespace; nothing in it can be written."""

    path: str

    def describe(self) -> str:
        """The step in one line."""
        return f"mount proc on {self.path} (read-only nosuid nodev noexec)"

    def execute(self, root: NewRoot) -> None:
        """Do it."""
        flags = mounts.MS_RDONLY | mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC
        with root.at(self.path) as target:
            mounts.mount("proc", f"/proc/self/fd/{target}", "proc", flags)


class MaskPaths(NamedTuple):
    """Hide paths: a file behind an empty file, a directory behind an empty directory, both read-only.

    The cover comes from a tmpfs that this step makes and nobody else can reach, mounted on `staging` meanwhile: no path
    of the host or of the job can be slipped in its place. Unlike /dev/null it cannot be written to either.
    """

    paths: tuple[str, ...]
    staging: str

    def describe(self) -> str:
        """The step in one line."""
        return f"mask with empty read-only files and directories: {' '.join(self.paths)}"

    def execute(self, root: NewRoot) -> None:
        """Do it."""
        with root.at(self.staging) as target:
            covers = f"/proc/self/fd/{target}"
            flags = mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC
            mounts.mount("tmpfs", covers, "tmpfs", flags, "size=4k,nr_inodes=4,mode=0755")
        root.make_directory(f"{self.staging}/directory", 0o555)
        root.make_file(f"{self.staging}/file", mode=0o444)
        with root.at(self.staging) as covering:
            for path in self.paths:
                self._mask(root, covering, path)
        with root.at(self.staging) as covering:
            mounts.umount2(f"/proc/self/fd/{covering}", mounts.MNT_DETACH)

    @staticmethod
    def _mask(root: NewRoot, covering: int, path: str) -> None:
        try:
            with root.at(path, os.O_PATH | os.O_NOFOLLOW) as target:
                is_directory = stat.S_ISDIR(os.fstat(target).st_mode)
                cover = mounts.open_tree("directory" if is_directory else "file", recursive=False, directory=covering)
                try:
                    mounts.mount_setattr(cover, _ATTRIBUTES | mounts.MOUNT_ATTR_NODEV, recursive=False)
                    mounts.move_mount(cover, target)
                finally:
                    os.close(cover)
        except FileNotFoundError:
            return  # this kernel does not have it
