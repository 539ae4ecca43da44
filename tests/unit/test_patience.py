"""Looking again and again: often enough, not for ever, and once more after a standstill."""

import pytest

from common import patience


class Clock:
    """Time that passes only in `sleep`, and when the test says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now_s

    def sleep(self, seconds: float) -> None:
        """Passes."""
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The one that `looks` sees."""
    clock = Clock()
    monkeypatch.setattr(patience, "time", clock)
    return clock


def test_it_looks_until_the_time_is_over(clock: Clock) -> None:
    """At once, after each pause, and the last time when all of it has passed."""
    assert [clock.now_s for _ in patience.looks(1.0, pause_s=0.25)] == [0, 0.25, 0.5, 0.75, 1.0]


def test_a_standstill_takes_no_look_away(clock: Clock) -> None:
    """Who stood still right behind the first look looks once more, however late it is."""
    seen = []
    for _ in patience.looks(1.0, pause_s=0.25):
        seen.append(clock.now_s)
        clock.now_s += 60
    assert seen == [0, 60.25]


def test_there_is_always_one_look(clock: Clock) -> None:
    """Also where there is no time at all."""
    assert len(list(patience.looks(0, pause_s=1))) == 1
    assert clock.now_s == 0
