r"""Journal records to JSON lines and back: the text inside the members of a log file. Pure.

    {"timestamp":ns,"sequence":n,"stream":"stdout","content":"…"}              a line; "content_b64" if it is not UTF-8
    {"timestamp":ns,"sequence":n,"stream":"stdout","content":"…","partial":true}      no line end follows
    {"timestamp":ns,"sequence":first,"stream":"none","gap":lines,"gap_bytes":n,"reason":"…"}

A line ends at b"\n" and nowhere else; the content is without it, a b"\r" before it stays. Everything is done by the
batch: this is where persist spends its time. Not here: members (member.py) and how readers get runs (runs.py).
"""

import functools
import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from common.records import Flags, Record, RecordType, Stream
from services.persist.member import Span

STREAM_NAMES: Final = {Stream.NONE: "none", Stream.STDOUT: "stdout", Stream.STDERR: "stderr"}
"""A gap may be of no stream: nobody knows which of them the missing entries were of."""
CHUNK_LINES: Final = 4096
CHUNK_BYTES: Final = 128 * 1024
"""Lines are encoded in chunks of at most about so much of what the job wrote: it stays in the cache, and a member in
bounds."""
INTEGER_MAX: Final = 2**63 - 1
BINARY_MARK: Final = '_b64":'
"""In a text of ours only where the content of a line is not UTF-8: a quotation mark inside of content is escaped."""
GAP_MARK: Final = '"gap":'
"""Likewise, only in the line of a gap."""
_REASON_CHARACTERS: Final = 200
GAP_TEXT_BYTES_MAX: Final = 1536
"""The line of a gap is no longer: a character is at most six bytes, and the rest has fewer than 200."""
_SOME: Final = 4
"""Of so many lines one or more: all are decoded, which is no slower than decoding some and joining them before."""


class RefusedRecord(Exception):
    """A record whose checksum holds and whose content makes no sense."""


class Chunk(NamedTuple):
    """JSON lines, and what they stand for."""

    text: bytes
    span: Span


