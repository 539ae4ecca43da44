"""The audit log of calls: who did what, in `{base}/audit/audit.jsonl`.

Belongs here: the line. Does not belong here: when one is written (`calls.py`), deciding (`gate.py`, `access.py`), the
file and its chain (common/audit.py).
"""

import time
from typing import Final, Literal, Protocol

import msgspec

from common.quantities import format_time_ns

ALLOWED: Final = "allowed"
"""A unary call was allowed and did what it says; a stream was allowed and begins."""
ENDED: Final = "ended"
"""A stream that was allowed is over; `why` is empty when it had come to its end."""
UNFINISHED: Final = "unfinished"
"""The caller left, or the service ended, before there was an answer."""
WHY_CHARACTERS_MAX: Final = 500


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """Who asked for what, and what became of it. `object`: the job's id or the volume's name.

    `outcome`: one of the words above, else the reason of the refusal or failure (common/errors.py).
    """

    kind: Literal["call"] = "call"
    time: str
    who: str
    serial: str
    roles: tuple[str, ...]
    scheme: str
    method: str
    object: str
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
