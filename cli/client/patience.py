"""How long to go on asking a node that does not answer: growing pauses within a bounded time.

Here: the decision and the pause. Not here: which calls may be repeated; only those whose repetition is harmless may:
RunJob under its idempotency key, WaitJob, and a log stream that goes on at a sequence.
"""

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

START_WINDOW_S: Final = 15.0
"""How long RunJob is repeated."""
RESUME_WINDOW_S: Final = 60.0
"""How long a stream or a wait that was going on is taken up again."""


class Patience:
    """Counts failures since the last progress. `window_s` bounds the time from the first of them."""

    def __init__(
        self,
        window_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._window_s = window_s
        self._clock = clock
        self._sleep = sleep
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
        self._sleep(min(self._pause_s, remaining_s))
        self._pause_s = min(self._pause_s * 2, PAUSE_MAX_S)
        self._tried_at = self._clock()
