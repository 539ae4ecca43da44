"""The real ports: what `ports.py` asks for, done by the launcher, the monitors' files and the cgroup driver."""

import asyncio
import functools
import os
from collections.abc import Callable

import structlog

from common.config.layout import Layout
from common.config.settings import Settings
from common.identifiers import JobId
from common.messages.jobs import JobRecord
from services.executor.cgroups.driver import CgroupDriver
from services.executor.control import send_space_freed, send_stop
from services.executor.events import Job
from services.executor.launching import Launcher
from services.executor.monitors import open_monitor
from services.executor.owners import Owners
from services.executor.plan import JobIdentity, Launch, plan_launch

log = structlog.get_logger(__name__)


class KernelLaunches:
    """See ports.Launches: groups first, then a monitor of the launcher's."""

    def __init__(
        self, launcher: Launcher, driver: CgroupDriver, owners: Owners, *, settings: Settings, layout: Layout
    ) -> None:
        self._launcher = launcher
        self._driver = driver
        self._owners = owners
        self._settings = settings
        self._layout = layout

    async def launch(self, job: Job) -> None:
        """See ports.Launches."""
        launch = self._plan(job.record)
        log.debug("launch plan", job=job.record.id, steps=launch.describe())
        self._driver.create(launch.cgroup)
        await self._launcher.launch(launch)

    def describe(self, record: JobRecord) -> tuple[str, ...]:
        """See ports.Launches. An owner who was never seen gets his uid range by it."""
        return self._plan(record).describe()

    def _plan(self, record: JobRecord) -> Launch:
        uid = self._owners.range_of(record.owner).job_uid
        return plan_launch(
            record,
            identity=JobIdentity(uid, uid),
            cgroup=self._driver.plan(record.id, record.spec.limits),
            settings=self._settings,
            layout=self._layout,
        )


class KernelMonitors:
    """See ports.Monitors: locks, pidfds and control FIFOs in the jobs' directories."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._watched: dict[int, JobId] = {}

    def watch(self, job: JobId, gone: Callable[[], None]) -> bool:
        """See ports.Monitors."""
        pidfd = open_monitor(self._layout.job_dir(job))
        if pidfd is None:
            return False
        self._watched[pidfd] = job
        asyncio.get_running_loop().add_reader(pidfd, functools.partial(self._ended, pidfd, gone))
        return True

    def stop(self, job: JobId, *, signal: int, grace_ms: int) -> bool:
        """See ports.Monitors."""
        try:
            return send_stop(self._layout.job_dir(job), signal=signal, grace_ms=grace_ms)
        except OSError as cause:
            log.error("a stop cannot be handed to a monitor", job=job, problem=str(cause))
            return False

    def space_freed(self, job: JobId) -> None:
        """See ports.Monitors."""
        try:
            send_space_freed(self._layout.job_dir(job))
        except OSError as cause:
            log.error("a monitor cannot be told of free space", job=job, problem=str(cause))

    def close(self) -> None:
        """Watch nobody any more."""
        for pidfd in self._watched:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)
        self._watched.clear()

    def _ended(self, pidfd: int, gone: Callable[[], None]) -> None:
        asyncio.get_running_loop().remove_reader(pidfd)
        del self._watched[pidfd]
        os.close(pidfd)
        gone()
