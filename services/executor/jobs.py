"""Carries out what the state machine decides: the effects of job life, around machine.py.

Every change of a job goes through `_apply`: event in, decision, instructions in order; what an instruction answers is
the next event. Jobs that have not ended are in memory; ended ones are in the database only.
"""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from common.config.layout import Layout
from common.errors import JobletError, exhausted, not_found
from common.identifiers import JobId, new_job_id
from common.messages.jobs import TERMINAL, JobRecord, JobSpec, State
from services.executor.events import (
    Announce,
    AnyEvent,
    CleanUp,
    DeleteRequested,
    Forget,
    Ignored,
    Instruction,
    Job,
    JournalDamaged,
    Launch,
    Launched,
    LaunchFailed,
    MonitorLost,
    Recorded,
    Refused,
    Save,
    SignalStop,
    StopDelivered,
    StopUndelivered,
)
from services.executor.job_store import Cursor, JobStore
from services.executor.journal import Note
from services.executor.live import Live
from services.executor.machine import handle
from services.executor.notes import UnreadableNote, parse_note
from services.executor.output import Output
from services.executor.ports import Cleans, Launches, Monitors, Samples
from services.executor.writer import RecordWriter

log = structlog.get_logger(__name__)


class Jobs:
    """All jobs of the node. `output` is set once, right after both exist: each needs the other."""

    output: Output

    def __init__(
        self,
        *,
        store: JobStore,
        writer: RecordWriter,
        live: Live,
        launches: Launches,
        monitors: Monitors,
        cleans: Cleans,
        samples: Samples,
        layout: Layout,
        node_id: str,
        running_max: int,
        clock_ns: Callable[[], int],
    ) -> None:
        self._store = store
        self._writer = writer
        self._live = live
        self._launches = launches
        self._monitors = monitors
        self._cleans = cleans
        self._samples = samples
        self._layout = layout
        self._node_id = node_id
        self._running_max = running_max
        self._clock_ns = clock_ns
        self._active: dict[JobId, Job] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    @property
    def active(self) -> frozenset[JobId]:
        """Jobs that have not ended."""
        return frozenset(self._active)

    async def submit(self, owner: str, spec: JobSpec, key: str) -> tuple[JobRecord, bool]:
        """Record a job durably and begin to launch it; True: `key` was known and nothing was done.

        Raises EXHAUSTED when too many jobs run, or when the record cannot be written.
        """
        if key and (known := await self._known_by_key(owner, key)) is not None:
            return known, True
        if len(self._active) >= self._running_max:
            raise exhausted(f"{self._running_max} jobs are running: Max capacity reached", "wait for one to end")
        now_ns = self._clock_ns()
        record = JobRecord(
            id=new_job_id(), owner=owner, node_id=self._node_id, state=State.PENDING, spec=spec, created_at_ns=now_ns
        )
        job = Job(record=record)
        self._active[record.id] = job
        try:
            await self._writer.insert(job, key)
        except JobletError:
            del self._active[record.id]
            raise
        self._apply(record.id, Recorded(at_ns=self._clock_ns()))
        return self.view(self._active[record.id].record if record.id in self._active else record), False

    async def _known_by_key(self, owner: str, key: str) -> JobRecord | None:
        pending = self._writer.pending_by_key(owner, key)
        if pending is not None:
            job, done = pending
            await asyncio.shield(done)
            return self.view(self.current(job).record)
        stored = self._store.find_by_key(owner, key)
        return None if stored is None else self.view(self.current(stored).record)

    def current(self, stored: Job) -> Job:
        """The job as it is now: memory knows more of active ones than the database."""
        return self._active.get(stored.record.id, stored)

    def find(self, reference: str, *, visible_owner: str | None) -> JobRecord:
        """The record of the one visible job that `reference` names. Raises NOT_FOUND, INVALID."""
        return self.view(self.current(self._store.find(reference, visible_owner=visible_owner)).record)

    def view(self, record: JobRecord) -> JobRecord:
        """The record with how much output there is by now."""
        active = self._active.get(record.id)
        if active is None:
            return record
        sequence = self.output.last_sequence(record.id)
        return active.record if sequence is None else active.with_record(last_sequence=sequence).record

    def request(self, job: JobId, event: AnyEvent) -> JobRecord:
        """Do what a client asks for. Raises NOT_FOUND, and PRECONDITION when the job's state does not allow it."""
        self._apply(job, event)
        return self.view(self._load(job).record)

    async def delete(self, job: JobId) -> None:
        """Forget an ended job. Raises NOT_FOUND; PRECONDITION when it has not ended."""
        for task in self._apply(job, DeleteRequested(at_ns=self._clock_ns())):
            await task

    def adopt(self, job: Job) -> None:
        """Take a job that has not ended over from the database, after a restart."""
        self._active[job.record.id] = job

    def happened(self, job: JobId, event: AnyEvent) -> None:
        """Something happened to a job by itself."""
        if job in self._active:
            self._apply(job, event)

    def watch(self, job: JobId) -> bool:
        """Notice the end of the job's monitor. False: there is no monitor."""
        return self._monitors.watch(job, functools.partial(self._monitor_gone, job))

    def noted(self, job: JobId, note: Note) -> None:
        """See output.Listener."""
        try:
            event = parse_note(note)
        except UnreadableNote as cause:
            log.error("journal note cannot be read", job=job, problem=str(cause))
            self.damaged(job, str(cause))
            return
        self.happened(job, event)
        if note.time_ns and job in self._active and self._active[job].record.state is State.RUNNING:
            self._samples.add(job, started_at_ns=note.time_ns)

    def damaged(self, job: JobId, problem: str) -> None:
        """See output.Listener."""
        self.happened(job, JournalDamaged(at_ns=self._clock_ns(), problem=problem))

    def delivered(self, job: JobId) -> None:
        """See output.Listener."""
        self._spawn(self._forget_journal(job))

    def space_freed(self, job: JobId) -> None:
        """See output.Listener."""
        self._monitors.space_freed(job)

    async def settle_without_monitor(self, job: JobId) -> None:
        """The job has no monitor (any more): its journal tells the end, or nobody does."""
        read = await self.output.read_all(job)
        if job not in self._active:
            return
        state = self._active[job].record.state
        now_ns = self._clock_ns()
        if state is State.RUNNING or read.last_sequence or read.torn_bytes or read.corrupt:
            self._apply(job, MonitorLost(at_ns=now_ns, last_sequence=read.last_sequence, reason=read.corrupt))
        else:
            reason = "could not be started: its monitor ended, or the executor did, before its command ran"
            self._apply(job, LaunchFailed(at_ns=now_ns, reason=reason))

    async def close(self) -> None:
        """Carry nothing more out. Running jobs go on."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._writer.flush()

    def _load(self, job: JobId) -> Job:
        known = self._active.get(job) or self._store.get(job)
        if known is None:
            raise not_found(f"there is no job {job}", "list the jobs you can see with: rnx job list")
        return known

    def _apply(self, job_id: JobId, event: AnyEvent) -> list[asyncio.Task[None]]:
        """Decide and carry out; the tasks that go on in the background. Raises the error of a Refused."""
        before = self._load(job_id)
        decision = handle(before, event)
        if isinstance(decision, Refused):
            raise decision.error
        if isinstance(decision, Ignored):
            log.debug("event ignored", job=job_id, what=type(event).__name__, why=decision.why)
            return []
        job = decision.job
        ends = job.record.state in TERMINAL and before.record.state not in TERMINAL
        if job.record.state not in TERMINAL:
            self._active[job_id] = job
        elif ends:
            job = self._last(job)
            del self._active[job_id]
            log.info("job ended", job=job_id, state=job.record.state.value, reason=job.record.reason)
        tasks: list[asyncio.Task[None]] = []
        for instruction in decision.instructions:
            tasks += self._execute(job, instruction)
        if ends:
            self.output.finish(job_id, job.record.last_sequence)
        return tasks

    def _last(self, job: Job) -> Job:
        sequence = self.output.last_sequence(job.record.id) or 0
        return job.with_record(last_sequence=max(sequence, job.record.last_sequence))

    def _execute(self, job: Job, instruction: Instruction) -> list[asyncio.Task[None]]:
        job_id = job.record.id
        match instruction:
            case Save():
                self._writer.update(job, durable=instruction.durable)
            case Announce():
                self._live.changed(self.view(job.record))
            case Launch():
                return [self._spawn(self._launch(job))]
            case SignalStop():
                taken = self._monitors.stop(job_id, signal=instruction.signal, grace_ms=instruction.grace_ms)
                answer = StopDelivered if taken else StopUndelivered
                return self._apply(job_id, answer(at_ns=self._clock_ns()))
            case CleanUp():
                return [self._spawn(self._clean_up(job))]
            case Forget():
                return [self._spawn(self._forget(job))]
            case _:
                raise AssertionError(f"unknown instruction {instruction}")
        return []

    async def _launch(self, job: Job) -> None:
        job_id = job.record.id
        try:
            self.output.prepare(job_id)
            self.output.begin(Cursor(job=job_id))
            await self._launches.launch(job)
        except (JobletError, OSError) as cause:
            if not self.watch(job_id):
                log.error("launch failed", job=job_id, why=str(cause))
                self.happened(job_id, LaunchFailed(at_ns=self._clock_ns(), reason=f"could not be started: {cause}"))
                return
        else:
            if not self.watch(job_id):
                await self.settle_without_monitor(job_id)
        self.happened(job_id, Launched(at_ns=self._clock_ns()))

    def _monitor_gone(self, job: JobId) -> None:
        self._spawn(self.settle_without_monitor(job))

    async def _clean_up(self, job: Job) -> None:
        self._samples.finish(job.record.id)
        for upload in job.record.spec.uploads:
            self._layout.upload(upload.id).unlink(missing_ok=True)
        await self._cleans.end(job.record.id)

    async def _forget(self, job: Job) -> None:
        job_id = job.record.id
        self.output.drop(job_id)
        self._writer.delete(job_id)
        await self._writer.durable()
        self._cleans.forget(job_id)
        self._live.changed(job.record, deleted=True)

    async def _forget_journal(self, job: JobId) -> None:
        await self._writer.durable()  # the end must be known for good before its only other witness goes
        self._cleans.forget(job)
        self._writer.remove_cursor(job)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            log.exception("a task about a job failed")
            raise
