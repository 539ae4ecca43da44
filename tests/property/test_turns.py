"""Whose turn it is to send: nobody starves, bytes are bounded, and a quiet job does not wait for floods."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.identifiers import JobId, new_job_id
from services.executor.turns import BATCH_BYTES, QUIET_BYTES, WINDOW_BYTES_MIN, Turns

MIB = 2**20
JOB_BYTES, TOTAL_BYTES = 8 * MIB, 64 * MIB


class Jobs:
    """Jobs that send as they are told, and whose bytes are acknowledged when the test says so."""

    def __init__(self, count: int) -> None:
        self.turns = Turns(job_bytes_max=JOB_BYTES, total_bytes_max=TOTAL_BYTES)
        self.unsent: dict[JobId, int] = {new_job_id(): 0 for _ in range(count)}
        self.on_the_way: Counter[JobId] = Counter()

    def print_more(self, job: JobId, size_bytes: int) -> None:
        """The job's journal grows."""
        self.unsent[job] += size_bytes
        self.turns.line_up(job, self.unsent[job])

    def send(self) -> JobId | None:
        """Take one turn, and make full use of it."""
        turn = self.turns.next()
        if turn is None:
            return None
        size = min(turn.bytes_max, self.unsent[turn.job])
        self.unsent[turn.job] -= size
        self.on_the_way[turn.job] += size
        self.turns.on_the_way(turn.job, self.on_the_way[turn.job])
        if self.unsent[turn.job]:
            self.turns.line_up(turn.job, self.unsent[turn.job])
        return turn.job

    def acknowledge(self, job: JobId, size_bytes: int) -> None:
        """Persist has so much more of it."""
        self.on_the_way[job] -= min(size_bytes, self.on_the_way[job])
        self.turns.on_the_way(job, self.on_the_way[job])
        if self.unsent[job]:
            self.turns.line_up(job, self.unsent[job])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 120))
def test_bytes_are_bounded_and_everything_is_sent_in_the_end(seed: int, count: int) -> None:
    """Whatever is printed and acknowledged: each bound holds, the sum is right, and nobody is forgotten."""
    source = random.Random(seed)  # noqa: S311  # a simulation
    jobs = Jobs(count)
    ids = list(jobs.unsent)
    for _ in range(400):
        job = source.choice(ids)
        match source.randrange(3):
            case 0:
                jobs.print_more(job, source.choice([100, 5000, QUIET_BYTES, 3 * MIB]))
            case 1:
                jobs.acknowledge(job, source.choice([100, 5000, MIB]))
            case _:
                before = jobs.turns.any_may_send
                sent = jobs.send()
                assert sent is None or before
        assert jobs.turns.total_bytes == jobs.on_the_way.total() <= TOTAL_BYTES + QUIET_BYTES
        assert max(jobs.on_the_way.values(), default=0) <= JOB_BYTES
    while any(jobs.unsent.values()):
        while jobs.send() is not None:
            pass
        assert jobs.on_the_way.total(), "somebody has something to send, nothing is on the way, and nobody may"
        for job in ids:
            jobs.acknowledge(job, MIB)


@pytest.mark.threat("C17")
@pytest.mark.parametrize("floods", [1, 8, 100])
def test_a_line_of_a_quiet_job_goes_out_at_once_whatever_is_on_the_way(floods: int) -> None:
    """Floods have all that they may have on the way, and nothing is acknowledged: the next turn is the quiet job's."""
    jobs = Jobs(floods + 1)
    quiet, *others = jobs.unsent
    for job in others:
        jobs.print_more(job, 1000 * MIB)
    while jobs.send() is not None:
        pass
    for _ in range(50):
        jobs.print_more(quiet, 100)
        assert jobs.send() == quiet


def test_a_quiet_job_waits_for_one_turn_of_a_flood_at_most() -> None:
    """While floods may send: turns alternate between the two lines."""
    jobs = Jobs(3)
    quiet, *floods = jobs.unsent
    for job in floods:
        jobs.print_more(job, 1000 * MIB)
    jobs.send()
    for _ in range(20):
        jobs.print_more(quiet, 100)
        assert quiet in (jobs.send(), jobs.send())
        for job in jobs.unsent:
            jobs.acknowledge(job, MIB)


def test_a_thousand_quiet_jobs_do_not_starve_one_that_floods() -> None:
    """Every other turn is its own."""
    jobs = Jobs(1001)
    flood, *quiet = jobs.unsent
    jobs.print_more(flood, 100 * MIB)
    for job in quiet:
        jobs.print_more(job, 100)
    sent = [jobs.send() for _ in range(10)]
    assert sent.count(flood) == 5


def test_windows_shrink_when_many_are_busy_and_grow_again() -> None:
    """Nobody waits for bytes that another flood has on the way: a hundred share what one could have eight MiB of."""
    jobs = Jobs(100)
    first, *others = jobs.unsent
    jobs.print_more(first, 1000 * MIB)
    while jobs.send() is not None:
        pass
    assert jobs.on_the_way[first] == JOB_BYTES
    for job in others:
        jobs.print_more(job, 1000 * MIB)
    while jobs.send() is not None:
        pass
    jobs.acknowledge(first, 7 * MIB)
    sent = set()
    while (sender := jobs.send()) is not None:
        sent.add(sender)
    assert first not in sent, "it has more than its share"
    assert all(WINDOW_BYTES_MIN <= jobs.on_the_way[job] < BATCH_BYTES for job in others)
    for job in others:
        jobs.turns.forget(job)
    jobs.acknowledge(first, MIB)
    while jobs.send() is not None:
        pass
    assert jobs.on_the_way[first] == JOB_BYTES
