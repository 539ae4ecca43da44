"""Unpacking of a tar archive that came over the network, into a directory that holds something already.

Every name is walked one directory after another without following a link, whoever made it: neither an absolute name,
nor `..`, nor a link in the archive or in the volume leads anywhere else. Links keep their text, which means something
to the job only. What is there under an entry's name is replaced, unless it is a directory. Set-id bits and owners are
not taken over; devices are refused. Only the standard library. Not here: rights (`stream_program.py`).
"""

import contextlib
import errno
import os
import stat
import tarfile
from typing import Final, NamedTuple, NoReturn

from common.errors import JobletError, Reason, exhausted, invalid, precondition
from services.volumes.descent import Descent, Moved, shown
from services.volumes.tarheader import Entry, Headers
from services.volumes.tarstream import BLOCK_BYTES, PIECE_BYTES, ZEROS, Incoming

_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MODE_BITS: Final = 0o1777
_IMPLIED_MODE: Final = 0o755
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_WRONG: Final = frozenset({errno.ENAMETOOLONG, errno.EILSEQ, errno.EMLINK, errno.EFBIG, errno.EINVAL})
_STAYS: Final = "what was unpacked before it stays"


class _Settled(NamedTuple):
    """What a directory is to have when nothing more is put into it."""

    mode: int
    mtime_ns: int | None


class _Place:
    """A directory below the root, as a descent and as text. Going somewhere else costs what the way there differs."""

    def __init__(self, root: int) -> None:
        self._descent = Descent(root)
        self._path = ""  # empty, or ending in a slash
        self._settled: list[_Settled | None] = []

    @property
    def here(self) -> int:
        return self._descent.here

    def close(self) -> None:
        self._descent.close()

    def go(self, path: str, *, make: bool) -> None:
        """Go to the directory `path` (empty, or ending in a slash)."""
        while not path.startswith(self._path):
            self._up()
        for name in path[len(self._path) :].split("/")[:-1]:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, _IMPLIED_MODE, dir_fd=self.here)
            self._down(name, None)

    def go_into(self, name: str, settled: _Settled) -> None:
        """Enter a directory that is an entry of its own, and let its owner do what he must there meanwhile."""
        self._down(name, settled)
        mode = stat.S_IMODE(os.fstat(self.here).st_mode)
        os.fchmod(self.here, mode | 0o700)

    def go_back(self) -> None:
        """Up to the root."""
        while self._settled:
            self._up()

    def _down(self, name: str, settled: _Settled | None) -> None:
        self._descent.down(name)
        self._path += f"{name}/"
        self._settled.append(settled)

    def _up(self) -> None:
        settled = self._settled[-1]
        left = os.dup(self.here)
        try:
            self._descent.up()  # first: a mode may take the way back
            self._settled.pop()
            self._path = self._path[: self._path.rindex("/", 0, -1) + 1] if self._settled else ""
            if settled is not None:
                os.fchmod(left, settled.mode)
                _set_time(left, settled.mtime_ns)
        finally:
            os.close(left)


