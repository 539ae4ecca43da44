"""Jobs and their volumes: who may have one, who gets it, who leaves it.

get     record names the job ─▶ mounted ─▶ answered
leave   not mounted any more, if nobody else has it and it is not to stay ─▶ record names the job no more
"""

import asyncio
from collections.abc import Callable

import structlog

from common.config.settings import Volumes as Settings
from common.errors import JobletError, Reason
from common.identifiers import JobId, VolumeId, parse_job_id
from common.messages.jobs import VolumeMount
from common.messages.volumes import (
    CheckVolumes,
    PreparedVolume,
    PrepareVolumes,
    ReleaseVolumes,
    SyncVolumes,
    VolumeKind,
)
from services.volumes.admission import check_mounts, check_owner
from services.volumes.disk import Disk
from services.volumes.events import (
    Decision,
    FoundDamaged,
    Ignored,
    MountFailed,
    Released,
    ReleaseRequested,
    Unmount,
    UseRequested,
    Volume,
    asks,
)
from services.volumes.gauges import Gauges
from services.volumes.ports import Ids, Place
from services.volumes.records import Records, no_volume

log = structlog.get_logger(__name__)

NO_JOB = JobId("00000000-0000-4000-8000-000000000000")
"""Stands for the job of CheckVolumes, which has no id yet."""


class Uses:
    """Gives volumes to jobs and takes them back. `left`: called when a volume may have become idle."""

    def __init__(
        self,
        records: Records,
        disk: Disk,
        gauges: Gauges,
        *,
        settings: Settings,
        clock_ns: Callable[[], int],
        reached: Callable[[str], None],
        left: Callable[[VolumeId], None],
    ) -> None:
        self._records = records
        self._disk = disk
        self._gauges = gauges
        self._keep_mounted = settings.idle_mounts_max > 0 and settings.idle_mount_ms > 0
        self._clock_ns = clock_ns
        self._reached = reached
        self._left = left

    def check(self, request: CheckVolumes) -> None:
        """Raise what a job would be refused with now."""
        check_owner(request.owner)
        check_mounts(request.mounts)
        for mount in request.mounts:
            self._records.check(self._find(request.owner, mount).id, self._wish(NO_JOB, mount))

    async def prepare(self, request: PrepareVolumes) -> tuple[PreparedVolume, ...]:
        """Mount the volumes for the job: all of them, or none."""
        parse_job_id(request.job)
        check_owner(request.owner)
        check_mounts(request.mounts)
        ids = Ids(request.uid, request.gid)
        prepared: list[PreparedVolume] = []
        new: list[VolumeId] = []
        try:
            for mount in request.mounts:
                volume = self._find(request.owner, mount).id
                place, is_new = await self._give(volume, self._wish(request.job, mount), ids)
                prepared.append(PreparedVolume(id=volume, mount=mount, **place._asdict()))
                new += [volume] if is_new else []
        except JobletError:
            for volume in reversed(new):
                await self._take_back(volume, request.job)
            raise
        self._reached("volumes.mounted")
        return tuple(prepared)

    async def release(self, request: ReleaseVolumes) -> None:
        """The job leaves one volume, or all."""
        parse_job_id(request.job)
        for volume in self._of(request.job):
            if request.volume in (None, volume):
                await self._leave(volume, request.job)

    async def sync(self, request: SyncVolumes) -> None:
        """Take back what jobs have that are not among these."""
        known = set(request.jobs)
        # All of it is read before anything is awaited: a use that is recorded from now on is newer than the request.
        gone = [
            (volume.id, use.job) for volume in self._records.all() for use in volume.record.uses if use.job not in known
        ]
        for volume, job in gone:
            log.info("volume taken back: its job is gone", volume=volume, job=job)
        await asyncio.gather(*(self._leave(volume, job) for volume, job in gone))

    def _find(self, owner: str, mount: VolumeMount) -> Volume:
        volume = self._records.named(owner, mount.name)
        if volume is None:
            raise no_volume(mount.name)
        return volume

    def _wish(self, job: JobId, mount: VolumeMount) -> UseRequested:
        return UseRequested(at_ns=self._clock_ns(), job=job, path=mount.path, read_only=mount.read_only)

    def _of(self, job: JobId) -> list[VolumeId]:
        return [volume.id for volume in self._records.all() if any(use.job == job for use in volume.record.uses)]

    async def _give(self, volume: VolumeId, wish: UseRequested, ids: Ids) -> tuple[Place, bool]:
        """Where it is, and whether the job did not have it before."""
        self._records.check(volume, wish)  # who is refused need not wait for what is done to the volume
        async with self._disk.locks.of(volume):
            decision = await self._records.apply(volume, wish, ids=ids)
            had_it = isinstance(decision, Ignored)
            if not had_it:
                self._reached("volumes.use_recorded")
            try:
                place = await self._disk.mount(self._records.get(volume), ids)
            except JobletError as error:
                await self._not_mounted(volume, wish.job, error, had_it=had_it)
                raise
            self._gauges.touch(volume)
            return place, not had_it

    async def _not_mounted(self, volume: VolumeId, job: JobId, error: JobletError, *, had_it: bool) -> None:
        damage = str(error) if error.reason is Reason.DATA_LOSS else ""
        at_ns = self._clock_ns()
        if had_it:
            if damage:
                await self._records.apply(volume, FoundDamaged(at_ns=at_ns, reason=damage))
            return
        decision = await self._records.apply(volume, MountFailed(at_ns=at_ns, job=job, damage=damage))
        if asks(decision, Unmount):
            await self._let_go(volume)

    async def _leave(self, volume: VolumeId, job: JobId) -> None:
        """The job has the volume no more. Waits for the volume's lock only where something is to be unmounted."""
        event = ReleaseRequested(at_ns=self._clock_ns(), job=job, keep_mounted=self._keep_mounted)
        if asks(await self._apply(volume, event), Unmount):
            async with self._disk.locks.of(volume):
                if asks(await self._apply(volume, event), Unmount):  # else somebody else has come meanwhile
                    await self._let_go(volume)
                    self._reached("volumes.released")
                    await self._apply(volume, Released(at_ns=event.at_ns, job=job))
        self._gauges.touch(volume)
        self._left(volume)

    async def _take_back(self, volume: VolumeId, job: JobId) -> None:
        try:
            await self._leave(volume, job)
        except JobletError as error:  # the executor tells again which jobs have volumes
            log.error("a volume cannot be taken back yet", volume=volume, job=job, problem=str(error))

    async def _let_go(self, volume: VolumeId) -> None:
        known = self._records.get(volume)
        try:
            await self._disk.unmount(known)
        except JobletError as error:
            if known.record.kind is VolumeKind.MEMORY and known.record.uses:
                raise  # the next job must not find what this one left: it keeps the volume until that can be done
            log.error("a volume cannot be unmounted yet", volume=volume, problem=str(error))

    async def _apply(self, volume: VolumeId, event: ReleaseRequested | Released) -> Decision:
        try:
            return await self._records.apply(volume, event)
        except JobletError as error:
            if error.reason is not Reason.NOT_FOUND:
                raise
            return Ignored(why="it was removed meanwhile")
