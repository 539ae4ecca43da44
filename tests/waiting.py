"""Waiting for a condition with a deadline: the only kind of waiting that tests do.

Belongs here: the two loops, for threads and processes (`wait_for`) and for coroutines (`await_for`). Does not belong
here: what to wait for. A condition is asked again every few milliseconds and its first true value is the result, so a
test goes on as soon as it can, and says what it waited for when it cannot.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Final, Literal, TypeVar, overload

T = TypeVar("T")

POLL_INTERVAL_S = 0.01
SLOWNESS: Final = float(os.environ.get("JOBLET_TEST_SLOWNESS", "1"))
"""Factor of every deadline: `timeout_s` is meant for a machine of usual speed."""


class NeverHappened(AssertionError):
    """The condition did not come true before the deadline; the text names the condition."""


def wait_for(condition: Callable[[], T | Literal[False] | None], *, timeout_s: float = 10.0, what: str) -> T:
    """Ask `condition` until it answers something true, and give that answer back.

    `what` completes the sentence "waited … for"; NeverHappened after `timeout_s`. The condition is asked once more
    after the deadline, so that a machine that stalled between two questions is not taken for a failure.
    """
    deadline = time.monotonic() + timeout_s * SLOWNESS
    while True:
        expired = time.monotonic() >= deadline
        answer = condition()
        if answer:
            return answer
        if expired:
            raise NeverHappened(f"waited {timeout_s * SLOWNESS} s for {what}; the last answer was {answer!r}")
        time.sleep(POLL_INTERVAL_S)


@overload
async def await_for(condition: Callable[[], Awaitable[T]], *, timeout_s: float = 10.0, what: str) -> T: ...
@overload
async def await_for(condition: Callable[[], T], *, timeout_s: float = 10.0, what: str) -> T: ...
async def await_for(condition: Callable[[], T | Awaitable[T]], *, timeout_s: float = 10.0, what: str) -> T:
    """The same inside an event loop; `condition` may be a plain function or a coroutine function."""
    deadline = time.monotonic() + timeout_s * SLOWNESS
    while True:
        expired = time.monotonic() >= deadline
        answer = condition()
        settled: T = await answer if isawaitable(answer) else answer
        if settled:
            return settled
        if expired:
            raise NeverHappened(f"waited {timeout_s * SLOWNESS} s for {what}; the last answer was {settled!r}")
        await asyncio.sleep(POLL_INTERVAL_S)