class Reader:
    """Unpacks one archive below the directory `root`."""

    def __init__(self, incoming: Incoming, root: int) -> None:
        self._incoming = incoming
        self._headers = Headers(incoming)
        self._place = _Place(root)
        self._first = _Place(root)  # where the first names of hard links are
        self.entries = self.bytes = 0

    def run(self) -> None:
        """To the archive's end. Raises JobletError, with the name of the entry; what came before it stays."""
        try:
            while (entry := self._headers.next()) is not None:
                self._unpack(entry)
                self.entries += 1
            self._place.go_back()
            self._incoming.finish()
        except Moved as cause:
            raise precondition("a directory was moved during the import", "stop the job that moves it") from cause
        finally:
            with contextlib.suppress(Moved, OSError):
                self._place.go_back()
            self._place.close()
            self._first.close()

    def _unpack(self, entry: Entry) -> None:
        try:
            above, name = _checked(entry.name, entry.name)
            if not name:
                if entry.type != tarfile.DIRTYPE:
                    raise invalid(f"{shown(entry.name)} is no name of a file", _STAYS)
                return  # the volume's own directory stays as it is
            self._place.go(above, make=True)
            self._make(entry, above, name)
        except OSError as cause:
            _tell(entry, cause)

    def _make(self, entry: Entry, above: str, name: str) -> None:
        match entry.type:
            case tarfile.REGTYPE:
                self._file(entry, name)
            case tarfile.DIRTYPE:
                self._directory(entry, name)
            case tarfile.SYMTYPE:
                if "\0" in entry.linkname:
                    raise OSError(errno.EINVAL, "a link cannot have NUL in its text")
                self._replace(name)
                os.symlink(entry.linkname, name, dir_fd=self._place.here)
                _set_time_of(name, self._place.here, entry.mtime_ns)
            case tarfile.LNKTYPE:
                self._hard_link(entry, above, name)
            case tarfile.FIFOTYPE:
                self._replace(name)
                os.mkfifo(name, entry.mode & 0o777, dir_fd=self._place.here)
                _set_time_of(name, self._place.here, entry.mtime_ns)
            case tarfile.CHRTYPE | tarfile.BLKTYPE:
                raise invalid(f"{shown(entry.name)} is a device", f"make the archive without it; {_STAYS}")
            case _:
                raise invalid(
                    f"{shown(entry.name)} is of type {entry.type!r}, which no volume can hold",
                    f"make the archive without it; {_STAYS}",
                )

    def _directory(self, entry: Entry, name: str) -> None:
        here = self._place.here
        try:
            os.mkdir(name, 0o700, dir_fd=here)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=here, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=here)
                os.mkdir(name, 0o700, dir_fd=here)
        self._place.go_into(name, _Settled(entry.mode & _MODE_BITS, entry.mtime_ns))

    def _hard_link(self, entry: Entry, above: str, name: str) -> None:
        first_above, first_name = _checked(entry.linkname, entry.name)
        if not first_name:
            raise OSError(errno.EISDIR, "the link is to a directory")
        self._first.go(first_above, make=False)
        if stat.S_ISDIR(os.stat(first_name, dir_fd=self._first.here, follow_symlinks=False).st_mode):
            raise IsADirectoryError(errno.EISDIR, "the link is to a directory")
        if (first_above, first_name) == (above, name):
            return
        self._replace(name)
        os.link(first_name, name, src_dir_fd=self._first.here, dst_dir_fd=self._place.here, follow_symlinks=False)

    def _file(self, entry: Entry, name: str) -> None:
        here = self._place.here
        self._replace(name)
        opened = os.open(name, _NEW_FILE, 0o600, dir_fd=here)
        try:
            self._content(opened, entry.size)
            os.fchmod(opened, entry.mode & _MODE_BITS)
            _set_time(opened, entry.mtime_ns)
        except BaseException:
            os.unlink(name, dir_fd=here)  # half of a file is not what was unpacked
            raise
        finally:
            os.close(opened)
        self._incoming.skip(-entry.size % BLOCK_BYTES)
        self.bytes += entry.size

    def _content(self, opened: int, size: int) -> None:
        """Zeros become holes: what was sparse still fits. The size is set last, so that it is never a mere claim."""
        position = 0
        while position < size:
            # Whole pieces begin at multiples of their length, or a hole would be seen only by chance.
            piece = self._incoming.some(min(size - position, PIECE_BYTES - position % PIECE_BYTES))
            if not ZEROS.startswith(piece):
                _write(opened, piece, position)
            position += len(piece)
        os.ftruncate(opened, size)

    def _replace(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._place.here)


def _write(opened: int, piece: memoryview, position: int) -> None:
    while piece:
        written = os.pwrite(opened, piece, position)
        piece, position = piece[written:], position + written


def _checked(path: str, entry: str) -> tuple[str, str]:
    """Its directory (empty, or ending in a slash) and its last name (empty: the volume's own directory)."""
    if path.startswith("/"):
        raise invalid(f"{shown(entry)} has an absolute path", f"make the archive of relative ones (tar -C); {_STAYS}")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise invalid(f"{shown(entry)} has '..' in a path", f"make the archive without; {_STAYS}")
    if "\0" in path:
        raise invalid(f"{shown(entry)} has NUL in a path", f"make the archive without; {_STAYS}")
    name = parts.pop() if parts else ""
    return "".join(f"{part}/" for part in parts), name


def _tell(entry: Entry, cause: OSError) -> NoReturn:
    what = shown(entry.name)
    if cause.errno in _NO_SPACE:
        raise exhausted(
            f"no space left in the volume at {what}", f"make it larger (rnx volume resize), or empty it; {_STAYS}"
        ) from cause
    if cause.errno == errno.EISDIR:
        text = f"{what} cannot replace a directory, or be a hard link to one"
    elif cause.errno in {errno.ENOTDIR, errno.ELOOP}:
        text = f"{what} leads through something that is no directory, such as a symbolic link"
    elif cause.errno == errno.ENOENT:
        text = f"{what} is a link to {shown(entry.linkname)}, which is not there"
    elif cause.errno in _WRONG:
        text = f"{what} cannot be made: {cause.strerror}"
    elif cause.errno in {errno.EACCES, errno.EPERM}:
        raise precondition(
            f"{what} cannot be made: {cause.strerror}", f"let its owner write there; {_STAYS}"
        ) from cause
    else:
        raise JobletError(Reason.INTERNAL, f"{what} cannot be made: {cause.strerror}", detail=_STAYS) from cause
    raise invalid(text, f"make the archive without it; {_STAYS}") from cause


def _set_time(opened: int, mtime_ns: int | None) -> None:
    if mtime_ns is not None:
        os.utime(opened, ns=(mtime_ns, mtime_ns))


def _set_time_of(name: str, directory: int, mtime_ns: int | None) -> None:
    if mtime_ns is not None:
        os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=directory, follow_symlinks=False)
