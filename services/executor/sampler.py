"""When each running job is measured, and the measuring. One sample a job and interval, and one more when it ends.

Here: the schedule (pure: time comes in) and the loop around it. Not here: reading counters (`cgroups/`, and of networks
`counters`) and what becomes of a sample (`emit`).
"""

import asyncio
import heapq
import time
from collections.abc import Callable
from typing import Final

import msgspec
import structlog

from common.errors import JobletError
from common.identifiers import JobId
from common.messages.logs import StoreMetric
from services.executor.cgroups.driver import CgroupDriver

log = structlog.get_logger(__name__)

Emit = Callable[[StoreMetric], None]

Counters = Callable[[JobId], tuple[int, int] | None]
"""Bytes that a job has received and sent by its network so far; None where it has none, or none any more."""


def no_network(_job: JobId) -> tuple[int, int] | None:
    """The counters of a node whose jobs have no network."""
    return None


SPREAD_STEPS: Final = 16
"""Jobs that are taken up together after a restart are measured in this many groups over the interval."""


class Schedule:
    """Which job is due when. Times are nanoseconds of a clock that never goes back."""

    def __init__(self, interval_ns: int) -> None:
        assert interval_ns > 0
        self._interval_ns = interval_ns
        self._due: list[tuple[int, JobId]] = []
        self._jobs: dict[JobId, int] = {}  # when it is due; entries of the heap that differ are dead

    def add(self, job: JobId, *, now_ns: int) -> None:
        """The job is due one interval from now, and then every interval. Nothing when it is scheduled already."""
        if job not in self._jobs:
            self._put(job, now_ns + self._interval_ns)

    def add_spread(self, job: JobId, *, now_ns: int) -> None:
        """As `add`, but the first time somewhere within the interval, as the number of jobs tells."""
        if job not in self._jobs:
            step = len(self._jobs) % SPREAD_STEPS + 1
            self._put(job, now_ns + self._interval_ns * step // SPREAD_STEPS)

    def remove(self, job: JobId) -> None:
        """The job is never due again."""
        self._jobs.pop(job, None)

    def take_due(self, *, now_ns: int) -> tuple[JobId, ...]:
        """Jobs whose time has come, each once; intervals that were missed are not made up for."""
        taken = []
        while (first := self._first()) is not None and first[0] <= now_ns:
            due_ns, job = heapq.heappop(self._due)
            missed = (now_ns - due_ns) // self._interval_ns
            self._put(job, due_ns + (missed + 1) * self._interval_ns)
            taken.append(job)
        return tuple(taken)

    def next_due_ns(self) -> int | None:
        """When the next job is due; None when there is none."""
        first = self._first()
        return None if first is None else first[0]

    def _put(self, job: JobId, due_ns: int) -> None:
        self._jobs[job] = due_ns
        heapq.heappush(self._due, (due_ns, job))

    def _first(self) -> tuple[int, JobId] | None:
        while self._due and self._jobs.get(self._due[0][1]) != self._due[0][0]:
            heapq.heappop(self._due)
        return self._due[0] if self._due else None


class Sampler:
    """Measures jobs through `driver` and `counters` and hands each sample to `emit`, which must not wait.

    `clock_ns` is monotonic and drives the schedule; `wall_ns` is Unix time and stands in the samples.
    """

    def __init__(
        self,
        driver: CgroupDriver,
        emit: Emit,
        *,
        interval_ms: int,
        counters: Counters = no_network,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._driver = driver
        self._emit = emit
        self._counters = counters
        self._clock_ns = clock_ns
        self._wall_ns = wall_ns
        self._schedule = Schedule(interval_ms * 1_000_000)
        self._previous: dict[JobId, StoreMetric | None] = {}
        self._changed = asyncio.Event()

    def add(self, job: JobId, *, started_at_ns: int | None) -> None:
        """Measure a job from now on. `started_at_ns`: Unix time of its start, when it had used nothing.

        None: a job that was taken up again after a restart. Its first measurement only sets where the next one counts
        CPU time from, and is not emitted.
        """
        if job in self._previous:
            return
        if started_at_ns is None:
            self._previous[job] = None
            self._schedule.add_spread(job, now_ns=self._clock_ns())
        else:
            self._previous[job] = StoreMetric(job=job, time_ns=started_at_ns, cpu_percent=0.0, memory_bytes=0)
            self._schedule.add(job, now_ns=self._clock_ns())
        self._changed.set()

    def finish(self, job: JobId) -> None:
        """Measure an ended job a last time, before its groups are removed, and never again."""
        if job in self._previous:
            self._measure(job)
            self._previous.pop(job, None)
            self._schedule.remove(job)

    def tick(self) -> int:
        """Measure every job whose time has come; how many."""
        due = self._schedule.take_due(now_ns=self._clock_ns())
        for job in due:
            self._measure(job)
        return len(due)

    async def run(self) -> None:
        """Measure for ever."""
        while True:
            self.tick()
            self._changed.clear()
            due_ns = self._schedule.next_due_ns()
            timeout_s = None if due_ns is None else max(0, due_ns - self._clock_ns()) / 1e9
            try:
                async with asyncio.timeout(timeout_s):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _measure(self, job: JobId) -> None:
        previous = self._previous[job]
        try:
            sample = self._driver.sample(job, previous=previous, now_ns=self._wall_ns())
        except (OSError, JobletError, ValueError) as error:  # of this job: the others are measured all the same
            log.warning("cannot measure a job", job_id=job, why=str(error))
            return
        if sample is None:  # its groups are gone: it ends now
            return
        sample = self._with_network(sample, previous)
        self._previous[job] = sample
        if previous is not None:
            self._emit(sample)

    def _with_network(self, sample: StoreMetric, previous: StoreMetric | None) -> StoreMetric:
        """`sample` with the bytes of the job's network: what was counted before when nothing counts any more."""
        try:
            counted = self._counters(sample.job)
        except OSError as error:
            log.warning("cannot read the network counters of a job", job_id=sample.job, why=str(error))
            counted = None
        if counted is None and previous is not None:
            counted = previous.network_rx_bytes, previous.network_tx_bytes
        if counted is None:
            return sample
        return msgspec.structs.replace(sample, network_rx_bytes=counted[0], network_tx_bytes=counted[1])
