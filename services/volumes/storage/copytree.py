"""A copy of a directory tree that jobs have written, and may be writing: nothing in it is trusted, nothing followed.

Kept: names, contents, holes, modes, owners, times, hard links, symbolic links as they are, fifos, user.* attributes.
Left out: sockets, which are nothing without who listens; devices, which no job can make or use in a volume; all other
attributes (capabilities of files among them). Set-id bits stay: a volume is mounted nosuid, and its directory on the
host is closed to everybody. Not here: one file (`copies.py`), the walk itself (`descent.py`).
"""

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import Final

import structlog

from common.errors import precondition, unavailable
from common.linux.files import synchronize_file_system
from common.messages.volumes import CopyMethod
from services.volumes.descent import GONE, Descent, Found, Moved, link_text, shown, walk
from services.volumes.storage.copies import NO_SPACE, copy_content, no_room

log = structlog.get_logger(__name__)

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NEW_FILE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_KEPT_ATTRIBUTES: Final = "user."


def copy_tree(source: str, target: str) -> CopyMethod:
    """Make the directory `target` a durable copy of the directory `source`. REFLINK: all files share their blocks.

    It is made as `<target>.new`, beside `<target>.new.links`; an interrupted copy leaves these and the next one
    removes them, a failed one leaves nothing. FileExistsError: there is a `target`. EXHAUSTED: no room on the disk.
    UNAVAILABLE: a directory was moved away from under the copying; a file that changes meanwhile is copied as it comes.
    """
    whole = Path(target)
    if os.path.lexists(whole):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
    new, links = Path(f"{target}.new"), Path(f"{target}.new.links")
    _remove(new, links)
    try:
        method = _copy(Path(source), new, links)
        remove_tree(links)
        new.rename(whole)
        with contextlib.ExitStack() as opened:
            os.fsync(_opened(opened, whole.parent))
    except (Moved, OSError) as cause:
        _remove(new, links)
        raise _told(cause, whole) from cause
    return method


def remove_tree(path: Path | str) -> None:
    """Remove a directory with all that is in it, however deep it is. Nothing when it is not there.

    shutil.rmtree cannot: it calls itself for each level. A mount below stops it (EXDEV).
    """
    try:
        root = os.open(path, _DIRECTORY)
    except FileNotFoundError:
        return
    try:
        walk(root, _Removal())
    finally:
        os.close(root)
    Path(path).rmdir()


def _remove(*paths: Path) -> None:
    for path in paths:
        remove_tree(path)


def _told(cause: Moved | OSError, target: Path) -> Exception:
    if isinstance(cause, Moved):
        return unavailable(
            f"a directory was moved while {target.name} was copied", "try again, or stop the job that moves it"
        )
    if cause.errno in NO_SPACE:
        return no_room(target)
    if cause.errno == errno.EACCES:  # only without root: files of the one user who cannot read them himself
        return precondition(
            f"{shown(cause.filename)} of the volume cannot be read", "let its owner read it (chmod u+rwX) in a job"
        )
    return cause


def _copy(source: Path, new: Path, links: Path) -> CopyMethod:
    with contextlib.ExitStack() as opened:
        original = _opened(opened, source)
        new.mkdir(0o700)
        links.mkdir(0o700)
        copy = _opened(opened, new)
        status = os.fstat(original)
        with Descent(copy) as descent:
            copying = _Copying(descent, _opened(opened, links))
            _copy_attributes(original, copy)
            walk(original, copying)
        _settle(copy, status)
        synchronize_file_system(copy)
        if copying.left_out:
            log.info("sockets and devices are not copied", count=copying.left_out)
        return copying.method


def _opened(stack: contextlib.ExitStack, path: Path) -> int:
    descriptor = os.open(path, _DIRECTORY)
    stack.callback(os.close, descriptor)
    return descriptor


class _Removal:
    """Removes what it is shown."""

    def enter(self, found: Found, opened: int) -> bool:  # noqa: ARG002  # a Visitor
        return True

    def leave(self, found: Found) -> None:
        os.rmdir(found.name, dir_fd=found.parent)

    def entry(self, found: Found) -> None:
        os.unlink(found.name, dir_fd=found.parent)

    def unreadable(self, parent: int, name: str, cause: OSError) -> bool:
        """Without root the owner must let himself in first."""
        if cause.errno != errno.EACCES:
            raise cause
        closed = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent)
        try:
            Path(f"/proc/self/fd/{closed}").chmod(0o700)
        finally:
            os.close(closed)
        return True


