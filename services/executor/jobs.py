"""Carries out what the state machine decides: the effects of job life, around machine.py.

Every change of a job goes through `_apply`: event in, decision, instructions in order; what an instruction answers is
the next event. Jobs that have not ended are in memory; ended ones are in the database only.
"""

import asyncio
import functools
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

import structlog

from common.config.layout import Layout
from common.errors import JobletError, exhausted
from common.failpoints import reached
from common.identifiers import JobId
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
    Started,
    StopDelivered,
    StopUndelivered,
)
from services.executor.job_store import Cursor
from services.executor.journal import Note
from services.executor.live import Live
from services.executor.machine import handle
from services.executor.notes import UnreadableNote, parse_note
from services.executor.output import Output
from services.executor.ports import Cleans, Launches, Monitors, Samples
from services.executor.registry import Registry
from services.executor.tasks import Tasks
from services.executor.vault import Vault, secrets_lost
from services.executor.writer import RecordWriter

log = structlog.get_logger(__name__)

LAUNCHES_AT_ONCE_MAX: Final = 16
"""More wait their turn: each has a deadline at the launcher, which makes one monitor after the other."""


class Jobs:
    """All jobs of the node. `output` is set once, right after both exist: each needs the other."""

    output: Output

    def __init__(
        self,
        *,
        registry: Registry,
        writer: RecordWriter,
        live: Live,
        launches: Launches,
        monitors: Monitors,
        cleans: Cleans,
        samples: Samples,
        layout: Layout,
        vault: Vault,
        node_id: str,
        running_max: int,
        clock_ns: Callable[[], int],
    ) -> None:
        self._registry = registry
        self._writer = writer
        self._live = live
        self._launches = launches
        self._monitors = monitors
        self._cleans = cleans
        self._samples = samples
        self._layout = layout
        self._vault = vault
        self._node_id = node_id
        self._running_max = running_max
        self._clock_ns = clock_ns
        self._active = registry.active
        self._tasks = Tasks()
        self._launch_slots = asyncio.Semaphore(LAUNCHES_AT_ONCE_MAX)
        self._lost_entries = self._lost_bytes = 0

    @property
    def active(self) -> frozenset[JobId]:
        """Jobs that have not ended."""
        return frozenset(self._active)

    @property
    def counters(self) -> dict[str, int]:
        """Output that was lost since this process began, by the names of NodeFacts.counters."""
        return {"lost_entries": self._lost_entries, "lost_bytes": self._lost_bytes}

    async def submit(self, owner: str, spec: JobSpec, key: str, secrets: Mapping[str, str]) -> tuple[JobRecord, bool]:
        """Record a job durably, its secrets sealed, and begin to launch it; True: `key` was known and nothing was done.

        Raises EXHAUSTED when too many jobs run, or when the record cannot be written.
        """
        if key and (known := await self._registry.by_key(owner, key)) is not None:
            return self.view(known.record), True
        if len(self._active) >= self._running_max:
            raise exhausted(f"{self._running_max} jobs are running: Max capacity reached", "wait for one to end")
        now_ns = self._clock_ns()
        record = JobRecord(
            id=self._launches.new_id(spec),
            owner=owner,
            node_id=self._node_id,
            state=State.PENDING,
            spec=spec,
            created_at_ns=now_ns,
        )
        job = Job(record=record)
        self._active[record.id] = job
        try:
            await self._writer.insert(job, key, self._vault.seal(record.id, secrets))
        except JobletError:
            del self._active[record.id]
            self._launches.give_back(record.id)
            raise
        reached("executor.recorded")
        self._apply(record.id, Recorded(at_ns=self._clock_ns()))
        return self.view(self._active[record.id].record if record.id in self._active else record), False

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
        return self.view(self._registry.load(job).record)

    async def delete(self, job: JobId) -> None:
        """Forget an ended job. Raises NOT_FOUND; PRECONDITION when it has not ended."""
        for task in self._apply(job, DeleteRequested(at_ns=self._clock_ns())):
            await task

    def adopt(self, job: Job) -> None:
        """Take a job that has not ended over from the database, after a restart."""
        self._active[job.record.id] = job
        self._launches.adopt(job.record)
        if job.record.state is State.RUNNING:
            self._samples.add(job.record.id, started_at_ns=None)

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Go on with `work` until it is done or the executor is closed."""
        self._tasks.spawn(work)

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
        if isinstance(event, Started) and job in self._active:
            self._samples.add(job, started_at_ns=event.at_ns)
            self._drop_staged(self._active[job])

    def damaged(self, job: JobId, problem: str) -> None:
        """See output.Listener."""
        self.happened(job, JournalDamaged(at_ns=self._clock_ns(), problem=problem))

    def delivered(self, job: JobId) -> None:
        """See output.Listener."""
        self._tasks.spawn(self._forget_journal(job))

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
        if state is State.RUNNING or read.last_sequence or read.rest_bytes or read.corrupt:
            lost = MonitorLost(
                at_ns=now_ns, last_sequence=read.last_sequence, reason=read.corrupt, lost_bytes=read.rest_bytes
            )
            self._apply(job, lost)
        else:
            reason = "could not be started: its monitor ended, or the executor did, before its command ran"
            self._apply(job, LaunchFailed(at_ns=now_ns, reason=reason))

    async def settled(self) -> None:
        """Returns when nothing goes on behind what was told: of ended jobs, all that was to be removed was tried."""
        await self._tasks.settled()

    async def close(self) -> None:
        """Carry nothing more out. Running jobs go on."""
        await self._tasks.close()
        self._writer.flush()

    def _apply(self, job_id: JobId, event: AnyEvent) -> list[asyncio.Task[None]]:
        """Decide and carry out; the tasks that go on in the background. Raises the error of a Refused."""
        before = self._registry.load(job_id)
        decision = handle(before, event)
        if isinstance(decision, Refused):
            raise decision.error
        if isinstance(decision, Ignored):
            log.debug("event ignored", job=job_id, what=type(event).__name__, why=decision.why)
            return []
        job = decision.job
        self._lost_entries += job.record.lost_entries - before.record.lost_entries
        self._lost_bytes += job.record.lost_bytes - before.record.lost_bytes
        ends = job.record.state in TERMINAL and before.record.state not in TERMINAL
        if job.record.state not in TERMINAL:
            self._active[job_id] = job
        elif ends:
            job = self._last(job)
            del self._active[job_id]
            reached("executor.ended")
            log.info("job ended", job=job_id, state=job.record.state.value, reason=job.record.reason)
        tasks: list[asyncio.Task[None]] = []
        for instruction in decision.instructions:
            tasks += self._execute(job, instruction)
        if ends:
            self.output.finish(job.record)
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
                return [self._tasks.spawn(self._launch(job))]
            case SignalStop():
                taken = self._monitors.stop(job_id, signal=instruction.signal, grace_ms=instruction.grace_ms)
                answer = StopDelivered if taken else StopUndelivered
                return self._apply(job_id, answer(at_ns=self._clock_ns()))
            case CleanUp():
                return [self._tasks.spawn(self._clean_up(job))]
            case Forget():
                return [self._tasks.spawn(self._forget(job))]
            case _:
                raise AssertionError(f"unknown instruction {instruction}")
        return []

    async def _launch(self, job: Job) -> None:
        job_id = job.record.id
        problem = ""
        try:
            async with self._launch_slots:
                reached("executor.launching")
                await self._launches.launch(job, self._secrets_of(job))
                reached("executor.launched")
        except (JobletError, OSError) as cause:
            problem = f"could not be started: {cause}"
            log.error("launch failed", job=job_id, why=str(cause))
        except Exception:  # the boundary of this task: without an end the job would stay STARTING for ever
            problem = "could not be started: internal error"
            log.exception("launch failed", job=job_id)
        alive = self.watch(job_id)  # before its journal is opened: what it wrote until then is read below
        self.output.begin(Cursor(job=job_id))
        if alive:
            self.happened(job_id, Launched(at_ns=self._clock_ns()))
        elif problem:
            self.happened(job_id, LaunchFailed(at_ns=self._clock_ns(), reason=problem))
        else:
            await self.settle_without_monitor(job_id)

    def _monitor_gone(self, job: JobId) -> None:
        self._tasks.spawn(self.settle_without_monitor(job))

    def remove_secrets(self, job: JobId) -> None:
        """Nobody needs the sealed secrets of a job any more."""
        self._writer.remove_secrets(job)

    def _secrets_of(self, job: Job) -> dict[str, str]:
        names = set(job.record.spec.secret_names)
        if not names:
            return {}
        sealed = self._registry.sealed_secrets(job.record.id)
        if not sealed:
            raise secrets_lost("they are not in the database any more")
        return self._vault.unseal(job.record.id, sealed)

    async def _clean_up(self, job: Job) -> None:
        self._samples.finish(job.record.id)
        self._drop_staged(job)
        await self._cleans.end(job.record.id)
        reached("executor.cleaned")

    def _drop_staged(self, job: Job) -> None:
        """Staged archives and sealed secrets have no use any more once the job has begun, or never will."""
        if job.record.spec.secret_names:
            self.remove_secrets(job.record.id)
        for upload in job.record.spec.uploads:
            try:
                self._layout.upload(upload.id).unlink(missing_ok=True)
            except OSError as cause:
                log.warning("a staged upload cannot be removed", upload=upload.id, problem=str(cause))

    async def _forget(self, job: Job) -> None:
        job_id = job.record.id
        self.output.drop(job_id)
        self._writer.delete(job_id)
        await self._writer.durable()
        await self._cleans.forget(job_id)
        self._live.changed(job.record, deleted=True)

    async def _forget_journal(self, job: JobId) -> None:
        await self._writer.durable()  # the end must be known for good before its only other witness goes
        reached("executor.delivered")
        await self._cleans.forget(job)
        reached("executor.journal_removed")
        self._writer.remove_cursor(job)
