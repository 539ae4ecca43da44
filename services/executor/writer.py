"""Writes records in groups: what is saved within one turn of the event loop is one transaction.

A new job, and the end of one, must survive a power cut: such a group is synced to disk before anyone is told. Other
changes can be found again in the journals, so a group of those is not synced.

When the disk refuses, new jobs are refused, and changes of known jobs are kept here and written when it takes them
again: memory is bounded by the number of jobs that are not ended.
"""

import asyncio
import sqlite3
from typing import Final, NamedTuple

import structlog

from common.errors import JobletError, Reason, exhausted
from common.identifiers import JobId
from services.executor.events import Job
from services.executor.job_store import Cursor, JobStore

log = structlog.get_logger(__name__)

RETRY_S: Final = 1.0
"""After a failed transaction. Not to hide the fault: it is reported each time the cause changes."""


class _Insert(NamedTuple):
    job: Job
    key: str
    sealed: bytes
    done: asyncio.Future[None]


class RecordWriter:
    """Groups writes. Lives on one event loop."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._inserts: list[_Insert] = []
        self._updates: dict[JobId, Job] = {}
        self._cursors: dict[JobId, Cursor | None] = {}
        self._deletes: set[JobId] = set()
        self._secrets: set[JobId] = set()
        self._durable: list[asyncio.Future[None]] = []
        self._sync = False
        self._scheduled: asyncio.Handle | None = None
        self._problem = ""

    def pending_by_key(self, owner: str, key: str) -> tuple[Job, asyncio.Future[None]] | None:
        """A job with this idempotency key that is on its way to the disk, and the future of its arrival."""
        for insert in self._inserts:
            if insert.key == key and insert.job.record.owner == owner:
                return insert.job, insert.done
        return None

    def unsaved(self, job: JobId) -> Job | None:
        """What is newer than the database: a change that the disk has not taken yet."""
        return self._updates.get(job)

    async def insert(self, job: Job, key: str, sealed: bytes = b"") -> None:
        """Add a job; returns when it is durable. Raises EXHAUSTED when the disk does not take it."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._inserts.append(_Insert(job, key, sealed, done))
        self._schedule()
        await asyncio.shield(done)

    def update(self, job: Job, *, durable: bool) -> None:
        """Save a change of a known job soon; `durable`: so that it survives a power cut."""
        self._updates[job.record.id] = job
        self._sync = self._sync or durable
        self._schedule()

    async def durable(self) -> None:
        """Returns when all that was given before survives a power cut, however long the disk takes."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._durable.append(done)
        self._schedule()
        await asyncio.shield(done)

    def save_cursor(self, cursor: Cursor) -> None:
        """Save how far persist has a job, soon."""
        self._cursors[cursor.job] = cursor
        self._schedule()

    def remove_cursor(self, job: JobId) -> None:
        """Persist has all of the job."""
        self._cursors[job] = None
        self._schedule()

    def remove_secrets(self, job: JobId) -> None:
        """The job has its secrets, or needs them no more."""
        self._secrets.add(job)
        self._schedule()

    def delete(self, job: JobId) -> None:
        """Forget a job."""
        self._updates.pop(job, None)
        self._cursors.pop(job, None)
        self._deletes.add(job)
        self._schedule()

    def flush(self) -> bool:
        """Write all that waits, now. False when the disk refused."""
        self._unschedule()
        durable = self._sync or bool(self._inserts or self._durable)
        try:
            self._transact(durable=durable)
        except sqlite3.Error as cause:
            self._failed(cause)
            return False
        self._succeeded()
        return True

    def _schedule(self) -> None:
        if self._scheduled is None:
            self._scheduled = asyncio.get_running_loop().call_soon(self.flush)

    def _unschedule(self) -> None:
        if self._scheduled is not None:
            self._scheduled.cancel()
            self._scheduled = None

    def _transact(self, *, durable: bool) -> None:
        connection = self._store.connection
        connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        connection.execute("BEGIN IMMEDIATE")
        try:
            for insert in self._inserts:
                self._store.insert(insert.job, insert.key, insert.sealed)
            for job in self._updates.values():
                self._store.update(job)
            for job_id, cursor in self._cursors.items():
                if cursor is None:
                    self._store.remove_cursor(job_id)
                else:
                    self._store.save_cursor(cursor)
            for job_id in self._secrets:
                self._store.remove_secrets(job_id)
            for job_id in self._deletes:
                self._store.delete(job_id)
            connection.execute("COMMIT")
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _succeeded(self) -> None:
        if self._problem:
            log.info("the job database can be written again")
            self._problem = ""
        done = [insert.done for insert in self._inserts] + self._durable
        self._inserts, self._durable = [], []
        self._sync = False
        self._updates.clear()
        self._cursors.clear()
        self._secrets.clear()
        self._deletes.clear()
        for future in done:
            if not future.done():
                future.set_result(None)

    def _failed(self, cause: sqlite3.Error) -> None:
        if str(cause) != self._problem:
            self._problem = str(cause)
            log.error("the job database cannot be written", problem=self._problem)
        inserts, self._inserts = self._inserts, []
        for insert in inserts:
            if not insert.done.done():
                insert.done.set_exception(_refusal(cause))
        if self._updates or self._cursors or self._secrets or self._deletes or self._durable:
            self._scheduled = asyncio.get_running_loop().call_later(RETRY_S, self.flush)


def _refusal(cause: sqlite3.Error) -> JobletError:
    if isinstance(cause, sqlite3.IntegrityError):
        return JobletError(Reason.EXISTS, "a job with this id or idempotency key exists", detail="ask for it")
    return exhausted(f"the job cannot be recorded: {cause}", "free space below the base directory's state, then retry")
