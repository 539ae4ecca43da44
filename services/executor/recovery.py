"""Takes up the jobs of the time before: each is followed on, or settled. None is launched again.

lock of the job held  ──▶ its monitor lives: follow the journal from the durable position, send an undelivered stop
lock free             ──▶ read the journal: its EXIT is the true end; without one the job is LOST, or was never
launched and FAILED
ended, not delivered  ──▶ deliver the rest of its journal to persist
"""

from typing import Protocol

import structlog

from common.failpoints import reached
from common.identifiers import JobId
from services.executor.events import Job, Launched
from services.executor.job_store import Cursor, JobStore
from services.executor.jobs import Jobs
from services.executor.output import Output

log = structlog.get_logger(__name__)


class Sweeps(Protocol):
    """Removes what nobody owns. See cleanup.Cleanup."""

    async def sweep(self, *, alive: frozenset[JobId], known: frozenset[JobId]) -> object:
        """Remove groups of jobs that are not `alive`, and directories of jobs that are not `known`."""


async def recover(jobs: Jobs, store: JobStore, output: Output, sweeps: Sweeps, *, persists: bool, now_ns: int) -> None:
    """Take up every job again. Returns when each is followed or settled; deliveries go on behind.

    `output.follower.run()` must be running.
    """
    for job_id in store.stale_secrets():
        jobs.remove_secrets(job_id)
    cursors = {cursor.job: cursor for cursor in store.cursors()}
    unended = list(store.unended())
    alive = {job.record.id for job in unended if _take_up(jobs, output, job, cursors, now_ns)}
    for job in unended:
        if job.record.id not in alive:
            await jobs.settle_without_monitor(job.record.id)
    reached("executor.settled")
    ended = [cursor for job_id, cursor in cursors.items() if job_id not in {job.record.id for job in unended}]
    if persists:
        for cursor in ended:
            jobs.in_background(_deliver_rest(output, store, cursor))
    # A cursor may be left of a record that was lost with a damaged database: nobody knows whether that job has ended.
    known = frozenset(job for job in cursors if store.get(job) is not None)
    await sweeps.sweep(alive=frozenset(alive), known=known)
    reached("executor.swept")
    log.info("jobs taken up", alive=len(alive), settled=len(unended) - len(alive), undelivered=len(ended))


def _take_up(jobs: Jobs, output: Output, job: Job, cursors: dict[JobId, Cursor], now_ns: int) -> bool:
    """True: the job's monitor lives and is watched."""
    job_id = job.record.id
    jobs.adopt(job)
    alive = jobs.watch(job_id)
    output.begin(cursors.setdefault(job_id, Cursor(job=job_id)))
    if alive:
        jobs.happened(job_id, Launched(at_ns=now_ns))
    reached("executor.taken_up")
    return alive


async def _deliver_rest(output: Output, store: JobStore, cursor: Cursor) -> None:
    """An ended job: read what is left of its journal once more, and deliver it."""
    job = store.get(cursor.job)
    if job is None:
        return
    has_journal = output.begin(cursor)
    read = await output.read_all(cursor.job)
    last = read.last_sequence if has_journal else job.record.last_sequence
    output.finish(job.with_record(last_sequence=last).record)
