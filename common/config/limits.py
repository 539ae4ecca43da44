"""What a limit of a job may be, whoever states it: a client in a request, or the operator in the configuration.

Here: the range of each limit, lists of CPUs, and the section `joblet.limits`. Not here: what a role gets
(`services/api/limit_policy.py`), and what this host can enforce (the executor).
"""

import contextlib
import re
from typing import Final

import msgspec

from common.config.settings import LimitBounds, LimitPolicy, LimitValues
from common.cpulist import parse_cpu_list
from common.errors import invalid
from common.quantities import DURATION_MS_MAX, SIZE_BYTES_MAX

PAGE_BYTES: Final = 4096
"""The least that is read or written."""
IO_OPS_PER_S_MAX: Final = 2**32 - 2
"""The kernel keeps 32 bits, all of them set for "no limit", and drops the others in silence (block/blk-throttle.c)."""
GRACE_MS_MAX: Final = 24 * 3600 * 1000
"""From the stop signal to SIGKILL: a day."""

LIMIT_RANGES: Final[dict[str, tuple[int, int]]] = {
    "cpu_percent": (1, 100 * 4096),
    "cpu_weight": (1, 10_000),
    "memory_bytes": (2**20, SIZE_BYTES_MAX),
    "pids": (2, 4_194_304),  # init and the job itself; PID_MAX_LIMIT
    "io_weight": (1, 10_000),
    "read_bytes_per_s": (PAGE_BYTES, SIZE_BYTES_MAX),
    "write_bytes_per_s": (PAGE_BYTES, SIZE_BYTES_MAX),
    "read_ops_per_s": (2, IO_OPS_PER_S_MAX),  # io.max takes no 1 (block/blk-throttle.c, tg_set_limit)
    "write_ops_per_s": (2, IO_OPS_PER_S_MAX),
    "open_files": (3, 1_048_576),  # 0, 1 and 2 are open when the job begins; fs.nr_open is 2^20: proc_sys_fs(5)
    "file_bytes": (1, SIZE_BYTES_MAX),  # off_t; RLIM_INFINITY is "not set"
    "timeout_ms": (1, DURATION_MS_MAX),
}
"""Least and most of every limit that is a number; units as in common/messages/jobs.py, Limits."""

_CPU_LIST = re.compile(r"\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?){0,255}", re.ASCII)


def checked_cpu_list(text: str, name: str) -> frozenset[int]:
    """CPU numbers of a list such as `0-1,4`. Raises INVALID, with `name` in its text."""
    if _CPU_LIST.fullmatch(text):
        with contextlib.suppress(ValueError):
            return parse_cpu_list(text)
    raise invalid(f"{name}: malformed list {text[:40]!r}", "use such as 0-1,4")


def check_limits(policy: LimitPolicy) -> None:
    """Refuse values that no limit can have, and a default above the maximum beside it. Raises INVALID with the key."""
    _check_bounds(policy, "joblet.limits")
    for role, bounds in msgspec.structs.asdict(policy.roles).items():
        _check_bounds(bounds, f"joblet.limits.roles.{role}")


def _check_bounds(bounds: LimitBounds, name: str) -> None:
    _check_values(bounds.default, f"{name}.default")
    _check_values(bounds.max, f"{name}.max")
    for limit in LIMIT_RANGES:
        default, most = getattr(bounds.default, limit), getattr(bounds.max, limit)
        if default is not None and most is not None and default > most:
            raise invalid(f"{name}.default.{limit} is {default}", f"expected: at most {name}.max.{limit}, {most}")
    cores, most_cores = bounds.default.cpu_cores, bounds.max.cpu_cores
    if cores and most_cores and not checked_cpu_list(cores, name) <= checked_cpu_list(most_cores, name):
        raise invalid(f"{name}.default.cpu_cores is {cores}", f"expected: cores of {name}.max.cpu_cores, {most_cores}")


def _check_values(values: LimitValues, name: str) -> None:
    for limit, (least, most) in LIMIT_RANGES.items():
        value = getattr(values, limit)
        if value is not None and not least <= value <= most:
            raise invalid(f"{name}.{limit} is {value}", f"expected: {least} to {most}")
    if values.cpu_cores is not None:
        checked_cpu_list(values.cpu_cores, f"{name}.cpu_cores")
