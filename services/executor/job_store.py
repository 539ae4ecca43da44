"""The executor's records in SQLite: jobs, how far persist has their output, and the owners' uid ranges.

Synchronous and short: called on the event loop's thread. Every row of a job carries a checksum over all its columns,
because SQLite itself has none: a row that does not match is reported and treated as absent.
Writing is in transactions of the caller (`writer.py`); pages are in `job_pages.py`.
"""

import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import structlog

from common.errors import exhausted, invalid, not_found
from common.identifiers import JobId
from common.messages.jobs import TERMINAL, State
from services.executor.events import Job
from services.executor.store_file import open_store

log = structlog.get_logger(__name__)

OWNERS_MAX: Final = 60_000
"""Ranges of 65,536 uids that fit below 2^32 - 2, with room for a base."""

Columns = tuple[str, int, str, str, str | None, bytes]
_BY_ID: Final = "SELECT id, created_at_ns, owner, state, key, data FROM jobs WHERE id = ?"
_BY_PREFIX: Final = (
    "SELECT id, created_at_ns, owner, state, key, data FROM jobs"
    " WHERE id >= ?1 AND id < ?1 || 'g' AND (?2 IS NULL OR owner = ?2) LIMIT 2"
)
_BY_KEY: Final = "SELECT id, created_at_ns, owner, state, key, data FROM jobs WHERE owner = ? AND key = ?"
_IDS_BY_STATE: Final = "SELECT created_at_ns, id FROM jobs WHERE state = ?"
_LABEL: Final = "SELECT 1 FROM labels WHERE name = ? AND value = ? AND created_at_ns = ? AND id = ?"
_INSERT: Final = "INSERT INTO jobs (id, created_at_ns, owner, state, key, data) VALUES (?, ?, ?, ?, ?, ?)"
_DELETES: Final = (
    "DELETE FROM jobs WHERE id = ?",
    "DELETE FROM labels WHERE id = ?",
    "DELETE FROM cursors WHERE id = ?",
    "DELETE FROM secrets WHERE id = ?",
)
_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(Job)


class Cursor(msgspec.Struct, frozen=True, kw_only=True):
    """How far persist has a job's journal. `epoch` is the highest that was used for sending."""

    job: JobId
    epoch: int = 0
    acknowledged_offset: int = 0
    acknowledged_sequence: int = 0


