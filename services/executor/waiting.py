"""Jobs that wait for their time or for a slot, and the slots of the others: the effects around `queue.py`.

Here: bounds at admission, the timer, and when somebody is chosen. Not here: who (`queue.py`), and what it means for a
job (`machine.py`). Memory is bounded by the number of jobs, whatever is in their specs: those stay in the database.

Times are the wall clock's, which may jump. Forward: what has become due starts. Backward: it waits. The timer runs by a
clock that nobody sets and that stands still while the machine is suspended; so while a job is scheduled the wall clock
is looked at every `LOOK_S` at least.
"""

import asyncio
import heapq
from collections.abc import Callable
from enum import Enum, auto
from typing import Final, NamedTuple

import msgspec
import structlog

from common.errors import exhausted
from common.identifiers import JobId
from services.executor.events import Bounds, Job
from services.executor.queue import Queue, Ticket

log = structlog.get_logger(__name__)

LOOK_S: Final = 2.0
DUE_AT_ONCE_MAX: Final = 200
"""So many scheduled jobs fall due in one turn of the event loop; more in the next."""
RETRY_AFTER_S: Final = 5.0
"""What is said to whom there is no room for: nobody knows when a job ends."""
_SPARE_TIMES: Final = 64


class Place(Enum):
    """Where a job is that has not ended."""

    SLOT = auto()  # it may be launched, or was
    QUEUE = auto()  # it waits, for its time or for a slot


class WaitingLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What the node takes: jobs in slots, jobs that wait, and bytes of uploads of the latter."""

    running_max: int
    queued_max: int
    upload_bytes_max: int


class _Known(NamedTuple):
    owner: str
    place: Place
    upload_bytes: int


class _Owned:
    """How many jobs an owner has that have not ended, and how many of them wait."""

    __slots__ = ("jobs", "queued")

    def __init__(self) -> None:
        self.jobs = self.queued = 0


class Waiting:
    """All jobs that have not ended, by what they wait for. Nobody is chosen before `open`.

    `chosen` and `due` are told of jobs, one call each; `has_room` tells whether a job may be started as far as the disk
    is concerned.
    """

    def __init__(
        self,
        limits: WaitingLimits,
        *,
        chosen: Callable[[JobId], None],
        due: Callable[[JobId], None],
        has_room: Callable[[], bool],
        clock_ns: Callable[[], int],
        look_s: float = LOOK_S,
    ) -> None:
        self._limits = limits
        self._chosen = chosen
        self._due = due
        self._has_room = has_room
        self._clock_ns = clock_ns
        self._look_s = look_s
        self._queue = Queue(limits.running_max)
        self._known: dict[JobId, _Known] = {}
        self._owned: dict[str, _Owned] = {}
        self._queued = self._upload_bytes = 0
        self._scheduled: dict[JobId, int] = {}  # not before
        self._times: list[tuple[int, JobId]] = []  # a heap; entries of jobs that are scheduled no more are untrue
        self._timer: asyncio.TimerHandle | None = None
        self._open = self._filling = self._short = False

    @property
    def jobs(self) -> frozenset[JobId]:
        """All of them."""
        return frozenset(self._known)

    @property
    def running_jobs(self) -> int:
        """How many have a slot."""
        return self._queue.running

    @property
    def queued_jobs(self) -> int:
        """How many are PENDING."""
        return self._queue.waiting

    @property
    def running_max(self) -> int:
        """How many slots there are."""
        return self._limits.running_max

    def place_for(self, owner: str, bounds: Bounds, *, later: bool, upload_bytes: int) -> Place:
        """Where a new job would be. `later`: its time has not come. Raises EXHAUSTED when there is no place.

        Who can start at once is never refused. The owner's bounds hold from now on for all of his jobs.
        """
        if owner in self._owned:
            self._queue.bound(owner, bounds.running_max)
            self._fill()  # those that wait under a bound that was lower are first
        if not later and self._queue.may_start(owner, bounds.running_max):
            return Place.SLOT
        if not self._limits.queued_max:
            raise _refused(f"{self._limits.running_max} jobs run", "wait for one to end")
        if self._queued >= self._limits.queued_max:
            raise _refused(f"{self._limits.queued_max} jobs wait on this node")
        owned = self._owned.get(owner)
        if bounds.queued_max is not None and (0 if owned is None else owned.queued) >= bounds.queued_max:
            raise _refused(f"{bounds.queued_max} of your jobs wait, and more may not")
        if upload_bytes and self._upload_bytes + upload_bytes > self._limits.upload_bytes_max:
            raise _refused(f"uploads of waiting jobs would take more than {self._limits.upload_bytes_max} bytes")
        return Place.QUEUE

    def keep(self, job: Job, place: Place) -> None:
        """Keep a place for a job; `leave` gives it back."""
        record = job.record
        upload_bytes = sum(upload.bytes for upload in record.spec.uploads) if place is Place.QUEUE else 0
        self._known[record.id] = known = _Known(record.owner, place, upload_bytes)
        self._owned.setdefault(record.owner, _Owned()).jobs += 1
        if place is Place.QUEUE:
            self._count(known, by=1)
        else:
            self._queue.occupy(record.owner)
        if job.bounds is not None:
            self._queue.bound(record.owner, job.bounds.running_max)

    def has_slot(self, job: JobId) -> bool:
        """Whether the job's place is a slot."""
        known = self._known.get(job)
        return known is not None and known.place is Place.SLOT

    def schedule(self, job: Job) -> None:
        """Wait for the job's time."""
        job_id, start_at_ns = job.record.id, job.record.spec.start_at_ns
        self._scheduled[job_id] = start_at_ns
        if len(self._times) > 2 * len(self._scheduled) + _SPARE_TIMES:
            self._times = [(time_ns, each) for each, time_ns in self._scheduled.items()]
            heapq.heapify(self._times)
        else:
            heapq.heappush(self._times, (start_at_ns, job_id))
        self._arm()

    def line_up(self, job: Job) -> None:
        """Wait for a slot, behind those of the same priority that wait since before."""
        record = job.record
        since_ns = max(record.created_at_ns, record.spec.start_at_ns)
        self._queue.add(Ticket(record.id, record.owner, record.spec.priority, since_ns))
        self._fill()

    def leave(self, job: JobId) -> None:
        """The job has ended, or there is none after all: its place is free."""
        known = self._known.pop(job, None)
        if known is None:
            return
        if known.place is Place.SLOT:
            self._queue.vacate(known.owner)
        else:
            self._count(known, by=-1)
            self._scheduled.pop(job, None)
            self._queue.remove(job)
        owned = self._owned[known.owner]
        owned.jobs -= 1
        if not owned.jobs:
            del self._owned[known.owner]
            self._queue.forget(known.owner)
        self._fill()

    def position(self, job: JobId) -> int:
        """See queue.Queue.position."""
        return self._queue.position(job)

    def positions(self) -> dict[JobId, int]:
        """See queue.Queue.positions."""
        return self._queue.positions()

    def open(self) -> None:
        """From now on jobs are chosen."""
        self._open = True
        self._fill()
        self._arm()

    def close(self) -> None:
        """Choose nobody any more."""
        self._open = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fill(self) -> None:
        """Choose for every free slot."""
        if self._filling:
            return  # a chosen one has left at once: the loop below goes on
        self._filling = True
        try:
            while self._open and self._queue.ready and self._room():
                job = self._queue.take()
                assert job is not None
                known = self._known[job]
                self._count(known, by=-1)
                self._known[job] = known._replace(place=Place.SLOT, upload_bytes=0)
                self._chosen(job)
        finally:
            self._filling = False

    def _room(self) -> bool:
        short = not self._has_room()
        if short and not self._short:
            log.warning("no waiting job is started: there is no room for its output", jobs=self._queue.waiting)
        self._short = short
        if short:
            self._arm()
        return not short

    def _count(self, known: _Known, *, by: int) -> None:
        self._queued += by
        self._owned[known.owner].queued += by
        self._upload_bytes += by * known.upload_bytes

    def _arm(self) -> None:
        """One timer, for the earliest time or for the next look."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._open or not (self._scheduled or self._short):
            return
        wait_s = self._look_s
        first_ns = self._first_ns()
        if first_ns is not None:
            wait_s = min(wait_s, max(0.0, (first_ns - self._clock_ns()) / 1e9))
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._look)

    def _first_ns(self) -> int | None:
        while self._times and self._scheduled.get(self._times[0][1]) != self._times[0][0]:
            heapq.heappop(self._times)
        return self._times[0][0] if self._times else None

    def _look(self) -> None:
        self._timer = None
        now_ns = self._clock_ns()
        for _ in range(DUE_AT_ONCE_MAX):
            first_ns = self._first_ns()
            if first_ns is None or first_ns > now_ns:
                break
            _, job = heapq.heappop(self._times)
            del self._scheduled[job]
            self._due(job)
        self._fill()
        self._arm()


def _refused(what: str, detail: str = "wait until some of them have started") -> Exception:
    return exhausted(f"{what}: Max capacity reached", detail, retry_after_s=RETRY_AFTER_S)
