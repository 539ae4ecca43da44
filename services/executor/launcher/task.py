"""What the launcher is told about one job: plain values, and their form on the wire.

Here: the shape, complete and already decided. Not here: how it is decided (`services/executor/plan.py`) and how it is
carried out (`operations.py`, `initial.py`, `execution.py`, `monitor.py`). Sizes are bytes, times as their names end.

The wire is two JSON objects, each behind its length (4 bytes, little-endian): a small `Watch` for the monitor and init,
which live as long as the job, and the whole `Task`, which only the main process decodes, before it becomes the job.
What a process never decodes costs it no memory: that is most of what a waiting monitor would hold for itself.

Only the standard library is imported: the launcher runs without site-packages.
"""

import json
from typing import Any, Final, NamedTuple

from services.executor.launcher.operations import Operation, decode_operation, encode_operation

TASK_VERSION: Final = 1
TASK_BYTES_MAX: Final = 16 * 2**20
LENGTH_BYTES: Final = 4


class JournalLimits(NamedTuple):
    """How much the monitor may keep, and when an unfinished line is passed on."""

    bytes_max: int
    drop_when_full: bool
    silence_ms: int


class Reading(NamedTuple):
    """A number in a control file: behind the word `key` ("": alone in the file), divided by `divisor`."""

    path: str
    key: str
    divisor: int


class Groups(NamedTuple):
    """The job's cgroups, which exist already: where its first process goes, and what is read at the end."""

    join: tuple[str, ...]  # v1 `tasks` files
    clone_into: str  # v2 directory; "": none
    cpu_time_us: tuple[Reading, ...]  # the first that can be read counts
    memory_peak_bytes: tuple[Reading, ...]
    oom_kills: tuple[Reading, ...]


class ResourceLimit(NamedTuple):
    """One setrlimit(2): the constant's name in module `resource`, and the values."""

    name: str
    soft: int
    hard: int


class Watch(NamedTuple):
    """The part of a task that its monitor needs. The fields mean what they mean in `Task`."""

    job_id: str
    job_dir: str
    uid: int
    gid: int
    journal: JournalLimits
    groups: Groups
    start_ms_max: int
    timeout_ms: int | None
    stop_signal: int
    grace_ms: int


class Task(NamedTuple):
    """Everything about one job from its monitor to its exec."""

    job_id: str
    job_dir: str
    command: str
    args: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    workdir: str
    uid: int
    gid: int
    resources: tuple[ResourceLimit, ...]
    operations: tuple[Operation, ...]
    uploads: tuple[str, ...]  # staged tar archives on the host, in this order
    journal: JournalLimits
    groups: Groups
    start_ms_max: int  # from the clone to the exec, uploads unpacked
    timeout_ms: int | None  # run time, from the exec
    stop_signal: int
    grace_ms: int


def encode_task(task: Task) -> bytes:
    """Both parts of the wire form of `task`."""
    fields: dict[str, Any] = task._asdict()
    fields["operations"] = [encode_operation(operation) for operation in task.operations]
    watch = {name: fields[name] for name in Watch._fields}
    parts = [json.dumps({"version": TASK_VERSION, **part}).encode() for part in (watch, fields)]
    return b"".join(len(part).to_bytes(LENGTH_BYTES, "little") + part for part in parts)


def decode_watch(encoded: bytes) -> Watch:
    """The first part, without its length. Raises ValueError, KeyError or TypeError when it is none of this version."""
    fields = _fields(encoded)
    return Watch(
        journal=JournalLimits(*fields.pop("journal")),
        groups=_groups(fields.pop("groups")),
        **fields,
    )


def decode_task(encoded: bytes) -> Task:
    """The second part, without its length. Raises ValueError, KeyError or TypeError as `decode_watch` does."""
    fields = _fields(encoded)
    return Task(
        args=tuple(fields.pop("args")),
        environment=tuple((name, value) for name, value in fields.pop("environment")),
        resources=tuple(ResourceLimit(*values) for values in fields.pop("resources")),
        operations=tuple(decode_operation(values) for values in fields.pop("operations")),
        uploads=tuple(fields.pop("uploads")),
        journal=JournalLimits(*fields.pop("journal")),
        groups=_groups(fields.pop("groups")),
        **fields,
    )


def _fields(encoded: bytes) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(encoded)
    version = fields.pop("version")
    if version != TASK_VERSION:
        raise ValueError(f"task version {version}, this launcher knows {TASK_VERSION}")
    return fields


def _groups(values: list[Any]) -> Groups:
    join, clone_into, *readings = values
    return Groups(tuple(join), clone_into, *(tuple(Reading(*value) for value in each) for each in readings))
