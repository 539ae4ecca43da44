"""A worker between its opening and its closing: an executor in this process, and what is asked of it.

Here: the order of start and end, waiting, and streams. Not here: the interface (`worker.py`), and anything that an
executor does; it is the one of the node (services/executor), with its own commands, which are called directly.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

import structlog

from common.config.layout import Layout
from common.errors import JobletError, Reason, unavailable
from common.identifiers import JobId, parse_job_id
from common.messages.jobs import (
    DeleteJob,
    GetJob,
    GetNode,
    JobAccepted,
    JobFound,
    JobPage,
    JobRecord,
    JobSpec,
    ListJobs,
    NodeFacts,
    RunJob,
    StopJob,
)
from services.executor.output import JOURNAL_FILE
from services.executor.wiring import Wired, wired
from worker.ending import end_jobs
from worker.inside import Changes, InProcess
from worker.logfiles import LogFiles
from worker.place import Options, prepared
from worker.reading import Reader
from worker.values import Output

log = structlog.get_logger(__name__)

KILL: Final = 9
PAGE_JOBS: Final = 1000
SETTLE_S_MAX: Final = 15.0
"""A launch has its deadline of 10 s (`launching.py`), and so has the removal of a group (`cleanup.py`)."""


@contextlib.asynccontextmanager
async def opened(options: Options) -> AsyncIterator["Session"]:
    """A worker that serves; closed as `Session.close` has it. Raises JobletError when this host cannot."""
    with prepared(options) as (settings, layout):
        changes = Changes()
        async with wired(settings, layout, InProcess(layout.run, changes), has_volumes=False) as parts:
            session = Session(options, parts, layout, changes)
            try:
                await session.begin()
                yield session
            finally:
                await session.close()


class Session:
    """An open worker. Lives on one event loop."""

    def __init__(self, options: Options, parts: Wired, layout: Layout, changes: Changes) -> None:
        self._options = options
        self._parts = parts
        self._executor = parts.executor
        self._commands = parts.executor.commands
        self._layout = layout
        self._changes = changes
        self._readers: set[Reader] = set()
        self._closing = False
        self._refusal: JobletError | None = None
        self._serving: list[asyncio.Task[None]] = []
        self._withdrawals: set[asyncio.Task[None]] = set()
        directory = options.log_directory
        self._logs = None if directory is None else LogFiles(directory, self.portions)

    async def begin(self) -> None:
        """Take up the jobs of the time before, and serve."""
        unended = [job.record.id for job in self._executor.store.unended()]
        self._serving = await self._parts.start()
        for task in self._serving:
            task.add_done_callback(self._served)
        if self._logs is not None:
            for job in unended:
                self._logs.begin(job)

    async def start(self, spec: JobSpec) -> JobId:
        """See Worker.start."""
        self._require_open()
        if self._closing:
            raise unavailable("the worker is being closed", "open another one")
        accepted = asyncio.create_task(self._run(spec))
        try:
            return await asyncio.shield(accepted)
        except asyncio.CancelledError:  # who does not learn its id cannot stop it
            withdrawal = asyncio.create_task(self._withdraw(accepted))
            self._withdrawals.add(withdrawal)
            withdrawal.add_done_callback(self._withdrawals.discard)
            raise

    async def stop(self, job: JobId, *, signal: int | None, grace_ms: int | None) -> None:
        """See Worker.stop."""
        self._require_open()
        await self._commands.stop_job(StopJob(job=parse_job_id(job), signal=signal, grace_ms=grace_ms))

    async def record(self, job: JobId) -> JobRecord:
        """The record of a job. Raises NOT_FOUND."""
        self._require_open()
        found = await self._commands.get_job(GetJob(job=parse_job_id(job), visible_owner=None))
        assert isinstance(found, JobFound)
        return found.job

    async def records(self) -> list[JobRecord]:
        """All of them, newest first."""
        found: list[JobRecord] = []
        token = ""
        while True:
            self._require_open()
            page = await self._commands.list_jobs(ListJobs(visible_owner=None, page_size=PAGE_JOBS, page_token=token))
            assert isinstance(page, JobPage)
            found += page.jobs
            token = page.next_page_token
            if not token:
                return found
            await asyncio.sleep(0)  # a page is a look into the database: the others' turn

    async def wait(self, job: JobId) -> JobRecord:
        """See Worker.wait."""
        await self.record(job)
        with self._changes.watched(job) as changed:
            await self._until_known(job, changed)
        if self._logs is not None:
            await self._logs.complete(job)
        return await self.record(job)

    async def delete(self, job: JobId) -> None:
        """See Worker.delete."""
        self._require_open()
        await self._commands.delete_job(DeleteJob(job=parse_job_id(job)))

    async def facts(self) -> NodeFacts:
        """What this host can do."""
        self._require_open()
        facts = await self._commands.get_node(GetNode())
        assert isinstance(facts, NodeFacts)
        return facts

    async def portions(self, job: JobId) -> AsyncGenerator[tuple[Output, ...], None]:
        """The output of a job from its first byte to its end, as it is read; see Worker.stream."""
        await self.record(job)
        reader = Reader(self._layout.job_dir(job) / JOURNAL_FILE)
        self._readers.add(reader)
        try:
            with self._changes.watched(job) as changed:
                while True:
                    self._require_open()
                    changed.clear()
                    over = job not in self._executor.jobs.active  # before reading: then what is read is all there is
                    portion = reader.read(sealed=over)
                    if portion.outputs:
                        yield portion.outputs
                    if portion.ended or (over and not portion.advanced):
                        await self._until_known(job, changed)
                        return
                    if portion.advanced:
                        await asyncio.sleep(0)  # who never waits himself would keep the executor from its work
                    else:
                        await changed.wait()
        finally:
            self._readers.discard(reader)
            reader.close()

    async def _until_known(self, job: JobId, changed: asyncio.Event) -> None:
        """Until the record tells the end, too: the journal does so before."""
        while job in self._executor.jobs.active:
            await changed.wait()
            changed.clear()
            self._require_open()

    async def close(self) -> None:
        """End or leave the jobs, and serve no more. Raises UNAVAILABLE when a job could not be ended.

        Cancelled, it does the same, but kills at once, and raises CancelledError in the end.
        """
        hurry = asyncio.Event()
        closing = asyncio.create_task(self._close(hurry))
        cancelled: asyncio.CancelledError | None = None
        while not closing.done():
            try:
                await asyncio.wait([closing])
            except asyncio.CancelledError as cause:
                cancelled = cause
                hurry.set()
        if cancelled is not None:
            raise cancelled from closing.exception()
        closing.result()

    async def _close(self, hurry: asyncio.Event) -> None:
        self._closing = True
        self._executor.jobs.waiting.close()  # a slot that becomes free is nobody's any more
        while self._withdrawals:
            await asyncio.wait(self._withdrawals)
        try:
            if not self._options.keep_jobs:
                await end_jobs(self._executor, self._layout.jobs, self._changes, hurry)
            await self._settle()
            if not self._options.keep_jobs:
                await self._leave_nothing()
            if self._logs is not None:
                await self._logs.complete_all_but(self._executor.jobs.active)
        finally:
            self._refuse(unavailable("the worker is closed", "open another one"))
            if self._logs is not None:
                await self._logs.close()
            for reader in self._readers:
                reader.close()
            for task in self._serving:
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)

    async def _settle(self) -> None:
        """Launches that are under way, and the removal of what ended jobs left, are not cut off."""
        try:
            async with asyncio.timeout(SETTLE_S_MAX):
                await self._executor.jobs.settled()
        except TimeoutError:
            log.warning("something of the jobs goes on in the background and is cut off", waited_s=SETTLE_S_MAX)

    async def _leave_nothing(self) -> None:
        """No job runs: remove what they left on the host, and in a directory that is not to stay, everything."""
        self._executor.writer.flush()
        kept = self._options.directory is not None
        known = frozenset(cursor.job for cursor in self._executor.store.cursors()) if kept else frozenset[JobId]()
        await self._parts.traces.sweep(alive=frozenset(), known=known)

    async def _run(self, spec: JobSpec) -> JobId:
        accepted = await self._commands.run_job(RunJob(owner=self._options.owner, spec=spec))
        assert isinstance(accepted, JobAccepted)
        if self._logs is not None:
            self._logs.begin(accepted.job.id)
        return accepted.job.id

    async def _withdraw(self, accepted: asyncio.Task[JobId]) -> None:
        """Kill a job whose start was cancelled, as soon as it is known whether there is one."""
        with contextlib.suppress(JobletError):  # it was refused, or has ended by itself
            job = await accepted
            await self._commands.stop_job(StopJob(job=job, signal=KILL, grace_ms=0))

    def _served(self, task: asyncio.Task[None]) -> None:
        """A part of the executor ended: by `close`, or because it failed."""
        if task.cancelled():
            return
        cause = task.exception()
        log.error("the worker failed; its jobs go on", why=repr(cause))
        self._refuse(JobletError(Reason.INTERNAL, f"the worker failed: {cause!r}", detail="close it and open another"))

    def _refuse(self, refusal: JobletError) -> None:
        """Answer everything with `refusal` from now on, also to those who wait already."""
        self._refusal = self._refusal or refusal
        self._changes.happened_to_all()

    def _require_open(self) -> None:
        if self._refusal is not None:
            raise self._refusal
