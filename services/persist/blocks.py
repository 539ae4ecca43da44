"""Members of one file, read many at once where small ones follow each other: a job that prints little leaves those.

To open, read and close a file for each takes three times as long as to inflate and search it. Who says that a member is
damaged, and counts it, is the store.
"""

from typing import Final, Protocol

from common.identifiers import JobId
from services.persist import member
from services.persist.index import Member
from services.persist.member import DamagedMember
from services.persist.segment import Segment
from services.persist.store import View

BLOCK_BYTES: Final = 128 * 1024
SMALL_MEMBER_BYTES: Final = BLOCK_BYTES // 8


class Source(Protocol):
    """What is read of the store."""

    def view(self, job: JobId) -> View:
        """See Store.view."""

    def read(self, job: JobId, segment: Segment, wanted: Member) -> bytes:
        """See Store.read."""

    def read_block(self, job: JobId, segment: Segment, offset: int, size_bytes: int) -> bytes:
        """See Store.read_block."""


class Blocks:
    """One reader's way through one file."""

    def __init__(self, source: Source, job: JobId, segment: Segment) -> None:
        self._source, self._job, self._segment = source, job, segment
        self._block = b""
        self._offset = 0
        """Where the block begins."""
        self._next = -1
        """Where the member ends that was read last."""

    def text(self, wanted: Member) -> bytes:
        """The text of a member. Raises `DamagedMember`, `StaleSegment`, OSError."""
        start, size = wanted.offset, wanted.header.member_bytes
        follows, self._next = start == self._next, start + size
        if not self._offset <= start <= self._offset + len(self._block) - size:
            if not follows or size > SMALL_MEMBER_BYTES:
                return self._source.read(self._job, self._segment, wanted)
            left = self._segment.size_bytes - start
            self._block = self._source.read_block(self._job, self._segment, start, min(BLOCK_BYTES, left))
            self._offset = start
        first = start - self._offset
        try:
            return member.inflate(self._block[first : first + size], wanted.header)
        except DamagedMember:
            return self._source.read(self._job, self._segment, wanted)
