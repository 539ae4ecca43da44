"""The queue keeps its rules whatever comes: against a plain model, and by what the rules promise."""

import random
from collections import Counter
from typing import Final, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.identifiers import JobId, new_job_id
from services.executor.queue import Queue, Ticket

OWNERS: Final = ("ann", "bob", "cat", "dan")


class Step(NamedTuple):
    """Something that happens: `number` chooses among what there is."""

    what: str
    owner: str
    number: int


steps = st.lists(
    st.builds(
        Step,
        what=st.sampled_from(["add", "add", "take", "take", "end", "remove", "occupy", "bound", "forget"]),
        owner=st.sampled_from(OWNERS),
        number=st.integers(0, 5),
    ),
    max_size=120,
)


class Model:
    """The rules again, each looked up anew among all jobs."""

    def __init__(self, running_max: int) -> None:
        self.running_max = running_max
        self.running: Counter[str] = Counter()
        self.bounds: dict[str, int | None] = {}
        self.waiting: list[Ticket] = []
        self.since: dict[str, int] = {}
        self.now = 0

    def of(self, owner: str) -> list[Ticket]:
        """His waiting jobs, the next one first."""
        mine = [ticket for ticket in self.waiting if ticket.owner == owner]
        return sorted(mine, key=lambda one: (one.priority, -one.number, one.job), reverse=True)

    def eligible(self) -> list[str]:
        """Owners of whom a job may start."""
        names = {ticket.owner for ticket in self.waiting}
        below = [one for one in names if (most := self.bounds.get(one)) is None or self.running[one] < most]
        return below if self.running.total() < self.running_max else []

    def add(self, ticket: Ticket) -> None:
        """A job comes."""
        if not self.of(ticket.owner):
            self.now += 1
            self.since[ticket.owner] = self.now
        self.waiting.append(ticket)

    def take(self) -> JobId | None:
        """The next job starts."""
        names = self.eligible()
        if not names:
            return None
        name = min(names, key=lambda one: (self.running[one], self.since[one]))
        ticket = self.of(name)[0]
        self.waiting.remove(ticket)
        self.now += 1
        self.since[name] = self.now
        self.running[name] += 1
        return ticket.job

    def idle(self, owner: str) -> bool:
        """Whether he has no job."""
        return not self.running[owner] and not self.of(owner)


@pytest.mark.threat("C25")
@settings(max_examples=400, deadline=None)
@given(st.integers(0, 6), steps)
def test_the_queue_does_what_the_rules_say(running_max: int, happened: list[Step]) -> None:
    """Each start is the one that the rules name; bounds hold; no slot stays free while a job may start."""
    queue, model = Queue(running_max), Model(running_max)
    for number, (what, owner, choice) in enumerate(happened):
        match what:
            case "add":
                ticket = Ticket(new_job_id(), owner, choice - 2, number)
                queue.add(ticket)
                model.add(ticket)
            case "take":
                eligible = bool(model.eligible())
                assert queue.ready == eligible
                taken = queue.take()
                assert taken == model.take()
                assert (taken is not None) == eligible
            case "end" if model.running[owner]:
                queue.vacate(owner)
                model.running[owner] -= 1
            case "remove" if model.waiting:
                ticket = model.waiting[choice % len(model.waiting)]
                assert queue.remove(ticket.job)
                assert not queue.remove(ticket.job)
                model.waiting.remove(ticket)
            case "occupy" if queue.may_start(owner, model.bounds.get(owner)):
                assert not model.eligible()
                queue.occupy(owner)
                model.running[owner] += 1
            case "bound":
                model.bounds[owner] = choice or None
                queue.bound(owner, choice or None)
            case "forget" if model.idle(owner):
                model.bounds.pop(owner, None)
                queue.forget(owner)
            case _:
                pass
        assert (queue.waiting, queue.running) == (len(model.waiting), model.running.total())
        assert queue.running <= running_max
    check_positions(queue, model)


