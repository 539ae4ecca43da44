"""Cutting output exactly at entries, by sequence, and encoding it."""

from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import records
from proto.joblet.v1 import job_pb2, persist_pb2
from services.api.followers.chunks import (
    BATCH_BYTES,
    LARGE_DATA_BYTES,
    Batch,
    Chunk,
    batches_of,
    cut,
    encode,
    stored_chunk,
)


def chunk(data: bytes, first: int = 1, *, stream: int = 1, time_ns: int = 100, partial: bool = False) -> Chunk:
    """A chunk of the lines in `data`."""
    lines = data.count(b"\n") + (1 if partial else 0)
    return Chunk(stream=stream, first=first, lines=lines, time_ns=time_ns, data=data, partial=partial)


lines = st.lists(st.binary(max_size=20).map(lambda data: data.replace(b"\n", b"")), min_size=1, max_size=20)


@given(lines=lines, first=st.integers(1, 50), low=st.integers(0, 80), high=st.integers(0, 80))
def test_a_cut_has_exactly_the_entries_asked_for(lines: list[bytes], first: int, low: int, high: int) -> None:
    """Bytes, NUL and carriage returns included, fall where their sequence says."""
    whole = chunk(b"".join(line + b"\n" for line in lines), first)
    piece = cut(whole, low, high)
    wanted = [line + b"\n" for number, line in enumerate(lines, first) if low <= number <= high]
    assert (piece.data if piece else b"") == b"".join(wanted)
    assert (piece.lines if piece else 0) == len(wanted)


def test_a_gap_is_cut_and_tells_its_bytes_once() -> None:
    """With its beginning: whoever adds up what is missing gets the right sum."""
    gap = Chunk(0, 1, 3, 100, b"", partial=False, gap_reason="journal_full", gap_bytes=9)
    assert cut(gap, 1, 2) == gap._replace(lines=2)
    assert cut(gap, 2, 2) == gap._replace(first=2, lines=1, gap_bytes=0)


def test_a_piece_without_line_end_keeps_its_mark() -> None:
    """Only the part with the last entry is partial."""
    whole = chunk(b"a\nb\nrest", partial=True)
    assert cut(whole, 1, 2) == chunk(b"a\nb\n")
    assert cut(whole, 3, 3) == chunk(b"rest", 3, partial=True)


def record(sequence: int, data: bytes) -> bytes:
    """One OUTPUT record."""
    return records.encode(
        records.RecordType.OUTPUT,
        data,
        time_ns=1,
        sequence=sequence,
        lines=data.count(b"\n"),
        stream=records.Stream.STDOUT,
    )


def test_live_records_become_batches_without_a_hole() -> None:
    """A jump of the sequence starts a new batch; START and EXIT carry no output."""
    start = records.encode(records.RecordType.START, b"{}", time_ns=1, sequence=1)
    gap = records.encode(records.RecordType.GAP, b'{"reason":"journal_full","bytes":7}', time_ns=1, sequence=4, lines=2)
    batches = batches_of(start + record(1, b"a\nb\n") + record(3, b"c\n") + gap + record(9, b"x\n"))
    assert [(batch.first, batch.last) for batch in batches] == [(1, 5), (9, 9)]
    message = job_pb2.StreamLogsResponse.FromString(batches[0].encoded)
    assert [one.data for one in message.chunks] == [b"a\nb\n", b"c\n", b""]
    assert (message.chunks[2].gap.reason, message.chunks[2].gap.bytes) == ("journal_full", 7)
    assert batches[0].encoded is batches[0].encoded


def test_messages_are_bounded_and_may_be_joined() -> None:
    """Large publications become several batches; joined encodings are one message (protobuf appends)."""
    batches = batches_of(b"".join(record(n + 1, b"x" * 99_999 + b"\n") for n in range(40)))
    assert len(batches) > 1
    assert all(batch.size_bytes < 2 * 2**20 for batch in batches)
    joined = job_pb2.StreamLogsResponse.FromString(b"".join(batch.encoded for batch in batches))
    assert [one.first_sequence for one in joined.chunks] == list(range(1, 41))


