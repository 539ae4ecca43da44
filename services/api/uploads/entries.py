"""Entries of an upload: which are well-formed, and their headers in a tar archive. Pure.

Belongs here: paths, kinds, links. Does not belong here: bytes of files and where they go (`staging.py`).
Archive format: pax (POSIX.1-2001, pax(1)): names of any length in UTF-8. Owner 0 and permission bits only; whoever
unpacks does it with the job's rights.
"""

import posixpath
import tarfile
from typing import Final

from common.errors import JobletError, invalid
from common.quantities import SIZE_BYTES_MAX
from proto.joblet.v1 import job_pb2

PATH_BYTES_MAX: Final = 4096
NAME_BYTES_MAX: Final = 255
MODE_MASK: Final = 0o777
BLOCK_BYTES: Final = 512
DIRECTORY_MODE: Final = 0o755
END: Final = b"\0" * (2 * BLOCK_BYTES)

_TYPES: Final = {
    job_pb2.UploadEntry.FILE: tarfile.REGTYPE,
    job_pb2.UploadEntry.DIRECTORY: tarfile.DIRTYPE,
    job_pb2.UploadEntry.SYMLINK: tarfile.SYMTYPE,
}


class Tree:
    """What an upload has so far. Every path once, and nothing below a file or a link."""

    def __init__(self) -> None:
        self._kinds: dict[str, bytes] = {}

    def __len__(self) -> int:
        return len(self._kinds)

    def add(self, entry: job_pb2.UploadEntry) -> bytes:
        """The headers for an entry, and for directories above it that were not named. JobletError(INVALID) or they."""
        kind = _TYPES.get(entry.kind)
        if kind is None:
            raise invalid(f"entry.kind: no such kind {int(entry.kind)}", "use FILE, DIRECTORY or SYMLINK")
        path = checked_path(entry.path)
        if entry.size_bytes and kind != tarfile.REGTYPE:
            raise _refused(path, "only a FILE has a size")
        if entry.size_bytes > SIZE_BYTES_MAX:
            raise _refused(path, "it is too large")
        if entry.target and kind != tarfile.SYMTYPE:
            raise _refused(path, "only a SYMLINK has a target")
        if kind == tarfile.SYMTYPE:
            _check_target(path, entry.target)
        headers = self._parents(path)
        if path in self._kinds:
            raise _refused(path, "it is there twice")
        self._kinds[path] = kind
        return headers + _header(path, kind, entry.mode & MODE_MASK, entry.size_bytes, entry.target)

    def _parents(self, path: str) -> bytes:
        headers = b""
        parts = path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            parent = "/".join(parts[:depth])
            kind = self._kinds.setdefault(parent, b"")
            if kind == b"":
                self._kinds[parent] = tarfile.DIRTYPE
                headers += _header(parent, tarfile.DIRTYPE, DIRECTORY_MODE, 0, "")
            elif kind != tarfile.DIRTYPE:
                raise _refused(path, f"{parent[:80]!r} is no directory")
        return headers


def checked_path(path: str) -> str:
    """A relative path in its only spelling, or JobletError(INVALID)."""
    parts = path.split("/")
    if any(part in {"", ".", ".."} for part in parts):
        raise _refused(path, "it must be relative, without empty parts, '.' and '..'")
    if "\0" in path:
        raise _refused(path, "it has a NUL byte")
    if len(path.encode()) > PATH_BYTES_MAX or any(len(part.encode()) > NAME_BYTES_MAX for part in parts):
        raise _refused(path, f"use at most {PATH_BYTES_MAX} bytes, {NAME_BYTES_MAX} a name")
    return path


def padding(size_bytes: int) -> bytes:
    """What follows a file of this size."""
    return b"\0" * (-size_bytes % BLOCK_BYTES)


def _check_target(path: str, target: str) -> None:
    if not target or "\0" in target or len(target.encode()) > PATH_BYTES_MAX:
        raise _refused(path, f"a link needs a target of 1 to {PATH_BYTES_MAX} bytes without NUL")
    aim = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    if target.startswith("/") or aim == ".." or aim.startswith("../"):
        raise _refused(path, "a link must stay within the upload")


def _header(path: str, kind: bytes, mode: int, size_bytes: int, target: str) -> bytes:
    info = tarfile.TarInfo(path)
    info.type, info.mode, info.size, info.linkname = kind, mode, size_bytes, target
    return info.tobuf(tarfile.PAX_FORMAT)


def _refused(path: str, why: str) -> JobletError:
    return invalid(f"entry.path: {path[:80]!r} refused", why)
