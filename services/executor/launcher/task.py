"""What the launcher is told about one job: plain values, and their form on the wire.

Here: the shape, complete and already decided. Not here: how it is decided (`services/executor/plan.py`) and how it is
carried out (`operations.py`, `initial.py`, `execution.py`, `monitor.py`). Sizes are bytes, times as their names end.

The wire has four parts, each behind its length (4 bytes, little-endian). The beginning depends on no job, so it may be
sent before there is one; the rest follows when there is:

- `Places` for init: words and paths, each ended by NUL, so that nothing is decoded before init is cloned;
- the preparation: a JSON array of operations behind the version, which only the main process decodes;
- `Watch` for the monitor: a JSON array in the order of its fields, behind the version;
- the whole `Task` but for the preparation: a JSON object, which only the main process decodes.

What a process never decodes costs it no memory: init and monitor live as long as the job does.

Only the standard library is imported: the launcher runs without site-packages.
"""

import json
import os
from typing import Any, Final, NamedTuple

from services.executor.launcher.operations import Operation, decode_operation, encode_operation

TASK_VERSION: Final = 4
TASK_BYTES_MAX: Final = 16 * 2**20
LAUNCH: Final = b"launch"
"""The word of the request that brings a task; see `main.py` for the others."""
LENGTH_BYTES: Final = 4
_DECODER: Final = json.JSONDecoder()


class JournalLimits(NamedTuple):
    """How much the monitor may keep, and when an unfinished line is passed on."""

    bytes_max: int
    drop_when_full: bool
    silence_ms: int


class Reading(NamedTuple):
    """A number in a file of the kernel; `key` as in cgroups/driver.py. It is divided by `divisor`."""

    path: str
    key: str
    divisor: int


class Meter(NamedTuple):
    """A number of the EXIT record, by its name there: the first of `readings` that can be read."""

    name: str
    readings: tuple[Reading, ...]


class Write(NamedTuple):
    """A value for a control file."""

    path: str
    value: str


class Groups(NamedTuple):
    """The job's cgroups, which exist already: where its first process goes, and what is read at the end."""

    join: tuple[str, ...]  # v1 `tasks` files
    clone_into: str  # v2 directory; "": none
    usage: tuple[Meter, ...]
    oom_watch: str  # v1 memory group: at its first OOM kill the monitor kills the job; "": none
    lift: tuple[Write, ...]  # written when the job is killed, so that limits of input and output do not hold it back


NEW_NETWORK: Final = "new"
GIVEN_NETWORK: Final = "given"
HOST_NETWORK: Final = "host"


class Places(NamedTuple):
    """Where init goes. `join` and `clone_into` mean what they mean in `Groups`."""

    join: tuple[str, ...]
    clone_into: str
    network: str  # NEW_NETWORK: an empty one; GIVEN_NETWORK: the descriptor that comes with the task; HOST_NETWORK
    own_user: str  # the launcher is not root: init makes the user namespace and maps its own uid to this one; else ""
    job_dir: str
    uploads: str  # "uploads" when the task will bring some, else ""


class Beginning(NamedTuple):
    """What a job's first processes are told: nothing about the job. `preparation` is encoded."""

    places: Places
    preparation: bytes


class ResourceLimit(NamedTuple):
    """One setrlimit(2): the constant's name in module `resource`, and the values."""

    name: str
    soft: int
    hard: int


class Watch(NamedTuple):
    """The part of a task that its monitor needs. The fields mean what they mean in `Task`."""

    job_id: str
    job_dir: str
    host_uid: int
    host_gid: int
    range_first: int | None
    uploads: tuple[str, ...]
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
    host_uid: int  # the job, as the host sees it
    host_gid: int
    uid: int  # the job, as it sees itself
    gid: int
    range_first: int | None  # of the host's ids that are the job's 0 to 65,535; None: init has mapped one id itself
    network: str  # see Places
    resources: tuple[ResourceLimit, ...]
    preparation: tuple[Operation, ...]  # of the sandbox: what is the same for every job of this node
    operations: tuple[Operation, ...]  # after it
    uploads: tuple[str, ...]  # staged tar archives on the host, in this order
    journal: JournalLimits
    groups: Groups
    start_ms_max: int  # from GO to the exec, uploads unpacked
    timeout_ms: int | None  # run time, from the exec
    stop_signal: int
    grace_ms: int


