"""The reader of a journal at its odd places: what it waits for, believes and tells, and when it gives up."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.linux import files
from common.records import HEADER_BYTES, Flags, Record, RecordType, Stream, decode_all, encode
from services.executor.damage import SEARCH_BYTES_MAX
from services.executor.journal import Damage, Journal, Slice
from tests.unit.executor_asking import flipped


def line(sequence: int, text: bytes = b"x\n", *, partial: bool = False) -> bytes:
    """An OUTPUT record of one entry."""
    flags = Flags.PARTIAL if partial else Flags.NONE
    return encode(RecordType.OUTPUT, text, time_ns=5, sequence=sequence, lines=1, stream=Stream.STDOUT, flags=flags)


def end(sequence: int) -> bytes:
    """An EXIT record."""
    return encode(RecordType.EXIT, b"{}", time_ns=6, sequence=sequence)


class Reader:
    """A cursor on a journal in `path` that a test writes."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self.path = path
        self.told: list[Damage] = []
        self.journal = Journal(path, self.told.append)
        self.offset = self.last = 0

    def append(self, *records: bytes) -> None:
        """Bytes at the end."""
        with self.path.open("ab") as file:
            file.write(b"".join(records))

    def next(self) -> Slice:
        """The next slice."""
        piece = self.journal.read(self.offset, last_sequence=self.last, bytes_max=10_000)
        self.offset, self.last = piece.end, piece.last_sequence
        return piece

    def rest(self) -> list[Record]:
        """All that can be read now."""
        found: list[Record] = []
        while (piece := self.next()).records:
            found += decode_all(piece.records)
        return found

    def seal(self) -> None:
        """The monitor is gone."""
        self.journal.sealed = True


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """A reader of an empty journal."""
    opened = Reader(tmp_path / "journal")
    yield opened
    opened.journal.close()


def sequences(records: list[Record]) -> list[tuple[int, int, int]]:
    """Type, first sequence and lines of each."""
    return [(record.type, record.sequence, record.lines) for record in records]


OUTPUT, GAP, EXIT = RecordType.OUTPUT, RecordType.GAP, RecordType.EXIT


@pytest.mark.threat("F12")
def test_a_gap_names_what_is_missing_and_why(reader: Reader) -> None:
    """From, to and count by its sequence and lines, where by the bytes that are skipped, when by the record behind."""
    missing = line(2) + flipped(line(3), HEADER_BYTES) + line(4)
    reader.append(line(1), flipped(missing, 5), line(5))
    found = reader.rest()
    assert sequences(found) == [(OUTPUT, 1, 1), (GAP, 2, 2), (OUTPUT, 4, 1), (OUTPUT, 5, 1)]
    told = json.loads(bytes(found[1].payload))
    assert (told, found[1].time_ns) == ({"reason": "journal_damaged", "bytes": 2 * len(line(2))}, 5)
    (damaged,) = reader.told
    assert damaged[:4] == (len(line(1)), len(line(1)) + 2 * len(line(2)), 2, 2)
    assert f"corrupt record at byte {len(line(1))}" in damaged.problem


def test_damage_is_told_once_whoever_comes_to_it(reader: Reader) -> None:
    """The second cursor gets the same gap, and nobody hears of it again."""
    reader.append(line(1), flipped(line(2), 2), line(3))
    first = reader.rest()
    reader.offset = reader.last = 0
    assert reader.rest() == first
    assert len(reader.told) == 1


def test_what_may_still_be_written_is_waited_for(reader: Reader) -> None:
    """A wrong checksum at the end, an unfinished record behind damage: nothing is said before it is known."""
    reader.append(line(1), flipped(line(2), HEADER_BYTES))
    assert sequences(reader.rest()) == [(OUTPUT, 1, 1)]
    reader.append(line(3, b"y" * 1000 + b"\n")[:500])
    assert reader.rest() == []
    assert not reader.told
    reader.append(line(3, b"y" * 1000 + b"\n")[500:])
    assert sequences(reader.rest()) == [(GAP, 2, 1), (OUTPUT, 3, 1)]


