"""Which of the waiting jobs starts next: fair between owners, by priority within one. Pure: no I/O, no clock.

Rules:
- At most `running_max` jobs have a slot, and of an owner at most his own bound. Who is at his bound is passed over.
- Next is a job of the owner who has the fewest in slots; of several such owners, of the one who waits longest since he
  was served, or since he came: a round robin into which nobody can push himself by coming and going.
- Within an owner: the higher priority first, then first in, first out.
- While a job waits whose owner is below his bound, `take` gives one for every free slot.

So an owner who has nothing in a slot is served within as many starts as there are owners, and nobody starves.
A decision costs O(log n): a heap of owners, in which entries that became untrue are left until they come up, and a
sorted list of each owner's jobs. docs/adr/0023-queue.md gives the reasons.
"""

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Final, NamedTuple

from common.identifiers import JobId

SPARE_ENTRIES: Final = 64
"""Untrue entries that the heap may hold beyond one for each owner."""


class Ticket(NamedTuple):
    """A waiting job. `number` orders those of the same priority: the lower first."""

    job: JobId
    owner: str
    priority: int
    number: int


class _Line(NamedTuple):
    """One owner for a forecast: so many of his `jobs`, the first of which starts when he has `running` in slots."""

    owner: str
    running: int
    since: int
    jobs: int


class _Owner:
    """What is known of an owner, until he is forgotten."""

    __slots__ = ("running", "running_max", "since", "waiting")

    def __init__(self) -> None:
        self.running = 0
        self.running_max: int | None = None
        self.since = 0  # when he was served last or, if that is later, began to wait
        self.waiting: list[tuple[int, int, JobId]] = []  # ascending: the next one is the last

    @property
    def room(self) -> int:
        """How many of the waiting ones may start under the owner's bound."""
        waiting = len(self.waiting)
        return waiting if self.running_max is None else min(waiting, max(0, self.running_max - self.running))


