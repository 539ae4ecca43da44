"""Where a damaged journal goes on: finds the next whole record behind bytes that are none.

Belongs here: what a record must look like to be believed, and the search. Does not belong here: what readers are given
in the place of what is missing (`journal.py`). docs/protocol.md tells the rules.

Nothing here depends on when it is asked. A record that may still become whole ends the search until it is, or until
`sealed` says that nobody writes any more; so every reader of the same bytes finds the same place, live or later. The
job itself may print what looks like a record, so a header that is right but for its checksum is believed about its
length first: what such a record holds is looked into only when no record follows it.
"""

import os
from collections.abc import Iterator
from typing import Final, NamedTuple

from isal.isal_zlib import crc32

from common.records import HEADER, HEADER_BYTES, MAGIC, PAYLOAD_BYTES_MAX, Flags, RecordType, Stream

SEARCH_BYTES_MAX: Final = 64 * 2**20
"""So much is looked at behind one damaged place, counting twice what is read twice; beyond, the rest is given up."""
_PIECE_BYTES: Final = 2**20
_LOOK_BYTES: Final = 512  # a look counts at least so much: it costs a system call
_CHECKED_BYTES: Final = HEADER_BYTES - 4
_INTEGER_MAX: Final = 2**63 - 1  # of sequences and times: persist stores no larger ones
_MISSING_MAX: Final = 2**44
"""No damaged place had so many entries, at a million lost in each second of half a year. A record that the job printed
itself may say so, and all readers would be told of as many by the billion."""


class Header(NamedTuple):
    """The header of a record, as it stands there."""

    magic: bytes
    type: int
    stream: int
    flags: int
    time_ns: int
    sequence: int
    lines: int
    length: int
    crc: int

    @property
    def problem(self) -> str:
        """Why no record can begin so; empty: one can."""
        if self.magic != MAGIC:
            return f"magic is {self.magic!r}"
        if not RecordType.START <= self.type <= RecordType.GAP:
            return f"type is {self.type}"
        if self.length > PAYLOAD_BYTES_MAX:
            return f"length {self.length} is over {PAYLOAD_BYTES_MAX}"
        return ""


class Unfinished(NamedTuple):
    """At `offset` begins what may become a whole record when the file has `bytes_needed`."""

    offset: int
    header: bytes  # as far as it is there
    bytes_needed: int


class Found(NamedTuple):
    """A whole record, which begins at `offset`."""

    offset: int
    header: Header


class GivenUp(NamedTuple):
    """No record was found within SEARCH_BYTES_MAX."""


class _Exhausted(Exception):
    """The search has looked at all that it may look at."""


def header_at(data: bytes | memoryview, position: int) -> Header:
    """The header at `position` of `data`, which has it all."""
    return Header(*HEADER.unpack_from(data, position))


def checksum_of(view: memoryview, position: int, end: int) -> int:
    """CRC-32 of the record from `position` to `end`: zlib's numbers, by carry-less multiplication at 20 GB/s."""
    return crc32(view[position + HEADER_BYTES : end], crc32(view[position : position + _CHECKED_BYTES]))


def never_whole(descriptor: int, offset: int, size: int) -> bool:
    """Whether the record at `offset`, whose end is not in the file of `size` bytes yet, has what it cannot have.

    A length that a disk made larger: then the next record is in its payload, with line ends that it does not count.
    Raises OSError.
    """
    data = os.pread(descriptor, min(HEADER_BYTES + PAYLOAD_BYTES_MAX, size - offset), offset)
    return len(data) >= HEADER_BYTES and not _fits(header_at(data, 0), data[HEADER_BYTES:])


def find_next(
    descriptor: int, damaged: int, *, last_sequence: int, start: int, size: int, sealed: bool
) -> Found | Unfinished | GivenUp | None:
    """The next whole record from `start` on in a journal of `size` bytes whose record at `damaged` is none.

    Its sequence is above `last_sequence`, that of the last entry before `damaged`. None: there is none yet, or, when
    `sealed`, never will be. Raises OSError.
    """
    search = _Search(descriptor, last_sequence, size, sealed=sealed)
    try:
        return search.behind_header(damaged) or search.anywhere(start)
    except _Exhausted:
        return GivenUp()


