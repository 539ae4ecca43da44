"""Unpacking of staged uploads into the job's /work, by the job's main process with the job's own rights.

An archive came from a client: regular files, directories and relative symbolic links are taken, everything else is
refused, and so is every path that leaves the directory. The kernel guards the walk (openat2 RESOLVE_BENEATH), so a
link in the archive cannot lead a later entry out. tarfile's own extraction is not used. Reference: tar(5).
"""

import errno
import os
import posixpath
import stat
from typing import IO, TYPE_CHECKING, Final

from common.linux.paths import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, openat2
from services.executor.launcher.handshake import Failure, StepFailed, failure_of

if TYPE_CHECKING:
    import tarfile

STEP: Final = "upload"
ARCHIVES_MAX: Final = 64
"""Of one job; SCM_MAX_FD of the kernel is 253."""
_COPY_BYTES: Final = 256 * 1024
_PATH_BYTES_MAX: Final = 4096
_RESOLVE: Final = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def load_unpacker() -> None:
    """Load what `unpack` needs, while the host's root is still there: behind the change of root no module is found.

    Only for a job with uploads: few have any, and what the launcher has loaded makes every fork dearer.
    """
    import tarfile  # noqa: F401, PLC0415


def open_archives(paths: tuple[str, ...]) -> tuple[int, ...]:
    """Descriptors of the staged archives: regular files, not links. Raises StepFailed."""
    descriptors = []
    for path in paths:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as cause:
            # The path is the node's own affair; the name of the archive is what client and operator both know.
            raise StepFailed(failure_of(STEP, cause, path=posixpath.basename(path))) from cause
        descriptors.append(descriptor)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise StepFailed(Failure(STEP, posixpath.basename(path), errno.EINVAL, "staged upload is no regular file"))
    return tuple(descriptors)


def unpack(archive: int, target: str) -> None:
    """Unpack the tar archive of the descriptor `archive` into the directory `target`. Raises StepFailed."""
    import tarfile  # noqa: PLC0415  # see load_unpacker

    directory = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with open(archive, "rb", closefd=False) as stream, tarfile.open(fileobj=stream, mode="r:") as members:
            for member in members:
                _unpack_member(directory, members, member)
                members.members = []  # type: ignore[attr-defined]  # else every entry stays in the job's memory
    except tarfile.TarError as cause:
        raise StepFailed(Failure(STEP, "", errno.EINVAL, f"malformed upload: {cause}")) from cause
    finally:
        os.close(directory)


def _unpack_member(directory: int, members: "tarfile.TarFile", member: "tarfile.TarInfo") -> None:
    name = _checked_path(member.name)
    try:
        if member.isreg() and not member.issparse():
            content = members.extractfile(member)
            assert content is not None
            _write_file(directory, name, content, mode=member.mode & 0o777)
        elif member.isdir():
            _make_directories(directory, name)
            if name:
                with_mode = openat2(directory, name, os.O_RDONLY | os.O_DIRECTORY, resolve=_RESOLVE)
                # The owner keeps his own access: an unreadable directory would refuse the next entry.
                os.fchmod(with_mode, member.mode & 0o777 | 0o700)
                os.close(with_mode)
        elif member.issym():
            _make_symlink(directory, name, member.linkname)
        else:
            raise _refused(member.name, "only files, directories and symbolic links can be uploaded")
    except OSError as cause:
        if cause.errno in _NO_SPACE:
            text = "no space left in /work: ask for more with --work-size"
            raise StepFailed(Failure(STEP, member.name, cause.errno or 0, text)) from cause
        raise StepFailed(failure_of(STEP, cause, path=member.name)) from cause


def _refused(name: str, why: str) -> StepFailed:
    return StepFailed(Failure(STEP, name, errno.EINVAL, why))


def _checked_path(name: str) -> str:
    """`name` without `.` parts; "" is the directory itself."""
    if len(os.fsencode(name)) > _PATH_BYTES_MAX:
        raise _refused(name[:200], f"path is longer than {_PATH_BYTES_MAX} bytes")
    if name.startswith("/") or "\0" in name:
        raise _refused(name, "path must be relative to /work")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise _refused(name, "path must not contain '..'")
    return "/".join(parts)


def _make_directories(directory: int, path: str) -> None:
    done = ""
    for part in path.split("/") if path else ():
        parent, done = done, posixpath.join(done, part)
        holder = openat2(directory, parent or ".", os.O_PATH | os.O_DIRECTORY, resolve=_RESOLVE)
        try:
            os.mkdir(part, 0o755, dir_fd=holder)
        except FileExistsError:
            pass
        finally:
            os.close(holder)


def _open_parent(directory: int, path: str) -> tuple[int, str]:
    parent, name = posixpath.split(path)
    if not name:
        raise _refused(path, "path names no file")
    _make_directories(directory, parent)
    return openat2(directory, parent or ".", os.O_PATH | os.O_DIRECTORY, resolve=_RESOLVE), name


def _write_file(directory: int, path: str, content: IO[bytes], *, mode: int) -> None:
    parent, name = _open_parent(directory, path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        try:
            descriptor = os.open(name, flags, 0o600, dir_fd=parent)
        except FileExistsError:  # a later entry replaces an earlier one, as with tar
            os.unlink(name, dir_fd=parent)
            descriptor = os.open(name, flags, 0o600, dir_fd=parent)
    finally:
        os.close(parent)
    try:
        while chunk := content.read(_COPY_BYTES):
            view = memoryview(chunk)
            while view:
                view = view[os.write(descriptor, view) :]
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def _make_symlink(directory: int, path: str, target: str) -> None:
    """Refuses a target that is absolute or, read as text, leaves the directory."""
    if not target or target.startswith("/"):
        raise _refused(path, "a symbolic link must be relative")
    landing = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    if landing == ".." or landing.startswith("../"):
        raise _refused(path, "a symbolic link must stay inside /work")
    parent, name = _open_parent(directory, path)
    try:
        os.symlink(target, name, dir_fd=parent)
    finally:
        os.close(parent)