class Queue:
    """The waiting jobs and the slots of the others."""

    def __init__(self, running_max: int) -> None:
        self._running_max = running_max
        self._owners: dict[str, _Owner] = {}
        self._tickets: dict[JobId, Ticket] = {}
        self._heap: list[tuple[int, int, str]] = []  # slots and `since` of an owner who may be served, as they were
        self._running = 0
        self._now = 0

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self._tickets)

    @property
    def owners(self) -> int:
        """How many owners have jobs."""
        return len(self._owners)

    @property
    def running(self) -> int:
        """How many jobs have a slot."""
        return self._running

    def bound(self, owner: str, running_max: int | None) -> None:
        """From now on at most so many jobs of `owner` get a slot; None: as many as there are."""
        self._of(owner).running_max = running_max
        self._offer(owner)

    def may_start(self, owner: str, running_max: int | None) -> bool:
        """Whether one more job of `owner` could have a slot at once, under that bound, without passing anybody."""
        known = self._owners.get(owner)
        running = 0 if known is None else known.running
        below = running_max is None or running < running_max
        return below and self._running < self._running_max and self._next_owner() is None

    def occupy(self, owner: str) -> None:
        """Give a job of `owner` a slot that did not wait here."""
        self._running += 1
        self._of(owner).running += 1
        self._offer(owner)

    def vacate(self, owner: str) -> None:
        """A job of `owner` has left its slot."""
        known = self._owners[owner]
        assert known.running, owner
        self._running -= 1
        known.running -= 1
        self._offer(owner)

    def forget(self, owner: str) -> None:
        """The owner has no jobs any more, here or elsewhere."""
        known = self._owners.pop(owner, None)
        assert known is None or not (known.running or known.waiting), owner

    def add(self, ticket: Ticket) -> None:
        """Let a job wait."""
        assert ticket.job not in self._tickets, ticket
        self._tickets[ticket.job] = ticket
        owner = self._of(ticket.owner)
        if not owner.waiting:
            owner.since = self._tick()
        insort(owner.waiting, _key(ticket))
        self._offer(ticket.owner)

    def remove(self, job: JobId) -> bool:
        """Let a job wait no longer; False: it did not."""
        ticket = self._tickets.pop(job, None)
        if ticket is None:
            return False
        waiting = self._owners[ticket.owner].waiting
        del waiting[bisect_left(waiting, _key(ticket))]
        return True

    @property
    def ready(self) -> bool:
        """Whether `take` would give a job."""
        return self._running < self._running_max and self._next_owner() is not None

    def take(self) -> JobId | None:
        """The job that starts next; it has its slot now. None: nobody may start."""
        name = self._next_owner() if self._running < self._running_max else None
        if name is None:
            return None
        owner = self._owners[name]
        _, _, job = owner.waiting.pop()
        del self._tickets[job]
        owner.since = self._tick()
        self.occupy(name)
        return job

    def position(self, job: JobId) -> int:
        """As `positions` has it, for one job: O(owners + log n). 0: it does not wait."""
        ticket = self._tickets.get(job)
        if ticket is None:
            return 0
        own = self._owners[ticket.owner]
        ahead = len(own.waiting) - 1 - bisect_left(own.waiting, _key(ticket))
        level, since, running = own.running + ahead, own.since, own.running
        if ahead < own.room:
            before = 0
            for other in self._owners.values():
                if other.waiting and other is not own:
                    # At a level where both are, who began there at more comes first, then who waits longer: `_turns`.
                    first = other.running > running or (other.running == running and other.since < since)
                    turns = level - other.running + first
                    if turns > 0:
                        before += min(turns, other.room)
            return 1 + ahead + before
        lines, beyond = self._lines()
        line = next(each for each in beyond if each.owner == ticket.owner)
        skipped = len(own.waiting) - line.jobs
        return sum(each.jobs for each in lines) + 1 + ahead - skipped + _before(line, ahead - skipped, beyond)

    def positions(self) -> dict[JobId, int]:
        """In which order the jobs would start if nothing ended and slots were free: 1 is the next. O(n).

        Those that their owner's bound holds back come behind all others.
        """
        left = {name: iter(reversed(owner.waiting)) for name, owner in self._owners.items()}
        order = (name for lines in self._lines() for name in _turns(lines))
        return {next(left[name])[2]: position for position, name in enumerate(order, start=1)}

    def _lines(self) -> tuple[list[_Line], list[_Line]]:
        """What each owner may start under his bound, and what is beyond it."""
        within, beyond = [], []
        for name, owner in self._owners.items():
            first, rest = owner.room, len(owner.waiting) - owner.room
            if first:
                within.append(_Line(name, owner.running, owner.since, first))
            if rest:
                beyond.append(_Line(name, owner.running + first, owner.since, rest))
        return within, beyond

    def _next_owner(self) -> str | None:
        """Whose turn it is; untrue entries above his are dropped."""
        while self._heap:
            running, since, name = self._heap[0]
            owner = self._owners.get(name)
            if owner is not None and (owner.running, owner.since) == (running, since) and _may_be_served(owner):
                return name
            heapq.heappop(self._heap)
        return None

    def _offer(self, name: str) -> None:
        """Something of the owner changed: what the heap has of him may be untrue."""
        owner = self._owners[name]
        if not _may_be_served(owner):
            return
        if len(self._heap) > 2 * len(self._owners) + SPARE_ENTRIES:
            entries = ((each.running, each.since, key) for key, each in self._owners.items() if _may_be_served(each))
            self._heap = list(entries)
            heapq.heapify(self._heap)
        else:
            heapq.heappush(self._heap, (owner.running, owner.since, name))

    def _of(self, name: str) -> _Owner:
        return self._owners.setdefault(name, _Owner())

    def _tick(self) -> int:
        self._now += 1
        return self._now


def _key(ticket: Ticket) -> tuple[int, int, JobId]:
    return ticket.priority, -ticket.number, ticket.job


def _may_be_served(owner: _Owner) -> bool:
    return owner.room > 0


def _turns(lines: list[_Line]) -> Iterator[str]:
    """Whose turn it is, one after the other, when nothing ends: level by level of slots had.

    At each level those who begin there come first, in the order of `since`; the others were served at the level below,
    so that they come behind, in the order in which that was.
    """
    joining = sorted(lines, key=lambda line: (line.running, line.since))
    level, joined = 0, 0
    here: list[tuple[str, int]] = []
    while here or joined < len(joining):
        if not here:
            level = joining[joined].running
        new = []
        while joined < len(joining) and joining[joined].running == level:
            new.append((joining[joined].owner, joining[joined].jobs))
            joined += 1
        here = new + here
        yield from (name for name, _ in here)
        here = [(name, jobs - 1) for name, jobs in here if jobs > 1]
        level += 1


def _before(own: _Line, ahead: int, lines: list[_Line]) -> int:
    """How many jobs of others `_turns` has before the job of `own` that has `ahead` of its owner's before it."""
    level = own.running + ahead
    before = 0
    for line in lines:
        if line.owner != own.owner:
            first = (-line.running, line.since) < (-own.running, own.since)  # at a level where both are
            before += min(line.jobs, max(0, level - line.running + first))
    return before
