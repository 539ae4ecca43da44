"""A running job gets a volume, or leaves one: the order of the steps, and what is undone when one of them fails.

What is mounted in a job is in its record, and what is in its record is known to the volumes service as its use. So a
volume is prepared, recorded, mounted; and unmounted, taken out of the record, released. Whoever is killed between two
steps leaves a use or a line of a record without a mount, never a mount that nobody knows of: the service could give the
volume to a second writer, or delete it. What is left is mended by the same request again: an attach finds what is there
already, a detach what is not there any more; and the end of the job releases all it had.

Not here: what the kernel is asked for (`attachments.py`), and where a volume can be at all (`mount_points.py`).
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final
from weakref import WeakValueDictionary

import structlog

from common.errors import JobletError, Reason, exhausted, not_found, precondition
from common.identifiers import JobId
from common.messages.jobs import TERMINAL, JobRecord, State, VolumeMount
from common.messages.volumes import PreparedVolume
from services.executor.events import VolumeGranted, VolumeWithdrawn
from services.executor.identity import JobIdentity
from services.executor.jobs import Jobs
from services.executor.mount_points import CLOSED, VOLUMES_MAX, check_mount
from services.executor.ports import Attachments, Volumes
from services.executor.registry import Registry
from services.executor.writer import RecordWriter

log = structlog.get_logger(__name__)

DURABLE_S_MAX: Final = 5.0
"""How long a client waits for a disk that does not take the job's record."""


class Attaching:
    """One change of a job after the other; other jobs' at the same time. `read_only_paths`: joblet.jobs' setting."""

    def __init__(
        self,
        *,
        jobs: Jobs,
        registry: Registry,
        writer: RecordWriter,
        volumes: Volumes,
        attachments: Attachments,
        limit: Callable[[JobRecord, PreparedVolume], None],
        identities: Callable[[str], JobIdentity],
        read_only_paths: tuple[str, ...],
        clock_ns: Callable[[], int],
        durable_s_max: float = DURABLE_S_MAX,
    ) -> None:
        self._jobs = jobs
        self._registry = registry
        self._writer = writer
        self._volumes = volumes
        self._attachments = attachments
        self._limit = limit
        self._identities = identities
        self._closed = (*CLOSED, *read_only_paths)
        self._clock_ns = clock_ns
        self._durable_s_max = durable_s_max
        self._turns: WeakValueDictionary[JobId, asyncio.Lock] = WeakValueDictionary()

    async def attach(self, job: JobId, mount: VolumeMount) -> JobRecord:
        """Let the volume appear in the job; the record with it. Again for one that it has: the same answer.

        Raises NOT_FOUND, INVALID, and PRECONDITION when the job or the volume is not in the state for it.
        """
        check_mount(mount, self._closed)
        async with self._turn(job):
            record = self._running(job)
            has_it = mount in record.spec.volumes
            if not has_it and len(record.spec.volumes) >= VOLUMES_MAX:
                raise precondition(f"job {job} has {VOLUMES_MAX} volumes, more are not taken", "detach one first")
            _check_distinct(record, mount)
            identity = self._identities(record.owner)
            (prepared,) = await self._volumes.prepare(job, record.owner, identity, (mount,))
            try:
                self._jobs.request(job, VolumeGranted(at_ns=self._clock_ns(), mount=mount))
                await self._recorded()
                self._limit(record, prepared)
                await self._attachments.attach(job, record.pid, prepared, identity)
            except JobletError as error:
                if not has_it:
                    await self._undo(job, record.pid, prepared, error)
                raise
            log.info("volume attached", job=job, volume=prepared.id, path=mount.path)
            return self._view(job)

    async def detach(self, job: JobId, name: str, *, force: bool) -> JobRecord:
        """Take the volume of that name from the job; the record without it. One that it was given at its start, too.

        Raises NOT_FOUND, and PRECONDITION while the job has something open in it, unless `force`.
        """
        async with self._turn(job):
            record = self._running(job)
            mount = next((mount for mount in record.spec.volumes if mount.name == name), None)
            if mount is None:
                raise not_found(f"job {job} has no volume {name}", "rnx job status tells which it has")
            # It has it: this tells which volume that is, and which directory is the right one to unmount.
            identity = self._identities(record.owner)
            (prepared,) = await self._volumes.prepare(job, record.owner, identity, (mount,))
            try:
                await self._attachments.detach(job, record.pid, prepared, force=force)
            except JobletError as error:
                if error.reason is not Reason.NOT_FOUND:
                    raise
                log.warning("a volume was not mounted in its job any more", job=job, volume=prepared.id)
            await self._take_back(job, prepared)
            log.info("volume detached", job=job, volume=prepared.id, force=force)
            return self._view(job)

    def _turn(self, job: JobId) -> asyncio.Lock:
        """Kept for as long as somebody has it or waits for it."""
        return self._turns.setdefault(job, asyncio.Lock())

    def _running(self, job: JobId) -> JobRecord:
        record = self._registry.load(job).record
        if record.state is not State.RUNNING:
            raise precondition(f"job {job} is {record.state}: volumes come to running jobs", "name them when it is run")
        return record

    def _view(self, job: JobId) -> JobRecord:
        return self._jobs.view(self._registry.load(job).record)

    async def _recorded(self) -> None:
        try:
            async with asyncio.timeout(self._durable_s_max):
                await self._writer.durable()
        except TimeoutError as cause:
            raise exhausted(
                "the job's record cannot be written", "free space below the base directory's state, then retry"
            ) from cause

    async def _undo(self, job: JobId, pid: int, prepared: PreparedVolume, error: JobletError) -> None:
        if error.reason is Reason.UNAVAILABLE and not await self._surely_absent(job, pid, prepared):
            log.error("a volume may be mounted in its job; it stays in its record", job=job, volume=prepared.id)
            return
        await self._take_back(job, prepared)

    async def _surely_absent(self, job: JobId, pid: int, prepared: PreparedVolume) -> bool:
        """Nobody knows whether it was mounted: then it is unmounted, or was not there."""
        try:
            await self._attachments.detach(job, pid, prepared, force=True)
        except JobletError as error:
            return error.reason is Reason.NOT_FOUND
        return True

    async def _take_back(self, job: JobId, prepared: PreparedVolume) -> None:
        """It is not mounted. A record that the disk does not take meanwhile is written when it does."""
        with contextlib.suppress(JobletError):  # it has ended, or was never granted it
            self._jobs.request(job, VolumeWithdrawn(at_ns=self._clock_ns(), name=prepared.mount.name))
            await self._recorded()
        await self._volumes.release(job, prepared.id)
        if self._has_ended(job):
            await self._volumes.release(job)  # its end has passed already, and would not come to this again

    def _has_ended(self, job: JobId) -> bool:
        try:
            return self._registry.load(job).record.state in TERMINAL
        except JobletError:
            return True  # and is deleted


def _check_distinct(record: JobRecord, wanted: VolumeMount) -> None:
    """What machine.py refuses as well: nothing is asked of the volumes service for it."""
    for mount in record.spec.volumes:
        if mount.name == wanted.name and mount != wanted:
            how = "read-only" if mount.read_only else "writable"
            raise precondition(
                f"job {record.id} has the volume {mount.name} already, {how} at {mount.path}", "detach it first"
            )
        if mount.path == wanted.path and mount != wanted:
            raise precondition(f"job {record.id} has the volume {mount.name} at {mount.path}", "use another path")
