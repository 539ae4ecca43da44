"""Volumes of jobs, as the executor speaks of them with the service that keeps them. The real port `Volumes`.

Here: who has volumes, what is asked of the service and how long, and that it hears of every end. Not here: where in a
job a volume can be (`mount_points.py`), and its mount there (`launcher/volumes.py`).

The service learns of an end in two ways, so that none is lost: by a release, repeated until it is answered, and by a
list of all jobs that have volumes, told at the start of this process and once a minute: what others had is released.
So a job is on the list from before the service is asked to prepare until after its processes are gone.
"""

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog

from common.bus.requests import Requester
from common.bus.transport import Transport
from common.errors import JobletError, Reason
from common.identifiers import JobId, VolumeId
from common.messages.envelope import Body
from common.messages.jobs import VolumeMount
from common.messages.topics import EXECUTOR_REPLIES, VOLUMES_COMMANDS
from common.messages.volumes import (
    CheckVolumes,
    PreparedVolume,
    PrepareVolumes,
    ReleaseVolumes,
    SyncVolumes,
    VolumesChecked,
    VolumesPrepared,
    VolumesReleased,
)
from services.executor.identity import JobIdentity

log = structlog.get_logger(__name__)

ANSWER_S_MAX: Final = 5.0
"""Of one request. What was lost with a service that ended is asked again after that."""
PREPARE_S_MAX: Final = 15.0
"""How long a launch waits for the service, which a restart takes away for some 2 s."""
PAUSE_S: Final = 0.2
PAUSE_S_MAX: Final = 30.0
SYNC_S: Final = 60.0
LEAVE_S_MAX: Final = 3.0
"""How long the volumes of a job that has ended are waited for; its processes may take longer to end."""

Answer = TypeVar("Answer", bound=Body)


