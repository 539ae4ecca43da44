"""What the executor's middle needs of the kernel and of its neighbours: small protocols, each with a fake in tests.

The real ones: `launching.py` behind `adapters.py`, `monitors.py` and `control.py`, `cleanup.py`, `sampler.py`.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

from common.identifiers import JobId
from common.messages.jobs import JobRecord, JobSpec
from services.executor.events import Job


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
