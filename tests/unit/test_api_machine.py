"""The follower's machine: whatever happens in whatever order, every sequence comes once and in order."""

from collections import deque
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.api.followers.machine import (
    Ended,
    Finish,
    Live,
    Machine,
    Marked,
    Mode,
    Progress,
    Read,
    Ready,
    Send,
    Wait,
    Wake,
)

QUEUE_BYTES = 60


class Entries(NamedTuple):
    """A published batch."""

    first: int
    last: int
    size_bytes: int = 10


class Follower:
    """Does what the machine says, at the pace the test gives, and keeps what it got."""

    def __init__(self, first: int = 1) -> None:
        self.machine = Machine(next_sequence=first, queue_bytes_max=QUEUE_BYTES)
        self.got: list[int] = []
        self.reading: deque[int] = deque()
        self.finished = False

    def step(self, *, stored: int, at_once: int) -> None:
        """Take one turn. History has entries up to `stored` and gives at most `at_once` of them."""
        if self.finished:
            return
        if self.reading:
            given_now = 0
            while self.reading and self.reading[0] <= stored and given_now < at_once:
                sequence = self.reading.popleft()
                self.got.append(sequence)
                self.machine.handle(Progress(sequence))
                given_now += 1
            return
        match self.machine.handle(Ready()):
            case Send(batches, first):
                for batch in batches:
                    self.got += range(max(batch.first, first), batch.last + 1)
            case Read(first, last):
                self.reading.extend(range(first, last + 1))
            case Finish():
                self.finished = True
            case Wait():
                pass
            case other:
                pytest.fail(f"{other} is no answer to Ready")


actions = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 4)),
        st.tuples(st.just("lose"), st.integers(1, 4)),
        st.tuples(st.just("repeat"), st.integers(1, 12)),
        st.tuples(st.just("mark"), st.just(0)),
        st.tuples(st.just("store"), st.integers(1, 6)),
        st.tuples(st.just("take"), st.integers(1, 5)),
    ),
    max_size=80,
)


@given(actions=actions, first=st.integers(1, 6), before=st.integers(0, 8))
@settings(max_examples=400, deadline=None)
@pytest.mark.threat("E06")
def test_every_sequence_once_and_in_order(actions: list[tuple[str, int]], first: int, before: int) -> None:
    """Live, lost, repeated, marked, stored late, read slowly, in any interleaving: nothing is missing or doubled."""
    follower = Follower(first)
    written = before
    stored = 0
    for action, number in actions:
        match action:
            case "write":
                follower.machine.handle(Live(Entries(written + 1, written + number)))
                written += number
            case "lose":
                written += number
            case "repeat":
                start = max(1, written - number)
                if start <= written:
                    follower.machine.handle(Live(Entries(start, min(start + 2, written))))
            case "mark":
                follower.machine.handle(Marked(written))
            case "store":
                stored = min(stored + number, written)
            case _:
                follower.step(stored=stored, at_once=number)
        assert follower.machine.queued_bytes <= QUEUE_BYTES
        assert follower.got == list(range(first, first + len(follower.got)))
    follower.machine.handle(Ended(written))
    for _ in range(2 * written + 20):
        follower.step(stored=written, at_once=3)
    assert follower.finished
    assert follower.got == list(range(first, written + 1))


def test_a_follower_that_is_in_step_is_sent_each_batch_at_once() -> None:
    """Once it waits, the next batch wakes it and is sent without a look at history."""
    machine = Machine(next_sequence=1, queue_bytes_max=QUEUE_BYTES)
    assert machine.handle(Marked(0)) is None
    assert machine.handle(Ready()) == Wait()
    assert machine.mode is Mode.LIVE
    assert machine.handle(Live(Entries(1, 3))) == Wake()
    assert machine.handle(Ready()) == Send([Entries(1, 3)], 1)
    assert machine.handle(Ready()) == Wait()


def test_a_full_queue_forgets_the_oldest_and_becomes_a_read() -> None:
    """A follower that does not take anything holds no more than its bound, and reads what it missed afterwards."""
    machine = Machine(next_sequence=1, queue_bytes_max=QUEUE_BYTES)
    for sequence in range(1, 1001):
        machine.handle(Live(Entries(sequence, sequence)))
        assert machine.queued_bytes <= QUEUE_BYTES
    assert machine.dropped == 994
    assert machine.handle(Ready()) == Read(1, 994)
    assert machine.mode is Mode.CATCHING_UP


def test_a_silent_hole_at_the_end_is_found_by_a_marker() -> None:
    """When the last message was lost, a later marker says how far the output reaches."""
    machine = Machine(next_sequence=5, queue_bytes_max=QUEUE_BYTES)
    machine.handle(Ready())
    assert machine.handle(Marked(7)) == Wake()
    assert machine.handle(Ready()) == Read(5, 7)


def test_the_end_comes_after_the_last_entry() -> None:
    """An ended job is finished only when its last entry was given."""
    machine = Machine(next_sequence=1, queue_bytes_max=QUEUE_BYTES)
    machine.handle(Ended(2))
    assert machine.handle(Ready()) == Read(1, 2)
    machine.handle(Progress(2))
    assert machine.handle(Ready()) == Finish()
    assert machine.mode is Mode.DONE
