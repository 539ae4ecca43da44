"""Reads a job's journal: whole records from an offset on, and what they mean for the reader's position.

The journal is written by the job's monitor only; here it is read, and its acknowledged beginning is given back to the
file system. Format: common/records.py and docs/protocol.md.
"""

import os
from pathlib import Path
from typing import Final, NamedTuple

from isal.isal_zlib import crc32

from common.records import HEADER, HEADER_BYTES, MAGIC, PAYLOAD_BYTES_MAX, CorruptRecord, RecordType
from services.executor.linux import files

_CHECKED_BYTES: Final = HEADER_BYTES - 4


class Note(NamedTuple):
    """A record that is about the job itself: START or EXIT, with its payload."""

    type: RecordType
    time_ns: int
    payload: bytes
    last_sequence: int


class Slice(NamedTuple):
    """Whole records, byte for byte, from `offset` up to `end` of the journal.

    `last_sequence` is that of the last entry so far. `corrupt` says what is wrong with the bytes at `end`; nothing
    behind them can be read.
    """

    offset: int
    end: int
    records: bytes
    last_sequence: int
    notes: tuple[Note, ...] = ()
    corrupt: str = ""


class Journal:
    """A journal opened for reading. Close it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)

    def size(self) -> int:
        """Bytes in the journal, given-back ones included."""
        return os.fstat(self._fd).st_size

    def read(self, offset: int, *, last_sequence: int, bytes_max: int, checked: bool) -> Slice:
        """Whole records from `offset`, at most `bytes_max` or one record; empty when there is no whole one.

        `checked`: verify every record's checksum; else only those of START and EXIT.
        """
        data = os.pread(self._fd, bytes_max, offset)
        wanted = _first_record_bytes(data)
        if bytes_max < wanted <= HEADER_BYTES + PAYLOAD_BYTES_MAX:
            data = os.pread(self._fd, wanted, offset)
        return scan(data, offset, last_sequence=last_sequence, checked=checked)

    def free_bytes(self) -> int:
        """Room on the journal's file system. Raises OSError."""
        status = os.fstatvfs(self._fd)
        return status.f_bavail * status.f_frsize

    def give_back(self, end: int) -> None:
        """Free the disk space before `end`; offsets stay as they are. Raises OSError."""
        files.punch_hole(self._fd, 0, end)

    def close(self) -> None:
        """Give the descriptor up."""
        os.close(self._fd)


def _first_record_bytes(data: bytes) -> int:
    if len(data) < HEADER_BYTES or data[:4] != MAGIC:
        return 0
    return HEADER_BYTES + int.from_bytes(data[28:32], "little")


def scan(data: bytes, offset: int, *, last_sequence: int, checked: bool) -> Slice:
    """The whole records at the start of `data`, which was read at `offset` of the journal."""
    view = memoryview(data)
    position, corrupt, notes = 0, "", list[Note]()
    while len(data) - position >= HEADER_BYTES:
        magic, kind, _, _, time_ns, sequence, lines, length, crc = HEADER.unpack_from(data, position)
        end = position + HEADER_BYTES + length
        try:
            _plausible(magic, kind, length, offset + position)
            if sequence != last_sequence + 1:
                raise CorruptRecord(offset + position, f"sequence is {sequence} and not {last_sequence + 1}")
            if end > len(data):
                break
            noted = kind in (RecordType.START, RecordType.EXIT)
            if checked or noted:
                _check(view, position, end, crc, offset + position)
        except CorruptRecord as found:
            corrupt = str(found)
            break
        last_sequence = sequence + lines - 1
        if noted:
            notes.append(Note(RecordType(kind), time_ns, bytes(view[position + HEADER_BYTES : end]), last_sequence))
        position = end
    whole = data if position == len(data) else data[:position]
    return Slice(offset, offset + position, whole, last_sequence, tuple(notes), corrupt)


def _plausible(magic: bytes, kind: int, length: int, offset: int) -> None:
    if magic != MAGIC:
        raise CorruptRecord(offset, f"magic is {magic!r}")
    if not RecordType.START <= kind <= RecordType.GAP:
        raise CorruptRecord(offset, f"type is {kind}")
    if length > PAYLOAD_BYTES_MAX:
        raise CorruptRecord(offset, f"length {length} is over {PAYLOAD_BYTES_MAX}")


def _check(view: memoryview, position: int, end: int, crc: int, offset: int) -> None:
    body = view[position + HEADER_BYTES : end]
    # The same CRC-32 as zlib's, by carry-less multiplication: thirty times as fast, and all output passes here.
    if crc32(body, crc32(view[position : position + _CHECKED_BYTES])) != crc:
        raise CorruptRecord(offset, "checksum does not match")