class _Copying:
    """Makes again what it is shown, below the directory where `descent` is.

    `links` is a directory in which each inode of more than one name has another one, by its number: so the second
    name finds the first, without a list of them in memory, and wherever it is.
    """

    def __init__(self, descent: Descent, links: int) -> None:
        self._descent = descent
        self._links = links
        self._reflink = True
        self._shared = self._copied = 0
        self.left_out = 0

    @property
    def method(self) -> CopyMethod:
        return CopyMethod.REFLINK if self._shared and not self._copied else CopyMethod.COPY

    def enter(self, found: Found, opened: int) -> bool:
        try:
            os.mkdir(found.name, 0o700, dir_fd=self._descent.here)
        except FileExistsError:  # who renames while a directory is read may have shown a name twice
            return False
        self._descent.down(found.name)
        _copy_attributes(opened, self._descent.here)
        return True

    def leave(self, found: Found) -> None:
        # Only now: what is made in a directory changes its times, and may not be allowed by its mode.
        here = os.dup(self._descent.here)
        try:
            self._descent.up()
            _settle(here, found.status)
        finally:
            os.close(here)

    def unreadable(self, parent: int, name: str, cause: OSError) -> bool:  # noqa: ARG002  # the cause tells it all
        raise cause

    def entry(self, found: Found) -> None:
        key = f"{found.status.st_ino:x}" if found.status.st_nlink > 1 else ""
        if key and self._linked(key, found.name):
            return
        try:
            made = self._made(found)
        except FileExistsError:  # see enter
            return
        if made and key:
            with contextlib.suppress(FileExistsError):  # of a file that had as many names as one can have
                os.link(found.name, key, src_dir_fd=self._descent.here, dst_dir_fd=self._links, follow_symlinks=False)

    def _linked(self, key: str, name: str) -> bool:
        try:
            os.link(key, name, src_dir_fd=self._links, dst_dir_fd=self._descent.here, follow_symlinks=False)
        except OSError as cause:
            if cause.errno not in {errno.ENOENT, errno.EMLINK, errno.EEXIST}:
                raise
            return cause.errno == errno.EEXIST  # see enter
        return True

    def _made(self, found: Found) -> bool:
        parent, name, status = found
        here = self._descent.here
        if stat.S_ISREG(status.st_mode):
            return self._file(parent, name)
        if stat.S_ISLNK(status.st_mode):
            target = link_text(parent, name)
            if target is None:
                return False
            os.symlink(target, name, dir_fd=here)
        elif stat.S_ISFIFO(status.st_mode):
            os.mkfifo(name, 0o600, dir_fd=here)
            os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=here)
        else:
            self.left_out += 1
            return False
        if os.geteuid() == 0:
            os.chown(name, status.st_uid, status.st_gid, dir_fd=here, follow_symlinks=False)
        os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=here, follow_symlinks=False)
        return True

    def _file(self, parent: int, name: str) -> bool:
        with contextlib.ExitStack() as opened:
            try:
                original = os.open(name, _FILE, dir_fd=parent)
            except OSError as cause:
                if cause.errno in GONE:
                    return False
                raise
            opened.callback(os.close, original)
            status = os.fstat(original)
            if not stat.S_ISREG(status.st_mode):
                return False
            copy = os.open(name, _NEW_FILE, 0o600, dir_fd=self._descent.here)
            opened.callback(os.close, copy)
            if status.st_size:
                self._count(copy_content(original, copy, reflink=self._reflink))
            _copy_attributes(original, copy)
            _settle(copy, status)
        return True

    def _count(self, method: CopyMethod) -> None:
        if method is CopyMethod.REFLINK:
            self._shared += 1
        else:
            self._copied += 1
            self._reflink = False


def _settle(descriptor: int, status: os.stat_result) -> None:
    """Owner, then mode (a change of owner takes set-id bits away), then times."""
    if os.geteuid() == 0:
        os.fchown(descriptor, status.st_uid, status.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
    os.utime(descriptor, ns=(status.st_atime_ns, status.st_mtime_ns))


def _copy_attributes(source: int, target: int) -> None:
    try:
        names = os.listxattr(source)
    except OSError as cause:
        if cause.errno == errno.EOPNOTSUPP:
            return
        raise
    for name in names:
        if name.startswith(_KEPT_ATTRIBUTES):
            try:
                value = os.getxattr(source, name)
            except OSError as cause:
                if cause.errno == errno.ENODATA:
                    continue
                raise
            os.setxattr(target, name, value)
