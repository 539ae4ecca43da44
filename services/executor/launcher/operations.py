"""The steps that make a job's sandbox, as frozen values: `describe()` prints one, `execute()` does it.

Here: general steps on namespaces and the new root. Device and /proc steps are in `devices.py`, those of volumes in
`volumes.py`. A step knows no job and no policy; which steps there are, and in which order, says
`services/executor/sandbox.py`. They run in the job's first process, which is in its namespaces already. References:
mount_namespaces(7), mount_setattr(2), tmpfs(5), pivot_root(2).

Only the standard library is imported: the launcher runs without site-packages.
"""

import contextlib
import errno
import os
import posixpath
import stat
from typing import Any, NamedTuple, Protocol

from common.linux import mounts
from common.linux.paths import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2
from services.executor.launcher.devices import BindDevice, MaskPaths, MountProc, MountTerminals
from services.executor.launcher.newroot import NewRoot
from services.executor.launcher.volumes import OpenVolume, PlaceVolume
from services.executor.linux import namespaces, network

USER_IDS = 65_536
"""Of a job's user namespace."""
_READ_ONLY = mounts.MOUNT_ATTR_RDONLY | mounts.MOUNT_ATTR_NOSUID | mounts.MOUNT_ATTR_NODEV


class Operation(Protocol):
    """One step."""

    def describe(self) -> str:
        """The step in one line."""

    def execute(self, root: NewRoot) -> None:
        """Do it. OSError: what failed, with the path."""

    def _asdict(self) -> dict[str, Any]: ...


class SetHostname(NamedTuple):
    """The host name inside."""

    name: str

    def describe(self) -> str:
        """The step in one line."""
        return f"set the host name to {self.name}"

    def execute(self, root: NewRoot) -> None:  # noqa: ARG002  # every step has the same signature
        """Do it."""
        namespaces.sethostname(self.name)


class LoopbackUp(NamedTuple):
    """The only interface of a network namespace of its own."""

    def describe(self) -> str:
        """The step in one line."""
        return "bring the loopback interface up, and open ports below 1024 to everybody"

    def execute(self, root: NewRoot) -> None:  # noqa: ARG002  # every step has the same signature
        """Do it."""
        network.loopback_up()
        network.open_all_ports()


class UnshareCgroups(NamedTuple):
    """A cgroup namespace whose root is the group where the process is now: so it comes after the placement."""

    def describe(self) -> str:
        """The step in one line."""
        return "enter a new cgroup namespace, rooted at the job's groups"

    def execute(self, root: NewRoot) -> None:  # noqa: ARG002  # every step has the same signature
        """Do it."""
        namespaces.unshare(namespaces.CLONE_NEWCGROUP)


class MakeMountsPrivate(NamedTuple):
    """Nothing mounted from here on reaches the host, and nothing of the host comes in."""

    def describe(self) -> str:
        """The step in one line."""
        return "make every mount private"

    def execute(self, root: NewRoot) -> None:  # noqa: ARG002  # every step has the same signature
        """Do it."""
        mounts.mount("none", "/", None, mounts.MS_REC | mounts.MS_PRIVATE)


class MountRoot(NamedTuple):
    """An empty tmpfs as the new root; it is made read-only at the end."""

    size_bytes: int
    inodes_max: int

    def describe(self) -> str:
        """The step in one line."""
        return f"mount tmpfs as the new root (size={self.size_bytes} inodes={self.inodes_max})"

    def execute(self, root: NewRoot) -> None:
        """Do it."""
        options = f"mode=0755,size={self.size_bytes},nr_inodes={self.inodes_max}"
        mounts.mount("tmpfs", root.path, "tmpfs", mounts.MS_NOSUID | mounts.MS_NODEV, options)
        root.open()


class MakeDirectory(NamedTuple):
    """A directory of root's."""

    path: str
    mode: int = 0o755

    def describe(self) -> str:
        """The step in one line."""
        return f"make directory {self.path} (mode={self.mode:04o})"

    def execute(self, root: NewRoot) -> None:
        """Do it."""
        root.make_directory(self.path, self.mode)


class MakeSymlink(NamedTuple):
    """A symbolic link."""

    path: str
    target: str

    def describe(self) -> str:
        """The step in one line."""
        return f"make symbolic link {self.path} -> {self.target}"

    def execute(self, root: NewRoot) -> None:
        """Do it."""
        root.make_symlink(self.path, self.target)


class WriteFile(NamedTuple):
    """A generated file, for everyone to read."""

    path: str
    content: str

    def describe(self) -> str:
        """The step in one line."""
        return f"write {self.path} ({len(self.content.encode())} bytes)"

    def execute(self, root: NewRoot) -> None:
        """Do it."""
        root.make_file(self.path, self.content.encode())


