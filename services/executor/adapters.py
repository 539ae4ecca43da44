"""The real ports: what `ports.py` asks for, done by the launcher, the monitors' files, cgroups and networks."""

import asyncio
import functools
import logging
import os
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from common.config.layout import Layout
from common.config.settings import Settings
from common.errors import JobletError
from common.identifiers import JobId
from common.messages.jobs import JobRecord, JobSpec, Network, State
from common.messages.volumes import PreparedVolume
from services.executor.cgroups.disks import whole_disks
from services.executor.cgroups.driver import CgroupDriver, Meter, Reading
from services.executor.cleanup import Cleanup, Swept
from services.executor.control import send_space_freed, send_stop
from services.executor.events import Job
from services.executor.identity import JobIdentity
from services.executor.launcher.task import GIVEN_NETWORK, HOST_NETWORK, NEW_NETWORK, encode_beginning
from services.executor.launching import Begun, Launcher
from services.executor.monitors import open_monitor
from services.executor.network.networks import Grant, Networks
from services.executor.plan import Launch, NetworkPlan, plan_launch
from services.executor.ports import Cleans, Volumes
from services.executor.rootfs import Rootfs
from services.executor.spares import Spares

log = structlog.get_logger(__name__)

NOBODY: Final = JobIdentity(0, 0, 0)
"""In the plan of a spare, whose owner is not known yet; its beginning names no identity."""

Identities = Callable[[str], JobIdentity]
"""Whom an owner's jobs are on the host."""

_PLACES: Final = {Network.NONE: NEW_NETWORK, Network.HOST: HOST_NETWORK}


class KernelLaunches:
    """See ports.Launches: volumes, groups and network first, then a monitor of the launcher's.

    What a failed launch has of them is released as that of every job that ends: by KernelTraces.
    """

    def __init__(
        self,
        *,
        launcher: Launcher,
        driver: CgroupDriver,
        identities: Identities,
        networks: Networks,
        rootfs: Rootfs,
        cleans: Cleans,
        volumes: Volumes,
        rootless: bool,
        settings: Settings,
        layout: Layout,
    ) -> None:
        self._launcher = launcher
        self._driver = driver
        self._identities = identities
        self._networks = networks
        self._rootfs = rootfs
        self._volumes = volumes
        self._settings = settings
        self._layout = layout
        self._spare_identity = identities("") if rootless else NOBODY
        # With a range of its own a root is mapped for it: it cannot be made before the owner is known.
        count = 0 if rootfs.differs_by_owner else settings.joblet.jobs.spares
        self.spares = Spares(launcher, driver, cleans, self._plan_spare, count=count)

    def new_id(self, spec: JobSpec) -> JobId:
        """See ports.Launches."""
        return self.spares.take(spec)

    def give_back(self, job: JobId) -> None:
        """See ports.Launches."""
        self.spares.give_back(job)

    def adopt(self, record: JobRecord) -> None:
        """See ports.Launches."""
        self._volumes.keep(record.id)  # also without any in its spec: some may have been attached to it
        try:
            self._networks.reserve(record.id, record.owner, record.spec.network)
        except JobletError as error:  # it has what it has; the host has changed under it
            log.warning("a job's network cannot be taken up", job=record.id, why=error.message)

    async def launch(self, job: Job, secrets: Mapping[str, str]) -> None:
        """See ports.Launches."""
        record = job.record
        try:
            grant = self._networks.reserve(record.id, record.owner, record.spec.network)
            identity = self._identities(record.owner)
            volumes = await self._volumes.prepare(record.id, record.owner, identity, record.spec.volumes)
            launch = self._plan(record, grant, identity, volumes).with_environment(secrets)
            if log.is_enabled_for(logging.DEBUG):
                log.debug("launch plan", job=record.id, steps=launch.describe())
            begun = await self.spares.claim(record.id, encode_beginning(launch.task))
            if begun is None:
                self._driver.create(launch.cgroup)
                begun = await self._begin(record, launch, grant)
            else:
                self._limit(begun, launch)
            await self._launcher.finish(begun, launch.task)
        finally:
            await self.spares.drop(record.id)
            self.spares.refill()

    def _limit(self, begun: Begun, launch: Launch) -> None:
        """The groups of a spare are there; what is missing are their limits."""
        try:
            self._driver.create(launch.cgroup._replace(directories=()))
        except BaseException:
            begun.endpoint.close()
            raise

    async def _begin(self, record: JobRecord, launch: Launch, grant: Grant) -> Begun:
        network = await self._networks.connect(record.id, record.owner, grant)
        try:
            return await self._launcher.begin(launch.task, network=network)
        finally:
            if network is not None:
                os.close(network)

    def limit_volume(self, record: JobRecord, prepared: PreparedVolume) -> None:
        """See ports.Launches. Limits of other disks are not written again."""
        disks = whole_disks([prepared.device] if prepared.device else [])
        plan = self._driver.plan(record.id, record.spec.limits, devices=disks)
        writes = tuple(write for write in plan.writes if write.value.split()[0] in disks)
        if writes:
            self._driver.create(plan._replace(directories=(), writes=writes))

    def describe(self, record: JobRecord) -> tuple[str, ...]:
        """See ports.Launches. An owner who was never seen gets his uid range by it."""
        grant = self._networks.preview(record.id, record.owner, record.spec.network)
        return self._plan(record, grant, self._identities(record.owner)).describe()

    def _plan_spare(self, job: JobId) -> Launch:
        spec = JobSpec(command="/nonexistent")
        record = JobRecord(id=job, owner="", node_id="", state=State.PENDING, spec=spec, created_at_ns=0)
        return self._plan(record, self._networks.preview(job, "", Network.NONE), self._spare_identity)

    def _plan(
        self, record: JobRecord, grant: Grant, identity: JobIdentity, volumes: tuple[PreparedVolume, ...] = ()
    ) -> Launch:
        disks = whole_disks(volume.device for volume in volumes if volume.device)
        return plan_launch(
            record,
            identity=identity,
            cgroup=self._driver.plan(record.id, record.spec.limits, devices=disks),
            settings=self._settings,
            layout=self._layout,
            rootfs=self._rootfs.parts(identity.range_first),
            network=_network_plan(grant),
            volumes=volumes,
        )


