"""Reads a job's journal: whole records from an offset on, and what they mean for the reader's position.

The journal is written by the job's monitor only; here it is read, and its acknowledged beginning is given back to the
file system. Every record is checked, by each cursor: what is live must be what will be stored. Where bytes are no
record, a GAP record stands for what they were, made here and the same for everyone who reads the same bytes; the
search for what follows is in `damage.py`. Format: common/records.py and docs/protocol.md.
"""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from common.linux import files
from common.records import HEADER_BYTES, MAGIC, PAYLOAD_BYTES_MAX, RecordType, encode
from services.executor.damage import (
    SEARCH_BYTES_MAX,
    Found,
    GivenUp,
    Unfinished,
    checksum_of,
    find_next,
    header_at,
    never_whole,
)

DAMAGED: Final = "journal_damaged"
"""Reason in the GAP records that are made here."""
_GAP_LINES_MAX: Final = 2**32 - 1
_NOTED: Final = (RecordType.START, RecordType.EXIT, RecordType.GAP)


class Note(NamedTuple):
    """A record that tells of the job itself or of a loss: START, EXIT or GAP, with its payload.

    `last_sequence` is that of the last entry so far, the `lines` entries that a GAP stands for included.
    """

    type: RecordType
    time_ns: int
    payload: bytes
    last_sequence: int
    lines: int = 0


class Slice(NamedTuple):
    """Whole records: what `offset` up to `end` of the journal holds, or a GAP in the place of what it held.

    `last_sequence` is that of the last entry so far. `corrupt` says what is wrong with the bytes at `end`; nothing
    behind them can be read.
    """

    offset: int
    end: int
    records: bytes
    last_sequence: int
    notes: tuple[Note, ...] = ()
    corrupt: str = ""


class Damage(NamedTuple):
    """Bytes from `offset` up to `end` that are no records, where `entries` entries are missing from `first` on."""

    offset: int
    end: int
    first: int
    entries: int
    problem: str


class _Passage(NamedTuple):
    """How a damaged place is passed: `gap` instead of it, then the record at `end`, which has the next sequence."""

    end: int
    gap: bytes
    next_sequence: int


def _unheard(_: Damage) -> None:
    """Nobody wants to know."""


