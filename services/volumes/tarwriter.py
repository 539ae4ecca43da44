"""A directory tree as a pax archive: what a job sees in its volume, with the owner that it sees.

Files, directories, symbolic and hard links and fifos are in it; sockets and devices are left out and counted. Holes
are sent as zeros. Of owners there are two: the volume's is `JOB_ID`, anybody else is nobody. Extended attributes are
not in it. Only the standard library.
"""

import os
import stat
import tarfile
from typing import Final

from common.errors import JobletError, precondition
from services.volumes.descent import GONE, Found, link_text, shown
from services.volumes.tarstream import BLOCK_BYTES, PIECE_BYTES, Outgoing

JOB_ID: Final = 1000
NOBODY: Final = 65534
LINK_NAMES_BYTES_MAX: Final = 32 * 2**20
"""Of names that are kept to find the second name of a file. What has no place here is sent as a file of its own."""

_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NANOSECONDS: Final = 10**9


class Writer:
    """A visitor of `descent.walk`."""

    def __init__(self, outgoing: Outgoing, *, uid: int, gid: int) -> None:
        self._outgoing = outgoing
        self._uid, self._gid = uid, gid
        self._path = ""  # of the directory whose things come now: empty, or ending in a slash
        self._first_names: dict[tuple[int, int], str] = {}
        self._first_names_bytes = 0
        self._unread: tuple[str, OSError] | None = None
        self.entries = self.bytes = 0
        self.left_out = self.changed = self.unreadable_entries = 0

    def enter(self, found: Found, opened: int) -> bool:  # noqa: ARG002  # its name is all that is needed
        """Its own header."""
        self._path += f"{found.name}/"
        self._send_header(self._header(self._path, tarfile.DIRTYPE, found.status))
        return True

    def leave(self, found: Found) -> None:
        """Back to the path of the directory above."""
        self._path = self._path[: -len(found.name) - 1]

    def unreadable(self, parent: int, name: str, cause: OSError) -> bool:  # noqa: ARG002  # told by its path
        """Left out, and told at the end."""
        self._note_unreadable(self._path + name, cause)
        return False

    def entry(self, found: Found) -> None:
        """A header, and a file's content."""
        parent, name, status = found
        path = self._path + name
        if first := self._first_name(status):
            self._send_header(self._header(path, tarfile.LNKTYPE, status, linkname=first))
        elif stat.S_ISREG(status.st_mode):
            self._file(parent, name, path)
        elif stat.S_ISLNK(status.st_mode):
            target = link_text(parent, name)
            if target is None:
                return
            self._send_header(self._header(path, tarfile.SYMTYPE, status, linkname=target))
            self._remember(status, path)
        elif stat.S_ISFIFO(status.st_mode):
            self._send_header(self._header(path, tarfile.FIFOTYPE, status))
            self._remember(status, path)
        else:
            self.left_out += 1

    def finish(self) -> None:
        """The archive's end. Raises JobletError(PRECONDITION) when it is whole but for what could not be read."""
        self._outgoing.write(bytes(2 * BLOCK_BYTES))
        self._outgoing.flush()
        if self._unread is not None:
            path, cause = self._unread
            raise _not_read(path, cause, others=self.unreadable_entries - 1)

    def _file(self, parent: int, name: str, path: str) -> None:
        try:
            opened = os.open(name, _FILE, dir_fd=parent)
        except OSError as cause:
            if cause.errno not in GONE:
                self._note_unreadable(path, cause)
            return
        try:
            status = os.fstat(opened)
            if not stat.S_ISREG(status.st_mode):
                return
            self._send_header(self._header(path, tarfile.REGTYPE, status, size=status.st_size))
            self._send_content(opened, status, path)
            self._remember(status, path)
        finally:
            os.close(opened)

    def _send_content(self, opened: int, status: os.stat_result, path: str) -> None:
        """So many bytes as the header said, whatever becomes of the file."""
        left = status.st_size
        try:
            while left and (piece := os.read(opened, min(left, PIECE_BYTES))):
                self._outgoing.write(piece)
                left -= len(piece)
        except OSError as cause:
            self._note_unreadable(path, cause)
        now = os.fstat(opened)
        if left or (now.st_size, now.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
            self.changed += 1
        self._outgoing.zeros(left + -status.st_size % BLOCK_BYTES)
        self.bytes += status.st_size

    def _header(
        self, path: str, kind: bytes, status: os.stat_result, *, size: int = 0, linkname: str = ""
    ) -> tarfile.TarInfo:
        header = tarfile.TarInfo(path)
        header.type, header.size, header.linkname = kind, size, linkname
        header.mode = stat.S_IMODE(status.st_mode)
        header.uid = JOB_ID if status.st_uid == self._uid else NOBODY
        header.gid = JOB_ID if status.st_gid == self._gid else NOBODY
        header.mtime, rest = divmod(status.st_mtime_ns, _NANOSECONDS)
        if rest:
            header.pax_headers = {"mtime": _seconds(status.st_mtime_ns)}
        return header

    def _send_header(self, header: tarfile.TarInfo) -> None:
        self._outgoing.write(header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        self.entries += 1

    def _first_name(self, status: os.stat_result) -> str:
        return self._first_names.get((status.st_dev, status.st_ino), "") if status.st_nlink > 1 else ""

    def _remember(self, status: os.stat_result, path: str) -> None:
        size = len(path) + 200  # of the entry's objects, about
        if status.st_nlink > 1 and self._first_names_bytes + size <= LINK_NAMES_BYTES_MAX:
            self._first_names[status.st_dev, status.st_ino] = path
            self._first_names_bytes += size

    def _note_unreadable(self, path: str, cause: OSError) -> None:
        self.unreadable_entries += 1
        if self._unread is None:
            self._unread = (path, cause)


def _not_read(path: str, cause: OSError, *, others: int) -> JobletError:
    more = f" (and {others} more)" if others else ""
    return precondition(
        f"{shown(path)}{more} could not be read: {cause.strerror}; the archive has everything else",
        "let its owner read it (chmod u+rwX) in a job, and export again",
    )


def _seconds(nanoseconds: int) -> str:
    whole, rest = divmod(abs(nanoseconds), _NANOSECONDS)
    return f"{'-' if nanoseconds < 0 else ''}{whole}.{rest:09}"
