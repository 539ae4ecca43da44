"""What is known of stored jobs, loaded at the first touch and kept while there is room. A lock for each job.

The files are the truth, so anything may be dropped that nobody uses. Not here: what is done with the files (store.py).
"""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from common.identifiers import JobId
from common.records import Stream
from services.persist.segment import Segment

JOBS_KEPT_MAX: Final = 2048
MEMBERS_KEPT_MAX: Final = 1_000_000
_RELEASES_BETWEEN_COUNTS: Final = 256


class Holding:
    """One job. `lock` is held by whoever loads, writes or deletes."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.logs: dict[Stream, Segment] | None = None
        self.metrics: Segment | None = None
        self.settled = 0
        self.live = False
        self.entry_durable = False
        """This process has synchronized the entry of the directory of logs: one before may have died on the way."""
        self.trimming = False

    @property
    def members(self) -> int:
        """How many members are known of its files."""
        logs, metrics = self.logs, self.metrics  # the lock is not held here
        return sum(len(segment.index) for segment in (logs or {}).values()) + (len(metrics.index) if metrics else 0)

    def forget(self) -> None:
        """The files must be loaded again."""
        self.logs = self.metrics = None
        self.settled, self.live, self.entry_durable = 0, False, False


class Holdings:
    """All jobs."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[JobId, Holding] = OrderedDict()
        self._lock = threading.Lock()
        self._releases = 0

    def __len__(self) -> int:
        return len(self._jobs)

    @contextlib.contextmanager
    def using(self, job: JobId) -> Iterator[Holding]:
        """What is known of `job`, which is not dropped meanwhile."""
        with self._lock:
            holding = self._jobs.setdefault(job, Holding())
            self._jobs.move_to_end(job)
            holding.users += 1
        try:
            yield holding
        finally:
            with self._lock:
                holding.users -= 1
                self._releases += 1
                if len(self._jobs) > JOBS_KEPT_MAX or not self._releases % _RELEASES_BETWEEN_COUNTS:
                    self._make_room()

    def _make_room(self) -> None:
        members = sum(holding.members for holding in self._jobs.values())
        for job in list(self._jobs):
            if len(self._jobs) <= JOBS_KEPT_MAX and members <= MEMBERS_KEPT_MAX:
                return
            if not self._jobs[job].users:
                members -= self._jobs.pop(job).members
