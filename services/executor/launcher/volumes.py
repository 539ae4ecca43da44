"""Steps for volumes: one is taken on the host, and put in its place behind the change of root.

The kind of step that `operations.py` describes. Two steps, because behind the change of root no path of the host is
left, and before it the places are not there yet: between them the volume is a detached mount that nothing but its
descriptor names. Who shares a volume can change what is in it at any moment: so no mount point is walked to over a
symbolic link, and none is named twice. References: open_tree(2), move_mount(2), openat2(2).

Only the standard library is imported: the launcher runs without site-packages.
"""

import errno
import os
from typing import Final, NamedTuple

from common.linux import mounts
from common.linux.paths import RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2
from services.executor.launcher.newroot import NewRoot

_AT_FDCWD: Final = -100
_NOT_SEEN: Final = "the volume is not mounted where this process sees it: do both services run in one mount namespace?"
_LINK: Final = "the path leads through a symbolic link, and none is followed"


class OpenVolume(NamedTuple):
    """Take a volume's directory `source` of the host, without what is mounted below it.

    `root`: MAJ:MIN:INO of that directory. What fails is told without `source`: it is the node's own affair.
    """

    name: str
    source: str
    root: str
    read_only: bool

    def describe(self) -> str:
        """The step in one line."""
        return f"take volume {self.name} of the host ({'read-only ' if self.read_only else ''}nosuid nodev)"

    def execute(self, root: NewRoot) -> None:
        """Do it."""
        directory = self._open()
        try:
            found = os.fstat(directory)
            if f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}:{found.st_ino}" != self.root:
                raise OSError(errno.ESTALE, _NOT_SEEN)
            tree = mounts.open_tree("", recursive=False, directory=directory)
        finally:
            os.close(directory)
        root.trees[self.name] = tree
        # In a user namespace the flags of the host's mount are locked: they are kept, these come on top.
        attributes = mounts.MOUNT_ATTR_NOSUID | mounts.MOUNT_ATTR_NODEV
        mounts.mount_setattr(tree, attributes | (mounts.MOUNT_ATTR_RDONLY if self.read_only else 0), recursive=False)

    def _open(self) -> int:
        resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
        try:
            return openat2(_AT_FDCWD, self.source, os.O_PATH | os.O_DIRECTORY, resolve=resolve)
        except OSError as cause:
            texts = {errno.ENOENT: _NOT_SEEN, errno.ENOTDIR: _NOT_SEEN, errno.ELOOP: _LINK}
            text = texts.get(cause.errno or 0, cause.strerror or str(cause))
            raise OSError(cause.errno or errno.EIO, text) from None


class PlaceVolume(NamedTuple):
    """Bind a volume that was taken on `path`.

    What is missing of `path` is made, and belongs to `uid` and `gid`, unless it is `inside` another volume of the job:
    that is its owner's, and joblet makes nothing in it.
    """

    name: str
    path: str
    uid: int
    gid: int
    inside: bool

    def describe(self) -> str:
        """The step in one line."""
        how = "which is there, inside another volume" if self.inside else f"made for uid {self.uid} if it is missing"
        return f"bind volume {self.name} on {self.path} ({how})"

    def execute(self, root: NewRoot) -> None:
        """Do it."""
        tree = root.trees.pop(self.name)
        try:
            if not self.inside:
                self._make_missing(root)
            self._place(root, tree)
        finally:
            os.close(tree)

    def _make_missing(self, root: NewRoot) -> None:
        parent = "/"
        for name in self.path.split("/")[1:]:
            try:
                with root.directory(parent) as directory:
                    os.mkdir(name, 0o755, dir_fd=directory)
                    os.chown(name, self.uid, self.gid, dir_fd=directory, follow_symlinks=False)
            except FileExistsError:
                pass
            except OSError as cause:
                raise self._refused(cause, f"the mount point is missing and cannot be made: {_words(cause)}") from None
            parent = f"{parent.rstrip('/')}/{name}"

    def _place(self, root: NewRoot, tree: int) -> None:
        try:
            with root.directory(self.path) as target:
                mounts.move_mount(tree, target)
        except FileNotFoundError as cause:
            text = "the mount point is inside another volume and is not there: make the directory in that volume first"
            raise self._refused(cause, text) from None
        except OSError as cause:
            raise self._refused(cause, f"nothing can be mounted there: {_words(cause)}") from None

    def _refused(self, cause: OSError, text: str) -> OSError:
        return OSError(cause.errno or errno.EIO, text, self.path)


def _words(cause: OSError) -> str:
    return _LINK if cause.errno == errno.ELOOP else (cause.strerror or str(cause))
