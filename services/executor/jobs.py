"""Carries out what the state machine decides: the effects of job life, around machine.py.

Every change of a job goes through `_apply`: event in, decision, instructions in order; what an instruction answers is
the next event. Jobs with a slot, which are those that are launched or about to be, are in memory; of those that wait
`waiting.py` knows the ids, and the rest is in the database, as for those that have ended.
"""

import asyncio
import functools
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Final

import structlog

from common.errors import JobletError, unavailable
from common.failpoints import reached
from common.identifiers import JobId, new_job_id
from common.messages.jobs import TERMINAL, JobRecord, JobSpec, State
from services.executor import views
from services.executor.archives import Archives
from services.executor.events import (
    Announce,
    AnyEvent,
    Bounds,
    Chosen,
    CleanUp,
    DeleteRequested,
    Due,
    Forget,
    Ignored,
    Instruction,
    Job,
    JournalDamaged,
    Launch,
    Launched,
    LaunchFailed,
    LineUp,
    MonitorLost,
    NeverLaunched,
    Recorded,
    Refused,
    Save,
    Schedule,
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
from services.executor.secret_values import SecretValues
from services.executor.tasks import Tasks, when_possible
from services.executor.waiting import Place, Waiting, WaitingLimits
from services.executor.writer import RecordWriter

log = structlog.get_logger(__name__)

LAUNCHES_AT_ONCE_MAX: Final = 16
"""More wait their turn: each has a deadline at the launcher, which makes one monitor after the other."""

PLACED_OWNERS_MAX: Final = 100
"""With more owners a new job's place is told to who asks for it: finding it takes time for each, a submission must not.
"""

DELETE_S_MAX: Final = 5.0
"""How long a client waits for it."""

NEVER_BEGUN: Final = "its monitor ended, or the executor did, before its command ran"


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
        archives: Archives,
        secrets: SecretValues,
        limits: WaitingLimits,
        has_room: Callable[[], bool],
        node_id: str,
        boot_id: str,
        clock_ns: Callable[[], int],
    ) -> None:
        self._registry = registry
        self._writer = writer
        self._live = live
        self._launches = launches
        self._monitors = monitors
        self._cleans = cleans
        self._samples = samples
        self._archives = archives
        self._secrets = secrets
        self._node_id = node_id
        self._boot_id = boot_id
        self._clock_ns = clock_ns
        self._active = registry.active
        self._tasks = Tasks()
        self._launch_slots = asyncio.Semaphore(LAUNCHES_AT_ONCE_MAX)
        self._lost_entries = self._lost_bytes = 0
        self.waiting = Waiting(limits, chosen=self._choose, due=self._fall_due, has_room=has_room, clock_ns=clock_ns)

    @property
    def active(self) -> frozenset[JobId]:
        """Jobs that have not ended, whatever they wait for."""
        return self.waiting.jobs

    @property
    def counters(self) -> dict[str, int]:
        """Output that was lost since this process began, by the names of NodeFacts.counters."""
        return {"lost_entries": self._lost_entries, "lost_bytes": self._lost_bytes}

    async def submit(
        self, owner: str, spec: JobSpec, key: str, secrets: Mapping[str, str], bounds: Bounds | None = None
    ) -> tuple[JobRecord, bool]:
        """Record a job durably, its secrets sealed, and begin to launch it or let it wait.

        True: `key` was known and nothing was done.

        Raises EXHAUSTED when it would have to wait and too many do, or when the record cannot be written.
        """
        if key and (known := await self._registry.by_key(owner, key)) is not None:
            return self.view(known.record), True
        now_ns = self._clock_ns()
        bounds = bounds or Bounds()
        later = spec.start_at_ns > now_ns
        upload_bytes = sum(upload.bytes for upload in spec.uploads)
        place = self.waiting.place_for(owner, bounds, later=later, upload_bytes=upload_bytes)
        at_once = place is Place.SLOT
        record = JobRecord(
            id=self._launches.new_id(spec) if at_once else new_job_id(),
            owner=owner,
            node_id=self._node_id,
            state=State.SCHEDULED if later else State.PENDING,
            spec=spec,
            created_at_ns=now_ns,
        )
        job = Job(record=record, bounds=bounds, chosen_boot=self._boot_id if at_once else "")
        self._keep(job, place)
        try:
            await self._writer.insert(job, key, self._secrets.seal(record.id, secrets))
        except JobletError:
            self._active.pop(record.id, None)
            self.waiting.leave(record.id)
            self._launches.give_back(record.id)
            raise
        if not at_once:
            self._archives.hold(spec)
        reached("executor.recorded")
        self._apply(record.id, Recorded(at_ns=self._clock_ns()))
        record = self._registry.load(record.id).record
        return (self.view(record) if self.waiting.owners <= PLACED_OWNERS_MAX else record), False

    def view(self, record: JobRecord) -> JobRecord:
        """See views.view."""
        return views.view(record, self._active, self.waiting, self.output)

    def views(self, records: Iterable[JobRecord]) -> tuple[JobRecord, ...]:
        """See views.views."""
        return views.views(records, self._active, self.waiting, self.output)

    def request(self, job: JobId, event: AnyEvent) -> JobRecord:
        """Do what a client asks for. Raises NOT_FOUND, and PRECONDITION when the job's state does not allow it."""
        self._apply(job, event)
        return self.view(self._registry.load(job).record)

    async def delete(self, job: JobId) -> None:
        """Forget an ended job. Raises NOT_FOUND; PRECONDITION when it has not ended.

        UNAVAILABLE when it takes long, as on a full disk: it goes on, and nobody waits for it, or all the requests that
        there may be at once would be such.
        """
        tasks = self._apply(job, DeleteRequested(at_ns=self._clock_ns()))
        try:
            async with asyncio.timeout(DELETE_S_MAX):
                for task in tasks:
                    await asyncio.shield(task)
        except TimeoutError as cause:
            what = f"job {job} is not deleted yet: the disk does not take it, or something of the job is still in use"
            raise unavailable(what, "it is done as soon as it can be; see the node's log") from cause

    def adopt(self, job: Job) -> None:
        """Take a job that was launched over from the database, after a restart."""
        self._keep(job, Place.SLOT)
        self._launches.adopt(job.record)
        if job.record.state is State.RUNNING:
            self._samples.add(job.record.id, started_at_ns=None)

    def adopt_waiting(self, job: Job) -> None:
        """Keep a job's place in the queue, after a restart. It is not in it before `put_back`."""
        self._keep(job, Place.QUEUE)
        self._archives.hold(job.record.spec)

    def put_back(self, job: JobId) -> None:
        """Let a job wait again that was not launched before the restart, and will be by nobody else."""
        self._move_on(job, NeverLaunched(at_ns=self._clock_ns()))

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Go on with `work` until it is done or the executor is closed."""
        self._tasks.spawn(work)

    def happened(self, job: JobId, event: AnyEvent) -> None:
        """Something happened to a job by itself."""
        if job in self._active:
            self._apply(job, event)

    def follow(self, cursor: Cursor) -> bool:
        """Follow the job's journal and notice the end of its monitor. False: there is no monitor.

        Raises OSError, and can be tried again: see Output.begin.
        """
        self.output.begin(cursor)
        return self._monitors.watch(cursor.job, functools.partial(self._monitor_gone, cursor.job))

    async def follow_later(self, cursor: Cursor, *, otherwise: str) -> None:
        """As soon as it is possible; see settle_without_monitor."""
        job = cursor.job
        if await when_possible(functools.partial(self.follow, cursor), job=job):
            self.happened(job, Launched(at_ns=self._clock_ns()))
        else:
            await self.settle_without_monitor(job, otherwise=otherwise)

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

    async def settle_without_monitor(self, job: JobId, *, otherwise: str = NEVER_BEGUN) -> None:
        """The job has no monitor (any more): its journal tells the end, or nobody does, and it is `otherwise`."""
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
            self._apply(job, LaunchFailed(at_ns=now_ns, reason=f"could not be started: {otherwise}"))

    async def settled(self) -> None:
        """Returns when nothing goes on behind what was told: of ended jobs, all that was to be removed was tried."""
        await self._tasks.settled()

    async def close(self) -> None:
        """Carry nothing more out. Running jobs go on."""
        self.waiting.close()
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
        if ends:
            self._samples.finish(job_id)  # whoever follows the samples until the end is announced has the last one
            job = self._last(job)
            self._active.pop(job_id, None)
            if not self.output.begun(job_id):  # it was never launched: persist is told of its end all the same
                self.output.begin(Cursor(job=job_id))
            reached("executor.ended")
            log.info("job ended", job=job_id, state=job.record.state.value, reason=job.record.reason)
        elif self.waiting.has_slot(job_id):
            self._active[job_id] = job
        tasks: list[asyncio.Task[None]] = []
        for instruction in decision.instructions:
            tasks += self._execute(job, instruction)
        if ends:
            self.output.finish(job.record)
            self.waiting.leave(job_id)
        return tasks

    def _keep(self, job: Job, place: Place) -> None:
        self.waiting.keep(job, place)
        if place is Place.SLOT:
            self._active[job.record.id] = job

    def _choose(self, job: JobId) -> None:
        """See Waiting: it is this job's turn."""
        reached("executor.chosen")
        self._move_on(job, Chosen(at_ns=self._clock_ns(), boot=self._boot_id))

    def _fall_due(self, job: JobId) -> None:
        """See Waiting: this job's time has come."""
        reached("executor.due")
        self._move_on(job, Due(at_ns=self._clock_ns()))

    def _move_on(self, job: JobId, event: AnyEvent) -> None:
        try:
            self._apply(job, event)
        except JobletError as error:  # its row was damaged while it waited: nobody knows what it was
            log.error("a waiting job cannot be started", job=job, why=str(error))
            self.waiting.leave(job)

    def _last(self, job: Job) -> Job:
        sequence = self.output.last_sequence(job.record.id) or 0
        return job.with_record(last_sequence=max(sequence, job.record.last_sequence))

    def _execute(self, job: Job, instruction: Instruction) -> list[asyncio.Task[None]]:
        job_id = job.record.id
        match instruction:
            case Save():
                self._writer.update(job, durable=instruction.durable)
            case Announce():
                # Without a place in the queue: it is true for a moment only, and nobody is told when it changes.
                self._live.changed(job.record if job.record.state is State.PENDING else self.view(job.record))
            case Schedule():
                self.waiting.schedule(job)
            case LineUp():
                self.waiting.line_up(job)
            case Launch():
                return [self._tasks.spawn(self._launch(job, when_saved=instruction.when_saved))]
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

    async def _launch(self, job: Job, *, when_saved: bool) -> None:
        job_id = job.record.id
        problem = ""
        if when_saved:
            await self._writer.durable()
            self._archives.release(job.record.spec)
        try:
            async with self._launch_slots:
                reached("executor.launching")
                await self._launches.launch(job, self._secrets.of(job))
                reached("executor.launched")
        except (JobletError, OSError) as cause:
            problem = f"could not be started: {cause}"
            log.error("launch failed", job=job_id, why=str(cause))
        except Exception:  # the boundary of this task: without an end the job would stay STARTING for ever
            problem = "could not be started: internal error"
            log.exception("launch failed", job=job_id)
        if await when_possible(functools.partial(self.follow, Cursor(job=job_id)), job=job_id):
            self.happened(job_id, Launched(at_ns=self._clock_ns()))
        elif problem:
            self.happened(job_id, LaunchFailed(at_ns=self._clock_ns(), reason=problem))
        else:
            await self.settle_without_monitor(job_id)

    def _monitor_gone(self, job: JobId) -> None:
        self._tasks.spawn(self.settle_without_monitor(job))

    async def _clean_up(self, job: Job) -> None:
        self._drop_staged(job)
        await self._cleans.end(job.record.id)
        reached("executor.cleaned")

    def _drop_staged(self, job: Job) -> None:
        """Staged archives and sealed secrets have no use any more once the job has begun, or never will."""
        self._secrets.drop(job)
        self._archives.drop(job.record.spec)

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
