"""The range of each setting that is a number: what no service could live with is refused when the file is read.

Here: least and most, by the dotted key. Not here: limits and quotas of jobs (`limits.py`, `quotas.py`).
"""

from collections.abc import Iterator
from typing import Any, Final

from common.config.limits import GRACE_MS_MAX, LIMIT_RANGES, PAGE_BYTES
from common.errors import invalid

PORT_MAX: Final = 65_535
NUMBER_MAX: Final = 2**63 - 1
GRPC_NUMBER_MAX: Final = 2**31 - 1
"""Arguments of gRPC are C's int."""
UID_MAX: Final = 2**32 - 2
OWNER_IDS: Final = 65_536
"""Host ids of one owner. As many from 0 on are the host's own accounts, nobody's (65534) among them."""
RETENTION_JOB_BYTES_MIN: Final = 4096
"""A gap, two end marks and the summary fit into it."""
_DAY_MS: Final = 86_400_000

_FROM_ONE: Final = (1, NUMBER_MAX)
_FROM_ZERO: Final = (0, NUMBER_MAX)
_GRPC: Final = (1, GRPC_NUMBER_MAX)
_GRPC_SECTION: Final = "joblet.grpc."
_RETENTION: Final = "persist.storage.local.retention."

RANGES: Final[dict[str, tuple[int, int]]] = {
    "server.port": (0, PORT_MAX),
    "security.reload_ms": (10, _DAY_MS),
    "joblet.grpc.active_streams_max": (1, 1_000_000_000),  # other calls come on top
    "joblet.journal.reserve_bytes": _FROM_ZERO,
    "joblet.jobs.work_bytes": (PAGE_BYTES, NUMBER_MAX),
    "joblet.jobs.work_bytes_max": (PAGE_BYTES, NUMBER_MAX),
    "joblet.jobs.pids": LIMIT_RANGES["pids"],
    "joblet.jobs.grace_ms": (1, GRACE_MS_MAX),
    "joblet.jobs.uid_first": (OWNER_IDS, UID_MAX - OWNER_IDS),
    "joblet.jobs.spares": _FROM_ZERO,
    "joblet.volumes.memory_share_percent": (1, 100),
    "joblet.volumes.idle_mounts_max": _FROM_ZERO,
    "joblet.volumes.reserve_bytes": _FROM_ZERO,
    "joblet.volumes.snapshots_max": _FROM_ZERO,
    "persist.server.max_connections": _GRPC,
    "persist.storage.local.compression_level": (0, 3),
    "persist.storage.local.flush_bytes": (4096, 8 * 2**20),
    "persist.storage.local.flush_ms": (1, 10_000),
    **{_RETENTION + rule: _FROM_ZERO for rule in ("age_days", "job_bytes", "owner_bytes", "total_bytes", "free_bytes")},
    _RETENTION + "interval_ms": (100, _DAY_MS),
    "persist.storage.cloudwatch.log_batch_size": (1, 10_000),
    "persist.storage.cloudwatch.metric_batch_size": (1, 1_000),
}
"""Least and most where it is not from 1 on."""


def range_of(key: str) -> tuple[int, int]:
    """Least and most of the setting `key`."""
    return RANGES.get(key, _GRPC if key.startswith(_GRPC_SECTION) else _FROM_ONE)


def check_numbers(document: dict[str, Any]) -> None:
    """Refuse what is out of its range, or of the range that another setting gives it. Raises INVALID with the key."""
    numbers = dict(_numbers(document, ""))
    for key, value in numbers.items():
        least, most = range_of(key)
        if value < least:
            raise invalid(f"{key} is {value}", f"expected: {least} or more")
        if value > most:
            raise invalid(f"{key} is {value}", f"expected: at most {most}")
    work_bytes, most = numbers["joblet.jobs.work_bytes"], numbers["joblet.jobs.work_bytes_max"]
    if work_bytes > most:
        raise invalid(
            f"joblet.jobs.work_bytes is {work_bytes}", f"expected: at most joblet.jobs.work_bytes_max, {most}"
        )
    job_bytes = numbers[_RETENTION + "job_bytes"]
    if 0 < job_bytes < RETENTION_JOB_BYTES_MIN:
        raise invalid(
            f"{_RETENTION}job_bytes is {job_bytes}",
            f"expected: 0 for no such rule, or {RETENTION_JOB_BYTES_MIN} or more",
        )


def _numbers(section: dict[str, Any], prefix: str) -> Iterator[tuple[str, int]]:
    """Every whole number of the file by its dotted key."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int) and not isinstance(value, bool):
            yield prefix + key, value