class _Search:
    """One search; `read` counts what it looks at."""

    def __init__(self, descriptor: int, last_sequence: int, size: int, *, sealed: bool) -> None:
        self._descriptor = descriptor
        self._last_sequence = last_sequence
        self._size = size
        self._sealed = sealed
        self._left = SEARCH_BYTES_MAX

    def behind_header(self, damaged: int) -> Found | Unfinished | None:
        """The record that follows, should the header at `damaged` be right about its length."""
        data = self._read(damaged, HEADER_BYTES)
        if len(data) < HEADER_BYTES:
            return None
        header = header_at(data, 0)
        end = damaged + HEADER_BYTES + header.length
        if header.problem or header.sequence != self._last_sequence + 1 or end > self._size:
            return None
        found = self._judge(end)
        return None if isinstance(found, Found) and found.header.sequence != header.sequence + header.lines else found

    def anywhere(self, start: int) -> Found | Unfinished | None:
        """The first record from `start` on."""
        for position in self._magics(start):
            found = self._judge(position)
            if found is not None:
                return found
        return None

    def _magics(self, start: int) -> Iterator[int]:
        while start < self._size:
            piece = self._read(start, _PIECE_BYTES)
            at = piece.find(MAGIC)
            while at >= 0:
                yield start + at
                at = piece.find(MAGIC, at + 1)
            if start + len(piece) >= self._size or len(piece) < len(MAGIC):
                return
            start += len(piece) - len(MAGIC) + 1

    def _judge(self, position: int) -> Found | Unfinished | None:
        data = self._read(position, HEADER_BYTES)
        if len(data) < HEADER_BYTES:
            begins = MAGIC.startswith(data[: len(MAGIC)])
            return self._unfinished(position, data, position + HEADER_BYTES) if begins else None
        header = header_at(data, 0)
        if not _believable(header, self._last_sequence):
            return None
        end = position + HEADER_BYTES + header.length
        bytes_needed = end
        if header.type == RecordType.EXIT:
            if end < self._size:
                return None  # nothing is written behind an EXIT: the job has printed this one
            bytes_needed += not self._sealed  # and it may have printed this one, too, while its monitor lives
        if bytes_needed > self._size:
            begun = self._read(position, HEADER_BYTES + header.length)[HEADER_BYTES:]
            return self._unfinished(position, data, bytes_needed) if _fits(header, begun) else None
        return Found(position, header) if self._is_whole(position, header) else None

    def _is_whole(self, position: int, header: Header) -> bool:
        record = self._read(position, HEADER_BYTES + header.length)
        if len(record) < HEADER_BYTES + header.length:
            return False
        right = checksum_of(memoryview(record), 0, len(record)) == header.crc
        return right and _fits(header, record[HEADER_BYTES:])

    def _unfinished(self, position: int, data: bytes, bytes_needed: int) -> Unfinished | None:
        return None if self._sealed else Unfinished(position, data, bytes_needed)

    def _read(self, offset: int, length: int) -> bytes:
        self._left -= max(length, _LOOK_BYTES)
        if self._left < 0:
            raise _Exhausted
        return os.pread(self._descriptor, min(length, max(0, self._size - offset)), offset)


def _believable(header: Header, last_sequence: int) -> bool:
    """Whether a monitor can have written such a header behind `last_sequence`."""
    if header.problem or header.sequence <= last_sequence or header.flags not in (Flags.NONE, Flags.PARTIAL):
        return False
    if header.sequence - last_sequence > _MISSING_MAX or header.time_ns > _INTEGER_MAX:
        return False
    if header.type == RecordType.OUTPUT:
        return header.stream in (Stream.STDOUT, Stream.STDERR) and header.lines >= 1
    if header.stream != Stream.NONE or header.flags:
        return False
    return header.lines >= 1 if header.type == RecordType.GAP else header.lines == 0


def _fits(header: Header, payload: bytes) -> bool:
    """Whether a payload that begins so, or is so when it has its length, can be what the header says."""
    if header.type != RecordType.OUTPUT or header.flags == Flags.PARTIAL:
        return b"\n" not in payload and (header.type != RecordType.OUTPUT or header.lines == 1)
    line_ends = payload.count(b"\n")
    if line_ends < header.lines:
        return len(payload) < header.length
    return 0 < line_ends == header.lines and payload.rfind(b"\n") == header.length - 1
