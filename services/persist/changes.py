"""Telling those who wait for more of a job that there may be more. Event loop only.

A watch that is set before its owner looks cannot miss what comes after the look. What there is, the store knows.
"""

import asyncio
import contextlib
from collections.abc import Iterator

from common.identifiers import JobId


class Watch:
    """One who waits. `deleted`: the job's data is gone, nothing more will come."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self.deleted = False

    def reset(self) -> None:
        """To be called before looking."""
        self._changed.clear()

    async def wait(self) -> None:
        """Until something happened since the last reset."""
        await self._changed.wait()

    def tell(self, *, deleted: bool) -> None:
        """Something happened."""
        self.deleted = self.deleted or deleted
        self._changed.set()


class Changes:
    """Who waits for which job."""

    def __init__(self) -> None:
        self._watches: dict[JobId, set[Watch]] = {}

    @contextlib.contextmanager
    def watch(self, job: JobId) -> Iterator[Watch]:
        """A watch on `job`."""
        watch = Watch()
        watches = self._watches.setdefault(job, set())
        watches.add(watch)
        try:
            yield watch
        finally:
            watches.discard(watch)
            if not watches:
                self._watches.pop(job, None)

    def tell(self, job: JobId, *, deleted: bool = False) -> None:
        """More of `job` is stored, it ended, or its data was deleted."""
        for watch in self._watches.get(job, ()):
            watch.tell(deleted=deleted)
