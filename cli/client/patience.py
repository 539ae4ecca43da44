"""How long to go on asking a node that does not answer: growing pauses within a bounded time.

Here: the decision and the pause. Not here: which calls may be repeated; only those whose repetition is harmless may:
RunJob under its idempotency key, StopJob, WaitJob, whatever only looks, and streams that go on where they broke. What
creates, removes or withdraws is asked once: its repetition would be answered with an error although it was done.
"""

import random
import time
from collections.abc import Callable
from typing import Final

from cli.client.errors import ConnectionDropped
from common.errors import JobletError, Reason

PAUSE_FIRST_S: Final = 0.1
PAUSE_MAX_S: Final = 2.0
LASTED_S: Final = 10.0
"""An attempt that took longer had found its node: what ended it is a new failure. gRPC gives up a connection that is
not made within a second."""
DROPS_MAX: Final = 4
"""So many closed connections in a row are no restart: the node refuses us."""

ASK_WINDOW_S: Final = 5.0
"""How long a question is repeated: longer than services need to restart, and not so long that a node that is off seems
to think."""
START_WINDOW_S: Final = 15.0
"""How long RunJob is repeated, and the first question of what then may take long."""
RESUME_WINDOW_S: Final = 60.0
"""How long a stream or a wait that was going on is taken up again."""


class Patience:
    """Counts failures since the last progress. `window_s` bounds the time from the first of them.

    `chance` (0 to 1) takes up to a half off each pause: clients that one restart cut off together come back apart.
    """

    def __init__(
        self,
        window_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._window_s = window_s
        self._clock = clock
        self._sleep = sleep
        self._chance = chance
        self.progress()

    def progress(self) -> None:
        """Something arrived: begin anew."""
        self._first_failure: float | None = None
        self._pause_s = PAUSE_FIRST_S
        self._drops = 0
        self._tried_at = self._clock()

    def bear(self, error: JobletError) -> None:
        """Pause, so that the caller may try again; or raise `error` when it is final or the time is over."""
        if error.reason is not Reason.UNAVAILABLE or not error.retryable:
            raise error
        now = self._clock()
        if now - self._tried_at >= LASTED_S:
            self.progress()  # a silent job, or a wait: nothing arrives, and it may be broken off again days later
        self._drops = self._drops + 1 if isinstance(error, ConnectionDropped) else 0
        if self._first_failure is None:
            self._first_failure = now
        remaining_s = self._first_failure + self._window_s - now
        if remaining_s <= 0 or self._drops >= DROPS_MAX:
            raise error
        self._sleep(min(self._pause_s * (1 - self._chance() / 2), remaining_s))
        self._pause_s = min(self._pause_s * 2, PAUSE_MAX_S)
        self._tried_at = self._clock()
