"""How long and from which seed the fuzz tests draw, and the rows that once found something.

Belongs here: running a check over a strategy within a bound. Does not belong here: the strategies (`malformed.py`).

Without JOBLET_TEST_FUZZ_S each test draws a fixed number of examples from a fixed seed: the same in every run, within a
minute together. With it (`make fuzz`) the tests share so many seconds, with new seeds; the one that found something
is printed and repeated by JOBLET_TEST_SEED.
"""

import os
import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

T = TypeVar("T")

FUZZ_S: Final = float(os.environ.get("JOBLET_TEST_FUZZ_S", "0"))
SEED: Final = int(os.environ.get("JOBLET_TEST_SEED", "0"))
ROUND_EXAMPLES: Final = 200


def explore(strategy: SearchStrategy[T], check: Callable[[T], None], *, examples: int, share: float) -> None:
    """Ask `check` about what `strategy` draws: `examples` times, or for this `share` of FUZZ_S if that is set."""
    if not FUZZ_S:
        _round(strategy, check, examples, SEED)
        return
    until = time.monotonic() + FUZZ_S * share
    while time.monotonic() < until:
        number = SEED or random.randrange(2**32)  # noqa: S311  # a seed, not a secret
        print(f"JOBLET_TEST_SEED={number}")  # noqa: T201  # pytest shows it with a failure
        _round(strategy, check, ROUND_EXAMPLES, number)


def _round(strategy: SearchStrategy[T], check: Callable[[T], None], examples: int, number: int) -> None:
    @seed(number)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=(Phase.generate,),  # a call that hangs takes its time: to shrink it could take an hour
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def every(drawn: T) -> None:
        check(drawn)

    every()
