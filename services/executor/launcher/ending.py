"""How a job ended: the payloads of START and EXIT, and the last numbers of its cgroups. docs/protocol.md has both."""

import json
import os
from typing import Any, Final, NamedTuple

from services.executor.launcher.handshake import Failure
from services.executor.launcher.task import Groups, Reading

PAYLOAD_VERSION: Final = 1
_CONTROL_FILE_BYTES_MAX: Final = 64 * 1024


class Ending(NamedTuple):
    """What the monitor knows when all is over. `status` is a wait status, None when nothing was started."""

    status: int | None
    ended_by: str  # "", "client" or "timeout"
    failure: Failure | None


def start_payload(pid: int) -> bytes:
    """The START record: `pid` is the main process on the host."""
    # Not by module json: a quiet job would keep in memory what that touches.
    return b'{"version":%d,"pid":%d,"monitor_pid":%d}' % (PAYLOAD_VERSION, pid, os.getpid())


def exit_payload(ending: Ending, groups: Groups) -> bytes:
    """The EXIT record; reads the job's groups, so everything in them has ended."""
    outcome, exit_code, signal = "not_started", None, None
    if ending.status is not None:
        code = os.waitstatus_to_exitcode(ending.status)
        outcome = "exited" if code >= 0 else "signaled"
        exit_code, signal = (code, None) if code >= 0 else (None, -code)
    fields: dict[str, Any] = {
        "version": PAYLOAD_VERSION,
        "outcome": outcome,
        "exit_code": exit_code,
        "signal": signal,
        "ended_by": ending.ended_by,
        **{meter.name: read_first(meter.readings) for meter in groups.usage},
        "failure": ending.failure._asdict() if ending.failure else None,
    }
    return json.dumps(fields).encode()


def read_first(readings: tuple[Reading, ...]) -> int:
    """The first of `readings` that can be read; 0 when none can."""
    for reading in readings:
        value = _read(reading)
        if value is not None:
            return value
    return 0


def _read(reading: Reading) -> int | None:
    try:
        descriptor = os.open(reading.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = os.read(descriptor, _CONTROL_FILE_BYTES_MAX).decode("ascii", "replace")
        finally:
            os.close(descriptor)
    except OSError:
        return None
    found = [int(number) for number in _numbers(content, reading.key) if number.isascii() and number.isdigit()]
    return sum(found) // reading.divisor if found else None


def _numbers(content: str, key: str) -> list[str]:
    """What stands in `content` behind `key`, see cgroups/driver.py, Reading."""
    if key.endswith("="):
        return [word[len(key) :] for word in content.split() if word.startswith(key)]
    lines = [line.rpartition(" ") for line in content.splitlines()]
    if key.startswith("* "):
        return [number for before, _, number in lines if before.endswith(key[1:])]
    return [number for before, _, number in lines if before == key]
