"""The record: how a job's output is framed from its monitor to its last reader.

A journal is a run of records, appended by the job's monitor and by nobody else. The same bytes travel on the topic
`log.<job-id>` and to persist; nothing re-encodes them. docs/protocol.md is the authority on the format.

Only the standard library is needed here: the monitor runs without site-packages.

Layout of a record, little-endian, 36 bytes of header and then `length` bytes of payload:

    offset size
         0    4  magic      b"JLR1"
         4    1  type       START, OUTPUT, EXIT, GAP
         5    1  stream     0 none, 1 stdout, 2 stderr
         6    2  flags      PARTIAL
         8    8  time_ns    wall clock, Unix nanoseconds
        16    8  sequence   of the first entry; START and EXIT: of the entry that would come next
        24    4  lines      number of entries; 0 for START and EXIT
        28    4  length     bytes of payload
        32    4  crc        CRC-32 (zlib) of bytes 0..31 and the payload
        36       payload    OUTPUT: the bytes as the job wrote them; others: a JSON object in UTF-8

An entry is a line, or a PARTIAL piece of one: a PARTIAL record holds exactly one entry, and no line end follows it.
Sequences count entries over both streams, from 1, without a hole: a GAP record stands for the entries it names.
"""

import struct
from collections.abc import Iterator
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

try:
    from isal.isal_zlib import crc32  # the same numbers, many times as fast
except ImportError:
    from zlib import crc32  # in the monitor

MAGIC: Final = b"JLR1"
HEADER: Final = struct.Struct("<4sBBHQQIII")
_CHECKED: Final = struct.Struct("<4sBBHQQII")
HEADER_BYTES: Final = HEADER.size
PAYLOAD_BYTES_MAX: Final = 2 * 1024 * 1024
PARTIAL_BYTES: Final = 64 * 1024
"""A line is cut into PARTIAL pieces of this many bytes."""


class RecordType(IntEnum):
    """What a record tells."""

    START = 1
    OUTPUT = 2
    EXIT = 3
    GAP = 4


class Stream(IntEnum):
    """Which of the job's outputs a record belongs to; the numbers are those of the file descriptors."""

    NONE = 0
    STDOUT = 1
    STDERR = 2


class Flags(IntFlag):
    """Properties of a record."""

    NONE = 0
    PARTIAL = 1


class Record(NamedTuple):
    """One decoded record. `payload` shares memory with the buffer it was decoded from."""

    type: int
    stream: int
    flags: int
    time_ns: int
    sequence: int
    lines: int
    payload: memoryview

    @property
    def partial(self) -> bool:
        """True when no line end follows the last entry."""
        return bool(self.flags & Flags.PARTIAL)

    @property
    def last_sequence(self) -> int:
        """Sequence of the last entry; of a record without entries: of the entry before it."""
        return self.sequence + self.lines - 1


class CorruptRecord(Exception):
    """The bytes at `offset` are not a record: `detail` says what is wrong with them."""

    def __init__(self, offset: int, detail: str) -> None:
        super().__init__(f"corrupt record at byte {offset}: {detail}")
        self.offset = offset
        self.detail = detail


def encode(
    kind: RecordType,
    payload: bytes,
    *,
    time_ns: int,
    sequence: int,
    lines: int = 0,
    stream: Stream = Stream.NONE,
    flags: Flags = Flags.NONE,
) -> bytes:
    """One record, header and payload."""
    assert len(payload) <= PAYLOAD_BYTES_MAX
    checked = _CHECKED.pack(MAGIC, kind, stream, flags, time_ns, sequence, lines, len(payload))
    return b"%b%b%b" % (checked, crc32(payload, crc32(checked)).to_bytes(4, "little"), payload)


def decode(buffer: memoryview, offset: int = 0) -> tuple[Record, int] | None:
    """The record at `offset` of `buffer` and the offset behind it.

    None: the buffer ends before the record does. Raises `CorruptRecord` when no such record can begin there or its
    checksum does not match.
    """
    if len(buffer) - offset < HEADER_BYTES:
        return None
    magic, kind, stream, flags, time_ns, sequence, lines, length, crc = HEADER.unpack_from(buffer, offset)
    if magic != MAGIC:
        raise CorruptRecord(offset, f"magic is {magic!r}")
    if length > PAYLOAD_BYTES_MAX:
        raise CorruptRecord(offset, f"length {length} is over {PAYLOAD_BYTES_MAX}")
    end = offset + HEADER_BYTES + length
    if len(buffer) < end:
        return None
    payload = buffer[offset + HEADER_BYTES : end]
    if crc32(payload, crc32(buffer[offset : offset + _CHECKED.size])) != crc:
        raise CorruptRecord(offset, "checksum does not match")
    return Record(kind, stream, flags, time_ns, sequence, lines, payload), end


def decode_all(buffer: bytes | memoryview) -> Iterator[Record]:
    """Every record of `buffer`, which must hold whole records only. Raises `CorruptRecord`."""
    view = memoryview(buffer)
    offset = 0
    while offset < len(view):
        decoded = decode(view, offset)
        if decoded is None:
            raise CorruptRecord(offset, "cut off")
        record, offset = decoded
        yield record