def _network_plan(grant: Grant) -> NetworkPlan:
    # What the host's end of the pair sends is what the job receives.
    files = {"network_rx_bytes": "tx_bytes", "network_tx_bytes": "rx_bytes"} if grant.interface else {}
    return NetworkPlan(
        place=_PLACES.get(grant.mode, GIVEN_NETWORK),
        resolv_conf=grant.resolv_conf,
        steps=grant.describe(),
        usage=tuple(
            Meter(name, (Reading(f"/sys/class/net/{grant.interface}/statistics/{file}"),))
            for name, file in files.items()
        ),
    )


class KernelTraces:
    """See service.Sweeper: what jobs leave in cgroups and directories, in the network, and of volumes.

    Volumes go last: who has one next must not meet a process of the job before, so they wait for the end of all.
    """

    def __init__(self, cleanup: Cleanup, networks: Networks, volumes: Volumes) -> None:
        self._cleanup = cleanup
        self._networks = networks
        self._volumes = volumes
        self._holding: set[JobId] = set()

    async def end(self, job: JobId) -> bool:
        """See ports.Cleans."""
        self._volumes.leaving(job)
        removed = await self._cleanup.end(job)
        try:
            await self._networks.release(job)
        except OSError as cause:  # its volumes must not wait for that; what is left goes at the next start
            log.error("a job's network cannot be removed", job=job, why=str(cause))
        if removed:
            await self._volumes.release(job)
        else:
            self._holding.add(job)
        return removed

    async def retry(self) -> None:
        """Try again what `end` could not remove."""
        if not self._cleanup.unfinished and not self._holding:
            return
        left = await self._cleanup.retry()
        for job in self._holding - left:
            self._holding.discard(job)
            await self._volumes.release(job)

    async def forget(self, job: JobId) -> None:
        """See ports.Cleans."""
        await self._cleanup.forget(job)

    async def sweep(self, *, alive: frozenset[JobId], known: frozenset[JobId]) -> Swept:
        """See recovery.Sweeps."""
        swept = await self._cleanup.sweep(alive=alive, known=known)
        await self._networks.sweep(alive)
        return swept


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
