"""The audit log of calls: one line for every decision about one, in `{base}/audit/audit.jsonl`.

Belongs here: the line. Does not belong here: deciding (`gate.py`, `access.py`), the file (common/audit.py).
"""

import time
from typing import Protocol

import msgspec

from common.quantities import format_time_ns


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """Who asked for what, and what was decided. `outcome`: "allowed", or the reason of the refusal."""

    time: str
    who: str
    serial: str
    roles: tuple[str, ...]
    scheme: str
    method: str
    job: str
    peer: str
    outcome: str
    why: str = ""


class Audit(Protocol):
    """Where decisions go."""

    def record(self, decision: Decision) -> None:
        """Keep `decision`. Never raises."""


def now() -> str:
    """The present time as it stands in a line."""
    return format_time_ns(time.time_ns())