class Entry(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One JSON line. `gap` is 0 unless the line stands for so many missing entries."""

    timestamp: int
    sequence: int
    stream: str = ""
    content: str | None = None
    content_b64: bytes = b""  # msgspec writes bytes as base64, and reads them back
    partial: bool = False
    gap: int = 0
    gap_bytes: int = 0
    reason: str = ""

    @property
    def raw(self) -> bytes:
        """The bytes of the line, without its end."""
        return self.content_b64 if self.content is None else self.content.encode()


class _TextLine(msgspec.Struct, frozen=True, gc=False):
    timestamp: int
    sequence: int
    stream: str
    content: str


class _TextPiece(_TextLine, frozen=True, gc=False):
    partial: bool = True


class _BinaryLine(msgspec.Struct, frozen=True, gc=False):
    timestamp: int
    sequence: int
    stream: str
    content_b64: bytes


class _BinaryPiece(_BinaryLine, frozen=True, gc=False):
    partial: bool = True


class _WholeLine(msgspec.Struct, frozen=True, gc=False):
    """The content of a line and nothing else; what is partial or a gap is refused by the decoder."""

    content: str | None = None
    content_b64: bytes = b""
    partial: None = None
    gap: None = None


class _GapDetail(msgspec.Struct, frozen=True):
    bytes: int = 0
    reason: str = ""


_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(Entry)
_whole_line_decoder: Final = msgspec.json.Decoder(_WholeLine)
_surely_not_utf8: Final = re.compile(
    rb"[\xc0\xc1\xf5-\xff]|^[\x80-\xbf]|[\x00-\x7f][\x80-\xbf]|[\xc2-\xf4][\x00-\x7f\xc2-\xf4]"
).search
"""Bytes that are never in UTF-8, and in the wrong order (RFC 3629, section 4). Not every order: decoding decides."""
_OFTEN_ESCAPED: Final = (b'"', b"\\", b"\t", b"\x1b")
"""Looked for first, each at the speed of memchr(3). What is rarer is found by comparing lengths."""
_BLOCK: Final = 1000
_gap_decoder: Final = msgspec.json.Decoder(_GapDetail)


def check(record: Record) -> None:
    """Raises `RefusedRecord` for a record that the sender cannot have meant."""
    if record.last_sequence > INTEGER_MAX or record.time_ns > INTEGER_MAX or record.sequence < 1:
        raise RefusedRecord(f"sequence {record.sequence} or time {record.time_ns} out of range")
    match record.type:
        case RecordType.START | RecordType.EXIT:
            if record.lines:
                raise RefusedRecord(f"a START or EXIT record with {record.lines} lines")
        case RecordType.OUTPUT:
            _check_output(record)
        case RecordType.GAP:
            if record.lines < 1 or record.stream not in STREAM_NAMES:
                raise RefusedRecord(f"a GAP record with {record.lines} lines of stream {record.stream}")
        case _:
            raise RefusedRecord(f"record type {record.type}")


def _check_output(record: Record) -> None:
    if record.stream not in (Stream.STDOUT, Stream.STDERR):
        raise RefusedRecord(f"output of stream {record.stream}")
    payload = bytes(record.payload)
    ends = payload.count(b"\n")
    if record.partial:
        if record.lines != 1 or ends:
            raise RefusedRecord(f"a PARTIAL record with {record.lines} lines and {ends} line ends")
    elif record.lines < 1 or ends != record.lines or not payload.endswith(b"\n"):
        raise RefusedRecord(f"an OUTPUT record of {record.lines} lines with {ends} line ends")


def encode(record: Record, *, skip: int = 0) -> Iterator[Chunk]:
    """The JSON lines of a checked OUTPUT or GAP record, without its first `skip` entries."""
    assert 0 <= skip < record.lines
    name = STREAM_NAMES[Stream(record.stream)]
    if record.type == RecordType.GAP:
        yield _gap_chunk(record, name, skip)
        return
    payload = bytes(record.payload)
    if record.flags & Flags.PARTIAL:
        yield _chunk(_piece(payload, record.time_ns, record.sequence, name), record, 0, 1)
        return
    first = skip
    for piece in _pieces(payload.split(b"\n", skip)[skip], CHUNK_LINES * len(payload) // record.lines):
        text, lines = _lines_text(piece, record.time_ns, record.sequence + first, name)
        yield _chunk(text, record, first, first + lines)
        first += lines


def gap_chunk(name: str, *, time_ns: int, sequence: int, lines: int, gap_bytes: int, reason: str) -> Chunk:
    """One JSON line that stands for `lines` missing entries from `sequence` on."""
    entry = {
        "timestamp": time_ns,
        "sequence": sequence,
        "stream": name,
        "gap": lines,
        "gap_bytes": gap_bytes,
        "reason": reason,
    }
    return Chunk(_encoder.encode(entry) + b"\n", Span(lines, sequence, sequence + lines - 1, time_ns, time_ns))


def decode(text: bytes) -> list[Entry]:
    """The entries in a member's text. Raises `msgspec.DecodeError` when it is not ours."""
    return _decoder.decode_lines(text)


def decode_data(text: bytes, *, count: int) -> bytes | None:
    """What the job wrote, of a text of `count` whole lines; None when it is not that, or not ours.

    Twice as fast as `decode`, which makes objects of every time and sequence only for them to be compared.
    """
    try:
        found = _whole_line_decoder.decode_lines(text)
    except msgspec.DecodeError:
        return None
    if len(found) != count:
        return None
    try:
        # The empty last one makes the last line end: adding it afterwards would copy all.
        return "\n".join([*[line.content for line in found], ""]).encode()  # type: ignore[list-item]
    except TypeError:  # a None among them: a line that is not UTF-8
        return b"\n".join(
            [*[line.content_b64 if line.content is None else line.content.encode() for line in found], b""]
        )


def decode_some(text: bytes, numbers: Sequence[int]) -> list[Entry]:
    """The entries on the lines with these rising numbers, from 0. Raises `msgspec.DecodeError`."""
    if not numbers:
        return []
    rows = text.split(b"\n")
    if len(numbers) * _SOME >= len(rows):
        entries = decode(text)
        return [entries[number] for number in numbers]
    return decode(b"\n".join([rows[number] for number in numbers]))


def escaped(text: str) -> bytes:
    """`text` as it stands inside a JSON string of ours: every character is escaped on its own."""
    return _encoder.encode(text)[1:-1]


def _chunk(text: bytes, record: Record, first: int, last: int) -> Chunk:
    sequence = record.sequence + first
    return Chunk(text, Span(last - first, sequence, record.sequence + last - 1, record.time_ns, record.time_ns))


def _pieces(payload: bytes, bytes_max: int) -> Iterator[bytes]:
    """Whole lines of about `bytes_max` or CHUNK_BYTES, at least one."""
    start, size = 0, max(1, min(bytes_max, CHUNK_BYTES))
    while start < len(payload):
        end = payload.rfind(b"\n", start, start + size) + 1 or payload.index(b"\n", start) + 1
        yield payload[start:end]
        start = end


def _lines_text(piece: bytes, time_ns: int, sequence: int, name: str) -> tuple[bytes, int]:
    """The JSON lines of the lines in `piece`, and how many they are."""
    raw_lines = piece.split(b"\n")
    raw_lines.pop()
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return _mixed_text(raw_lines, time_ns, sequence, name), len(raw_lines)
    if _is_plain(piece, text, len(raw_lines)):
        return _plain_text(raw_lines, time_ns, sequence, name), len(raw_lines)
    lines = text.split("\n")
    lines.pop()
    return _text(lines, time_ns, sequence, name), len(lines)


def _is_plain(piece: bytes, text: str, lines: int) -> bool:
    """True when nothing but the line ends is escaped in JSON: each of them is two characters there."""
    if any(often in piece for often in _OFTEN_ESCAPED):
        return False
    return len(_encoder.encode(text)) == len(piece) + lines + len('""')


def _plain_text(lines: list[bytes], time_ns: int, sequence: int, name: str) -> bytes:
    """The same as `_text` for lines that stand in JSON as they are, in half the time: without an object for each.

    All between two contents is the same but for the sequence. Of that all but the last three digits change once in a
    block, and those with what follows them are in a table.
    """
    between = b'"}\n{"timestamp":%d,"sequence":' % time_ns
    parts: list[bytes] = []
    first = 0
    while first < len(lines):
        block, number = divmod(sequence + first, _BLOCK)
        count = min(_BLOCK - number, len(lines) - first)
        three = [between + b"%d" % block if block else between] * (3 * count)
        three[1::3] = _last_digits(name, padded=block > 0)[number : number + count]
        three[2::3] = lines[first : first + count]
        parts += three
        first += count
    parts[0] = parts[0].removeprefix(b'"}\n')
    parts.append(b'"}\n')
    return b"".join(parts)


@functools.cache
def _last_digits(name: str, *, padded: bool) -> list[bytes]:
    return [
        b'%b,"stream":"%b","content":"' % ((b"%03d" if padded else b"%d") % number, name.encode())
        for number in range(_BLOCK)
    ]


def _text(lines: list[str], time_ns: int, sequence: int, name: str) -> bytes:
    return _encoder.encode_lines([_TextLine(time_ns, n, name, line) for n, line in enumerate(lines, sequence)])


def _mixed_text(lines: list[bytes], time_ns: int, sequence: int, name: str) -> bytes:
    """Some of these are not UTF-8: each is text if it can be."""
    entries: list[_TextLine | _BinaryLine] = []
    for number, line in enumerate(lines, sequence):
        # Decoding says by an exception that it cannot; with this search before it, random bytes take a third less time.
        if not line.isascii() and _surely_not_utf8(line):
            entries.append(_BinaryLine(time_ns, number, name, line))
            continue
        try:
            entries.append(_TextLine(time_ns, number, name, line.decode()))
        except UnicodeDecodeError:
            entries.append(_BinaryLine(time_ns, number, name, line))
    return _encoder.encode_lines(entries)


def _piece(payload: bytes, time_ns: int, sequence: int, name: str) -> bytes:
    try:
        return _encoder.encode_lines([_TextPiece(time_ns, sequence, name, payload.decode())])
    except UnicodeDecodeError:
        return _encoder.encode_lines([_BinaryPiece(time_ns, sequence, name, payload)])


def _gap_chunk(record: Record, name: str, skip: int) -> Chunk:
    try:
        detail = _gap_decoder.decode(record.payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        detail = _GapDetail(reason="unknown")
    return gap_chunk(
        name,
        time_ns=record.time_ns,
        sequence=record.sequence + skip,
        lines=record.lines - skip,
        gap_bytes=max(0, min(detail.bytes, INTEGER_MAX)),
        reason=detail.reason[:_REASON_CHARACTERS] or "unknown",
    )
