"""What happens to the ingest state machine, and what it asks for: the two vocabularies of machine.py."""

from typing import NamedTuple

from common.identifiers import JobId
from common.records import Record


class BatchArrived(NamedTuple):
    """StoreRecords, decoded and checked; or EndOfJob, with `end` and without records."""

    job: JobId
    epoch: int
    batch: int
    records: tuple[Record, ...]
    size_bytes: int
    through: int  # last sequence of the records
    end: int | None  # EndOfJob: the job's last sequence
    now_ms: int
    owner: str = ""  # EndOfJob: whose the job was
    ended_at_ns: int = 0  # EndOfJob: Unix nanoseconds


class BatchRefused(NamedTuple):
    """StoreRecords whose records are corrupt: as if it had not come."""

    job: JobId
    epoch: int


class Flushed(NamedTuple):
    """All of a Flush is durable; the job is stored up to `through`."""

    job: JobId
    epoch: int
    through: int
    ended: bool
    now_ms: int


class FlushFailed(NamedTuple):
    """A Flush is not durable. `abandoned`: and never will be by this process."""

    job: JobId
    abandoned: bool
    now_ms: int


class JobDeleted(NamedTuple):
    """All that was stored of the job is gone."""

    job: JobId


class Tick(NamedTuple):
    """Time passed."""

    now_ms: int


Event = BatchArrived | BatchRefused | Flushed | FlushFailed | JobDeleted | Tick


class Flush(NamedTuple):
    """Write these; answered with Flushed or FlushFailed."""

    job: JobId
    epoch: int
    batches: tuple[BatchArrived, ...]


class Answer(NamedTuple):
    """Tell the sender: durable up to `last_sequence`."""

    job: JobId
    epoch: int
    last_sequence: int
    ended: bool


class AskResend(NamedTuple):
    """Tell the sender: go back to what was acknowledged last, in a new epoch."""

    job: JobId
    epoch: int


Instruction = Flush | Answer | AskResend
