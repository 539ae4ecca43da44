"""Takes up the jobs of the time before: each is followed on, settled, or waits again. None is launched twice.

lock of the job held  ──▶ its monitor lives: follow the journal from the durable position, send an undelivered stop
lock free             ──▶ read the journal: its EXIT is the true end; without one it is LOST, or never began: FAILED
no journal            ──▶ it was not launched: it waits again, for its time or for a slot
ended, not delivered  ──▶ deliver the rest of its journal to persist

The journal is the witness of a launch: a monitor makes it, and nobody can make it twice (O_EXCL), before it answers
the executor, and it lets the job begin only when the answer was taken. So when an executor is gone, every launch of its
that will ever come to something has its journal. Where that witness may be gone itself (`_doubt`), a job that may have
been launched is FAILED and not launched again.
"""

from functools import partial
from typing import Protocol

import structlog

from common.failpoints import reached
from common.identifiers import JobId
from common.messages.jobs import State
from services.executor.archives import Archives
from services.executor.events import Job, Launched
from services.executor.job_store import Cursor, JobStore
from services.executor.jobs import NEVER_BEGUN, Jobs
from services.executor.output import Output
from services.executor.tasks import when_possible

log = structlog.get_logger(__name__)


class Sweeps(Protocol):
    """Removes what nobody owns. See cleanup.Cleanup."""

    async def sweep(self, *, alive: frozenset[JobId], known: frozenset[JobId]) -> object:
        """Remove groups of jobs that are not `alive`, and directories of jobs that are not `known`."""


async def recover(
    jobs: Jobs,
    store: JobStore,
    output: Output,
    archives: Archives,
    sweeps: Sweeps,
    *,
    persists: bool,
    now_ns: int,
    boot_id: str,
) -> None:
    """Take up every job again. Returns when each is followed, settled or waits; deliveries go on behind.

    `output.follower.run()` must be running.
    """
    cursors = {cursor.job: cursor for cursor in store.cursors()}
    alive: set[JobId] = set()
    waiting: list[JobId] = []  # ids only: how large their specs are is up to their owners
    ended: dict[JobId, str] = {}
    held: set[str] = set()
    for job in store.unended():
        job_id = job.record.id
        doubt = _doubt(job, boot_id, salvaged=store.salvaged)
        if job.record.state is not State.RUNNING and not doubt and not output.has_journal(job_id):
            jobs.adopt_waiting(job)
            waiting.append(job_id)
            held.update(upload.id for upload in job.record.spec.uploads)
        elif _take_up(jobs, job, cursors, now_ns, otherwise=doubt or NEVER_BEGUN):
            alive.add(job_id)
        else:
            ended[job_id] = doubt or NEVER_BEGUN
    for job_id, otherwise in ended.items():
        await jobs.settle_without_monitor(job_id, otherwise=otherwise)
    reached("executor.settled")
    undelivered = [cursors[job] for job in cursors.keys() - alive - ended.keys() - set(waiting)]
    if persists:
        for cursor in undelivered:
            jobs.in_background(_deliver_rest(output, store, cursor))
    # A cursor may be left of a record that was lost with a damaged database: nobody knows whether that job has ended.
    waits = frozenset(waiting)
    known = waits | frozenset(job for job in cursors if job not in waits and store.get(job) is not None)
    await sweeps.sweep(alive=frozenset(alive), known=known)
    archives.sweep(frozenset(held))
    reached("executor.swept")
    for job_id in waiting:  # what the executor before had prepared for them is swept away now
        jobs.put_back(job_id)
    log.info("jobs taken up", alive=len(alive), settled=len(ended), waiting=len(waiting), undelivered=len(undelivered))


def _doubt(job: Job, boot_id: str, *, salvaged: bool) -> str:
    """Why a job without a journal may have been launched all the same; empty: it was not."""
    if salvaged:
        return "the node's records were damaged, so nobody knows whether it was before"
    if job.bounds is None:
        return NEVER_BEGUN  # of a release that did not note what it was about to launch
    if job.chosen_boot not in ("", boot_id):
        return "the machine went down while it was being started, so nobody knows whether it was"
    return ""


def _take_up(jobs: Jobs, job: Job, cursors: dict[JobId, Cursor], now_ns: int, *, otherwise: str) -> bool:
    """True: the job's monitor lives and is watched, or nobody can tell yet."""
    job_id = job.record.id
    cursor = cursors.setdefault(job_id, Cursor(job=job_id))
    jobs.adopt(job)
    try:
        alive = jobs.follow(cursor)
    except OSError as cause:
        log.error("a job cannot be taken up now: it is taken for one that runs", job=job_id, problem=str(cause))
        jobs.in_background(jobs.follow_later(cursor, otherwise=otherwise))
        return True
    if alive:
        jobs.happened(job_id, Launched(at_ns=now_ns))
    reached("executor.taken_up")
    return alive


async def _deliver_rest(output: Output, store: JobStore, cursor: Cursor) -> None:
    """An ended job: read what is left of its journal once more, and deliver it."""
    job = store.get(cursor.job)
    if job is None:
        return
    has_journal = await when_possible(partial(output.begin, cursor), job=cursor.job)
    read = await output.read_all(cursor.job)
    last = read.last_sequence if has_journal else job.record.last_sequence
    output.finish(job.with_record(last_sequence=last).record)
