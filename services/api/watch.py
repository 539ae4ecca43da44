"""WatchJobs: the jobs that match, then every change, to callers who may see them.

Belongs here: joining the snapshot and the events, and a bounded queue. Does not belong here: receiving (`hub.py`).
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import Final, NamedTuple

import msgspec

from common.bus.requests import Requester
from common.errors import JobletError, Reason
from common.messages import jobs
from common.messages.envelope import Body
from proto.joblet.v1 import job_pb2
from services.api.convert import job_to_proto
from services.api.followers.hub import ALL_JOBS, Hub

CHANGES_QUEUED_MAX: Final = 1000
"""Waiting for one client; beyond, it gets a fresh snapshot."""

SILENCE_S: Final = 15.0
ALIVE: Final = tuple(state for state in jobs.State if state not in jobs.TERMINAL)
_ORDER: Final = {jobs.State.SCHEDULED: 0, jobs.State.PENDING: 1, jobs.State.STARTING: 2, jobs.State.RUNNING: 3}
_ENDED: Final = 4


def age_of(record: jobs.JobRecord) -> int:
    """How far a job is in its life: a record with a lower number than one already sent is an older one."""
    return _ORDER.get(record.state, _ENDED)


def matches(wanted: jobs.ListJobs, record: jobs.JobRecord) -> bool:
    """Whether the record belongs to a listing: the filter of the executor, for events."""
    return (
        (wanted.visible_owner is None or record.owner == wanted.visible_owner)
        and (not wanted.states or record.state in wanted.states)
        and (not wanted.owner or record.owner == wanted.owner)
        and all(record.spec.labels.get(key) == value for key, value in wanted.labels.items())
    )


class _Missed(NamedTuple):
    """What a silence hid: records as they are, and jobs that were removed, of which nothing but the id is left."""

    records: list[jobs.JobRecord]
    gone: list[str]


class Watch:
    """Opens watches. `silence_s`: how often living jobs are looked at, since an event may be lost."""

    def __init__(self, hub: Hub, executor: Requester, *, silence_s: float = SILENCE_S) -> None:
        self._hub = hub
        self._executor = executor
        self._silence_s = silence_s

    async def changes(self, wanted: jobs.ListJobs) -> AsyncGenerator[job_pb2.WatchJobsResponse, None]:
        """What matches now, marked initial, then changes for ever. A client too slow for its queue begins anew."""
        loop = asyncio.get_running_loop()
        queue: deque[jobs.JobChanged] = deque()
        wake = asyncio.Event()
        alive: dict[str, int] = {}
        lost = False
        heard: set[str] | None = None

        def changed(body: Body) -> None:
            nonlocal lost
            if not isinstance(body, jobs.JobChanged):
                return
            # A job that left the filter by its state is told to none, but must be forgotten here.
            if matches(wanted, body.job) or body.job.id in alive:
                if len(queue) >= CHANGES_QUEUED_MAX:
                    queue.clear()
                    lost = True
                queue.append(body)
                wake.set()
                if heard is not None:
                    heard.add(body.job.id)

        with self._hub.listening(ALL_JOBS, changed):
            lost = True
            look_at = 0.0
            while True:
                if lost:
                    lost = False
                    look_at = loop.time() + self._silence_s
                    alive.clear()
                    async for record in self._listed(wanted):
                        self._remember(alive, record)
                        yield job_pb2.WatchJobsResponse(job=job_to_proto(record), initial=True)
                while queue and not lost:
                    change = queue.popleft()
                    if not change.deleted and age_of(change.job) < alive.get(change.job.id, 0):
                        continue  # it happened before the snapshot, which was newer
                    self._remember(alive, change.job)
                    if matches(wanted, change.job):
                        yield job_pb2.WatchJobsResponse(job=job_to_proto(change.job), deleted=change.deleted)
                if loop.time() >= look_at and not lost:
                    # Not in a silence only: on a busy node there is none, and an event that was lost was one of many.
                    heard = set()
                    missed = await self._missed(wanted, alive)
                    news, heard = heard, None  # of these jobs the events tell, in their order
                    look_at = loop.time() + self._silence_s
                    queue.extend(jobs.JobChanged(job=record) for record in missed.records if record.id not in news)
                    for job in missed.gone:
                        if job not in news and alive.pop(job, None) is not None:
                            yield job_pb2.WatchJobsResponse(job=job_pb2.Job(id=job), deleted=True)
                wake.clear()
                if queue or lost:
                    continue
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(look_at):
                        await wake.wait()

    @staticmethod
    def _remember(alive: dict[str, int], record: jobs.JobRecord) -> None:
        if record.state in jobs.TERMINAL:
            alive.pop(record.id, None)
        else:
            alive[record.id] = age_of(record)

    async def _listed(self, wanted: jobs.ListJobs) -> AsyncIterator[jobs.JobRecord]:
        token = ""
        while True:
            page = await self._executor.request(msgspec.structs.replace(wanted, page_token=token), jobs.JobPage)
            for record in page.jobs:
                yield record
            token = page.next_page_token
            if not token:
                return

    async def _missed(self, wanted: jobs.ListJobs, alive: dict[str, int]) -> _Missed:
        """Living jobs that are not as they were told, and those that live no more. Nothing while nobody answers."""
        missed = _Missed([], [])
        try:
            now = {
                record.id: record
                async for record in self._listed(msgspec.structs.replace(wanted, states=ALIVE))
                if record.id not in alive or age_of(record) > alive[record.id]
            }
            living = {record.id async for record in self._listed(msgspec.structs.replace(wanted, states=ALIVE))}
            missed.records.extend(now.values())
            for job in alive.keys() - living:
                await self._look(wanted, job, missed)
        except JobletError:
            return _Missed([], [])
        return missed

    async def _look(self, wanted: jobs.ListJobs, job: str, missed: _Missed) -> None:
        try:
            found = await self._executor.request(
                jobs.GetJob(job=job, visible_owner=wanted.visible_owner), jobs.JobFound
            )
        except JobletError as error:
            if error.reason is not Reason.NOT_FOUND:
                raise
            missed.gone.append(job)
        else:
            missed.records.append(found.job)
