"""What volumes and running jobs have with each other: attach, detach, and taking a volume from everybody.

Belongs here: that both are the same owner's, and asking the executor. Does not belong here: finding the volume
(`volume_access.py`), changing what a job sees (executor), who uses what (the volumes service).
"""

from typing import Final

from common.bus.requests import Asker
from common.errors import JobletError, Reason, precondition
from common.messages import jobs
from common.messages.volumes import VolumeRecord
from services.api.access import Access
from services.api.calls import current
from services.api.permissions import Permission, Scope
from services.api.volume_access import no_such_volume

ATTACH_S_MAX: Final = 60.0
"""The volume is mounted meanwhile, which may begin with replaying a journal of its file system."""


class VolumeJobs:
    """Asks the executor for the present caller. All raise JobletError."""

    def __init__(self, executor: Asker, access: Access) -> None:
        self._executor = executor
        self._access = access

    async def attach(self, volume: VolumeRecord, reference: str, mount: jobs.VolumeMount) -> None:
        """Let `volume` appear in the job named by `reference`."""
        job = await self._job_of(volume, reference)
        await self._ask(jobs.AttachVolume(job=job.id, mount=mount))

    async def detach(self, volume: VolumeRecord, reference: str, *, force: bool) -> None:
        """Take `volume` from the job named by `reference`."""
        job = await self._job_of(volume, reference)
        await self._ask(jobs.DetachVolume(job=job.id, volume=volume.name, force=force))

    async def take_from_all(self, volume: VolumeRecord) -> None:
        """Take `volume` from every job that uses it, whatever that has open.

        A job that has ended meanwhile, or has not quite begun, is no failure here: who then removes the volume is
        refused while it is still in use.
        """
        for use in volume.uses:
            try:
                await self._ask(jobs.DetachVolume(job=use.job, volume=volume.name, force=True))
            except JobletError as error:
                if error.reason not in {Reason.NOT_FOUND, Reason.PRECONDITION}:
                    raise

    async def _job_of(self, volume: VolumeRecord, reference: str) -> jobs.JobRecord:
        """The job, when the caller may change it, and it is of the volume's owner."""
        call = current()
        job = await self._access.controlled(reference)
        call.note = f"job {job.id}"
        if job.owner != volume.owner:
            if call.scope(Permission.CHANGE_VOLUMES) is not Scope.ANY:
                raise no_such_volume()  # among the volumes of the job's owner, of whom the caller may see none
            raise precondition(
                f"volume {volume.name} is {volume.owner}'s, job {job.id} is {job.owner}'s",
                "a job can have volumes of its own owner only",
            )
        return job

    async def _ask(self, command: jobs.AttachVolume | jobs.DetachVolume) -> None:
        await self._executor.request(command, jobs.JobFound, timeout_s=ATTACH_S_MAX)
