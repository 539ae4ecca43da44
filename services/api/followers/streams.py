"""All log streams of the process: what they share, and what is counted of them.

Does not belong here: one stream (`follower.py`).
"""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from common.messages import jobs
from proto.joblet.v1 import job_pb2
from services.api.followers.feed import Feeds
from services.api.followers.follower import LogFollower, Look
from services.api.followers.reader import Queries
from services.api.followers.wanted import Wanted, wanted_of


class LogStreams:
    """Opens log streams. `look` asks the executor for a job, whoever's it is."""

    def __init__(self, *, feeds: Feeds, queries: Queries, look: Look, queue_bytes_max: int) -> None:
        self._feeds = feeds
        self._queries = queries
        self._look = look
        self._queue_bytes_max = queue_bytes_max
        self._open: set[LogFollower] = set()
        self._dropped = 0

    def open(self, found: jobs.JobFound, request: job_pb2.StreamLogsRequest) -> AsyncGenerator[bytes, None]:
        """The messages of one client's stream. Raises JobletError for a malformed request, or while iterating."""
        return self._messages(found, wanted_of(request, now_ns=time.time_ns()))

    async def _messages(self, found: jobs.JobFound, wanted: Wanted) -> AsyncGenerator[bytes, None]:
        follower = LogFollower(
            found,
            wanted,
            feeds=self._feeds,
            queries=self._queries,
            look=self._look,
            queue_bytes_max=self._queue_bytes_max,
        )
        self._open.add(follower)
        try:
            async with aclosing(follower.messages()) as messages:
                async for message in messages:
                    yield message
        finally:
            self._open.remove(follower)
            self._dropped += follower.dropped

    @property
    def counters(self) -> dict[str, int]:
        """What docs/operations.md calls the counters of api: those open now, and what happened since the start."""
        return {
            "followers": len(self._open),
            "followers_catching_up": sum(follower.catching_up for follower in self._open),
            "batches_dropped": self._dropped + sum(follower.dropped for follower in self._open),
            "records_corrupt": self._feeds.corrupt,
        }
