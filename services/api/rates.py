"""How often one owner may call: a token bucket for each, and the audit lines of those who are refused.

Belongs here: counting calls. Does not belong here: how many calls the operator allows (`quotas.py`). Why a bucket for
each owner and not for each connection: ADR 22.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from common.errors import Reason
from services.api.calls import Call
from services.api.quotas import Quota, Quotas

SECOND_NS: Final = 10**9
OWNERS_MAX: Final = 10_000
"""Owners that are remembered at once. Beyond, who called least recently is forgotten, which is in his favour: he could
have as many calls more as there are calls of 10,000 other certificates within a second."""


class Buckets:
    """Buckets of tokens. Each is one number: when it will be full again (the generic cell rate algorithm, ITU-T I.371).

    A bucket holds as many tokens as are given in a second, and is full at first: so in any time there are never more
    calls than rate × time + rate. A full bucket is as good as none and is forgotten. `per_s` belongs to the call: an
    owner with certificates of different roles has one bucket, from which each call takes its share of a second.
    """

    def __init__(self) -> None:
        self._full_at_ns: dict[str, int] = {}  # those who called least recently stand first

    def __len__(self) -> int:
        return len(self._full_at_ns)

    def take(self, owner: str, per_s: int, now_ns: int) -> int:
        """Take a token of `owner`: 0, or else how many nanoseconds there will be none."""
        self._forget(now_ns)
        token_ns = -(-SECOND_NS // per_s)  # upwards, so that rounding gives no call away
        full_at_ns = max(self._full_at_ns.get(owner, 0), now_ns) + token_ns
        missing_ns = full_at_ns - now_ns - token_ns * per_s
        if missing_ns > 0:
            return missing_ns
        self._full_at_ns.pop(owner, None)
        self._full_at_ns[owner] = full_at_ns
        return 0

    def _forget(self, now_ns: int) -> None:
        """Drop what is full at the front: two for each call, one of which that call may add."""
        for _ in range(2):
            first = next(iter(self._full_at_ns), None)
            if first is None or (self._full_at_ns[first] > now_ns and len(self) < OWNERS_MAX):
                return
            del self._full_at_ns[first]


class _Refused:
    """What is still to be written about one owner's refused calls."""

    def __init__(self, written_ns: int) -> None:
        self.written_ns = written_ns
        self.calls = 0
        self.last: tuple[Call, str] | None = None


class Refusals:
    """Audit lines of calls beyond the rate: one for each owner and second at most, with their number.

    The first stands there at once; those after it are counted until a second is over (`settle`) or the end (`close`).
    """

    def __init__(self) -> None:
        self._owners: dict[str, _Refused] = {}

    def __len__(self) -> int:
        return len(self._owners)

    def note(self, call: Call, why: str, now_ns: int) -> None:
        """Count a refused call, and write what is due."""
        owner = call.principal.name
        refused = self._owners.get(owner)
        if refused is None:
            if len(self._owners) >= OWNERS_MAX:
                oldest = next(iter(self._owners))
                _write(self._owners.pop(oldest), now_ns)
            refused = self._owners[owner] = _Refused(now_ns - SECOND_NS)
        refused.calls += 1
        refused.last = (call, why)
        if now_ns - refused.written_ns >= SECOND_NS:
            _write(refused, now_ns)

    def settle(self, now_ns: int) -> None:
        """Write what is due, and forget owners of whom nothing is."""
        for owner, refused in list(self._owners.items()):
            if now_ns - refused.written_ns < SECOND_NS:
                continue
            if refused.calls:
                _write(refused, now_ns)
            else:
                del self._owners[owner]

    def close(self) -> None:
        """Write everything: the process ends."""
        for refused in self._owners.values():
            _write(refused, refused.written_ns)
        self._owners.clear()


def _write(refused: _Refused, now_ns: int) -> None:
    if refused.last is not None:
        call, why = refused.last
        call.ended(Reason.EXHAUSTED, f"{why}; calls refused: {refused.calls}")
    refused.written_ns, refused.calls, refused.last = now_ns, 0, None


class Rates:
    """Admits calls at the rate of their owner. `clock_ns` is monotonic."""

    def __init__(self, quotas: Quotas, *, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._quotas = quotas
        self._clock_ns = clock_ns
        self.buckets = Buckets()
        self.refusals = Refusals()

    def admit(self, call: Call) -> None:
        """Let `call` go on. Raises JobletError(EXHAUSTED) with the time until it may; that is audited here."""
        principal = call.principal
        bound = self._quotas.of(Quota.CALLS_PER_S, principal.roles)
        if bound is None:
            return
        now_ns = self._clock_ns()
        missing_ns = self.buckets.take(principal.name, bound.most, now_ns)
        if missing_ns:
            what = f"{principal.name} makes more than {bound.most} calls a second"
            self.refusals.note(call, what, now_ns)
            raise bound.refusal(what, "call less often", retry_after_s=missing_ns / SECOND_NS)

    async def sweep(self) -> None:
        """Write what is due about refused calls, for ever."""
        while True:
            await asyncio.sleep(1.0)
            self.refusals.settle(self._clock_ns())

    def close(self) -> None:
        """Write what is left."""
        self.refusals.close()
