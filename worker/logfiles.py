"""Output also written to a file for each job (requirement S4.4): `<log directory>/<job-id>.log`, the bytes as they are.

The journal stays the source: a file is one more reader of it. A file that is there already is gone on with behind what
it holds, which is how one of a job that was taken up again becomes whole.
"""

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncGenerator, Callable, Collection
from pathlib import Path
from typing import Final

import structlog

from common.errors import JobletError, precondition
from common.identifiers import JobId
from worker.values import Output

log = structlog.get_logger(__name__)

Portions = Callable[[JobId], AsyncGenerator[tuple[Output, ...], None]]
"""All output of a job, from the first byte to its end."""

# O_NONBLOCK: a FIFO that a stranger put there in a directory like /tmp is refused, not waited for.
_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class LogFiles:
    """The files of one worker's jobs. `close` it when `portions` ends for every job."""

    def __init__(self, directory: Path, portions: Portions) -> None:
        self._directory = directory
        self._portions = portions
        self._tasks: dict[JobId, asyncio.Task[None]] = {}

    def begin(self, job: JobId) -> None:
        """Write the job's file, until the job ends."""
        task = asyncio.create_task(self._write(job))
        self._tasks[job] = task
        task.add_done_callback(lambda _: self._tasks.pop(job, None))

    async def complete(self, job: JobId) -> None:
        """Returns when the file of an ended job is whole."""
        task = self._tasks.get(job)
        if task is not None:
            await asyncio.wait([task])

    async def complete_all_but(self, running: Collection[JobId]) -> None:
        """Returns when the files of all jobs that have ended are whole."""
        for job in [job for job in self._tasks if job not in running]:
            await self.complete(job)

    async def close(self) -> None:
        """Returns when nothing is written any more."""
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()))

    async def _write(self, job: JobId) -> None:
        path = self._directory / f"{job}.log"
        try:
            descriptor = _opened(path)
            try:
                await self._copy(job, descriptor, skip=os.fstat(descriptor).st_size)
            finally:
                os.close(descriptor)
        except (OSError, JobletError) as cause:  # the job goes on, and its journal has all
            log.error("a job's log file is not written any further", job=job, path=str(path), why=str(cause))

    async def _copy(self, job: JobId, descriptor: int, *, skip: int) -> None:
        async with contextlib.aclosing(self._portions(job)) as portions:
            async for portion in portions:
                data = b"".join(piece.data for piece in portion)
                if len(data) > skip:
                    # In a thread: a slow disk must not hold up whoever shares the event loop.
                    await asyncio.to_thread(_write_all, descriptor, memoryview(data)[skip:])
                skip = max(0, skip - len(data))


def _opened(path: Path) -> int:
    descriptor = os.open(path, _FLAGS, 0o600)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_nlink != 1:
        os.close(descriptor)
        raise precondition(f"{path} is no file of ours", "remove what is there, or use another log directory")
    return descriptor


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
