"""Where the truth about a job is: jobs with a slot are in memory, those that wait or have ended in the database only.

Between the two is what the disk has not taken yet. Nothing is decided here (`machine.py`) or carried out (`jobs.py`).
"""

import asyncio
import sqlite3

from common.errors import JobletError, Reason, not_found
from common.identifiers import JobId
from services.executor.events import Job
from services.executor.job_store import JobStore
from services.executor.writer import RecordWriter


class Registry:
    """All jobs of the node, for looking up. `active` is written by `jobs.py`."""

    def __init__(self, store: JobStore, writer: RecordWriter) -> None:
        self._store = store
        self._writer = writer
        self.active: dict[JobId, Job] = {}

    def current(self, stored: Job) -> Job:
        """The job as it is now, given what the database has."""
        job_id = stored.record.id
        return self.active.get(job_id) or self._writer.unsaved(job_id) or stored

    def load(self, job: JobId) -> Job:
        """The job as it is now. Raises NOT_FOUND, DATA_LOSS when the database cannot be read."""
        try:
            known = self.active.get(job) or self._writer.unsaved(job) or self._store.get(job)
        except sqlite3.Error as cause:
            raise JobletError(Reason.DATA_LOSS, f"the record of job {job} cannot be read: {cause}") from cause
        if known is None:
            raise not_found(f"there is no job {job}", "list the jobs you can see with: rnx job list")
        return known

    def find(self, reference: str, *, visible_owner: str | None) -> Job:
        """The one visible job that `reference` names. Raises NOT_FOUND, INVALID when it is ambiguous."""
        return self.current(self._store.find(reference, visible_owner=visible_owner))

    async def by_key(self, owner: str, key: str) -> Job | None:
        """The durable job of this idempotency key. Raises EXHAUSTED when one was just refused by the disk."""
        pending = self._writer.pending_by_key(owner, key)
        if pending is not None:
            job, durable = pending
            await asyncio.shield(durable)
            return self.current(job)
        stored = self._store.find_by_key(owner, key)
        return None if stored is None else self.current(stored)
