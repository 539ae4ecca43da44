"""A volume appears in, or leaves, a job that runs: what a process of the launcher's does for it, once.

It takes the volume's directory in the host's mount namespace as a detached tree, enters the job's mount namespace and
puts the tree in its place there, or unmounts it. It stays in the host's PID namespace, so the job neither sees nor
traces it, executes nothing there and imports nothing: every module is loaded before.

The job may swap any directory that it can write for a link, at any moment. So paths of the job are resolved by the
kernel, without any link, from the root of its namespace; a mount is placed on a descriptor; and it is unmounted by its
last name in a directory that is held, where the job cannot rename it: the kernel refuses that for mount points. A
directory above it the job can rename. Where the volume is now is therefore asked of the kernel, not of the request.

References: setns(2), openat2(2), open_tree(2), move_mount(2), umount2(2), proc_pid_mountinfo(5). Only the standard
library and common.linux are imported.
"""

import contextlib
import errno
import json
import os
import posixpath
import re
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from common.linux import mounts
from common.linux.paths import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2
from services.executor.launcher.handshake import Failure, StepFailed, failure_of
from services.executor.linux import namespaces

ATTACH: Final = b"attach"
DETACH: Final = b"detach"

SOURCE: Final = "open the volume"
ENTER: Final = "enter the job"
PLACE: Final = "find the place"
TAKEN: Final = "take the place"
MOUNT: Final = "mount"
UNMOUNT: Final = "unmount"
ABSENT: Final = "find the volume"
"""Steps. What each means for whoever asked is in `services/executor/attachments.py`."""

DEADLINE_S: Final = 8
"""Shorter than the executor waits: when it gives up, this process does not go on."""
_VOLUMES: Final = "/volumes"
_JOBS_OWN: Final = ("work", "tmp")
_RESOLVE: Final = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY
TRIES_MAX: Final = 200
"""At a path that the job renames meanwhile."""
_MOUNTINFO_BYTES_MAX: Final = 2**22
_ESCAPED: Final = re.compile(rb"\\([0-7]{3})")

Wanted = Callable[[], bool]
"""Whether somebody still waits for the answer."""


class Change(NamedTuple):
    """What is asked for. `force`, `source`, `read_only`, `uid` and `gid` mean something for one of both verbs only."""

    root: str  # MAJ:MIN:INO of the directory that the job is to see, or sees
    path: str = ""  # in the job
    source: str = ""  # the directory on the host
    read_only: bool = False
    uid: int = 0  # whose a new directory below /work and /tmp is
    gid: int = 0
    force: bool = False

    def encode(self) -> bytes:
        """The wire form."""
        return json.dumps(self._asdict()).encode()


def decode(encoded: bytes) -> Change:
    """The change in `encoded`. Raises TypeError or ValueError when there is none."""
    return Change(**json.loads(encoded))


def carry_out(verb: bytes, change: Change, process: int, wanted: Wanted) -> None:
    """Do it in the mount namespace of the process whose pidfd is `process`. Raises StepFailed: it was not done."""
    os.umask(0)
    if os.geteuid():
        with _step(ENTER):
            _borrow_rights(process)
    if verb == ATTACH:
        tree = _open_source(change)
        _attach(change, tree, _Inside(process), wanted)
    else:
        assert verb == DETACH, verb
        _detach(change, _Inside(process), wanted)


def _borrow_rights(process: int) -> None:
    """Who is not root has rights on mounts in the job's user namespace only, and on its own copy of the host's there.

    A tree that is taken from that copy may be put into the job: both namespaces belong to one user namespace.
    """
    namespaces.setns(process, namespaces.CLONE_NEWUSER)
    namespaces.unshare(namespaces.CLONE_NEWNS)


def _open_source(change: Change) -> int:
    with _step(SOURCE):
        resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
        directory = openat2(-100, change.source, _DIRECTORY, resolve=resolve)
        if _identity(directory) != change.root:
            raise StepFailed(Failure(SOURCE, "", errno.ESTALE, "another directory is in its place"))
        tree = mounts.open_tree("", recursive=False, directory=directory)
        mounts.make_private(tree)
        attributes = mounts.MOUNT_ATTR_NOSUID | mounts.MOUNT_ATTR_NODEV
        mounts.mount_setattr(tree, attributes | (mounts.MOUNT_ATTR_RDONLY if change.read_only else 0), recursive=False)
    return tree


