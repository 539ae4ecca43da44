"""One reader of one job's journal, at its own pace: a portion at a time, so that a slow one costs a portion of memory.

Here: from the journal to output. Not here: waiting for more (`session.py`), and the format (common/records.py).
"""

from pathlib import Path
from typing import Final, NamedTuple

from common.errors import JobletError, Reason
from common.records import RecordType
from services.executor.journal import Journal, Slice
from worker.values import Output, outputs_of

PORTION_BYTES: Final = 256 * 1024
"""Read at once; a single record may be larger, by at most common.records.PAYLOAD_BYTES_MAX."""


class Portion(NamedTuple):
    """What one look brought. `advanced`: there may be more behind it. `ended`: there will not, the job has ended."""

    outputs: tuple[Output, ...] = ()
    advanced: bool = False
    ended: bool = False


class Reader:
    """Reads from the first byte on. Close it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._journal: Journal | None = None
        self._offset = 0
        self._last_sequence = 0

    def read(self, *, sealed: bool) -> Portion:
        """The next portion; an empty one when there is none now. `sealed`: nobody writes the journal any more.

        Raises DATA_LOSS where nothing that follows can be read.
        """
        piece = self._read(sealed=sealed)
        if piece is None:
            return Portion()
        if piece.corrupt and not piece.records:
            raise JobletError(
                Reason.DATA_LOSS,
                f"the journal {self._path} cannot be read behind sequence {piece.last_sequence}: {piece.corrupt}",
                detail="what is before it was given out; look at the disk",
            )
        ended = any(note.type is RecordType.EXIT for note in piece.notes)
        advanced = piece.end > self._offset or bool(piece.records)
        self._offset, self._last_sequence = piece.end, piece.last_sequence
        return Portion(outputs_of(piece.records), advanced, ended)

    def close(self) -> None:
        """Read no more."""
        journal, self._journal = self._journal, None
        if journal is not None:
            journal.close()

    def _read(self, *, sealed: bool) -> Slice | None:
        try:
            if self._journal is None:
                self._journal = Journal(self._path)
            self._journal.sealed = self._journal.sealed or sealed
            return self._journal.read(self._offset, last_sequence=self._last_sequence, bytes_max=PORTION_BYTES)
        except FileNotFoundError:  # the job has not started, or never will
            return None
        except OSError as cause:
            raise JobletError(Reason.DATA_LOSS, f"the journal {self._path} cannot be read: {cause.strerror}") from cause
