"""Chunks and batches: output on its way to clients, and cutting it exactly at entries. Pure.

Belongs here: reading live records, cutting by sequence, encoding. Does not belong here: what a client wants of it
(`selection.py`), who gets what when (`machine.py`, `follower.py`). An entry is a line, or a piece of one without a
line end.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Final, NamedTuple, cast

import msgspec

from common import records
from proto.joblet.v1 import job_pb2, persist_pb2

BATCH_BYTES: Final = 256 * 1024
"""A batch is closed when it has so many bytes, and a record that has more is cut at line ends. So a message stays far
below the 4 MiB that a gRPC client accepts by default, and costs little while a client does not read it."""
CHUNK_OVERHEAD_BYTES: Final = 64
LARGE_DATA_BYTES: Final = 16 * 1024
INTEGER_MAX: Final = 2**63 - 1
"""Of sequences and times: what clients are told of them has 64 bits with a sign."""
LINES_MAX: Final = 2**32 - 1
"""Entries of one chunk, as a message counts them."""
_LENGTH_DELIMITED: Final = 2
_CHUNKS_TAG: Final = bytes([job_pb2.StreamLogsResponse.CHUNKS_FIELD_NUMBER << 3 | _LENGTH_DELIMITED])
_DATA_TAG: Final = bytes([job_pb2.LogChunk.DATA_FIELD_NUMBER << 3 | _LENGTH_DELIMITED])


class Chunk(NamedTuple):
    """Consecutive entries of one stream, written at one time; or, with a `gap_reason`, a hole where they were."""

    stream: int
    first: int
    lines: int
    time_ns: int
    data: bytes
    partial: bool
    gap_reason: str = ""
    gap_bytes: int = 0

    @property
    def last(self) -> int:
        """Sequence of the last entry."""
        return self.first + self.lines - 1

    def entries(self) -> list[bytes]:
        """Each entry with its line end. Raises ValueError when they are not as many as the header says."""
        if self.lines == 1:
            return [self.data]
        parts = self.data.split(b"\n")
        rest = parts.pop()
        entries = [part + b"\n" for part in parts]
        if rest or self.partial:
            entries.append(rest)
        if len(entries) != self.lines:
            raise ValueError(f"{len(entries)} entries in a chunk of {self.lines}")
        return entries

    def part(self, first: int, entries: list[bytes], *, ends: bool) -> "Chunk":
        """A run of the entries. `ends`: it has the last one, which alone may be without its line end."""
        return self._replace(first=first, lines=len(entries), data=b"".join(entries), partial=self.partial and ends)


class Batch:
    """Chunks without a hole between their sequences. One instance, and one encoding, serve every follower.

    `size_bytes` is what it takes in memory: the chunks and their encoding.
    """

    def __init__(self, chunks: tuple[Chunk, ...]) -> None:
        self.chunks = chunks
        self.first = chunks[0].first
        self.last = chunks[-1].last
        self.size_bytes = 2 * sum(len(chunk.data) + CHUNK_OVERHEAD_BYTES for chunk in chunks)

    @cached_property
    def encoded(self) -> bytes:
        """A StreamLogsResponse with all of it. Such messages may be joined: protobuf appends repeated fields."""
        return encode(self.chunks)


class _Gap(msgspec.Struct, frozen=True, kw_only=True):
    """The payload of a GAP record."""

    reason: str = "unknown"
    bytes: int = 0


def batches_of(payload: bytes) -> list[Batch]:
    """The output in a run of journal records, cut where sequences jump and where a batch is full.

    Raises records.CorruptRecord. Records that carry no output (START, EXIT) are passed over.
    """
    batches: list[Batch] = []
    run: list[Chunk] = []
    run_bytes = 0
    for record in records.decode_all(payload):
        if record.lines == 0:
            continue
        for chunk in _pieces(_chunk_of(record)):
            if run and (chunk.first != run[-1].last + 1 or run_bytes >= BATCH_BYTES):
                batches.append(Batch(tuple(run)))
                run, run_bytes = [], 0
            run.append(chunk)
            run_bytes += len(chunk.data)
    if run:
        batches.append(Batch(tuple(run)))
    return batches


def _pieces(chunk: Chunk) -> Iterator[Chunk]:
    """The chunk in pieces of about BATCH_BYTES, whole lines each; as it is when it is no larger."""
    data, first, start = chunk.data, chunk.first, 0
    while len(data) - start > BATCH_BYTES:
        end = data.rfind(b"\n", start, start + BATCH_BYTES) + 1 or data.find(b"\n", start + BATCH_BYTES) + 1
        if end in {0, len(data)}:
            break
        lines = data.count(b"\n", start, end)
        yield chunk._replace(first=first, lines=lines, data=data[start:end], partial=False)
        first, start = first + lines, end
    yield chunk if start == 0 else chunk._replace(first=first, lines=chunk.last - first + 1, data=data[start:])


def _check(record: records.Record, data: bytes) -> None:
    """Refuse a record whose checksum holds and whose entries are not there: cutting it would fail later, at a client's.

    The rules are those of persist (services/persist/lines.py), which does not store such a record.
    """
    if record.last_sequence > INTEGER_MAX or record.time_ns > INTEGER_MAX or record.sequence < 1:
        raise records.CorruptRecord(0, f"sequence {record.sequence} or time {record.time_ns} out of range")
    if record.type == records.RecordType.GAP:
        return
    ends = data.count(b"\n")
    whole = (record.lines, ends) == (1, 0) if record.partial else record.lines == ends and data.endswith(b"\n")
    if not whole:
        raise records.CorruptRecord(0, f"{record.lines} entries with {ends} line ends")


def _chunk_of(record: records.Record) -> Chunk:
    data = bytes(record.payload)
    _check(record, data)
    if record.type != records.RecordType.GAP:
        return Chunk(
            stream=record.stream,
            first=record.sequence,
            lines=record.lines,
            time_ns=record.time_ns,
            data=data,
            partial=record.partial,
        )
    try:
        gap = msgspec.json.decode(data, type=_Gap)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):  # the last two: not UTF-8, or nested deeply
        gap = _Gap()
    return Chunk(
        stream=record.stream,
        first=record.sequence,
        lines=record.lines,
        time_ns=record.time_ns,
        data=b"",
        partial=False,
        gap_reason=gap.reason or "unknown",
        gap_bytes=min(max(gap.bytes, 0), INTEGER_MAX),
    )


def stored_chunk(batch: persist_pb2.LogBatch) -> Chunk:
    """A chunk as persist tells it."""
    return Chunk(
        stream=batch.stream,
        first=batch.first_sequence,
        lines=batch.lines,
        time_ns=batch.timestamp,
        data=batch.data,
        partial=batch.partial,
        gap_reason=batch.gap_reason,
        gap_bytes=batch.gap_bytes,
    )


def cut(chunk: Chunk, first: int, last: int) -> Chunk | None:
    """The part of `chunk` within the sequences `first` to `last`, or None."""
    low, high = max(chunk.first, first), min(chunk.last, last)
    if low > high:
        return None
    if (low, high) == (chunk.first, chunk.last):
        return chunk
    if chunk.gap_reason:
        # How many bytes are missing is told once, with the beginning.
        return chunk._replace(first=low, lines=high - low + 1, gap_bytes=chunk.gap_bytes if low == chunk.first else 0)
    entries = chunk.entries()[low - chunk.first : high - chunk.first + 1]
    return chunk.part(low, entries, ends=high == chunk.last)


def encode(chunks: Iterable[Chunk]) -> bytes:
    """A StreamLogsResponse in bytes."""
    # Large data is joined in by hand, copied once: protobuf takes three times as long for 256 KiB, and far longer for
    # 1 MiB. Serialized messages that follow each other are one, their repeated fields joined (protobuf encoding spec).
    parts: list[bytes] = []
    small: list[job_pb2.LogChunk] = []
    for chunk in chunks:
        if len(chunk.data) < LARGE_DATA_BYTES:
            small.append(_to_proto(chunk))
            continue
        if small:
            parts.append(job_pb2.StreamLogsResponse(chunks=small).SerializeToString())
            small.clear()
        head = _to_proto(chunk._replace(data=b"")).SerializeToString() + _DATA_TAG + _varint(len(chunk.data))
        parts += (_CHUNKS_TAG + _varint(len(head) + len(chunk.data)) + head, chunk.data)
    if small:
        parts.append(job_pb2.StreamLogsResponse(chunks=small).SerializeToString())
    return b"".join(parts)


def _varint(number: int) -> bytes:
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def _to_proto(chunk: Chunk) -> job_pb2.LogChunk:
    return job_pb2.LogChunk(
        stream=cast(persist_pb2.StreamType, chunk.stream),
        first_sequence=chunk.first,
        lines=chunk.lines,
        timestamp=chunk.time_ns,
        data=chunk.data,
        partial=chunk.partial,
        gap=job_pb2.Gap(reason=chunk.gap_reason, bytes=chunk.gap_bytes) if chunk.gap_reason else None,
    )
