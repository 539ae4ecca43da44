"""The gzip members of a stored file: each whole one with what its header says, and each stretch of bytes that is none.

Independent of the persist service on purpose: it answers to docs/storage-format.md and RFC 1952, not to the code that
wrote the file. Memory is bounded by one member, whatever a file holds. Not here: what the text says (`storedlog.py`).
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, TypeAlias

HEADER_BYTES: Final = 64
INFLATED_BYTES_MAX: Final = 32 * 2**20
MEMBER_BYTES_MAX: Final = INFLATED_BYTES_MAX + 2**20
SEARCHED_BYTES: Final = 256 * 1024
_HEADER: Final = struct.Struct("<16sIIIQQqqI")
_PREFIX: Final = bytes.fromhex("1f8b0804 00000000 00ff 3400") + b"JL" + (48).to_bytes(2, "little")
"""gzip, deflate, FEXTRA; no time; no flags, unknown system; 52 bytes of extra fields, of which 48 are ours."""
_GZIP: Final = 16 + zlib.MAX_WBITS


class Header(NamedTuple):
    """What a member says of itself. An end mark has no lines, and the job's last sequence."""

    member_bytes: int
    inflated_bytes: int
    lines: int
    first_sequence: int
    last_sequence: int
    first_time_ns: int
    last_time_ns: int


class Member(NamedTuple):
    """A member whose checksum holds, and its text."""

    offset: int
    header: Header
    text: bytes


class Damage(NamedTuple):
    """Bytes `first` to `last` of the file are no whole member of joblet's."""

    first: int
    last: int
    why: str


Part: TypeAlias = Member | Damage


def members(path: Path) -> Iterator[Part]:
    """All of a file, in order; behind what is damaged it goes on at the next member. Raises OSError."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        offset = 0
        while offset < size:
            part = _part_at(file, offset, size)
            yield part
            offset = part.last + 1 if isinstance(part, Damage) else offset + part.header.member_bytes


def _part_at(file: BinaryIO, offset: int, size: int) -> Part:
    header = _header(_read(file, offset, HEADER_BYTES))
    if header is None:
        return Damage(offset, _next_header(file, offset + 1, size) - 1, "no header of a member begins there")
    end = offset + header.member_bytes
    if end > size:
        why = "the member is cut off"
    else:
        text, why = _inflated(_read(file, offset, header.member_bytes), header)
        if not why:
            return Member(offset, header, text)
    # When bytes were lost or added, the next member does not begin where this one says that it ends.
    behind = _next_header(file, offset + 1, min(end, size))
    return Damage(offset, behind - 1, why)


def _inflated(content: bytes, header: Header) -> tuple[bytes, str]:
    """The text, or why there is none."""
    inflater = zlib.decompressobj(_GZIP)
    try:
        text = inflater.decompress(content, header.inflated_bytes + 1)
        if len(text) <= header.inflated_bytes and not inflater.eof:  # all is out, and the trailer is not looked at yet
            text += inflater.decompress(inflater.unconsumed_tail, header.inflated_bytes + 1 - len(text))
    except zlib.error as cause:
        return b"", f"the member is damaged ({cause})"
    if not inflater.eof or inflater.unused_data or len(text) != header.inflated_bytes:
        return b"", "the member holds something else than its header says"
    return text, ""


def _header(buffer: bytes) -> Header | None:
    if len(buffer) < HEADER_BYTES:
        return None
    prefix, *fields, crc = _HEADER.unpack(buffer[:HEADER_BYTES])
    header = Header(*fields)
    if prefix != _PREFIX or zlib.crc32(buffer[: HEADER_BYTES - 4]) != crc:
        return None
    sensible = HEADER_BYTES < header.member_bytes <= MEMBER_BYTES_MAX and header.inflated_bytes <= INFLATED_BYTES_MAX
    return header if sensible else None


def _next_header(file: BinaryIO, offset: int, end: int) -> int:
    """Where the next whole header begins, at `offset` or behind and before `end`; `end` if nowhere."""
    while offset < end:
        window = _read(file, offset, SEARCHED_BYTES + HEADER_BYTES)
        at = window.find(_PREFIX)
        while 0 <= at < SEARCHED_BYTES:
            if _header(window[at : at + HEADER_BYTES]) is not None:
                return min(offset + at, end)
            at = window.find(_PREFIX, at + 1)
        offset += SEARCHED_BYTES
    return end


def _read(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)
