"""The monitor's side of a journal: records appended whole or not at all, in bounds, and what happens without space.

The format is common/records.py. Full means: the file occupies `bytes_max` on disk (what the executor gave back by
punching holes does not count), or the file system takes no more. Then, as the task says, the monitor either stops
reading (the job waits), or output is dropped, counted, and told by a GAP record when space is back.
The bound is looked at before a read, so the file may exceed it by what one read of each stream brings; and when all
writers are dead by what is left in their pipes, so that the end of a job waits for nobody but the disk.
"""

import json
import os
from collections import deque
from typing import Final, Protocol

from common import records
from common.records import Flags, RecordType, Stream
from services.executor.launcher.capture import Piece
from services.executor.launcher.task import JournalLimits

_BLOCK_BYTES: Final = 512  # the unit of st_blocks, stat(2)
_GAP_LINES_MAX: Final = 2**32 - 1


class JournalFile(Protocol):
    """Where records go; a fake stands here in tests."""

    def append(self, record: bytes) -> bool:
        """The whole record, or False and nothing of it."""

    def used_bytes(self) -> int:
        """What the file occupies on disk."""


class DiskJournal:
    """A journal on disk, opened O_APPEND by its only writer."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._size = os.fstat(descriptor).st_size  # of whole records
        self._torn = False  # behind them may be a part of one

    def append(self, record: bytes) -> bool:
        """The whole record, or False and nothing of it."""
        try:
            if self._torn:
                os.ftruncate(self.descriptor, self._size)
            self._torn = True
            written = os.write(self.descriptor, record)
            while written < len(record):  # the disk is full, or nearly: the rest says which
                written += os.write(self.descriptor, memoryview(record)[written:])
            self._torn = False
        except OSError:
            self._cut_back()
            return False
        self._size += written
        return True

    def _cut_back(self) -> None:
        try:
            os.ftruncate(self.descriptor, self._size)
            self._torn = False
        except OSError:
            return  # the next append tries again before it writes

    def used_bytes(self) -> int:
        """What the file occupies on disk."""
        return os.fstat(self.descriptor).st_blocks * _BLOCK_BYTES


class Recorder:
    """Gives every entry its sequence and brings it into the journal."""

    def __init__(self, journal: JournalFile, limits: JournalLimits) -> None:
        self._journal = journal
        self._limits = limits
        self._waiting: deque[bytes] = deque()  # must be written, in this order, as soon as there is space
        self._used_bytes_most = 0  # the journal occupies no more than this
        self._gap_lines = 0
        self._gap_bytes = 0
        self.next_sequence = 1

    @property
    def settled(self) -> bool:
        """True when nothing waits for space."""
        return not self._waiting and not self._gap_lines

    def accepts_output(self) -> bool:
        """Whether the pipes may be read now. When dropping: always."""
        return self._limits.drop_when_full or (not self._waiting and not self._full())

    def accepts_rest(self) -> bool:
        """Whether the pipes may be read to their end, whose writers are dead."""
        return self._limits.drop_when_full or not self._waiting

    def output(self, stream: Stream, pieces: list[Piece], time_ns: int) -> None:
        """Record entries of a stream, written at `time_ns` (wall clock)."""
        for piece in pieces:
            record = records.encode(
                RecordType.OUTPUT,
                piece.payload,
                time_ns=time_ns,
                sequence=self.next_sequence,
                lines=piece.lines,
                stream=stream,
                flags=Flags.PARTIAL if piece.partial else Flags.NONE,
            )
            if not self._limits.drop_when_full:
                self._write(record)
            elif not self._append_behind_gap(record, time_ns):
                self._gap_lines += piece.lines
                self._gap_bytes += len(piece.payload)
            self.next_sequence += piece.lines

    def event(self, kind: RecordType, payload: bytes, time_ns: int) -> None:
        """Record a START or EXIT, behind everything before it. It is never dropped: without space it waits."""
        self._waiting.extend(self._take_gap(time_ns))
        self._waiting.append(records.encode(kind, payload, time_ns=time_ns, sequence=self.next_sequence))
        self.retry(time_ns)

    def retry(self, time_ns: int) -> bool:
        """Write what waits. True when nothing waits any more."""
        while self._waiting and self._append(self._waiting[0]):
            self._waiting.popleft()
        if self._gap_lines and not self._waiting and not self._full():
            self._waiting.extend(self._take_gap(time_ns))
            return self.retry(time_ns)
        return self.settled

    def _write(self, record: bytes) -> None:
        if self._waiting or not self._append(record):
            self._waiting.append(record)

    def _append_behind_gap(self, record: bytes, time_ns: int) -> bool:
        return not self._full() and self.retry(time_ns) and self._append(record)

    def _append(self, record: bytes) -> bool:
        if not self._journal.append(record):
            return False
        self._used_bytes_most += len(record)
        return True

    def _full(self) -> bool:
        # The file only shrinks behind our back: as long as our own count is below the bound, no look is needed.
        if self._used_bytes_most < self._limits.bytes_max:
            return False
        self._used_bytes_most = self._journal.used_bytes()
        return self._used_bytes_most >= self._limits.bytes_max

    def _take_gap(self, time_ns: int) -> list[bytes]:
        """GAP records for what was dropped last."""
        gaps, first = [], self.next_sequence - self._gap_lines
        payload = json.dumps({"reason": "journal_full", "bytes": self._gap_bytes}).encode()
        while self._gap_lines:
            lines = min(self._gap_lines, _GAP_LINES_MAX)
            gaps.append(records.encode(RecordType.GAP, payload, time_ns=time_ns, sequence=first, lines=lines))
            self._gap_lines -= lines
            first += lines
            payload = json.dumps({"reason": "journal_full", "bytes": 0}).encode()
        self._gap_bytes = 0
        return gaps
