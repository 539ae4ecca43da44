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

    def __init__(self, *, feeds: Feeds, queries: Queries, look: Look) -> None:
        self._feeds = feeds
        self._queries = queries
        self._look = look
        self._open: set[LogFollower] = set()

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
        )
        self._open.add(follower)
        try:
            async with aclosing(follower.messages()) as messages:
                async for message in messages:
                    yield message
        finally:
            self._open.remove(follower)

    @property
    def counters(self) -> dict[str, int]:
        """What docs/operations.md calls the counters of api: those open now, and what happened since the start."""
        return {
            "followers": len(self._open),
            "followers_catching_up": sum(follower.catching_up for follower in self._open),
            "batches_dropped": self._feeds.dropped,
            "records_corrupt": self._feeds.corrupt,
        }