class VolumesOfJobs:
    """See ports.Volumes. `run` must be running: it hears the answers, and tells again what was not heard."""

    def __init__(
        self, transport: Transport, *, answer_s_max: float = ANSWER_S_MAX, prepare_s_max: float = PREPARE_S_MAX
    ) -> None:
        self._requester = Requester(
            transport, commands=VOLUMES_COMMANDS, replies=EXECUTOR_REPLIES, reply_file=EXECUTOR_REPLIES.file
        )
        self._answer_s_max = answer_s_max
        self._prepare_s_max = prepare_s_max
        self._having: dict[JobId, None] = {}  # the oldest first
        self._unheard: dict[tuple[JobId, VolumeId | None], int] = {}  # by number, as another like it may follow
        self._numbers = itertools.count()
        self._preparing: Counter[JobId] = Counter()
        self._something_unheard = asyncio.Event()
        self._leaving: dict[JobId, asyncio.Event] = {}  # set when the job has left

    async def check(self, owner: str, mounts: tuple[VolumeMount, ...]) -> None:
        """See ports.Volumes."""
        if mounts:
            request = CheckVolumes(owner=owner, mounts=mounts)
            await self._ask_behind_those_that_leave(lambda: self._ask(request, VolumesChecked))

    async def prepare(
        self, job: JobId, owner: str, identity: JobIdentity, mounts: tuple[VolumeMount, ...]
    ) -> tuple[PreparedVolume, ...]:
        """See ports.Volumes. While the service cannot be reached it is asked again for a while.

        When it stays unreachable, or answers something else, nobody knows whether the job has them: then they are
        released at the job's end, as if it had.
        """
        if not mounts:
            return ()
        had_some = job in self._having
        self._having[job] = None
        request = PrepareVolumes(job=job, owner=owner, uid=identity.uid, gid=identity.gid, mounts=mounts)
        self._preparing[job] += 1
        try:
            answer = await self._ask_behind_those_that_leave(lambda: self._ask_again(request, VolumesPrepared))
        except JobletError as error:
            if not had_some and error.reason not in (Reason.UNAVAILABLE, Reason.INTERNAL):
                self._having.pop(job, None)
            raise
        finally:
            self._preparing -= Counter([job])
        if tuple(each.mount for each in answer.volumes) != mounts:
            raise JobletError(Reason.INTERNAL, "the volumes service prepared other volumes than it was asked for")
        for volume in answer.volumes:  # a release of before would take away what the job has again
            self._unheard.pop((job, volume.id), None)
        return answer.volumes

    def keep(self, job: JobId) -> None:
        """See ports.Volumes."""
        self._having[job] = None

    def leaving(self, job: JobId) -> None:
        """See ports.Volumes."""
        if job in self._having:
            self._leaving.setdefault(job, asyncio.Event())

    async def release(self, job: JobId, volume: VolumeId | None = None) -> None:
        """See ports.Volumes. Returns when the service has heard it, or one try has failed."""
        if volume is None:
            if job not in self._having:
                if (job, None) not in self._unheard:
                    self._has_left(job)  # it was refused what it wanted while it ended
                return
            del self._having[job]
        self._unheard[job, volume] = next(self._numbers)
        if not await self._told_release(job, volume):
            self._something_unheard.set()

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._requester.run())
            tasks.create_task(self._repeat_releases())
            tasks.create_task(self._sync())

    def close(self) -> None:
        """Ask no more. What was not heard is on no list of the next executor, and is released by that."""
        self._requester.close()

    async def _ask(self, request: Body, answer: type[Answer]) -> Answer:
        return await self._requester.request(request, answer, timeout_s=self._answer_s_max)

    async def _ask_behind_those_that_leave(self, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """What `ask` answers; a refusal is asked about again when jobs have left since, which may have been in the way.

        So a job can have the volume of another as soon as that is known to have ended.
        """
        leaving = dict(self._leaving)
        try:
            return await ask()
        except JobletError as error:
            leaving |= self._leaving
            if error.reason is not Reason.PRECONDITION or not leaving:
                raise
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S_MAX):
                for left in leaving.values():
                    await left.wait()
        return await ask()

    async def _ask_again(self, request: Body, answer: type[Answer]) -> Answer:
        """As `_ask`, again while the answer is UNAVAILABLE and there is time. `request` can be done twice."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._prepare_s_max
        while True:
            try:
                return await self._ask(request, answer)
            except JobletError as error:
                if error.reason is not Reason.UNAVAILABLE or loop.time() + PAUSE_S >= deadline:
                    raise
            await asyncio.sleep(PAUSE_S)

    async def _told_release(self, job: JobId, volume: VolumeId | None) -> bool:
        number = self._unheard[job, volume]
        try:
            await self._ask(ReleaseVolumes(job=job, volume=volume), VolumesReleased)
        except JobletError as error:
            log.warning("a release of volumes was not heard; it is repeated", job=job, volume=volume, why=str(error))
            if self._unheard.get((job, volume)) == number:  # else the job has got the volume again meanwhile
                self._unheard[job, volume] = self._unheard.pop((job, volume))  # behind the others: it may never be
            return False
        if self._unheard.get((job, volume)) == number:
            del self._unheard[job, volume]
        if volume is None:
            self._has_left(job)
        return True

    def _has_left(self, job: JobId) -> None:
        left = self._leaving.pop(job, None)
        if left is not None:
            left.set()

    def _is_due(self, job: JobId, volume: VolumeId | None) -> bool:
        """Whether a release is to be repeated now.

        Not behind a request to prepare, which may be for the same volume: it would take away what the job has again.
        """
        return (job, volume) in self._unheard and (volume is None or job not in self._preparing)

    async def _repeat_releases(self) -> None:
        while True:
            await self._something_unheard.wait()
            self._something_unheard.clear()
            pause_s = PAUSE_S
            while self._unheard:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_S_MAX)
                for job, volume in tuple(self._unheard):
                    if self._is_due(job, volume) and not await self._told_release(job, volume):
                        break  # it is away: the others would wait as long

    async def _sync(self) -> None:
        while True:
            try:
                await self._ask(SyncVolumes(jobs=tuple(self._having)), VolumesReleased)
            except JobletError as error:
                log.debug("the volumes service was not told which jobs have volumes", why=str(error))
            await asyncio.sleep(SYNC_S)


class NoVolumes:
    """See ports.Volumes: where no service keeps any, as in the library `worker`."""

    async def check(self, owner: str, mounts: tuple[VolumeMount, ...]) -> None:  # noqa: ARG002  # nobody has any
        """See ports.Volumes."""
        if mounts:
            raise JobletError(
                Reason.UNIMPLEMENTED,
                f"there are no volumes here: {mounts[0].name}",
                detail="run the job without volumes, or on a node",
            )

    async def prepare(
        self,
        job: JobId,  # noqa: ARG002
        owner: str,
        identity: JobIdentity,  # noqa: ARG002
        mounts: tuple[VolumeMount, ...],
    ) -> tuple[PreparedVolume, ...]:
        """See ports.Volumes."""
        await self.check(owner, mounts)
        return ()

    def keep(self, job: JobId) -> None:
        """See ports.Volumes."""

    def leaving(self, job: JobId) -> None:
        """See ports.Volumes."""

    async def release(self, job: JobId, volume: VolumeId | None = None) -> None:
        """See ports.Volumes."""
