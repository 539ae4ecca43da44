"""Named timers on CLOCK_MONOTONIC for a loop that waits: a jump of the wall clock ends no job."""

import time
from collections.abc import Callable
from typing import Final

WAIT_S_MAX: Final = 86_400
"""epoll_wait(2) takes milliseconds in an int, 25 days; a job may run for ten years. So the loop looks once a day."""


class Timers:
    """At most one timer of each name. Times are milliseconds."""

    def __init__(self) -> None:
        self._timers: dict[str, tuple[int, Callable[[], None]]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._timers

    def set(self, name: str, delay_ms: int, handler: Callable[[], None]) -> None:
        """Call `handler` in `delay_ms`; replaces the timer of this name."""
        self._timers[name] = (_now_ms() + delay_ms, handler)

    def set_sooner(self, name: str, delay_ms: int, handler: Callable[[], None]) -> None:
        """As `set`, but a timer of this name that is due before stays."""
        if name not in self._timers or _now_ms() + delay_ms < self._timers[name][0]:
            self.set(name, delay_ms, handler)

    def cancel(self, name: str) -> None:
        """No timer of this name is left."""
        self._timers.pop(name, None)

    def clear(self) -> None:
        """No timer is left."""
        self._timers.clear()

    def wait_s(self) -> float:
        """Seconds until the next one is due, WAIT_S_MAX at most; -1: none is set."""
        if not self._timers:
            return -1
        return min(WAIT_S_MAX, max(0, min(due for due, _ in self._timers.values()) - _now_ms()) / 1000)

    def run_due(self) -> None:
        """Call what is due."""
        now = _now_ms()
        for name, (due, handler) in list(self._timers.items()):
            if due <= now and name in self._timers:  # else an earlier one of this round took it away
                del self._timers[name]
                handler()


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
