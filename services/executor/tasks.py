"""Work that goes on behind an answer: none is forgotten, and none fails in silence."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

import structlog

from common.identifiers import JobId

log = structlog.get_logger(__name__)

RETRY_S: Final = 1.0

T = TypeVar("T")


class Tasks:
    """Background tasks of one event loop."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` in a task. Whoever awaits the task gets its error; the log gets it in any case."""
        task = asyncio.create_task(_reported(work))
        self._running.add(task)
        task.add_done_callback(self._done)
        return task

    async def settled(self) -> None:
        """Returns when nothing runs any more."""
        while self._running:
            await asyncio.wait(self._running)

    async def close(self) -> None:
        """Cancel what runs, and wait for that."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # it is in the log: asyncio need not report it a second time


async def when_possible(attempt: Callable[[], T], *, job: JobId) -> T:
    """What `attempt` answers as soon as the system has what it needs: descriptors, memory, inotify watches."""
    problem = ""
    while True:
        try:
            return attempt()
        except OSError as cause:
            if str(cause) != problem:
                problem = str(cause)
                log.error("a job cannot be followed now: tried again until it can", job=job, problem=problem)
        await asyncio.sleep(RETRY_S)


async def _reported(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception:
        log.exception("a background task failed")
        raise
