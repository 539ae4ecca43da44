"""How much of everything a run measures. Not here: measuring."""

from typing import NamedTuple


class Scale(NamedTuple):
    """The full run. `rounds`: how often a thing is measured whose best and median are told."""

    starts: int = 40
    jobs: int = 320
    clients: int = 16
    sleepers: int = 20
    rounds: int = 5
    log_lines: int = 2_000_000
    live_lines: int = 500
    followers: int = 1000
    followed_s: int = 15
    growth: tuple[int, ...] = (10_000, 100_000, 1_000_000, 10_000_000)
    floods: tuple[int, ...] = (0, 1, 100)
    quiet_lines: int = 100


LARGE = 100_000_000
"""Lines of the job that is added to `growth` when it is asked for: 10 GB of output."""

QUICK = Scale(
    starts=5,
    jobs=32,
    sleepers=5,
    rounds=2,
    log_lines=100_000,
    live_lines=50,
    followers=50,
    followed_s=2,
    growth=(1_000, 10_000, 100_000),
    floods=(0, 1, 3),
    quiet_lines=20,
)
"""A small one that only shows that all of it works."""