class JobStore:
    """The database. One instance a node; close it.

    `salvaged`: the file was damaged, and what is here was taken over from it. It may be older than what happened.
    """

    def __init__(self, path: Path, *, now_ns: int) -> None:
        self.connection, self.salvaged = open_store(path, now_ns=now_ns)
        self.damaged_rows = 0

    def row(self, job: str) -> Columns | None:
        """The job's row, unchecked."""
        row: Columns | None = self.connection.execute(_BY_ID, (job,)).fetchone()
        return row

    def has_label(self, position: tuple[int, str], label: tuple[str, str]) -> bool:
        """Whether the job created at, and named by, `position` has this name and value as a label."""
        return self.connection.execute(_LABEL, (*label, *position)).fetchone() is not None

    def get(self, job: JobId) -> Job | None:
        """The job, or None."""
        row = self.row(job)
        return None if row is None else self.decoded(row)

    def find(self, reference: str, *, visible_owner: str | None) -> Job:
        """The one job whose id begins with `reference`, among those of `visible_owner` (None: of everyone).

        Raises NOT_FOUND when there is none, INVALID when there are several. What is not visible does not count.
        """
        rows = self.connection.execute(_BY_PREFIX, (reference, visible_owner)).fetchall()
        jobs = [job for job in map(self.decoded, rows) if job is not None]
        if not jobs:
            raise not_found(f"there is no job {reference}", "list the jobs you can see with: rnx job list")
        if len(jobs) > 1:
            raise invalid(f"job id {reference} is ambiguous: several jobs begin with it", "give more of the id")
        return jobs[0]

    def find_by_key(self, owner: str, key: str) -> Job | None:
        """The job that `owner` started with this idempotency key."""
        row = self.connection.execute(_BY_KEY, (owner, key)).fetchone()
        return None if row is None else self.decoded(row)

    def unended(self) -> Iterator[Job]:
        """Every job that is not in a terminal state, the oldest first; each is read when it is asked for."""
        found: list[tuple[int, str]] = []
        for state in set(State) - TERMINAL:
            found += self.connection.execute(_IDS_BY_STATE, (state.value,)).fetchall()
        for _, job_id in sorted(found):
            job = self.get(JobId(job_id))
            if job is not None:
                yield job

    def cursors(self) -> list[Cursor]:
        """Every job of which persist does not yet have all."""
        rows = self.connection.execute("SELECT id, epoch, acknowledged_offset, acknowledged_sequence FROM cursors")
        return [
            Cursor(job=JobId(row[0]), epoch=row[1], acknowledged_offset=row[2], acknowledged_sequence=row[3])
            for row in rows
        ]

    def has_cursor(self, job: JobId) -> bool:
        """Whether persist does not have all of the job yet."""
        return self.connection.execute("SELECT 1 FROM cursors WHERE id = ?", (job,)).fetchone() is not None

    def insert(self, job: Job, key: str, sealed: bytes = b"") -> None:
        """Add a job with all that belongs to it. Raises sqlite3.IntegrityError for a known id or key."""
        record = job.record
        self.connection.execute(_INSERT, self._columns(job, key or None))
        self.connection.executemany(
            "INSERT INTO labels (name, value, created_at_ns, id, owner) VALUES (?,?,?,?,?)",
            [(n, v, record.created_at_ns, record.id, record.owner) for n, v in record.spec.labels.items()],
        )
        self.save_cursor(Cursor(job=record.id))
        if sealed:
            self.connection.execute("INSERT INTO secrets (id, sealed) VALUES (?,?)", (record.id, sealed))

    def sealed_secrets(self, job: JobId) -> bytes:
        """The job's secrets as they were sealed; empty: it has none, or they were removed."""
        row = self.connection.execute("SELECT sealed FROM secrets WHERE id=?", (job,)).fetchone()
        return b"" if row is None else bytes(row[0])

    def remove_secrets(self, job: JobId) -> None:
        """The job has them, or needs them no more."""
        self.connection.execute("DELETE FROM secrets WHERE id=?", (job,))

    def stale_secrets(self) -> list[JobId]:
        """Jobs that have begun or ended, and whose secrets an executor before us did not come to remove."""
        waiting = [state.value for state in (State.SCHEDULED, State.PENDING, State.STARTING)]
        rows = self.connection.execute(
            "SELECT id FROM secrets WHERE id NOT IN (SELECT id FROM jobs WHERE state IN (?,?,?))", waiting
        )
        return [JobId(row[0]) for row in rows]

    def update(self, job: Job) -> None:
        """Replace what is stored of a job."""
        known = self.connection.execute("SELECT key FROM jobs WHERE id=?", (job.record.id,)).fetchone()
        if known is not None:
            columns = self._columns(job, known[0])
            self.connection.execute("UPDATE jobs SET state=?, data=? WHERE id=?", (columns[3], columns[5], columns[0]))

    def save_cursor(self, cursor: Cursor) -> None:
        """Replace a job's cursor."""
        self.connection.execute(
            "INSERT OR REPLACE INTO cursors (id, epoch, acknowledged_offset, acknowledged_sequence) VALUES (?,?,?,?)",
            (cursor.job, cursor.epoch, cursor.acknowledged_offset, cursor.acknowledged_sequence),
        )

    def remove_cursor(self, job: JobId) -> None:
        """Persist has all of the job."""
        self.connection.execute("DELETE FROM cursors WHERE id=?", (job,))

    def delete(self, job: JobId) -> None:
        """Forget a job."""
        for statement in _DELETES:
            self.connection.execute(statement, (job,))

    def owner_number(self, owner: str) -> int:
        """The number of the owner's uid range, given at first sight and never to anyone else.

        Durable when it returns. Raises EXHAUSTED when every range is taken, or the disk does not take it.
        """
        known = self.connection.execute("SELECT number FROM owners WHERE owner=?", (owner,)).fetchone()
        if known is not None:
            return int(known[0])
        number = int(self.connection.execute("SELECT coalesce(max(number) + 1, 0) FROM owners").fetchone()[0])
        if number >= OWNERS_MAX:
            raise exhausted(f"{OWNERS_MAX} owners have uid ranges, no more fit", "use another node for new owners")
        try:
            self.connection.execute("PRAGMA synchronous=FULL")
            self.connection.execute("INSERT INTO owners (number, owner) VALUES (?,?)", (number, owner))
        except sqlite3.Error as cause:
            raise exhausted(f"the owner's uid range cannot be recorded: {cause}", "free space for the state") from cause
        return number

    def close(self) -> None:
        """Close the database; it needs no recovery afterwards."""
        self.connection.close()

    def decoded(self, row: Columns) -> Job | None:
        """The job in a row of JOB_COLUMNS, or None when its checksum or shape is wrong: reported, not raised."""
        job_id, created_at_ns, owner, state, key, data = row
        try:
            if _checksum((job_id, created_at_ns, owner, state, key), data[4:]) != data[:4]:
                raise ValueError("checksum does not match")
            return _DECODER.decode(data[4:])
        except (msgspec.MsgspecError, ValueError, TypeError) as problem:
            self.damaged_rows += 1
            log.error("a job's record is damaged", job=job_id, problem=str(problem), damaged=self.damaged_rows)
            return None

    def _columns(self, job: Job, key: str | None) -> Columns:
        record = job.record
        data = _ENCODER.encode(job)
        state = record.state.value
        keys = (record.id, record.created_at_ns, record.owner, state, key)
        return *keys, _checksum(keys, data) + data


def _checksum(keys: tuple[str, int, str, str, str | None], data: bytes) -> bytes:
    return zlib.crc32(data, zlib.crc32("\0".join(map(str, keys)).encode())).to_bytes(4, "little")
