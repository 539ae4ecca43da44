"""The feed of one job: its live output and its end, received once and handed to all its followers.

Belongs here: decoding what is published, keeping in step with the executor by markers, and letting go with the last
follower. Does not belong here: keeping it (`output.py`), what a single follower still lacks (`machine.py`).

In step: after subscribing, `SyncLog` is asked every 50 ms until its marker comes back in-band. All above the marker's
sequence will be published to us. After 5 s of silence the same again, with a look at the record: PUB may have dropped
the very last message, and then no later one shows the hole.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

import structlog

from common import records
from common.bus.codec import new_message_id
from common.bus.requests import Requester
from common.errors import JobletError, Reason
from common.identifiers import JobId
from common.messages import jobs, topics
from common.messages.envelope import Body
from common.messages.logs import LogMarker, LogRecords
from services.api.followers.chunks import batches_of
from services.api.followers.hub import Hub
from services.api.followers.output import Output

log = structlog.get_logger(__name__)

MARKER_WAIT_S: Final = 0.05
SILENCE_S: Final = 5.0
RETRY_S_MAX: Final = 2.0


WINDOWS_BYTES_MAX: Final = 256 * 2**20
"""Of the live output that all feeds together keep for followers who lack it."""


class Feed:
    """One job's feed. It subscribes when it is made by `Feeds` and lives as long as it has followers.

    `corrupt` counts a publication that is none.
    """

    def __init__(
        self, job: JobId, hub: Hub, executor: Requester, *, silence_s: float, corrupt: Callable[[], int]
    ) -> None:
        self._job = job
        self._hub = hub
        self._executor = executor
        self._silence_s = silence_s
        self.followers = 0
        self.output = Output(0)
        self._marker = ""
        self._marker_seen = asyncio.Event()
        self._heard_at = 0.0
        self._corrupt = corrupt

    async def run(self) -> None:
        """Subscribe and keep in step, for ever; cancelled when the last follower leaves."""
        loop = asyncio.get_running_loop()
        with ExitStack() as listening:
            # The job's own topic first: once a marker came through the second one, both are in effect.
            listening.enter_context(self._hub.listening(topics.job_topic(self._job), self._on_change))
            listening.enter_context(self._hub.listening(topics.log_topic(self._job), self._on_log))
            while not self.output.gone:
                await self._step()
                while (left_s := self._heard_at + self._silence_s - loop.time()) > 0:  # noqa: ASYNC110  # time itself
                    await asyncio.sleep(left_s)  # it is time that is waited for, not a message

    async def _step(self) -> None:
        """One marker there and back, then a look at the record. Goes on trying while the executor is away."""
        retry_s = MARKER_WAIT_S
        self._marker = new_message_id()
        self._marker_seen.clear()
        while not self.output.gone and not self._marker_seen.is_set():
            try:
                await self._executor.request(jobs.SyncLog(job=self._job, marker=self._marker), jobs.LogSynced)
                retry_s = MARKER_WAIT_S
            except JobletError as error:
                self._failed(error)
                retry_s = min(retry_s * 2, RETRY_S_MAX)
            try:
                async with asyncio.timeout(retry_s):
                    await self._marker_seen.wait()
            except TimeoutError:
                continue
        try:
            found = await self._executor.request(jobs.GetJob(job=self._job, visible_owner=None), jobs.JobFound)
        except JobletError as error:
            self._failed(error)
        else:
            self._on_change(jobs.JobChanged(job=found.job))
        self._heard_at = asyncio.get_running_loop().time()

    def _failed(self, error: JobletError) -> None:
        if error.reason is Reason.NOT_FOUND:
            self.output.vanished()
        elif error.reason is not Reason.UNAVAILABLE:
            log.warning("cannot keep in step with a job", job=self._job, why=str(error))

    def _on_log(self, body: Body) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        if isinstance(body, LogMarker):
            if body.marker == self._marker:
                self._marker_seen.set()
                self.output.marked(body.last_sequence)
            return
        if not isinstance(body, LogRecords):
            return
        try:
            batches = batches_of(body.records)
        except records.CorruptRecord as error:
            # Not given on: followers see a hole and read those entries from history.
            log.warning("corrupt records on the bus", job=self._job, why=str(error), times=self._corrupt())
            return
        for batch in batches:
            self.output.published(batch)
        self.output.tell()

    def _on_change(self, body: Body) -> None:
        if not isinstance(body, jobs.JobChanged):
            return
        if body.deleted:
            self.output.vanished()
        elif body.job.state in jobs.TERMINAL and self.output.end is None:
            self.output.ended(body.job)


class Feeds:
    """The feeds of all jobs that somebody follows. `window_bytes_max`: of the live output of one job."""

    def __init__(self, hub: Hub, executor: Requester, *, window_bytes_max: int, silence_s: float = SILENCE_S) -> None:
        self._hub = hub
        self._executor = executor
        self._window_bytes_max = window_bytes_max
        self._silence_s = silence_s
        self._feeds: dict[JobId, tuple[Feed, asyncio.Task[None]]] = {}
        self._dropped = 0
        self.corrupt = 0

    @contextmanager
    def following(self, job: JobId) -> Iterator[Output]:
        """The output of a job, told of inside the with-block; all followers of a job share one."""
        if job not in self._feeds:
            feed = Feed(job, self._hub, self._executor, silence_s=self._silence_s, corrupt=self._count_corrupt)
            self._feeds[job] = feed, asyncio.create_task(feed.run())
            self._share()
        feed, task = self._feeds[job]
        feed.followers += 1
        try:
            yield feed.output
        finally:
            feed.followers -= 1
            if feed.followers == 0:
                task.cancel()
                self._dropped += feed.output.window.dropped
                self._feeds.pop(job, None)
                self._share()

    @property
    def dropped(self) -> int:
        """Live batches that a follower did not take in time, and reads from history."""
        return self._dropped + sum(feed.output.window.dropped for feed, _ in self._feeds.values())

    def _share(self) -> None:
        """However many jobs are followed, their windows together are bounded."""
        share = min(self._window_bytes_max, WINDOWS_BYTES_MAX // max(len(self._feeds), 1))
        for feed, _ in self._feeds.values():
            feed.output.window.bytes_max = share
            feed.output.window.trim()

    def _count_corrupt(self) -> int:
        self.corrupt += 1
        return self.corrupt

    def __len__(self) -> int:
        return len(self._feeds)