def encode_beginning(task: Task) -> bytes:
    """The first two parts of the wire form of `task`."""
    preparation = [encode_operation(operation) for operation in task.preparation]
    return _joined(
        b"".join(os.fsencode(word) + b"\0" for word in _words(task)),
        json.dumps([TASK_VERSION, preparation]).encode(),
    )


def encode_rest(task: Task) -> bytes:
    """The other two."""
    fields: dict[str, Any] = task._asdict()
    del fields["preparation"]
    fields["operations"] = [encode_operation(operation) for operation in task.operations]
    return _joined(
        json.dumps([TASK_VERSION, *(fields[name] for name in Watch._fields)]).encode(),
        json.dumps({"version": TASK_VERSION, **fields}).encode(),
    )


def _joined(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(LENGTH_BYTES, "little") + part for part in parts)


def decode_places(encoded: bytes) -> Places:
    """The first part, without its length."""
    network, own_user, job_dir, uploads, clone_into, *join = os.fsdecode(encoded).split("\0")[:-1]
    return Places(tuple(join), clone_into, network, own_user, job_dir, uploads)


def decode_preparation(encoded: bytes) -> tuple[Operation, ...]:
    """The second part, without its length. Raises ValueError, KeyError or TypeError when it is none of this version."""
    version, operations = json.loads(encoded)
    _check_version(version)
    return tuple(decode_operation(values) for values in operations)


def decode_watch(encoded: bytes) -> Watch:
    """The third part, without its length. Raises ValueError or TypeError when it is none of this version."""
    # raw_decode: json.loads would also guess the encoding and match white space, all of it in Python.
    (version, *fields), _ = _DECODER.raw_decode(encoded.decode())
    _check_version(version)
    job_id, job_dir, host_uid, host_gid, range_first, uploads, journal, groups, *rest = fields
    ids = (host_uid, host_gid, range_first)
    return Watch(job_id, job_dir, *ids, tuple(uploads), JournalLimits(*journal), _groups(groups), *rest)


def decode_task(encoded: bytes | bytearray) -> Task:
    """The fourth part, without its length; it has no preparation. Raises ValueError, KeyError or TypeError."""
    fields: dict[str, Any] = json.loads(encoded)
    _check_version(fields.pop("version"))
    return Task(
        preparation=(),
        args=tuple(fields.pop("args")),
        environment=tuple((name, value) for name, value in fields.pop("environment")),
        resources=tuple(ResourceLimit(*values) for values in fields.pop("resources")),
        operations=tuple(decode_operation(values) for values in fields.pop("operations")),
        uploads=tuple(fields.pop("uploads")),
        journal=JournalLimits(*fields.pop("journal")),
        groups=_groups(fields.pop("groups")),
        **fields,
    )


def _words(task: Task) -> tuple[str, ...]:
    own_user = str(task.uid) if task.range_first is None else ""
    uploads = "uploads" if task.uploads else ""
    return (task.network, own_user, task.job_dir, uploads, task.groups.clone_into, *task.groups.join)


def _check_version(version: object) -> None:
    if version != TASK_VERSION:
        raise ValueError(f"task version {version}, this launcher knows {TASK_VERSION}")


def _groups(values: list[Any]) -> Groups:
    join, clone_into, usage, oom_watch, lift = values
    meters = tuple(Meter(name, tuple(Reading(*reading) for reading in readings)) for name, readings in usage)
    return Groups(tuple(join), clone_into, meters, oom_watch, tuple(Write(*write) for write in lift))
