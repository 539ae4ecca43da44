"""The end of all jobs of a worker: asked to as each command says, killed when that does not help.

A job has ended when its record says so and its monitor is gone, which is the last process of it.
"""

import asyncio
import os
from pathlib import Path
from typing import Final

from common.errors import JobletError, unavailable
from common.identifiers import JobId
from common.messages.jobs import JobFound, StopJob
from services.executor.monitors import open_monitor
from services.executor.service import Executor
from worker.inside import Changes

KILL: Final = 9
PATIENCE_S: Final = 15.0
"""How long a killed job may take to be gone; services/executor/cleanup.py gives up after 10 s."""


async def end_jobs(executor: Executor, jobs: Path, changes: Changes, hurry: asyncio.Event) -> None:
    """Stop every job, and wait for the end of all. `hurry`, once set, lets no job use its grace.

    `jobs`: where their directories are. Raises UNAVAILABLE when some do not end.
    """
    ended = asyncio.create_task(_all_ended(executor, jobs, changes))
    hurried = asyncio.create_task(hurry.wait())
    try:
        grace_ms = await _stop_all(executor, signal=None, grace_ms=None)
        await asyncio.wait([ended, hurried], timeout=grace_ms / 1000 + PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            await _stop_all(executor, signal=KILL, grace_ms=0)
            await asyncio.wait([ended], timeout=PATIENCE_S)
        if not ended.done():
            left = ", ".join(sorted(executor.jobs.active)) or "of which only monitors are left"
            raise unavailable(f"jobs did not end: {left}", "look at their processes: what the kernel holds ends later")
        ended.result()
    finally:
        for task in (ended, hurried):
            task.cancel()
        await asyncio.gather(ended, hurried, return_exceptions=True)


async def _stop_all(executor: Executor, *, signal: int | None, grace_ms: int | None) -> int:
    """Ask all to end; the longest grace of those that were asked."""
    longest = 0
    for job in executor.jobs.active:
        try:
            found = await executor.commands.stop_job(StopJob(job=job, signal=signal, grace_ms=grace_ms))
        except JobletError:  # it has ended meanwhile
            continue
        assert isinstance(found, JobFound)
        longest = max(longest, found.job.spec.grace_ms)
    return longest


async def _all_ended(executor: Executor, jobs: Path, changes: Changes) -> None:
    for job in executor.jobs.active:
        await _ended(executor, job, changes)
    for directory in _directories(jobs):
        await _monitor_gone(directory)


async def _ended(executor: Executor, job: JobId, changes: Changes) -> None:
    with changes.watched(job) as changed:
        while job in executor.jobs.active:
            await changed.wait()
            changed.clear()


def _directories(jobs: Path) -> list[Path]:
    return list(jobs.iterdir())


async def _monitor_gone(directory: Path) -> None:
    pidfd = open_monitor(directory)
    if pidfd is None:
        return
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(pidfd, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
