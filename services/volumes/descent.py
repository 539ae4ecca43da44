"""Walking a directory tree that somebody hostile has made, and may be changing: by descriptors, one name at a time.

`Descent` is the way from a root down to one directory, `walk` visits everything below a root. No symbolic link is
followed and no other file system entered. Neither the depth nor the length of a path is bounded: no path is ever
given to the kernel, and of a long way down only the last `OPEN_MAX` directories stay open. The others are found again
by "..", which a rename in between could lead anywhere: it must be the directory that it was, or the walk ends.

Only the standard library is imported: the small process of a stream uses this too. Not here: what is done with what
is found (`storage/copytree.py`, `tarwriter.py`, `tarreader.py`).
"""

import errno
import os
import stat
from typing import Final, NamedTuple, Protocol

OPEN_MAX: Final = 64
"""Directories of one descent that are open at once."""
_SHOWN_MAX: Final = 200

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO})
"""What opening a thing fails with that is not there any more, or is something else by now."""


class Moved(Exception):
    """A directory is not where it was when it was entered."""


class _Level:
    __slots__ = ("descriptor", "identity")

    def __init__(self, descriptor: int) -> None:
        self.descriptor: int | None = descriptor
        self.identity = _identity(os.fstat(descriptor))


class Descent:
    """The directories from a root down to the present one. A context manager; the root's descriptor is the caller's."""

    def __init__(self, root: int) -> None:
        self._levels = [_Level(os.dup(root))]

    def __enter__(self) -> "Descent":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open."""
        for level in self._levels:
            if level.descriptor is not None:
                os.close(level.descriptor)
        self._levels.clear()

    @property
    def depth(self) -> int:
        """Of the present directory below the root."""
        return len(self._levels) - 1

    @property
    def here(self) -> int:
        """Descriptor of the present directory, until the next `down` or `up`."""
        descriptor = self._levels[-1].descriptor
        assert descriptor is not None
        return descriptor

    def down(self, name: str) -> None:
        """Enter the directory `name`. OSError: it is none, a symbolic link perhaps, or is on another file system."""
        descriptor = os.open(name, _DIRECTORY, dir_fd=self.here)
        try:
            os.stat(
                ".", dir_fd=descriptor
            )  # EACCES here, while the directory above is still open, and not on the way back
            level = _Level(descriptor)
            if level.identity[0] != self._levels[0].identity[0]:
                raise OSError(errno.EXDEV, "another file system is mounted here", name)
        except OSError:
            os.close(descriptor)
            raise
        self._levels.append(level)
        if self.depth > OPEN_MAX:
            early = self._levels[-1 - OPEN_MAX]
            if early.descriptor is not None:
                os.close(early.descriptor)
                early.descriptor = None

    def up(self) -> None:
        """Back to the directory above. Raises Moved, and stays."""
        above = self._levels[-2]
        if above.descriptor is None:
            descriptor = os.open("..", _DIRECTORY, dir_fd=self.here)
            if _identity(os.fstat(descriptor)) != above.identity:
                os.close(descriptor)
                raise Moved
            above.descriptor = descriptor
        os.close(self.here)
        self._levels.pop()


class Found(NamedTuple):
    """One thing in a tree."""

    parent: int  # descriptor of the directory that it is in
    name: str  # bytes that are no UTF-8 are surrogate escapes, PEP 383
    status: os.stat_result  # of a directory: of what was opened


class Visitor(Protocol):
    """What is done with each thing. Exceptions end the walk."""

    def enter(self, found: Found, opened: int) -> bool:
        """A directory; all that is in it comes next, and then `leave`. False: it is to be passed by."""

    def leave(self, found: Found) -> None:
        """The directory that was entered last is done."""

    def entry(self, found: Found) -> None:
        """Anything that is no directory."""

    def unreadable(self, parent: int, name: str, cause: OSError) -> bool:
        """A directory that cannot be entered, although it is there. True: it can be now."""


def link_text(parent: int, name: str) -> str | None:
    """What a symbolic link says; None: it is gone, or no link any more."""
    try:
        return os.readlink(name, dir_fd=parent)
    except OSError as cause:
        if cause.errno in {errno.ENOENT, errno.EINVAL}:
            return None
        raise


def shown(name: object) -> str:
    """A name from a volume or an archive, as a person may see it: on one line, printable, not too long."""
    text = repr(name)
    return text if len(text) <= _SHOWN_MAX else f"…{text[-_SHOWN_MAX:]}"


def walk(root: int, visitor: Visitor) -> None:
    """Visit all below the directory `root`, but not itself: of each directory first what is no directory.

    What vanishes meanwhile is passed by. Raises Moved; OSError when `root` cannot be read.
    """
    names = _Names()
    entered: list[tuple[str, os.stat_result]] = []
    with Descent(root) as descent:
        left = [_visit_entries(descent.here, names, visitor)]
        while left:
            if left[-1]:
                left[-1] -= 1
                name = names.pop()
                status = _enter(descent, name, visitor)
                if status is not None:
                    entered.append((name, status))
                    left.append(_visit_entries(descent.here, names, visitor))
                continue
            left.pop()
            if left:
                descent.up()
                visitor.leave(Found(descent.here, *entered.pop()))


def _enter(descent: Descent, name: str, visitor: Visitor) -> os.stat_result | None:
    """None: there is no way into it."""
    parent = os.dup(descent.here)  # `down` may close it
    try:
        try:
            descent.down(name)
        except OSError as cause:
            if cause.errno in GONE or not visitor.unreadable(parent, name, cause):
                return None
            descent.down(name)
        status = os.fstat(descent.here)
        if visitor.enter(Found(parent, name, status), descent.here):
            return status
        descent.up()
        return None
    finally:
        os.close(parent)


def _visit_entries(directory: int, names: "_Names", visitor: Visitor) -> int:
    """How many directories are in `directory`; their names are put into `names`."""
    directories = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(status.st_mode):
                names.push(entry.name)
                directories += 1
            else:
                visitor.entry(Found(directory, entry.name, status))
    return directories


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


class _Names:
    """A stack of names in one piece of memory: of ten million directories it takes little more than their names."""

    def __init__(self) -> None:
        self._packed = bytearray()

    def push(self, name: str) -> None:
        self._packed += b"\0" + os.fsencode(name)

    def pop(self) -> str:
        start = self._packed.rindex(b"\0")
        name = os.fsdecode(bytes(self._packed[start + 1 :]))
        del self._packed[start:]
        return name
