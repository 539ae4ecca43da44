"""The worker: starts, stops, queries and streams jobs in the process of its caller. docs/library.md is its manual."""

import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import structlog

from common.errors import precondition, unavailable
from common.identifiers import JobId
from common.messages.jobs import Capability, OnFull
from worker.place import Options
from worker.session import Session, opened
from worker.values import Command, Job, Output, Status, job_of, milliseconds, status_of

JOURNAL_BYTES_MAX: Final = 2**30
RUNNING_MAX: Final = 256
"""A running job costs two descriptors, of which a process has 1024 where nobody asked for more: getrlimit(2)."""


class Worker:
    """Runs jobs while it is open: `async with Worker() as worker:`. One opening, one event loop.

    Every method raises JobletError: its `reason` is for programs, its text says what to do. All of them: UNAVAILABLE
    when the worker is not open; those that take a job id: INVALID for one that is malformed, NOT_FOUND.
    """

    def __init__(
        self,
        directory: Path | str | None = None,
        *,
        keep_jobs: bool = False,
        log_directory: Path | str | None = None,
        owner: str = "worker",
        journal_bytes_max: int = JOURNAL_BYTES_MAX,
        on_full: OnFull = OnFull.DROP,
        running_max: int = RUNNING_MAX,
        cgroup_parent: str = "joblet",
        rootfs: str = "host",
        uid_first: int = 100_000,
    ) -> None:
        """Open nothing yet. Raises INVALID.

        `directory` holds records and output, and the next worker on it knows them; None: a temporary one, removed at
        the end. `keep_jobs`: running jobs go on when the worker is closed, and the next one on `directory` has them
        again; else closing ends them. `log_directory`: there the output of each job is also written to `<job-id>.log`.
        `journal_bytes_max`: how much output of one job is kept; beyond it `on_full` decides: further output is lost and
        counted (DROP), or the job waits until it is stopped (BLOCK). `owner`: whose jobs these are; as root each owner
        of a directory has 65,536 host ids from `uid_first` on. `cgroup_parent`: how the name of the control group above
        the jobs' groups begins. `rootfs`: what a job's root is made of, as joblet.jobs.rootfs in docs/configuration.md.
        """
        self._options = Options(
            directory=None if directory is None else Path(directory),
            keep_jobs=keep_jobs,
            log_directory=None if log_directory is None else Path(log_directory),
            owner=owner,
            journal_bytes_max=journal_bytes_max,
            on_full=on_full,
            running_max=running_max,
            cgroup_parent=cgroup_parent,
            rootfs=rootfs,
            uid_first=uid_first,
        )
        self._options.check()
        self._stack = contextlib.AsyncExitStack()
        self._session: Session | None = None
        self._was_opened = False

    async def __aenter__(self) -> Self:
        """Open it. Raises EXISTS when the directory is in use, PRECONDITION when this host cannot run jobs."""
        if self._was_opened:
            raise precondition("this worker was opened before", "make another one")
        self._was_opened = True
        _log_to_standard_library()
        self._session = await self._stack.enter_async_context(opened(self._options))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it: jobs get their stop signal and their grace, unless they are to go on; nothing is left of them.

        A cancellation while this waits ends every grace. Raises UNAVAILABLE when a job could not be ended.
        """
        await self._stack.__aexit__(kind, error, trace)

    async def start(self, command: Command) -> JobId:
        """Run a command; returns when its record is durable. Whether it could be started its status tells.

        Raises INVALID, PRECONDITION for what this host cannot do, EXHAUSTED when there is no room. Cancelled, it leaves
        no running job.
        """
        return await self._open.start(command.spec())

    async def stop(self, job_id: JobId, *, signal: int | None = None, grace_s: float | None = None) -> None:
        """Send the job a signal, and SIGKILL to all of it when it has not ended after the grace; does not wait.

        None: as its command says. Signal 9 ends all of it at once. Raises PRECONDITION when it has ended.
        """
        grace_ms = None if grace_s is None else milliseconds(grace_s)
        await self._open.stop(job_id, signal=signal, grace_ms=grace_ms)

    async def query(self, job_id: JobId) -> Status:
        """How the job is."""
        return status_of(await self._open.record(job_id))

    async def wait(self, job_id: JobId) -> Status:
        """How the job ended, as soon as it has; its log file, if there is one, is whole then."""
        return status_of(await self._open.wait(job_id))

    async def stream(self, job_id: JobId) -> AsyncGenerator[Output, None]:
        """All output of the job from its first byte, then what it writes while it writes it, until it has ended.

        Any number of streams at once, each at its own pace: a slow one costs the memory of a portion, and nothing
        waits for it. Raises DATA_LOSS where the rest cannot be read, UNAVAILABLE when the worker is closed before the
        end. To leave one early, close it: contextlib.aclosing().
        """
        async with contextlib.aclosing(self._open.portions(job_id)) as portions:
            async for portion in portions:
                for piece in portion:
                    yield piece

    async def delete(self, job_id: JobId) -> None:
        """Forget an ended job, its record and its output; a log file stays. Raises PRECONDITION when it runs."""
        await self._open.delete(job_id)

    async def jobs(self) -> tuple[Job, ...]:
        """Every job that was not deleted, newest first."""
        return tuple(job_of(record) for record in await self._open.records())

    async def capabilities(self) -> tuple[Capability, ...]:
        """What this host can do for jobs, found by trying."""
        return (await self._open.facts()).capabilities

    @property
    def _open(self) -> Session:
        if self._session is None:
            raise unavailable("the worker is not open", "use it inside: async with Worker() as worker")
        return self._session


def _log_to_standard_library() -> None:
    """What the parts report goes to `logging`, unless the program has set structlog up for itself.

    structlog's own default would print to standard output, which belongs to the program.
    """
    if structlog.is_configured():
        return
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["event"]),
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