class _Inside:
    """Inside the job's mount namespace, from which nothing leads out again.

    `root` is the job's root and `_proc` the host's /proc: the job's own knows nothing of this process.
    """

    def __init__(self, process: int) -> None:
        with _step(ENTER):
            self._proc = os.open("/proc", _DIRECTORY | os.O_CLOEXEC)
            namespaces.setns(process, namespaces.CLONE_NEWNS)
            self.root = os.open("/", _DIRECTORY | os.O_CLOEXEC)

    @contextlib.contextmanager
    def at(self, path: str, flags: int = _DIRECTORY, *, within: int = -1) -> Iterator[int]:
        """A descriptor of `path`, without any symbolic link on the way. `within`: of another directory than the root.

        Nothing of a volume may stay open: it could not be unmounted.
        """
        descriptor = openat2(self.root if within < 0 else within, path, flags, resolve=_RESOLVE)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def mount_points(self) -> list[str]:
        """Of every mount of the job, as they are now; proc_pid_mountinfo(5), field 5."""
        descriptor = os.open("self/mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)
        with open(descriptor, "rb") as file:  # noqa: PTH123  # pathlib is not loaded in the launcher
            lines = file.read(_MOUNTINFO_BYTES_MAX).split(b"\n")[:-1]  # splitlines() splits at a name's CR as well
        return [os.fsdecode(_ESCAPED.sub(_unescaped, line.split(b" ", 5)[4])) for line in lines]

    def find(self, root: str) -> str | None:
        """The mount point of the volume whose directory is `root`; None: it is certainly not mounted."""
        for _ in range(TRIES_MAX):
            certain = True
            for path in self.mount_points():
                try:
                    with self.at(path, os.O_PATH) as descriptor:
                        if _is_volume(descriptor, root):
                            return path
                except OSError:  # the job has renamed what is above it since the path was read
                    certain = False
            if certain:
                return None
        raise _moving()


def _attach(change: Change, tree: int, inside: _Inside, wanted: Wanted) -> None:
    with _step(PLACE, change.path):
        present = inside.find(change.root)
        if present is not None:
            _check_same(change, inside, present)
            return
        made = _make_place(change, inside)
        with inside.at(change.path) as place:
            try:
                _check_free(change.path, place)
                _check_wanted(wanted)
                with _step(MOUNT, change.path):
                    mounts.move_mount(tree, place)
            except StepFailed:
                if made:
                    _remove_place(inside, change.path)
                raise


def _check_same(change: Change, inside: _Inside, present: str) -> None:
    """An attach that was done before: by an executor that did not live to record it."""
    with inside.at(present) as mounted:
        read_only = bool(os.fstatvfs(mounted).f_flag & os.ST_RDONLY)
    if (present, read_only) != (change.path, change.read_only):
        raise StepFailed(Failure(TAKEN, present, errno.EBUSY, "the volume is mounted in the job already"))


def _check_free(path: str, place: int) -> None:
    if mounts.is_mount_root(place):
        raise StepFailed(Failure(TAKEN, path, errno.EBUSY, "something is mounted there already"))


def _check_wanted(wanted: Wanted) -> None:
    if not wanted():
        raise StepFailed(Failure(MOUNT, "", errno.ECANCELED, "nobody waits for it any more"))


def _make_place(change: Change, inside: _Inside) -> bool:
    """Make the directory, where one can be made. False: it was there.

    Below /volumes it is root's, and the job cannot change it. Below /work and /tmp it is the job's, with those above.
    """
    with contextlib.suppress(FileNotFoundError), inside.at(change.path):
        return False
    parts = change.path.strip("/").split("/")
    if posixpath.dirname(change.path) == _VOLUMES:
        with inside.at(_VOLUMES) as parent:
            os.mkdir(parts[-1], 0o755, dir_fd=parent)
        return True
    if parts[0] not in _JOBS_OWN:
        raise StepFailed(Failure(PLACE, change.path, errno.ENOENT, "there is no such directory in the job"))
    for depth in range(1, len(parts)):
        with inside.at("/" + "/".join(parts[:depth])) as parent:
            with contextlib.suppress(FileExistsError):
                os.mkdir(parts[depth], 0o755, dir_fd=parent)
            with inside.at(parts[depth], os.O_RDONLY | os.O_DIRECTORY, within=parent) as directory:
                # The job may have put another one in its place, which is the job's then; what is made here is ours.
                if os.fstat(directory).st_uid == os.geteuid():
                    os.fchown(directory, change.uid, change.gid)
    return True


def _detach(change: Change, inside: _Inside, wanted: Wanted) -> None:
    with _step(UNMOUNT, change.path):
        for _ in range(TRIES_MAX):
            path = inside.find(change.root)
            if path is None:
                raise StepFailed(Failure(ABSENT, change.path, errno.ENOENT, "the volume is not mounted in the job"))
            name = _hold(change.root, path, inside)
            if not name:
                continue
            _check_wanted(wanted)
            # In a directory that is held, and a mount point keeps its name: whatever the job makes of the path
            # meanwhile, this is the volume and nothing else.
            mounts.umount2(name, mounts.UMOUNT_NOFOLLOW | (mounts.MNT_DETACH if change.force else 0))
            os.chdir("/")
            _remove_place(inside, path)
            return
        raise _moving()


def _hold(root: str, path: str, inside: _Inside) -> str:
    """Go into the directory that has the mount point `path` in it; its name there. Empty: it is there no more."""
    parent, name = posixpath.split(path)
    try:
        with inside.at(parent) as directory:
            with inside.at(name, within=directory) as mounted:
                if not _is_volume(mounted, root):
                    return ""
            os.fchdir(directory)
    except OSError:  # renamed
        return ""
    return name


def _moving() -> StepFailed:
    return StepFailed(Failure(UNMOUNT, "", errno.EAGAIN, "it renames the directories above its volumes all the time"))


def _remove_place(inside: _Inside, path: str) -> None:
    """The empty directory below /volumes. Whatever is below /work and /tmp is the job's."""
    parent, name = posixpath.split(path)
    if parent == _VOLUMES:
        with contextlib.suppress(OSError), inside.at(parent) as directory:
            os.rmdir(name, dir_fd=directory)


def _is_volume(descriptor: int, root: str) -> bool:
    return _identity(descriptor) == root and mounts.is_mount_root(descriptor)


def _identity(descriptor: int) -> str:
    found = os.fstat(descriptor)
    return f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}:{found.st_ino}"


def _unescaped(escaped: re.Match[bytes]) -> bytes:
    return bytes((int(escaped[1], 8),))


@contextlib.contextmanager
def _step(name: str, path: str = "") -> Iterator[None]:
    """Whatever the operating system refuses in here is a failure of this step. Places of the node are not told."""
    try:
        yield
    except OSError as cause:
        raise StepFailed(failure_of(name, cause)._replace(path=path)) from cause