def test_a_record_that_was_half_written_when_it_was_read_is_no_damage(reader: Reader) -> None:
    """The monitor cuts an unfinished record off and writes another in its place: that one is read."""
    reader.append(line(1), b"\0" * 50)
    assert sequences(reader.rest()) == [(OUTPUT, 1, 1)]
    os.truncate(reader.path, len(line(1)))
    reader.append(line(2), line(3))
    assert sequences(reader.rest()) == [(OUTPUT, 2, 1), (OUTPUT, 3, 1)]
    assert not reader.told


@pytest.mark.threat("C21")
def test_what_a_job_prints_is_not_taken_for_its_journal(reader: Reader) -> None:
    """A damaged record full of whole records is passed over as one; a printed EXIT ends no job whose monitor lives."""
    printed = line(7) + end(8)
    reader.append(line(1), flipped(line(2, printed, partial=True), HEADER_BYTES + 1))
    assert sequences(reader.rest()) == [(OUTPUT, 1, 1)]
    reader.append(line(3))
    assert sequences(reader.rest()) == [(GAP, 2, 1), (OUTPUT, 3, 1)]
    reader.append(flipped(line(4, end(9), partial=True), 1))  # its header is damaged: the EXIT in it is at the very end
    assert reader.rest() == []
    reader.append(line(5))
    assert sequences(reader.rest()) == [(GAP, 4, 1), (OUTPUT, 5, 1)]


@pytest.mark.threat("C21")
def test_a_job_cannot_make_up_a_loss_of_any_size(reader: Reader) -> None:
    """A record that it printed says that 2^62 entries are missing: readers would be told of them by the billion."""
    reader.append(line(1), flipped(line(2, line(2**62), partial=True), 1), line(3))
    assert sequences(reader.rest()) == [(OUTPUT, 1, 1), (GAP, 2, 1), (OUTPUT, 3, 1)]


def test_an_exit_behind_damage_is_found(reader: Reader) -> None:
    """When the monitor is gone: then nothing comes behind it any more."""
    reader.append(line(1), flipped(line(2), 0), end(3))
    assert sequences(reader.rest()) == [(OUTPUT, 1, 1)]
    reader.seal()
    assert sequences(reader.rest()) == [(GAP, 2, 1), (EXIT, 3, 0)]


@pytest.mark.parametrize("kind", ["lines", "piece", "start"])
def test_a_length_that_became_larger_hides_nothing(reader: Reader, kind: str) -> None:
    """It looks like a record that is being written, until it has line ends of the next one."""
    records = {"lines": line(1), "piece": line(1, b"x", partial=True)}
    longer = bytearray(records.get(kind, encode(RecordType.START, b"{}", time_ns=1, sequence=1)))
    longer[30] ^= 1  # 64 KiB more
    gap = [] if kind == "start" else [(GAP, 1, 1)]
    first = 1 if kind == "start" else 2
    reader.append(bytes(longer))
    assert reader.rest() == []
    reader.append(line(first))
    assert sequences(reader.rest()) == [*gap, (OUTPUT, first, 1)]


def test_a_length_that_became_larger_before_pieces_is_waited_for(reader: Reader) -> None:
    """No line end tells: the pieces behind it come when it would be whole and is not, or when the monitor is gone."""
    longer = bytearray(line(2, b"x", partial=True))
    longer[30] ^= 1
    reader.append(line(1), bytes(longer), line(3, b"y" * 100, partial=True))
    assert sequences(reader.rest()) == [(OUTPUT, 1, 1)]
    reader.append(line(4, b"z" * 65_536, partial=True))
    assert sequences(reader.rest()) == [(GAP, 2, 1), (OUTPUT, 3, 1), (OUTPUT, 4, 1)]
    reader.append(flipped(line(5, b"x", partial=True), 29), line(6, b"y", partial=True))
    assert reader.rest() == []
    reader.seal()
    assert sequences(reader.rest()) == [(GAP, 5, 1), (OUTPUT, 6, 1)]


