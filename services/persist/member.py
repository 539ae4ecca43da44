"""One gzip member of a stored file: its header, its making, its opening. Pure: bytes in, bytes out.

A stored file is a series of members (RFC 1952, section 2.2), so `zcat`, `gzip -t` and `jq` read it as it is. Each
member has one extra subfield "JL", which makes its header exactly 64 bytes, little-endian:

    offset size
         0    4  1f 8b 08 04    gzip, deflate, FEXTRA
         4    4  mtime          0: not available
         8    2  xfl, os        0, 255: unknown
        10    2  xlen           52
        12    4  "JL", 48       subfield id and length
        16    4  member_bytes   of the whole member, header and trailer included
        20    4  inflated_bytes of the text in it
        24    4  lines          entries that the text stands for
        28    8  first_sequence
        36    8  last_sequence
        44    8  first_time_ns  lowest time in the text
        52    8  last_time_ns   highest time in the text
        60    4  crc            CRC-32 of bytes 0..59

FHCRC would guard the header, too, but older gzip programs refuse it. docs/storage-format.md is the authority.
What the text says is the business of lines.py and samples.py, files are that of segment.py.
"""

import struct
import zlib
from typing import Final, NamedTuple

from isal import igzip_lib, isal_zlib

HEADER_BYTES: Final = 64
TRAILER: Final = struct.Struct("<II")
INFLATED_BYTES_MAX: Final = 32 * 2**20
"""No member of ours is larger: a record has at most 2 MiB, and JSON writes a byte in at most six. What declares more is
damaged or hostile, and is not opened."""
MEMBER_BYTES_MAX: Final = INFLATED_BYTES_MAX + 2**20

_HEADER: Final = struct.Struct("<4sIBBH2sHIIIQQqqI")
_PARSED: Final = struct.Struct("<16sIIIQQqqI")
"""The same, with all in one that never changes."""
_MAGIC: Final = b"\x1f\x8b\x08\x04"
_SUBFIELD: Final = b"JL"
_EXTRA_BYTES: Final = HEADER_BYTES - 12
_SUBFIELD_BYTES: Final = _EXTRA_BYTES - 4
_PREFIX: Final = _HEADER.pack(_MAGIC, 0, 0, 255, _EXTRA_BYTES, _SUBFIELD, _SUBFIELD_BYTES, *[0] * 8)[:16]
_MEMBER_BYTES_MIN: Final = HEADER_BYTES + 2 + TRAILER.size  # an empty deflate stream has two bytes
_RAW_DEFLATE: Final = -15
_LINES_MAX: Final = 2**32 - 1
_SEQUENCE_MAX: Final = 2**63 - 1
"""Of what index.py can count; ingest takes no more (lines.py, INTEGER_MAX)."""


class DamagedMember(Exception):
    """A member whose header is whole and whose content is not."""


class Span(NamedTuple):
    """What the text of a member stands for. `lines` 0 with `first_sequence` = `last_sequence` + 1: an end mark."""

    lines: int
    first_sequence: int
    last_sequence: int
    first_time_ns: int
    last_time_ns: int


class Header(NamedTuple):
    """The header of one member."""

    member_bytes: int
    inflated_bytes: int
    span: Span


def build(text: bytes, span: Span, *, level: int) -> bytes:
    """The member that holds `text`, compressed at isal's `level` (0 fastest to 3 smallest)."""
    assert len(text) <= INFLATED_BYTES_MAX, len(text)
    deflated: bytes = igzip_lib.compress(text, level, igzip_lib.COMP_DEFLATE)
    member_bytes = HEADER_BYTES + len(deflated) + TRAILER.size
    span = span._replace(lines=min(span.lines, _LINES_MAX))  # a gap line may stand for more
    fields = (_MAGIC, 0, 0, 255, _EXTRA_BYTES, _SUBFIELD, _SUBFIELD_BYTES, member_bytes, len(text), *span)
    checked = _HEADER.pack(*fields, 0)[:-4]
    header = checked + zlib.crc32(checked).to_bytes(4, "little")
    return b"".join((header, deflated, TRAILER.pack(isal_zlib.crc32(text), len(text))))


def end_mark(last_sequence: int, time_ns: int) -> bytes:
    """An empty member that says: the job ended, `last_sequence` was its last."""
    return build(b"", Span(0, last_sequence + 1, last_sequence, time_ns, time_ns), level=1)


def parse_header(buffer: bytes | memoryview, offset: int = 0) -> Header | None:
    """The header at `offset`, or None where no whole and sensible header of ours stands."""
    if len(buffer) - offset < HEADER_BYTES:
        return None
    prefix, member_bytes, inflated_bytes, lines, first, last, first_ns, last_ns, crc = _PARSED.unpack_from(
        buffer, offset
    )
    if prefix != _PREFIX or zlib.crc32(buffer[offset : offset + HEADER_BYTES - 4]) != crc:
        return None
    if not _MEMBER_BYTES_MIN <= member_bytes <= MEMBER_BYTES_MAX or inflated_bytes > INFLATED_BYTES_MAX:
        return None
    if first > _SEQUENCE_MAX or last > _SEQUENCE_MAX:
        return None
    return Header(member_bytes, inflated_bytes, Span(lines, first, last, first_ns, last_ns))


def find_header(buffer: bytes, offset: int) -> int:
    """Where the next header of ours begins at or behind `offset`; -1 if nowhere in `buffer`."""
    while (offset := buffer.find(_PREFIX, offset)) >= 0:
        if parse_header(buffer, offset) is not None:
            return offset
        offset += 1
    return -1


def inflate(content: bytes, header: Header) -> bytes:
    """The text of the member `content`. Raises `DamagedMember`; never makes more than the header declares."""
    if len(content) != header.member_bytes or parse_header(content) != header:
        raise DamagedMember("the header is not the one that was indexed")
    inflater = isal_zlib.decompressobj(_RAW_DEFLATE)
    try:
        text: bytes = inflater.decompress(memoryview(content)[HEADER_BYTES:], header.inflated_bytes + 1)
        if len(text) <= header.inflated_bytes and not inflater.eof:
            text += inflater.decompress(inflater.unconsumed_tail, header.inflated_bytes + 1 - len(text))
    except isal_zlib.error as cause:  # type: ignore[misc]  # the stub forgets that it is an exception
        raise DamagedMember(f"inflating failed: {cause}") from cause
    crc, size = TRAILER.unpack_from(content, len(content) - TRAILER.size)
    if not inflater.eof or len(inflater.unused_data) != TRAILER.size:
        raise DamagedMember("the compressed data does not end where the member does")
    if len(text) != header.inflated_bytes or size != len(text) or isal_zlib.crc32(text) != crc:
        raise DamagedMember("the checksum does not match")
    return text
