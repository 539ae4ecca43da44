"""How many streams and calls may be open at once, on the node (requirement S2.13) and of one owner.

Belongs here: counting. Which methods are streams is a column of the table in `permissions.py`; how many an owner may
have is the operator's (`quotas.py`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from common.errors import exhausted
from services.api.identity import Principal
from services.api.permissions import Rule
from services.api.quotas import Quota, Quotas

OWNER_CALLS_MAX: Final = 1000
"""Calls of one owner at once that are no streams: some, as WaitJob, last as long as a job. It is half of what the
server takes of all, so that one who waits for a thousand jobs leaves room for others."""


class Capacity:
    """At most `streams_max` streams of logs, changes and metrics together; of one owner as many as his quota says."""

    def __init__(self, streams_max: int, quotas: Quotas) -> None:
        self._streams_max = streams_max
        self._quotas = quotas
        self._streams_of: dict[str, int] = {}  # of owners who have any
        self._calls_of: dict[str, int] = {}
        self.streams = 0

    @property
    def owners(self) -> int:
        """How many owners are remembered: those who hold a place."""
        return len(self._streams_of.keys() | self._calls_of.keys())

    @contextmanager
    def of(self, rule: Rule, principal: Principal) -> Iterator[None]:
        """Hold a place for as long as a call lasts. Raises JobletError(EXHAUSTED) when none is free."""
        held = self._streams_of if rule.streams else self._calls_of
        count = held.get(principal.name, 0)
        if rule.streams:
            self._require_stream(principal, count)
        elif count >= OWNER_CALLS_MAX:
            raise exhausted(f"{principal.name} has {count} calls in progress", "wait for some of them to end")
        held[principal.name] = count + 1
        self.streams += rule.streams
        try:
            yield
        finally:
            self.streams -= rule.streams
            held[principal.name] -= 1
            if not held[principal.name]:
                del held[principal.name]

    def _require_stream(self, principal: Principal, count: int) -> None:
        bound = self._quotas.of(Quota.STREAMS, principal.roles)
        if bound is not None and count >= bound.most:
            raise bound.refusal(f"{principal.name} has {count} streams open", "end one of them first")
        if self.streams >= self._streams_max:
            raise exhausted("Max capacity reached", f"all {self._streams_max} streams are in use; try again later")
