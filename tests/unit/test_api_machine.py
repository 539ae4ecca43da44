"""The follower's machine: whatever happens in whatever order, every sequence comes once and in order."""

from collections import deque
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.api.followers.machine import Finish, Machine, Mode, Progress, Read, Ready, Send, Wait
from services.api.followers.window import Window

WINDOW_BYTES = 60


class Entries(NamedTuple):
    """A published batch."""

    first: int
    last: int
    size_bytes: int = 10


class Follower:
    """Does what the machine says, at the pace the test gives, and keeps what it got."""

    def __init__(self, window: Window, first: int = 1) -> None:
        self.machine = Machine(next_sequence=first, window=window)
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


@given(actions=actions, firsts=st.lists(st.integers(1, 6), min_size=1, max_size=3), before=st.integers(0, 8))
@settings(max_examples=400, deadline=None)
@pytest.mark.threat("E06")
def test_every_sequence_once_and_in_order(actions: list[tuple[str, int]], firsts: list[int], before: int) -> None:
    """Live, lost, repeated, marked, stored late, read slowly, in any interleaving: nothing is missing or doubled.

    Followers share one window, take in turns, and none of them can make another miss something.
    """
    window = Window(WINDOW_BYTES)
    followers = [Follower(window, first) for first in firsts]
    written = before
    stored = 0
    for number_of_action, (action, number) in enumerate(actions):
        match action:
            case "write":
                window.add(Entries(written + 1, written + number))
                written += number
            case "lose":
                written += number
            case "repeat":
                start = max(1, written - number)
                if start <= written:
                    window.add(Entries(start, min(start + 2, written)))
            case "mark":
                window.reached(written)
            case "store":
                stored = min(stored + number, written)
            case _:
                followers[number_of_action % len(followers)].step(stored=stored, at_once=number)
        window.release(min(follower.machine.next for follower in followers))
        window.trim()
        assert window.size_bytes <= WINDOW_BYTES
        for follower, first in zip(followers, firsts, strict=True):
            assert follower.got == list(range(first, first + len(follower.got)))
    window.ended(written)
    for follower, first in zip(followers, firsts, strict=True):
        for _ in range(2 * written + 20):
            follower.step(stored=written, at_once=3)
        assert follower.finished
        assert follower.got == list(range(first, written + 1))


def test_a_follower_that_is_in_step_is_sent_each_batch_at_once() -> None:
    """Once it waits, the next batch is sent without a look at history."""
    window = Window(WINDOW_BYTES)
    machine = Machine(next_sequence=1, window=window)
    window.reached(0)
    assert machine.handle(Ready()) == Wait()
    assert machine.mode is Mode.LIVE
    window.add(Entries(1, 3))
    assert machine.handle(Ready()) == Send([Entries(1, 3)], 1)
    assert machine.handle(Ready()) == Wait()


@pytest.mark.threat("D17")
def test_a_full_window_forgets_the_oldest_and_becomes_a_read() -> None:
    """However many never take anything, they hold one window together, and each reads afterwards what it missed."""
    window = Window(WINDOW_BYTES)
    stalled = [Machine(next_sequence=1, window=window) for _ in range(50)]
    quick = Machine(next_sequence=1, window=window)
    for sequence in range(1, 1001):
        window.add(Entries(sequence, sequence))
        window.release(1)
        window.trim()
        assert window.size_bytes <= WINDOW_BYTES
        assert quick.handle(Ready()) == Send([Entries(sequence, sequence)], sequence)
    assert window.dropped == 994
    for machine in stalled:
        assert machine.handle(Ready()) == Read(1, 994)
        assert machine.mode is Mode.CATCHING_UP


def test_what_everyone_has_is_let_go_and_nothing_else() -> None:
    """A window of followers that keep up holds next to nothing, however long they follow."""
    window = Window(10**9)
    for sequence in range(1, 2001):
        window.add(Entries(sequence, sequence))
        window.release(sequence - 2)
        assert window.size_bytes == 10 * min(sequence, 3)
    assert window.since(1, bytes_max=10**6) == [Entries(n, n) for n in (1998, 1999, 2000)]
    assert window.since(2000, bytes_max=1) == [Entries(2000, 2000)]
    assert window.since(2001, bytes_max=1) == []
    assert window.dropped == 0


def test_a_silent_hole_at_the_end_is_found_by_a_marker() -> None:
    """When the last message was lost, a later marker says how far the output reaches."""
    window = Window(WINDOW_BYTES)
    machine = Machine(next_sequence=5, window=window)
    machine.handle(Ready())
    window.reached(7)
    assert machine.handle(Ready()) == Read(5, 7)


def test_the_end_comes_after_the_last_entry() -> None:
    """An ended job is finished only when its last entry was given."""
    window = Window(WINDOW_BYTES)
    machine = Machine(next_sequence=1, window=window)
    window.ended(2)
    assert machine.handle(Ready()) == Read(1, 2)
    machine.handle(Progress(2))
    assert machine.handle(Ready()) == Finish()
    assert machine.mode is Mode.DONE
