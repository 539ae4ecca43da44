"""One stored file: what is in it after a start, and appending to it so that nothing stored is ever damaged.

`load` walks the headers, and only reads. The tail of a write that was cut off is left out of `size_bytes`, and goes
when something is appended. A member is there for readers when it is in the index, and it gets there after it was
written and, where that is asked for, synchronized. Not here: what members hold, and which jobs have files (store.py).
"""

import os
from collections.abc import Iterator, Sequence
from typing import Final

import structlog

from common.failpoints import reached
from services.persist import member
from services.persist.disk import Disk, stored_file, write_all
from services.persist.index import Member, MemberIndex
from services.persist.member import DamagedMember, Header

log = structlog.get_logger(__name__)

_SEARCH_BYTES: Final = 2**20


class StaleSegment(Exception):
    """The file is not the one that was loaded: someone removed, replaced or cut it."""


class AbandonedSegment(Exception):
    """The file must not be written any more by this process: what was given to the kernel may be lost."""


class Segment:
    """One file of members. One writer at a time, any number of readers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.index = MemberIndex()
        self.size_bytes = 0
        self.damaged_bytes = 0
        """Between members: headers there are unreadable."""
        self.ended_at: int | None = None
        """The job's last sequence, when an end mark says so."""
        self.durable = False
        """All of it is known to be synchronized; a file found at the start may only be in the page cache."""
        self.torn = False
        """Something that is no member is behind the last one; the next append, even of nothing, cuts it off."""
        self.abandoned = False
        self._inode: int | None = None
        self._entry_durable = False

    @classmethod
    def load(cls, directory: int | None, name: str) -> "Segment":
        """The file `name` as it is now; an empty one when it, or the directory (None), does not exist."""
        segment = cls(name)
        if directory is None:
            return segment
        try:
            with stored_file(directory, name) as descriptor:
                segment._walk(descriptor)
        except FileNotFoundError:
            pass
        return segment

    @property
    def last_sequence(self) -> int:
        """The last entry in it, 0 for none."""
        return self.index.last_sequence

    def read_block(self, directory: int, offset: int, size_bytes: int) -> bytes:
        """Bytes of the file as they are. Raises `StaleSegment` when it is another file by now, or shorter; OSError."""
        with stored_file(directory, self.name) as descriptor:
            content = os.pread(descriptor, size_bytes, offset)
            if os.fstat(descriptor).st_ino != self._inode or len(content) != size_bytes:
                raise StaleSegment(self.name)
            return content

    def append(self, directory: int, members: Sequence[bytes], disk: Disk, *, durable: bool) -> None:
        """Write whole members behind the others, all or none.

        Raises OSError when the file is as it was before (no space, read-only), `AbandonedSegment` when that cannot
        be known, `StaleSegment` when it must be loaded again.
        """
        if self.abandoned:
            raise AbandonedSegment(self.name)
        with stored_file(directory, self.name, flags=os.O_RDWR | os.O_CREAT) as descriptor:
            self._recognize(descriptor, disk)
            if members:
                self._write(descriptor, b"".join(members), disk)
                reached("persist.written")
            if durable and (members or not self.durable):
                self._sync(descriptor, disk)
            if durable and not self._entry_durable:
                self._sync(directory, disk, back_to=descriptor)
                self._entry_durable = True
            self.durable = durable
        reached("persist.synchronized")
        for content in members:
            header = member.parse_header(content)
            assert header is not None
            self._take(Member(self.size_bytes, header))

    def read(self, directory: int, wanted: Member) -> bytes:
        """The text of a member. Raises `DamagedMember`, OSError; `StaleSegment` when the file is another one by now."""
        with stored_file(directory, self.name) as descriptor:
            status = os.fstat(descriptor)
            if status.st_ino != self._inode or status.st_size < wanted.offset + wanted.header.member_bytes:
                raise StaleSegment(self.name)
            return _inflated(descriptor, wanted)

    def is_in(self, directory: int | None) -> bool:
        """Whether the file in `directory` is the one that was loaded; None: there is no directory."""
        try:
            if directory is None:
                raise FileNotFoundError(self.name)
            status = os.stat(self.name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return self._inode is None
        return status.st_ino == self._inode and status.st_size >= self.size_bytes

    def _recognize(self, descriptor: int, disk: Disk) -> None:
        """Is this the file that was loaded? Cuts off what is behind the last whole member."""
        status = os.fstat(descriptor)
        if self._inode is None and not status.st_size:
            self._inode = status.st_ino
        if status.st_ino != self._inode or status.st_size < self.size_bytes:
            raise StaleSegment(self.name)
        if status.st_size > self.size_bytes:
            disk.truncate(descriptor, self.size_bytes)
            reached("persist.tail_cut")
        self.torn = False

    def _write(self, descriptor: int, data: bytes, disk: Disk) -> None:
        try:
            write_all(descriptor, data, self.size_bytes, disk)
        except OSError:
            self._cut_back(descriptor, disk)
            raise

    def _sync(self, target: int, disk: Disk, *, back_to: int | None = None) -> None:
        # After a failed fsync the kernel holds the pages for clean, and a second one succeeds although the data is
        # gone (fsync(2), NOTES): so there is no second one, and the file goes back to what was known to be safe.
        try:
            disk.sync(target)
        except OSError as cause:
            self._cut_back(target if back_to is None else back_to, disk)
            self.abandoned = True
            log.critical(
                "synchronizing failed, the file is abandoned", file=self.name, why=os.strerror(cause.errno or 0)
            )
            raise AbandonedSegment(self.name) from cause

    def _cut_back(self, descriptor: int, disk: Disk) -> None:
        try:
            disk.truncate(descriptor, self.size_bytes)
        except OSError as cause:
            # Harmless while we live: readers end at size_bytes, and the next append cuts first or fails.
            log.error("cannot cut back a stored file", file=self.name, why=os.strerror(cause.errno or 0))

    def _take(self, found: Member) -> None:
        self.size_bytes = found.offset + found.header.member_bytes
        if found.header.span.lines:
            self.index.add(found)
            self.ended_at = None
        else:
            self.ended_at = found.header.span.last_sequence

    def _walk(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        self._inode = status.st_ino
        for found in _members(descriptor, status.st_size):
            self.damaged_bytes += found.offset - self.size_bytes
            self._take(found)
        # A crash may leave the last member with its length and without its content. An end mark comes after
        # everything was synchronized, so nothing is cut off in front of one.
        while self.ended_at is None and len(self.index):
            last = self.index[len(self.index) - 1]
            try:
                _inflated(descriptor, last)
                break
            except DamagedMember as cause:
                log.warning("last member is damaged, left out", file=self.name, offset=last.offset, why=str(cause))
                self.index.drop_last()
                self.size_bytes = last.offset
        self.torn = status.st_size > self.size_bytes
        if self.torn:
            log.warning("torn tail left out", file=self.name, bytes=status.st_size - self.size_bytes)
        if self.damaged_bytes:
            log.error("headers in a stored file are damaged", file=self.name, bytes=self.damaged_bytes)


def _members(descriptor: int, size_bytes: int) -> Iterator[Member]:
    offset = 0
    while offset < size_bytes:
        header: Header | None = member.parse_header(os.pread(descriptor, member.HEADER_BYTES, offset))
        if header is None or offset + header.member_bytes > size_bytes:
            offset = _next_header(descriptor, offset + 1, size_bytes)
            continue
        yield Member(offset, header)
        offset += header.member_bytes


def _next_header(descriptor: int, offset: int, size_bytes: int) -> int:
    while offset < size_bytes:
        block = os.pread(descriptor, _SEARCH_BYTES, offset)
        found = member.find_header(block, 0)
        if found >= 0:
            return offset + found
        if len(block) < member.HEADER_BYTES:
            break
        offset += len(block) - member.HEADER_BYTES + 1
    return size_bytes


def _inflated(descriptor: int, wanted: Member) -> bytes:
    content = os.pread(descriptor, wanted.header.member_bytes, wanted.offset)
    return member.inflate(content, wanted.header)
