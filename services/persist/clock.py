"""Whether the wall clock can be believed: a clock that jumps must not make every job look old. Pure, but for `read`.

Between two looks the wall clock must have gone on as far as the steady one, which no one can set. After a restart of
the machine there is nothing steady to compare with: then it must not be behind what was seen before, nor far ahead.
While it is in doubt nothing is removed for its age, until it has gone on well for SETTLING_NS. So a jump in either
direction costs a day of waiting, and who set the clock wrongly has that day to notice. Threat F29.

What was seen is kept in the store (clockfile.py), so that a restart of the service forgets nothing.
"""

import time
from pathlib import Path
from typing import Final

import msgspec

SETTLING_NS: Final = 24 * 3600 * 10**9
JUMP_NS: Final = 10 * 60 * 10**9
"""What a clock may be off between two looks: being slewed, at most 43 s a day, and a step of NTP at the start."""
AWAY_NS: Final = 24 * 3600 * 10**9
"""How long a machine is off without anyone having to doubt its clock."""
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """Both clocks at one moment. `steady_ns` counts from the start of the machine, time asleep included."""

    boot: str
    steady_ns: int
    wall_ns: int


class Watched(msgspec.Struct, frozen=True, kw_only=True):
    """The last reading, and for how long the clock must still go on well before it is believed."""

    last: Reading
    unsettled_ns: int

    @property
    def is_believed(self) -> bool:
        """Times of jobs may be compared with it."""
        return self.unsettled_ns <= 0


def read() -> Reading:
    """Both clocks now."""
    try:
        boot = _BOOT_ID.read_text().strip()
    except OSError:
        boot = ""
    return Reading(boot=boot, steady_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME), wall_ns=time.time_ns())


def look(before: Watched | None, now: Reading, *, newest_ns: int) -> Watched:
    """What is known after `now`. `newest_ns`: when the job ended that ended last, for the first look ever; 0: none."""
    if before is None:
        doubtful = newest_ns > 0 and not -JUMP_NS <= now.wall_ns - newest_ns <= AWAY_NS
        return Watched(last=now, unsettled_ns=SETTLING_NS if doubtful else 0)
    wall_ns = now.wall_ns - before.last.wall_ns
    if now.boot and now.boot == before.last.boot:
        steady_ns = now.steady_ns - before.last.steady_ns
        doubtful, passed_ns = steady_ns < 0 or abs(wall_ns - steady_ns) > JUMP_NS, max(0, steady_ns)
    else:
        doubtful, passed_ns = not -JUMP_NS <= wall_ns <= AWAY_NS, 0
    return Watched(last=now, unsettled_ns=SETTLING_NS if doubtful else max(0, before.unsettled_ns - passed_ns))