class BindReadOnly(NamedTuple):
    """A file or directory of the host, with all that is mounted below it, read-only.

    It is looked up at `source` as if the directory `within` were the root: no link in there leads out of it. Where
    there is a symbolic link (merged /usr: /bin -> usr/bin) the link is copied; what is missing is left out.
    """

    path: str
    source: str
    within: str
    range_first: int | None  # whose ids the owners of the files become, where the file system can; None: as they are

    def describe(self) -> str:
        """The step in one line."""
        where = posixpath.join(self.within, self.source.lstrip("/"))
        what = f"{where} of the host" if where == self.path else f"{where} of the host on {self.path}"
        return f"bind {what} read-only nosuid nodev (a link is copied, a missing path left out)"

    def execute(self, root: NewRoot) -> None:
        """Do it."""
        try:
            found = self._open()
        except FileNotFoundError:
            return
        try:
            self._place(root, found)
        finally:
            os.close(found)

    def _open(self) -> int:
        within = os.open(self.within, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            flags = os.O_PATH | os.O_NOFOLLOW
            return openat2(within, self.source, flags, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
        finally:
            os.close(within)

    def _place(self, root: NewRoot, found: int) -> None:
        mode = os.fstat(found).st_mode
        if stat.S_ISLNK(mode):
            root.make_symlink(self.path, os.readlink("", dir_fd=found))  # of the descriptor itself
            return
        tree = mounts.open_tree("", recursive=True, directory=found)
        try:
            self._map_owners(tree)
            mounts.mount_setattr(tree, _READ_ONLY, recursive=True)
            if stat.S_ISDIR(mode):
                root.make_directory(self.path)
            else:
                root.make_file(self.path)
            with root.at(self.path) as target:
                mounts.move_mount(tree, target)
        finally:
            os.close(tree)

    def _map_owners(self, tree: int) -> None:
        if self.range_first is None:
            return
        user = namespaces.user_namespace(self.range_first, USER_IDS)
        try:
            mounts.map_owners(tree, user)
        except OSError as cause:
            # A file system that cannot: the job sees root's files as nobody's, and can read what everybody can.
            if cause.errno not in (errno.EINVAL, errno.EPERM):
                raise
        finally:
            os.close(user)


class GiveOwnInodes(NamedTuple):
    """An overlay of a bound directory on itself: the same files, with inodes that are this job's alone.

    Locks (flock(2)) and watches (inotify(7)) hang on inodes: shared with the host and other jobs they would tell who
    opens what, and could be held against everybody. The data are the same pages in memory. An overlay needs two
    layers; `empty` is a directory that stays empty and out of reach. Nothing where `path` is a link or missing, and the
    bound directory itself where the kernel cannot do it.
    """

    path: str
    empty: str

    def describe(self) -> str:
        """The step in one line."""
        return f"mount a read-only overlay of {self.path} on itself (locks and watches of the job's own)"

    def execute(self, root: NewRoot) -> None:
        """Do it."""
        flags = mounts.MS_RDONLY | mounts.MS_NOSUID | mounts.MS_NODEV
        directory = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
        with contextlib.suppress(OSError), root.at(self.path, directory) as bound, root.at(self.empty) as empty:
            layers = f"lowerdir=/proc/self/fd/{bound}:/proc/self/fd/{empty}"
            mounts.mount("overlay", f"/proc/self/fd/{bound}", "overlay", flags, layers)


class MountTmpfs(NamedTuple):
    """A tmpfs for the job's own files."""

    path: str
    size_bytes: int
    inodes_max: int
    mode: int
    uid: int
    gid: int
    executable: bool

    def describe(self) -> str:
        """The step in one line."""
        return (
            f"mount tmpfs on {self.path} (size={self.size_bytes} inodes={self.inodes_max} mode={self.mode:04o}"
            f" uid={self.uid} gid={self.gid} nosuid nodev{'' if self.executable else ' noexec'})"
        )

    def execute(self, root: NewRoot) -> None:
        """Do it."""
        flags = mounts.MS_NOSUID | mounts.MS_NODEV | (0 if self.executable else mounts.MS_NOEXEC)
        options = (
            f"size={self.size_bytes},nr_inodes={self.inodes_max},mode={self.mode:04o},uid={self.uid},gid={self.gid}"
        )
        with root.at(self.path) as target:
            mounts.mount("tmpfs", f"/proc/self/fd/{target}", "tmpfs", flags, options)


class EnterRoot(NamedTuple):
    """Change the root for good: the old one is detached, and no descriptor or directory leads back."""

    def describe(self) -> str:
        """The step in one line."""
        return "pivot_root into the new root and detach the old one"

    def execute(self, root: NewRoot) -> None:
        """Do it."""
        os.fchdir(root.descriptor)
        mounts.pivot_root(".", ".")
        # Both roots are on "." now, the old one above: this takes the old one, and the new one is left.
        mounts.umount2(".", mounts.MNT_DETACH)
        os.chdir("/")
        root.enter()


class GiveToRoot(NamedTuple):
    """Let files and directories of the root in which the process is already belong to the job's root."""

    paths: tuple[str, ...]
    owner: int

    def describe(self) -> str:
        """The step in one line."""
        return f"give {len(self.paths)} directories and files that were made to uid {self.owner}, the job's root"

    def execute(self, root: NewRoot) -> None:  # noqa: ARG002  # every step has the same signature
        """Do it."""
        for path in self.paths:
            os.chown(path, self.owner, self.owner, follow_symlinks=False)


class SealRoot(NamedTuple):
    """The root itself becomes read-only; what is mounted on it keeps its own flags."""

    def describe(self) -> str:
        """The step in one line."""
        return "make the root read-only nosuid nodev"

    def execute(self, root: NewRoot) -> None:
        """Do it."""
        mounts.mount_setattr(root.descriptor, _READ_ONLY, recursive=False)
        root.close()


_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        SetHostname,
        LoopbackUp,
        UnshareCgroups,
        MakeMountsPrivate,
        MountRoot,
        MakeDirectory,
        MakeSymlink,
        WriteFile,
        BindReadOnly,
        GiveOwnInodes,
        MountTmpfs,
        EnterRoot,
        GiveToRoot,
        SealRoot,
        BindDevice,
        MountTerminals,
        MountProc,
        MaskPaths,
        OpenVolume,
        PlaceVolume,
    )
}


def encode_operation(operation: Operation) -> list[Any]:
    """The wire form: name and fields."""
    return [type(operation).__name__, operation._asdict()]


def decode_operation(values: list[Any]) -> Operation:
    """The operation in `values`. Raises KeyError, TypeError or ValueError when there is no such."""
    name, fields = values
    frozen = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    operation: Operation = _KINDS[name](**frozen)
    return operation
