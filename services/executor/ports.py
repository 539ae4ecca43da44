"""What the executor's middle needs of the kernel and of its neighbours: small protocols, each with a fake in tests.

The real ones: `launching.py` behind `adapters.py`, `monitors.py` and `control.py`, `cleanup.py`, `sampler.py`,
`volumes.py`, `attachments.py`.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

from common.identifiers import JobId, VolumeId
from common.messages.jobs import JobRecord, JobSpec, VolumeMount
from common.messages.volumes import PreparedVolume
from services.executor.events import Job
from services.executor.identity import JobIdentity


class Launches(Protocol):
    """Makes monitors."""

    def new_id(self, spec: JobSpec) -> JobId:
        """The id for a new job; part of its launch may be done already."""

    def give_back(self, job: JobId) -> None:
        """There will be no job of this id after all."""

    def adopt(self, record: JobRecord) -> None:
        """The job was launched before this process began: what it was granted stays its own."""

    async def launch(self, job: Job, secrets: Mapping[str, str]) -> None:
        """Make the job's monitor; `secrets` are more of its environment. Raises JobletError or OSError when none."""

    def limit_volume(self, record: JobRecord, prepared: PreparedVolume) -> None:
        """Extend the running job's limits of input and output to a volume's disk. Raises JobletError."""

    def describe(self, record: JobRecord) -> tuple[str, ...]:
        """The steps by which `launch` would do it."""


class Monitors(Protocol):
    """Talks to the monitors of running jobs."""

    def watch(self, job: JobId, gone: Callable[[], None]) -> bool:
        """Call `gone` once, from the event loop, when the job's monitor has ended. False: there is none."""

    def stop(self, job: JobId, *, signal: int, grace_ms: int) -> bool:
        """Hand the monitor a stop. False: no monitor took it."""

    def space_freed(self, job: JobId) -> None:
        """Tell a monitor that its journal has room again."""


class Cleans(Protocol):
    """Removes what jobs leave on the host. See cleanup.Cleanup."""

    async def end(self, job: JobId) -> bool:
        """Kill what is left of the job and remove its groups; keep the journal. False: it will be tried again."""

    async def forget(self, job: JobId) -> None:
        """Remove the job's directory. Raises JobletError."""


class Samples(Protocol):
    """Measures running jobs. See sampler.Sampler."""

    def add(self, job: JobId, *, started_at_ns: int | None) -> None:
        """Measure the job from now on; None: it was taken up after a restart."""

    def finish(self, job: JobId) -> None:
        """Measure it a last time."""


class Volumes(Protocol):
    """Volumes of jobs, which another service keeps. See volumes.VolumesOfJobs."""

    async def check(self, owner: str, mounts: tuple[VolumeMount, ...]) -> None:
        """Raise JobletError when a job of `owner` could not have these now. Nothing when there are none."""

    async def prepare(
        self, job: JobId, owner: str, identity: JobIdentity, mounts: tuple[VolumeMount, ...]
    ) -> tuple[PreparedVolume, ...]:
        """Have them mounted for the job, which keeps them until `release`. Raises JobletError, and it has none."""

    def keep(self, job: JobId) -> None:
        """The job has volumes since before this process began."""

    def leaving(self, job: JobId) -> None:
        """The job has ended; `release` comes when nothing of it is left. Who asks for its volumes waits for that."""

    async def release(self, job: JobId, volume: VolumeId | None = None) -> None:
        """The job has ended, or has left that one. Never raises: it is tried again until the service has heard it."""


class Attachments(Protocol):
    """Changes what a running job sees. See attachments.KernelAttachments. `job_pid`: its main process on the host."""

    async def attach(self, job: JobId, job_pid: int, prepared: PreparedVolume, identity: JobIdentity) -> None:
        """Let the volume appear in the job's mount namespace; nothing happens when it is there already.

        Raises JobletError: INVALID for a path that cannot be, PRECONDITION when something is mounted there or the job
        has ended; UNAVAILABLE: nobody knows whether it was done.
        """

    async def detach(self, job: JobId, job_pid: int, prepared: PreparedVolume, *, force: bool) -> None:
        """Take the volume away there, wherever the job has moved it.

        Raises JobletError: NOT_FOUND when it is not mounted, PRECONDITION while it is busy, unless `force`;
        UNAVAILABLE: nobody knows whether it was done.
        """