def test_the_end_of_a_sealed_journal_is_torn_or_corrupt(reader: Reader) -> None:
    """An unfinished record is no damage; bytes that no record begins with are, and are named. Both end the reading."""
    reader.seal()
    reader.append(line(1), line(2)[:-1])
    assert sequences(reader.rest()) == [(OUTPUT, 1, 1)]
    assert reader.next().corrupt == ""
    os.truncate(reader.path, len(line(1)))
    reader.append(flipped(line(2), 0))
    piece = reader.next()
    assert (piece.records, piece.end) == (b"", len(line(1)))
    assert f"corrupt record at byte {len(line(1))}: magic" in piece.corrupt


def test_damage_where_no_entry_was_leaves_no_gap(reader: Reader) -> None:
    """Garbage between two records, a damaged START, a record that stands there twice: told, and nothing is missing."""
    start = encode(RecordType.START, b"{}", time_ns=1, sequence=1)
    reader.append(flipped(start, 2), line(1), b"garbage" * 30, line(2), line(2), line(3))
    assert sequences(reader.rest()) == [(OUTPUT, 1, 1), (OUTPUT, 2, 1), (OUTPUT, 3, 1)]
    assert [each.entries for each in reader.told] == [0, 0, 0]


def test_a_hole_that_was_given_back_is_no_damage(reader: Reader) -> None:
    """A cursor from before it, as after a power cut, goes on behind it: what was there is with persist."""
    old = line(1, b"o" * 100_000 + b"\n") + line(2, b"o" * 100_000 + b"\n")
    reader.append(old, line(3), flipped(line(4), 1), line(5))
    files.punch_hole(reader.journal._fd, 0, len(old))
    found = reader.rest()
    assert sequences(found) == [(OUTPUT, 3, 1), (GAP, 4, 1), (OUTPUT, 5, 1)]
    assert [each.first for each in reader.told] == [4]


def test_a_cursor_in_the_last_block_of_what_was_given_back_is_behind_it(reader: Reader) -> None:
    """There the hole is zeros in a block that is kept. The same zeros in a journal without a hole are damage."""
    records = [line(1, b"o" * 8000 + b"\n"), *(line(n) for n in range(2, 12))]
    reader.append(*records)
    offset, end = len(b"".join(records[:5])), len(b"".join(records[:9]))
    files.punch_hole(reader.journal._fd, 0, end)
    reader.offset, reader.last = offset, 5
    assert sequences(reader.rest()) == [(OUTPUT, 10, 1), (OUTPUT, 11, 1)]
    assert not reader.told
    reader.path.write_bytes(b"".join(records[:5]) + bytes(end - offset) + b"".join(records[9:]))
    reader.journal = Journal(reader.path, reader.told.append)
    reader.offset, reader.last = offset, 5
    assert sequences(reader.rest()) == [(GAP, 6, 4), (OUTPUT, 10, 1), (OUTPUT, 11, 1)]


def test_what_is_given_back_is_forgotten(reader: Reader) -> None:
    """Also the damage in it."""
    reader.append(line(1), flipped(line(2), 0), line(3, b"o" * 10_000 + b"\n"), line(4))
    reader.rest()
    reader.journal.give_back(reader.offset - len(line(4)))
    reader.offset, reader.last = reader.offset - len(line(4)), 3
    assert sequences(reader.rest()) == [(OUTPUT, 4, 1)]
    assert len(reader.told) == 1


def test_the_search_has_an_end(reader: Reader) -> None:
    """Beyond its bound the rest is given up, with words."""
    reader.append(line(1))
    os.truncate(reader.path, SEARCH_BYTES_MAX + 2**20)
    reader.append(line(2))
    assert sequences(reader.rest()) == [(OUTPUT, 1, 1)]
    piece = reader.next()
    assert (piece.records, piece.end) == (b"", len(line(1)))
    assert "no record within" in piece.corrupt


def test_as_many_entries_as_no_gap_can_name_are_named_by_several(reader: Reader) -> None:
    """A record has 32 bits for its lines; a damaged GAP may have stood for nearly as many."""
    reader.append(line(1), line(2**33 + 2))
    found = reader.rest()
    assert [(record.type, record.lines) for record in found] == [
        (OUTPUT, 1),
        (GAP, 2**32 - 1),
        (GAP, 2**32 - 1),
        (GAP, 2),
        (OUTPUT, 1),
    ]
    assert sum(json.loads(bytes(each.payload))["bytes"] for each in found[1:4]) == 0
