"""When a service that ended is started again, and when it is given up: pure, time comes in.

A service that was ready and died (killed, out of memory, a bug met late) is always started again, with a pause that
grows while it keeps dying young. One that ends by itself before it was ever ready is broken, and trying for ever
would only fill the log: after `ATTEMPTS_MAX` such ends in a row it is given up.
"""

import signal
from typing import Final, NamedTuple

ATTEMPTS_MAX: Final = 5
PAUSE_FIRST_S: Final = 0.1
PAUSE_MAX_S: Final = 2.0
CALM_S: Final = 10.0
"""A service that lived so long died for a new reason: the pauses begin again."""


class Ended(NamedTuple):
    """One life of a service. `status` is as subprocess gives it: an exit code, or minus a signal number."""

    status: int
    lived_s: float
    was_ready: bool


class Restart(NamedTuple):
    """Start it again after the pause."""

    pause_s: float


class GiveUp(NamedTuple):
    """Do not start it again; why, in words."""

    reason: str


class RestartPolicy:
    """The ends of one service so far, and what follows from the next."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._never_ready = 0

    def after(self, ended: Ended) -> Restart | GiveUp:
        """What to do now that the service has ended."""
        if ended.was_ready:
            self._never_ready = 0
        # SIGKILL comes from a person or from the out-of-memory killer, never from the service: no sign of a broken one.
        elif ended.status != -signal.SIGKILL:
            self._never_ready += 1
        if self._never_ready >= ATTEMPTS_MAX:
            return GiveUp(f"it ended {self._never_ready} times before it was ready, last with {told(ended.status)}")
        self._in_a_row = 0 if ended.was_ready and ended.lived_s >= CALM_S else self._in_a_row + 1
        return Restart(min(PAUSE_MAX_S, PAUSE_FIRST_S * 2 ** max(0, self._in_a_row - 1)))


def told(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"exit code {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
