"""How many streams may be open at once (requirement S2.13).

Belongs here: counting. Which methods count is a column of the table in `permissions.py`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import exhausted
from services.api.permissions import Rule


class Capacity:
    """At most `streams_max` streams of logs, changes and metrics together."""

    def __init__(self, streams_max: int) -> None:
        self._streams_max = streams_max
        self.streams = 0

    @contextmanager
    def of(self, rule: Rule) -> Iterator[None]:
        """Hold a place for as long as a call lasts. Raises JobletError(EXHAUSTED) when none is free."""
        if not rule.streams:
            yield
            return
        if self.streams >= self._streams_max:
            raise exhausted("Max capacity reached", f"all {self._streams_max} streams are in use; try again later")
        self.streams += 1
        try:
            yield
        finally:
            self.streams -= 1
