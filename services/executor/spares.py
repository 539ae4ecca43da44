"""Sandboxes that are prepared before anyone asks for a job, so that a job finds most of its start done.

A spare has a job id already, its control groups, and processes in their namespaces: everything of a launch that does
not depend on the job. Whoever submits a job takes the id of a spare, when the job suits it; the launch then claims what
belongs to the id. Here: the pool and which job suits. Not here: the launch (`adapters.py`, `launching.py`).
docs/adr/0017-spare-sandboxes.md gives the reasons.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from common.errors import JobletError
from common.identifiers import JobId, new_job_id
from common.messages.jobs import JobSpec, Network
from services.executor.cgroups.driver import CgroupDriver
from services.executor.launching import Begun, Launcher
from services.executor.plan import Launch
from services.executor.ports import Cleans

log = structlog.get_logger(__name__)

MEMORY_BYTES_MIN: Final = 32 * 2**20
"""A smaller limit may be less than what its processes were charged for before it was set."""


class Spares:
    """Keeps `count` spares ready. `plan` gives the launch of a job that asks for nothing, by its id."""

    def __init__(
        self, launcher: Launcher, driver: CgroupDriver, cleans: Cleans, plan: Callable[[JobId], Launch], *, count: int
    ) -> None:
        self._launcher = launcher
        self._driver = driver
        self._cleans = cleans
        self._plan = plan
        self._count = count
        self._ready: dict[JobId, Begun] = {}
        self._taken: dict[JobId, Begun] = {}
        self._refilling: asyncio.Task[None] | None = None
        self._closed = False

    def take(self, spec: JobSpec) -> JobId:
        """The id for a new job: that of a spare when there is one that suits, else a new one."""
        if not self._ready or not _suits(spec):
            return new_job_id()
        job, begun = self._ready.popitem()
        self._taken[job] = begun
        return job

    def give_back(self, job: JobId) -> None:
        """There will be no job of this id after all."""
        begun = self._taken.pop(job, None)
        if begun is not None:
            self._ready[job] = begun

    async def claim(self, job: JobId, beginning: bytes) -> Begun | None:
        """What was begun for the job. None: nothing, and nothing is left of what was begun in vain.

        `beginning` is what the job's launch begins with: a spare that was told something else is of no use to it.
        """
        begun = self._taken.pop(job, None)
        if begun is None:
            return None
        if begun.beginning == beginning and begun.alive:
            return begun
        log.warning("a spare sandbox is of no use", job=job, alive=begun.alive)
        await begun.end()
        await self._cleans.end(job)
        return None

    async def drop(self, job: JobId) -> None:
        """The job's launch has failed before it came to `claim`: its groups go as those of every job that ends."""
        begun = self._taken.pop(job, None)
        if begun is not None:
            await begun.end()

    def refill(self) -> None:
        """Prepare what is missing, one by one, in the background; what has died meanwhile is missing, and removed."""
        if not self._closed and self._refilling is None and len(self._ready) < self._count:
            self._refilling = asyncio.create_task(self._refill())

    async def close(self) -> None:
        """Let all of them end, and leave nothing of them."""
        self._closed = True
        if self._refilling is not None:
            self._refilling.cancel()
            await asyncio.gather(self._refilling, return_exceptions=True)
        unused = {**self._ready, **self._taken}
        self._ready.clear()
        self._taken.clear()
        for job, begun in unused.items():
            await begun.end()
            await self._remove(job)

    async def _refill(self) -> None:
        try:
            for job in [job for job, begun in self._ready.items() if not begun.alive]:
                begun = self._ready.pop(job, None)
                if begun is not None:  # else a job has taken it meanwhile
                    await begun.end()
                    await self._remove(job)
            while len(self._ready) < self._count:
                job = new_job_id()
                self._ready[job] = await self._prepare(job)
        except (JobletError, OSError) as cause:  # the next job tries again, and tells its client if it fails as well
            log.warning("no spare sandbox", why=str(cause))
        finally:
            self._refilling = None

    async def _prepare(self, job: JobId) -> Begun:
        launch = self._plan(job)
        try:
            self._driver.create(launch.cgroup._replace(writes=()))
            return await self._launcher.begin(launch.task)
        except BaseException:
            await self._remove(job)
            raise

    async def _remove(self, job: JobId) -> None:
        await self._cleans.end(job)
        await self._cleans.forget(job)


def _suits(spec: JobSpec) -> bool:
    """Whether the job's launch would begin as a spare's does. What is overlooked here costs time, see `claim`."""
    limits = spec.limits
    return (
        spec.network is Network.NONE
        and not spec.uploads
        and not spec.volumes
        and limits.cpu_cores is None
        and (limits.memory_bytes is None or limits.memory_bytes >= MEMORY_BYTES_MIN)
    )