class Journal:
    """A journal opened for reading, by any number of cursors. Close it.

    `sealed` is set when no monitor writes it any more: what is no whole record then never will be.
    """

    def __init__(self, path: Path, tell: Callable[[Damage], None] = _unheard) -> None:
        """`tell` hears of each damaged place once, whichever cursor comes to it first."""
        self.path = path
        self.sealed = False
        self._tell = tell
        self._passages: dict[tuple[int, int], _Passage] = {}  # by offset and last sequence: a gap may skip no byte
        self._awaited: tuple[int, Unfinished] | None = None  # a damaged place, and what may follow it
        self._gives_back = True
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)

    def size(self) -> int:
        """Bytes in the journal, given-back ones included."""
        return os.fstat(self._fd).st_size

    def read(self, offset: int, *, last_sequence: int, bytes_max: int) -> Slice:
        """Whole records from `offset`, at most `bytes_max` or one record; empty when there is no whole one.

        Records behind damage come when it is known where they begin: as soon as one of them is whole. Raises OSError.
        """
        passage = self._passages.get((offset, last_sequence))
        if passage is not None:
            return self._passed(offset, passage, last_sequence, bytes_max)
        run = self._run(offset, last_sequence, bytes_max)
        if run.records:
            return run._replace(corrupt="")  # its damage, if any, is the next one's
        size = self.size()
        if size > offset and (run.corrupt or self.sealed or never_whole(self._fd, offset, size)):
            return self._at_damage(run, size, bytes_max)
        return run

    def free_bytes(self) -> int:
        """Room on the journal's file system. Raises OSError."""
        status = os.fstatvfs(self._fd)
        return status.f_bavail * status.f_frsize

    def give_back(self, end: int) -> None:
        """Free the disk space before `end`; offsets stay as they are.

        Raises OSError. That the file system cannot do it at all is said once; then nothing is tried any more.
        """
        self._passages = {place: passage for place, passage in self._passages.items() if place[0] >= end}
        if not self._gives_back:
            return
        try:
            files.punch_hole(self._fd, 0, end)
        except OSError as cause:
            self._gives_back = cause.errno not in (errno.EOPNOTSUPP, errno.ENOSYS)
            raise

    def close(self) -> None:
        """Give the descriptor up."""
        os.close(self._fd)

    def _run(self, offset: int, last_sequence: int, bytes_max: int) -> Slice:
        data = os.pread(self._fd, max(bytes_max, HEADER_BYTES), offset)
        wanted = _first_record_bytes(data)
        if len(data) < wanted <= HEADER_BYTES + PAYLOAD_BYTES_MAX and offset + wanted <= self.size():
            data = os.pread(self._fd, wanted, offset)
        return scan(data, offset, last_sequence=last_sequence)

    def _passed(self, offset: int, passage: _Passage, last_sequence: int, bytes_max: int) -> Slice:
        if not passage.gap:
            run = self._run(passage.end, passage.next_sequence - 1, bytes_max)
            return run._replace(offset=offset, corrupt="")
        gap = scan(passage.gap, 0, last_sequence=last_sequence)
        return gap._replace(offset=offset, end=passage.end)

    def _at_damage(self, run: Slice, size: int, bytes_max: int) -> Slice:
        """What a reader gets at a place where no record is; `run` says what is wrong there."""
        offset, last_sequence = run.end, run.last_sequence
        if self._waits(offset, size):
            return run._replace(corrupt="")
        problem = run.corrupt or f"corrupt record at byte {offset}: it has no end"
        found = find_next(
            self._fd,
            offset,
            last_sequence=last_sequence,
            start=max(offset, self._first_kept()),
            size=size,
            sealed=self.sealed,
        )
        self._awaited = (offset, found) if isinstance(found, Unfinished) else None
        match found:
            case Found():
                return self._pass(run._replace(corrupt=problem), found, bytes_max)
            case GivenUp():
                return run._replace(corrupt=f"{problem}, and no record within {SEARCH_BYTES_MAX} bytes behind it")
            case _:
                return run if self.sealed else run._replace(corrupt="")

    def _waits(self, offset: int, size: int) -> bool:
        """Whether what may follow the damage at `offset` is still the same and not yet whole."""
        if self.sealed or self._awaited is None or self._awaited[0] != offset:
            return False
        awaited = self._awaited[1]
        return size < awaited.bytes_needed and os.pread(self._fd, HEADER_BYTES, awaited.offset) == awaited.header

    def _pass(self, run: Slice, found: Found, bytes_max: int) -> Slice:
        offset, first = run.end, run.last_sequence + 1
        # A record that is written at this moment may be read half old, half new. One behind it is whole by now, so
        # whatever is here now is what will always be here.
        again = self._run(offset, run.last_sequence, bytes_max)
        if again.records:
            return again._replace(corrupt="")
        missing, gap = found.header.sequence - first, b""
        if not self._was_given_back(offset, found.offset):
            gap = _gap(first, missing, skipped_bytes=found.offset - offset, time_ns=found.header.time_ns)
            self._tell(Damage(offset, found.offset, first, missing, run.corrupt))
        passage = _Passage(found.offset, gap, found.header.sequence)
        self._passages[offset, run.last_sequence] = passage
        return self._passed(offset, passage, run.last_sequence, bytes_max)

    def _was_given_back(self, offset: int, end: int) -> bool:
        """Whether what is not there from `offset` to `end` is with persist: then a cursor of before is behind it.

        The hole ends at the border of a block; from there to `end` are zeros.
        """
        kept = self._first_kept()
        if offset < kept:
            return True
        in_its_last_block = 0 < kept <= offset and end - kept < os.fstat(self._fd).st_blksize
        return in_its_last_block and not any(os.pread(self._fd, end - offset, offset))

    def _first_kept(self) -> int:
        """Where the journal has bytes; before is what was given back."""
        try:
            return os.lseek(self._fd, 0, os.SEEK_DATA)
        except OSError as cause:
            if cause.errno == errno.ENXIO:
                return self.size()
            raise


def scan(data: bytes, offset: int, *, last_sequence: int) -> Slice:
    """The whole records at the start of `data`, which was read at `offset` of the journal."""
    view = memoryview(data)
    position, problem, notes = 0, "", list[Note]()
    while len(data) - position >= HEADER_BYTES:
        header = header_at(data, position)
        end = position + HEADER_BYTES + header.length
        problem = header.problem
        if not problem and header.sequence != last_sequence + 1:
            problem = f"sequence is {header.sequence} and not {last_sequence + 1}"
        if not problem and end > len(data):
            break
        if not problem and checksum_of(view, position, end) != header.crc:
            problem = "checksum does not match"
        if problem:
            problem = f"corrupt record at byte {offset + position}: {problem}"
            break
        last_sequence = header.sequence + header.lines - 1
        if header.type in _NOTED:
            payload = bytes(view[position + HEADER_BYTES : end])
            notes.append(Note(RecordType(header.type), header.time_ns, payload, last_sequence, header.lines))
        position = end
    whole = data if position == len(data) else data[:position]
    return Slice(offset, offset + position, whole, last_sequence, tuple(notes), problem)


def _first_record_bytes(data: bytes) -> int:
    if len(data) < HEADER_BYTES or data[:4] != MAGIC:
        return 0
    return HEADER_BYTES + int.from_bytes(data[28:32], "little")


def _gap(first: int, entries: int, *, skipped_bytes: int, time_ns: int) -> bytes:
    """GAP records for `entries` entries; the first tells how many bytes of the journal are skipped."""
    gaps = []
    while entries:
        lines = min(entries, _GAP_LINES_MAX)
        payload = json.dumps({"reason": DAMAGED, "bytes": skipped_bytes}).encode()
        gaps.append(encode(RecordType.GAP, payload, time_ns=time_ns, sequence=first, lines=lines))
        first, entries, skipped_bytes = first + lines, entries - lines, 0
    return b"".join(gaps)