def check_positions(queue: Queue, model: Model) -> None:
    """A forecast is what then happens when slots are free and nothing ends; each job's own says the same."""
    positions = queue.positions()
    assert positions.keys() == {ticket.job for ticket in model.waiting}
    assert sorted(positions.values()) == list(range(1, len(positions) + 1))
    assert {job: queue.position(job) for job in positions} == positions
    model.running_max = 10**6
    started = []
    while (job := model.take()) is not None:
        started.append(job)
    assert [positions[job] for job in started] == list(range(1, len(started) + 1))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), st.lists(st.integers(1, 12), min_size=2, max_size=8), st.randoms(use_true_random=False))
def test_nobody_starves(running_max: int, counts: list[int], chance: random.Random) -> None:
    """Who has nothing in a slot is served within as many starts as there are owners; in the end everybody is.

    Jobs end in any order, and one-job owners come and go meanwhile without overtaking anybody.
    """
    queue = Queue(running_max)
    owners = [f"owner-{number}" for number in range(len(counts))]
    for owner, count in zip(owners, counts, strict=True):
        for number in range(count):
            queue.add(Ticket(new_job_id(), owner, chance.randint(-100, 100), number))
    left, of_owner = sum(counts), Counter(dict(zip(owners, counts, strict=True)))
    tickets = dict(queue._tickets)
    running: list[str] = []
    waited: Counter[str] = Counter()
    while left:
        if running and (len(running) == running_max or chance.random() < 0.5):
            queue.vacate(running.pop(chance.randrange(len(running))))
            continue
        if chance.random() < 0.3:  # a passer-by
            if "passer-by" in queue._owners and "passer-by" not in running and not of_owner["passer-by"]:
                queue.forget("passer-by")
            if not of_owner["passer-by"]:
                ticket = Ticket(new_job_id(), "passer-by", 100, 0)
                queue.add(ticket)
                tickets[ticket.job] = ticket
                of_owner["passer-by"] = 1
        job = queue.take()
        assert job is not None
        owner = tickets[job].owner
        running.append(owner)
        left -= owner != "passer-by"
        of_owner[owner] -= 1
        waited[owner] = 0
        for other in owners:
            if of_owner[other] and other not in running:
                waited[other] += 1
                assert waited[other] <= len(owners) + 1, other
            else:
                waited[other] = 0


def test_what_the_queue_keeps_is_bounded_by_what_it_holds() -> None:
    """However often owners are served, the heap holds no more than some entries for each of them."""
    queue = Queue(50)
    for number in range(20):
        queue.add(Ticket(new_job_id(), f"owner-{number}", 0, number))
    for number in range(20_000):
        queue.add(Ticket(new_job_id(), "busy", 0, number))
    for _ in range(10_000):
        if queue.take() is None:
            queue.vacate("busy")
    assert len(queue._heap) <= 2 * len(queue._owners) + 65
    for ticket in list(queue._tickets):
        queue.remove(ticket)
    for owner, known in list(queue._owners.items()):
        for _ in range(known.running):
            queue.vacate(owner)
        queue.forget(owner)
    assert (queue._owners, queue.waiting, queue.running) == ({}, 0, 0)


@pytest.mark.parametrize("jobs", [1_000, 16_000])
def test_a_decision_does_not_look_at_every_job(jobs: int) -> None:
    """Counted, not timed: the owner's list is searched by halving, so a start compares some tickets and not all."""
    compared = 0

    class Counted(str):
        """A job id that counts how often it is compared, which is where everything else is equal."""

        __slots__ = ()

        def __lt__(self, other: str) -> bool:
            nonlocal compared
            compared += 1
            return str.__lt__(self, other)

    queue = Queue(10**6)
    for number in range(jobs):
        queue.add(Ticket(JobId(Counted(new_job_id())), f"owner-{number % 10}", 0, 0))
    compared = 0
    queue.add(Ticket(JobId(Counted(new_job_id())), "owner-3", 0, 0))
    assert queue.take() is not None
    assert 0 < compared <= 2 * jobs.bit_length()
