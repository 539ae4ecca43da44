"""A damaged journal: whatever happened to its bytes, what is whole is read, and every reader is told the same."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.records import MAGIC, Flags, Record, RecordType, Stream, decode_all, encode
from services.executor.journal import Journal, Slice

READS_MAX: Final = 2000
"""More than any journal here needs: a reader that never comes to an end is found by it."""

Damages = Callable[[bytearray, random.Random], None]


def journal_of(chance: random.Random) -> list[bytes]:
    """Records as a monitor writes them, the job's output full of what looks like records."""
    records = [encode(RecordType.START, b'{"version":1,"pid":7}', time_ns=1, sequence=1)]
    sequence = 1
    for _ in range(chance.randrange(1, 12)):
        lines, flags, payload = 1, Flags.NONE, b""
        match chance.randrange(8):
            case 0:
                lines = chance.choice([1, 3, 2**31])
                records.append(encode(RecordType.GAP, b"{}", time_ns=2, sequence=sequence, lines=lines))
                sequence += lines
                continue
            case 1:
                payload, flags = b"x" * chance.randrange(1, 3000), Flags.PARTIAL
            case 2:
                payload = MAGIC * chance.randrange(1, 30) + b"\n"
            case 3:
                payload = bytes(chance.randrange(100)) + b"\n"
            case _:
                lines = chance.randrange(1, 6)
                payload = b"".join(b"%d\n" % chance.randrange(10**6) for _ in range(lines))
        stream = chance.choice([Stream.STDOUT, Stream.STDERR])
        records.append(
            encode(
                RecordType.OUTPUT, payload, time_ns=sequence, sequence=sequence, lines=lines, stream=stream, flags=flags
            )
        )
        sequence += lines
    records.append(encode(RecordType.EXIT, b'{"version":1}', time_ns=9, sequence=sequence))
    return records


def flip(data: bytearray, chance: random.Random) -> None:
    """Some bits of one byte."""
    data[chance.randrange(len(data))] ^= chance.randrange(1, 256)


def zero(data: bytearray, chance: random.Random) -> None:
    """A block is zeros."""
    begin = chance.randrange(len(data))
    end = min(len(data), begin + chance.choice([1, 16, 200, 5000]))
    data[begin:end] = bytes(end - begin)


def cut_out(data: bytearray, chance: random.Random) -> None:
    """Some bytes are gone, and what follows moved up."""
    begin = chance.randrange(len(data))
    del data[begin : begin + chance.choice([1, 20, 300])]


def take_out(data: bytearray, chance: random.Random) -> None:
    """As cut_out, from the beginning of one record to that of another, perhaps."""
    begin = data.find(MAGIC, chance.randrange(len(data)))
    end = data.find(MAGIC, begin + chance.choice([1, 300]))
    if 0 <= begin < end:
        del data[begin:end]


def cut_off(data: bytearray, chance: random.Random) -> None:
    """The end is gone."""
    del data[chance.randrange(len(data)) :]


def insert(data: bytearray, chance: random.Random) -> None:
    """Garbage in between, which begins like a record or not."""
    position = chance.randrange(len(data))
    data[position:position] = chance.choice([b"", MAGIC]) + chance.randbytes(chance.randrange(1, 100))


def repeat(data: bytearray, chance: random.Random) -> None:
    """A stretch stands there twice."""
    begin = chance.randrange(len(data))
    end = min(len(data), begin + chance.choice([40, 400]))
    data[end:end] = data[begin:end]


def read_on(journal: Journal, at: tuple[int, int], chance: random.Random, into: list[Slice]) -> tuple[int, int]:
    """Read until there is nothing more now; the new position."""
    offset, last = at
    for _ in range(READS_MAX):
        piece = journal.read(offset, last_sequence=last, bytes_max=chance.choice([1, 50, 300, 10_000]))
        if piece.records:
            into.append(piece)
        else:
            assert (piece.end, piece.last_sequence) == (offset, last)
            return offset, last
        assert (piece.end, piece.last_sequence) > (offset, last)
        offset, last = piece.end, piece.last_sequence
    raise AssertionError("a reader comes to no end")


def read_live(path: Path, data: bytes, chance: random.Random) -> list[Record]:
    """What a reader gets that looks at the file while it grows."""
    path.write_bytes(b"")
    journal, pieces, at, size = Journal(path), list[Slice](), (0, 0), 0
    try:
        while size < len(data):
            grown = size + chance.choice([1, 7, 36, 100, 5000])
            with path.open("ab") as file:
                file.write(data[size:grown])
            size = grown
            at = read_on(journal, at, chance, pieces)
        journal.sealed = True
        read_on(journal, at, chance, pieces)
    finally:
        journal.close()
    return list(decode_all(b"".join(piece.records for piece in pieces)))


def read_afterwards(path: Path, chance: random.Random) -> list[Record]:
    """What a reader gets that comes when all is over."""
    journal, pieces = Journal(path), list[Slice]()
    journal.sealed = True
    try:
        read_on(journal, (0, 0), chance, pieces)
    finally:
        journal.close()
    return list(decode_all(b"".join(piece.records for piece in pieces)))


def key(record: Record) -> tuple[object, ...]:
    """A record as a value."""
    return (*record[:6], bytes(record.payload))


@pytest.mark.threat("F12")
@pytest.mark.threat("E05")
@settings(max_examples=500, deadline=None)
@given(
    st.integers(0, 2**32), st.sampled_from([flip, zero, cut_out, take_out, cut_off, insert, repeat]), st.integers(1, 2)
)
def test_what_is_whole_is_read_once_and_what_is_not_is_a_gap(
    tmp_path_factory: pytest.TempPathFactory, seed: int, damage: Damages, times: int
) -> None:
    """Every untouched record once and in order, GAPs for exactly the others, the same live and later, no exception."""
    chance = random.Random(seed)  # noqa: S311  # a test's input
    original = journal_of(chance)
    damaged = bytearray(b"".join(original))
    for _ in range(1 if damage is repeat else times):  # twice, and records stand there in another order
        if damaged:
            damage(damaged, chance)
    path = tmp_path_factory.getbasetemp() / "journal"
    live = read_live(path, bytes(damaged), chance)
    later = read_afterwards(path, chance)
    assert [key(record) for record in live] == [key(record) for record in later]
    expected = 1
    for record in live:
        assert record.sequence == expected, "a sequence is missing or comes twice"
        expected += record.lines
    untouched = [record for record in original if bytes(damaged).find(record) >= 0]
    whole = [key(record) for record in decode_all(b"".join(untouched))]
    found = [key(record) for record in live if b"journal_damaged" not in bytes(record.payload)]
    if original[-1] in untouched and not damaged.endswith(original[-1]):
        # An EXIT with bytes behind it, which no monitor writes, is believed in its own place only.
        whole, found = ([each for each in some if each[0] != RecordType.EXIT] for some in (whole, found))
    # START and EXIT have no entries: one that stands there twice follows itself, and means nothing the second time.
    assert list(dict.fromkeys(found)) == whole