def test_a_large_record_is_cut_at_line_ends() -> None:
    """No message is much larger than a batch: a client that does not read holds one. A single long line stays whole."""
    lines = [b"%d " % n + b"x" * (n * 7919 % 90_000) + b"\n" for n in range(40)]
    batches = batches_of(record(5, b"".join(lines)))
    assert len(batches) > 3
    assert max(len(chunk.data) for batch in batches for chunk in batch.chunks) <= BATCH_BYTES
    pieces = [chunk for batch in batches for chunk in batch.chunks]
    assert b"".join(chunk.data for chunk in pieces) == b"".join(lines)
    assert [(chunk.first, chunk.data.count(b"\n")) for chunk in pieces] == [
        (before + 1, chunk.lines) for before, chunk in zip([4, *[one.last for one in pieces]], pieces, strict=False)
    ]
    assert pieces[-1].last == 44
    long = b"y" * (3 * BATCH_BYTES) + b"\n"
    (batch,) = batches_of(record(1, long))
    assert [(chunk.first, chunk.lines, chunk.data) for chunk in batch.chunks] == [(1, 1, long)]
    cut = [chunk for batch in batches_of(record(1, long + b"z\n" + long)) for chunk in batch.chunks]
    assert [(chunk.first, chunk.lines) for chunk in cut] == [(1, 1), (2, 1), (3, 1)]


def test_a_corrupt_publication_is_refused_whole() -> None:
    """A flipped bit is found by the checksum."""
    payload = bytearray(record(1, b"a\n"))
    payload[-2] ^= 1
    with pytest.raises(records.CorruptRecord):
        batches_of(bytes(payload))


def test_stored_and_live_chunks_look_the_same() -> None:
    """Both ways of the same entries give the same bytes to the client."""
    stored = persist_pb2.LogBatch(
        stream=persist_pb2.STDERR, first_sequence=4, lines=1, timestamp=1, data=b"x", partial=True
    )
    live = Chunk(2, 4, 1, 1, b"x", partial=True)
    assert stored_chunk(stored) == live
    assert encode([stored_chunk(stored)]) == Batch((live,)).encoded


sizes = st.sampled_from([0, 1, 127, 128, LARGE_DATA_BYTES - 1, LARGE_DATA_BYTES, 2**21 - 30, 2**21])


@pytest.mark.parametrize(
    "detail", [b"", b"no JSON", b"[]", b'{"reason":"\xff"}', b'{"x":' + b"[" * 9999 + b"]" * 9999 + b"}"]
)
def test_a_gap_whose_detail_cannot_be_read_is_a_gap(detail: bytes) -> None:
    """Not JSON, not UTF-8, nested without end: how much is missing the header says, and why nobody knows."""
    gap = records.encode(records.RecordType.GAP, detail, time_ns=1, sequence=4, lines=2)
    (batch,) = batches_of(gap)
    assert [(one.first, one.last, one.gap_reason, one.gap_bytes) for one in batch.chunks] == [(4, 5, "unknown", 0)]


@given(sizes=st.lists(sizes, max_size=6), gap_at=st.none() | st.integers(0, 6), partial=st.booleans())
@settings(max_examples=60, deadline=None)
def test_what_is_encoded_by_hand_is_what_protobuf_encodes(sizes: list[int], gap_at: int | None, partial: bool) -> None:  # noqa: FBT001  # drawn
    """Small and large chunks and gaps, in any order: a client reads exactly these."""
    chunks = [chunk(b"x" * size, 2**40 + number, partial=partial) for number, size in enumerate(sizes)]
    if gap_at is not None:
        chunks.insert(gap_at, Chunk(0, 7, 3, 100, b"", partial=False, gap_reason="journal_full", gap_bytes=9))
    decoded = job_pb2.StreamLogsResponse.FromString(encode(chunks))
    assert decoded.SerializeToString() == job_pb2.StreamLogsResponse(chunks=map(_expected, chunks)).SerializeToString()


def _expected(chunk: Chunk) -> job_pb2.LogChunk:
    expected = job_pb2.LogChunk(
        stream=cast(persist_pb2.StreamType, chunk.stream),
        first_sequence=chunk.first,
        lines=chunk.lines,
        timestamp=chunk.time_ns,
        data=chunk.data,
        partial=chunk.partial,
    )
    if chunk.gap_reason:
        expected.gap.CopyFrom(job_pb2.Gap(reason=chunk.gap_reason, bytes=chunk.gap_bytes))
    return expected
