r"""Journal records to JSON lines and back: the text inside the members of a log file. Pure.

    {"timestamp":ns,"sequence":n,"stream":"stdout","content":"…"}              a line; "content_b64" if it is not UTF-8
    {"timestamp":ns,"sequence":n,"stream":"stdout","content":"…","partial":true}      no line end follows
    {"timestamp":ns,"sequence":first,"stream":"none","gap":lines,"gap_bytes":n,"reason":"…"}

A line ends at b"\n" and nowhere else; the content is without it, a b"\r" before it stays. Everything is done by the
batch: this is where persist spends its time. Not here: members (member.py) and how readers get runs (runs.py).
"""

import binascii
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from common.records import Flags, Record, RecordType, Stream
from services.persist.member import Span

STREAM_NAMES: Final = {Stream.NONE: "none", Stream.STDOUT: "stdout", Stream.STDERR: "stderr"}
"""A gap may be of no stream: nobody knows which of them the missing entries were of."""
CHUNK_LINES: Final = 4096
CHUNK_BYTES: Final = 256 * 1024
"""Lines are encoded in chunks of about so much output: it stays in the cache, and a member in bounds."""
INTEGER_MAX: Final = 2**63 - 1
_REASON_CHARACTERS: Final = 200


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
    content_b64: str = ""
    partial: bool = False
    gap: int = 0
    gap_bytes: int = 0
    reason: str = ""

    @property
    def raw(self) -> bytes:
        """The bytes of the line, without its end."""
        return binascii.a2b_base64(self.content_b64) if self.content is None else self.content.encode()


class _TextLine(msgspec.Struct, frozen=True, gc=False):
    timestamp: int
    sequence: int
    stream: str
    content: str


class _GapDetail(msgspec.Struct, frozen=True):
    bytes: int = 0
    reason: str = ""


_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(Entry)
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
        yield _chunk(_slow_text([payload], record.time_ns, record.sequence, name, partial=True), record, 0, 1)
        return
    step = max(1, min(CHUNK_LINES, record.lines * CHUNK_BYTES // (len(payload) or 1)))
    try:
        lines = payload.decode().split("\n")
    except UnicodeDecodeError:
        raw_lines = payload.split(b"\n")
        for first in range(skip, record.lines, step):
            last = min(first + step, record.lines)
            text = _slow_text(raw_lines[first:last], record.time_ns, record.sequence + first, name)
            yield _chunk(text, record, first, last)
        return
    for first in range(skip, record.lines, step):
        last = min(first + step, record.lines)
        yield _chunk(_text(lines[first:last], record.time_ns, record.sequence + first, name), record, first, last)


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


def escaped(text: str) -> bytes:
    """`text` as it stands inside a JSON string of ours: every character is escaped on its own."""
    return _encoder.encode(text)[1:-1]


def _chunk(text: bytes, record: Record, first: int, last: int) -> Chunk:
    sequence = record.sequence + first
    return Chunk(text, Span(last - first, sequence, record.sequence + last - 1, record.time_ns, record.time_ns))


def _text(lines: list[str], time_ns: int, sequence: int, name: str) -> bytes:
    return _encoder.encode_lines([_TextLine(time_ns, n, name, line) for n, line in enumerate(lines, sequence)])


def _slow_text(lines: list[bytes], time_ns: int, sequence: int, name: str, *, partial: bool = False) -> bytes:
    """Line by line: some of these are not UTF-8, or one goes on."""
    entries = []
    for number, line in enumerate(lines, sequence):
        try:
            content, content_b64 = line.decode(), ""
        except UnicodeDecodeError:
            content, content_b64 = None, binascii.b2a_base64(line, newline=False).decode()
        entries.append(Entry(time_ns, number, name, content, content_b64, partial))
    return _encoder.encode_lines(entries)


def _gap_chunk(record: Record, name: str, skip: int) -> Chunk:
    try:
        detail = _gap_decoder.decode(record.payload)
    except msgspec.DecodeError:
        detail = _GapDetail(reason="unknown")
    return gap_chunk(
        name,
        time_ns=record.time_ns,
        sequence=record.sequence + skip,
        lines=record.lines - skip,
        gap_bytes=max(0, min(detail.bytes, INTEGER_MAX)),
        reason=detail.reason[:_REASON_CHARACTERS] or "unknown",
    )
