"""What is known of one job's output, told by its feed and read by all its followers.

Belongs here: the window with the job's end beside it, and waking those who wait for news. Does not belong here:
receiving (`feed.py`), what a follower makes of it (`machine.py`, `follower.py`).
Followers look; nothing is done for each of them when something is published, but to wake those who wait.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from common.messages import jobs
from services.api.followers.chunks import Batch
from services.api.followers.window import Window

FEW: Final = 8
"""Followers for whom nothing is saved by doing things once."""
SCAN_BYTES: Final = 256 * 1024
"""Where all followers are is looked at whenever so much was published; with few followers always."""


class Cursor(Protocol):
    """Where a follower is."""

    @property
    def next(self) -> int:
        """The first sequence that it has not got."""


class Output:
    """One job's output as far as it is known here. `position`: how far it reached when it was first told."""

    def __init__(self, bytes_max: int) -> None:
        self.window = Window(bytes_max)
        self.position: int | None = None
        self.end: jobs.JobRecord | None = None
        self.gone = False
        self._cursors: list[Cursor] = []
        self._unscanned_bytes = 0
        self._news = asyncio.Event()
        self._joined: tuple[int, int, bytes] = (0, 0, b"")

    @contextmanager
    def read_by(self, cursor: Cursor) -> Iterator[None]:
        """What `cursor` has not got is kept inside the with-block, within the window's bounds."""
        self._cursors.append(cursor)
        try:
            yield
        finally:
            self._cursors.remove(cursor)

    def published(self, batch: Batch) -> None:
        """A batch came."""
        window = self.window
        window.add(batch)
        self._unscanned_bytes += batch.size_bytes
        if len(self._cursors) <= FEW or self._unscanned_bytes >= min(SCAN_BYTES, window.bytes_max // 4):
            window.release(min((cursor.next for cursor in self._cursors), default=batch.last + 1))
            self._unscanned_bytes = 0
        window.trim()

    def marked(self, last: int) -> None:
        """The output reaches `last`, and all above it will be published to us."""
        self.window.reached(last)
        if self.position is None:
            self.position = last
        self.tell()

    def ended(self, record: jobs.JobRecord) -> None:
        """The job has ended; its `last_sequence` is final."""
        self.end = record
        if self.position is None:
            self.position = record.last_sequence
        self.window.ended(record.last_sequence)
        self.tell()

    def vanished(self) -> None:
        """The job was deleted."""
        self.gone = True
        self.tell()

    def tell(self) -> None:
        """Wake everyone who waits now."""
        self._news.set()
        self._news.clear()

    async def news(self) -> None:
        """Wait until something is told. What was told before is not waited for: look first."""
        await self._news.wait()

    def joined(self, batches: list[Batch]) -> bytes:
        """All of these as one message: made once for those who are at the same place, which in a crowd are many."""
        if len(self._cursors) <= FEW:
            return b"".join([batch.encoded for batch in batches])
        first, last = batches[0].first, batches[-1].last
        if self._joined[:2] != (first, last):
            self._joined = (first, last, b"".join([batch.encoded for batch in batches]))
        return self._joined[2]
