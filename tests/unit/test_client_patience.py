"""How long rnx goes on asking: pauses, windows and when it gives up at once."""

from functools import partial

import pytest

from cli.client.errors import ConnectionDropped
from cli.client.patience import DROPS_MAX, PAUSE_MAX_S, Patience
from common.errors import JobletError, Reason, not_found, unavailable


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []

    def clock(self) -> float:
        """Seconds."""
        return self.now

    def sleep(self, duration_s: float) -> None:
        """Notes the pause."""
        self.pauses.append(duration_s)
        self.now += duration_s


def failures_until_given_up(patience: Patience, error: JobletError) -> int:
    """How often the error was borne."""
    for count in range(10_000):
        try:
            patience.bear(error)
        except JobletError as final:
            if final is not error:
                raise
            return count
    raise AssertionError("patience without end")


def test_pauses_grow_and_the_window_ends() -> None:
    """0.1 s, doubling to PAUSE_MAX_S, and 60 s together; the last pause does not overshoot."""
    time = FakeTime()
    failures_until_given_up(Patience(60, clock=time.clock, sleep=time.sleep, chance=lambda: 0.0), unavailable("gone"))
    assert time.pauses[:6] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0]
    assert max(time.pauses) == PAUSE_MAX_S
    assert sum(time.pauses) == pytest.approx(60)


def test_progress_begins_anew() -> None:
    """A stream that breaks every now and then but goes on between may do so for ever."""
    time = FakeTime()
    patience = Patience(10, clock=time.clock, sleep=time.sleep, chance=lambda: 0.0)
    for _ in range(100):
        patience.bear(unavailable("gone"))
        patience.progress()
    assert set(time.pauses) == {0.1}


def test_what_is_not_about_availability_is_final() -> None:
    """NOT_FOUND, a refusal, and what the node calls not retryable are raised at once."""
    time = FakeTime()
    patience = Patience(10, clock=time.clock, sleep=time.sleep, chance=lambda: 0.0)
    final = JobletError(Reason.UNAVAILABLE, "for good", retryable=False)
    assert [failures_until_given_up(patience, error) for error in (not_found("no"), final)] == [0, 0]
    assert time.pauses == []


def test_connections_closed_again_and_again_are_a_refusal() -> None:
    """A node that always closes the connection refuses the certificate; one that was restarted refuses to connect."""
    time = FakeTime()
    patience = Patience(60, clock=time.clock, sleep=time.sleep, chance=lambda: 0.0)
    dropped = ConnectionDropped(Reason.UNAVAILABLE, "closed", retryable=True)
    for _ in range(DROPS_MAX - 1):
        patience.bear(dropped)
    patience.bear(unavailable("refused"))
    assert failures_until_given_up(patience, dropped) == DROPS_MAX - 1


def test_what_broke_after_a_long_time_is_a_new_failure() -> None:
    """A wait, or a silent stream, may be broken off every hour; nothing arrives in between, and it goes on."""
    time = FakeTime()
    patience = Patience(10, clock=time.clock, sleep=time.sleep, chance=lambda: 0.0)
    for _ in range(100):
        time.now += 3600
        patience.bear(ConnectionDropped(Reason.UNAVAILABLE, "closed", retryable=True))
    assert failures_until_given_up(patience, unavailable("gone")) > 1
    assert time.now < 1000 + 100 * 3601 + 11


def test_pauses_of_many_clients_differ() -> None:
    """Chance takes up to a half off each pause, never more: who was cut off together does not come back together."""
    for chance, pause in ((0.0, 0.1), (0.5, 0.075), (1.0, 0.05)):
        time = FakeTime()
        patience = Patience(10, clock=time.clock, sleep=time.sleep, chance=partial(float, chance))
        patience.bear(unavailable("gone"))
        assert time.pauses == [pytest.approx(pause)]
    clients = [FakeTime() for _ in range(20)]
    for time in clients:
        Patience(10, clock=time.clock, sleep=time.sleep).bear(unavailable("gone"))
    assert len({tuple(time.pauses) for time in clients}) > 10
