"""What of a batch is new and what is missing before it: records and positions in, chunks per stream out. Pure.

Chunks are encoded while they are iterated: whoever compresses them can do so while the next ones are made.

A record that is stored is refused as a repeat by the last sequence of its stream; sequences that neither stream has
and nobody sent are a hole, which gets a gap line of its own, so that readers see it. Gaps of no stream stand in the
file of stdout. What is written then is the business of store.py.
"""

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from common.records import Record, RecordType, Stream
from services.persist import lines
from services.persist.lines import Chunk

HOLE_REASON: Final = "never_received"


class Chunks:
    """What is to be appended to one stream."""

    def __init__(self) -> None:
        self._parts: list[tuple[Record, int] | Chunk] = []

    def add(self, record: Record, *, skip: int) -> None:
        """The entries of `record` without the first `skip`."""
        self._parts.append((record, skip))

    def add_chunk(self, chunk: Chunk) -> None:
        """One that is encoded already."""
        self._parts.append(chunk)

    def __iter__(self) -> Iterator[Chunk]:
        for part in self._parts:
            if isinstance(part, Chunk):
                yield part
            else:
                record, skip = part
                yield from lines.encode(record, skip=skip)


class Plan(NamedTuple):
    """Chunks by stream, and what was counted on the way."""

    chunks: dict[Stream, Chunks]
    repeats: int  # entries that were stored already
    missing: int  # entries that nobody sent


def plan(records: Iterable[Record], positions: dict[Stream, int], *, level_with: int = 0) -> Plan:
    """What to append for checked `records` when each stream is stored up to `positions`.

    `level_with` is the sequence that the job is known to have reached by the end of `records`; 0: not known. Entries
    up to there that did not come are missing, too.
    """
    chunks = {Stream.STDOUT: Chunks(), Stream.STDERR: Chunks()}
    last = dict(positions)
    repeats = missing = time_ns = 0
    for record in records:
        time_ns = record.time_ns
        if record.type not in (RecordType.OUTPUT, RecordType.GAP):
            continue
        stream, expected = Stream(record.stream) or Stream.STDOUT, max(last.values()) + 1
        if record.sequence > expected:
            missing += record.sequence - expected
            chunks[Stream.STDOUT].add_chunk(_hole(expected, record.sequence, record.time_ns))
            last[Stream.STDOUT] = record.sequence - 1
        skip = max(0, last[stream] - record.sequence + 1)
        if skip >= record.lines:
            repeats += record.lines
            continue
        repeats += skip
        chunks[stream].add(record, skip=skip)
        last[stream] = record.last_sequence
    expected = max(last.values()) + 1
    if level_with >= expected:
        missing += level_with + 1 - expected
        chunks[Stream.STDOUT].add_chunk(_hole(expected, level_with + 1, time_ns))
    return Plan(chunks, repeats, missing)


def _hole(first: int, end: int, time_ns: int) -> Chunk:
    return lines.gap_chunk(
        lines.STREAM_NAMES[Stream.NONE],
        time_ns=time_ns,
        sequence=first,
        lines=end - first,
        gap_bytes=0,
        reason=HOLE_REASON,
    )
