"""Requests to messages: every field that a client sends is checked here, and named in the refusal.

Belongs here: the shape of requests (bounds, alphabets, enumerations), pure. Does not belong here: what this host can
do (executor), and whose uploads those are (`uploads/`). Nothing is ever parsed as a shell would.
"""

import itertools
import re
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from common.config.limits import GRACE_MS_MAX, LIMIT_RANGES, checked_cpu_list
from common.errors import invalid
from common.identifiers import parse_name
from common.messages import jobs
from common.quantities import SIZE_BYTES_MAX
from proto.joblet.v1 import job_pb2
from services.api.convert import NETWORKS, ON_FULL, STATES

COMMAND_BYTES_MAX: Final = 4096  # PATH_MAX
ARGUMENTS_MAX: Final = 4096
ARGUMENT_BYTES_MAX: Final = 128 * 1024 - 1  # MAX_ARG_STRLEN less its NUL: execve(2)
ARGUMENTS_BYTES_MAX: Final = 1024 * 1024  # arguments and environment together
VARIABLES_MAX: Final = 1024
LABELS_MAX: Final = 64
LABEL_VALUE_CHARACTERS_MAX: Final = 256
VOLUMES_MAX: Final = 32
UPLOADS_MAX: Final = 16
OWNER_BYTES_MAX: Final = 256
PAGE_SIZE_DEFAULT: Final = 100
PAGE_SIZE_MAX: Final = 1000
PAGE_TOKEN_CHARACTERS_MAX: Final = 512
PRIORITY_MAX: Final = 100
AHEAD_S_MAX: Final = 365 * 24 * 3600

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,254}", re.ASCII)
_PAGE_TOKEN = re.compile(rf"[A-Za-z0-9_.:=+/-]{{0,{PAGE_TOKEN_CHARACTERS_MAX}}}", re.ASCII)
_KERNEL_DIRECTORIES: Final = ("/proc/", "/sys/", "/dev/")

_STATES: Final = {number: state for state, number in STATES.items()}
_NETWORKS: Final = {number: network for network, number in NETWORKS.items()}
_ON_FULL: Final = {number: on_full for on_full, number in ON_FULL.items()}


def job_spec(
    spec: job_pb2.JobSpec,
    upload: Callable[[str], jobs.Upload],
    *,
    network: jobs.Network = jobs.Network.NONE,
    on_full: jobs.OnFull = jobs.OnFull.BLOCK,
    grace_ms: int = 10_000,
    clock_ns: Callable[[], int] = time.time_ns,
) -> jobs.JobSpec:
    """The spec in a request. `upload` finds a staged upload of the caller by its id, or raises.

    `network`, `on_full` and `grace_ms`: what the node does for jobs that do not say. The record has what holds.
    Raises JobletError: INVALID naming the field.
    """
    arguments = _arguments(spec)
    _at_most("upload_ids", len(spec.upload_ids), UPLOADS_MAX)
    if len(set(spec.upload_ids)) != len(spec.upload_ids):
        raise invalid("upload_ids names an upload twice")
    work_bytes = spec.work_bytes if spec.HasField("work_bytes") else None
    if work_bytes is not None:
        within("work_bytes", work_bytes, 4096, SIZE_BYTES_MAX)
    return jobs.JobSpec(
        command=command("command", spec.command),
        args=arguments,
        name=parse_name(spec.name, "job") if spec.name else "",
        labels=labels("labels", spec.labels),
        environment=_environment("environment", spec.environment),
        workdir=_absolute("workdir", spec.workdir) if spec.workdir else "/work",
        work_bytes=work_bytes,
        limits=_limits(spec.limits),
        volumes=_volumes(spec.volumes),
        network=_network(spec.network, network),
        grace_ms=within("grace_ms", spec.grace_ms, 0, GRACE_MS_MAX) if spec.HasField("grace_ms") else grace_ms,
        stop_signal=signal_number("stop_signal", spec.stop_signal) or int(signal.SIGTERM),
        uploads=tuple(upload(one) for one in spec.upload_ids),
        on_full=_on_full(spec.on_full, on_full),
        priority=within("priority", spec.priority, -PRIORITY_MAX, PRIORITY_MAX),
        start_at_ns=_start_at_ns(spec.start_at, clock_ns()) if spec.HasField("start_at") else 0,
        secret_names=tuple(sorted(secrets(spec))),
    )


def secrets(spec: job_pb2.JobSpec) -> dict[str, str]:
    """The secret variables of a spec, which reach the job only: they are no part of what is recorded and shown."""
    both = sorted(spec.environment.keys() & spec.secret_environment.keys())
    if both:
        raise invalid(f"secret_environment: {both[0]} is in environment, too", "give it once")
    return _environment("secret_environment", spec.secret_environment)


def command(field: str, text: str) -> str:
    """The program to run."""
    return _text(field, text, COMMAND_BYTES_MAX, empty=False)


def _start_at_ns(start_at: Timestamp, now_ns: int) -> int:
    """When the job is to start; a time that is over is kept, and means at once."""
    within("start_at.nanos", start_at.nanos, 0, 10**9 - 1)
    now_s = now_ns // 10**9
    if not 0 <= start_at.seconds <= now_s + AHEAD_S_MAX:
        raise invalid("start_at: the time is out of range", "use a time within a year from now")
    return start_at.seconds * 10**9 + start_at.nanos


def stop_grace_ms(request: job_pb2.StopJobRequest) -> int | None:
    """How long the caller gives the job after the stop signal; None: as its spec says."""
    return within("grace_ms", request.grace_ms, 0, GRACE_MS_MAX) if request.HasField("grace_ms") else None


def signal_number(field: str, name: str) -> int | None:
    """The number of `SIGTERM` or `TERM`; None when empty."""
    if not name:
        return None
    word = name if name.startswith("SIG") else f"SIG{name}"
    try:
        return int(signal.Signals[word])
    except KeyError:
        raise invalid(f"{field}: no such signal {name[:40]!r}", "use a name such as SIGTERM or SIGINT") from None


def job_filter(message: job_pb2.JobFilter) -> jobs.ListJobs:
    """Which jobs are wanted, as a listing of the first page that everybody may see; the caller narrows it."""
    _at_most("filter.states", len(message.states), len(STATES) * 2)
    unknown = [number for number in message.states if number not in _STATES]
    if unknown:
        raise invalid(f"filter.states: no such state {unknown[0]}", "see JobState in proto/joblet/v1/job.proto")
    return jobs.ListJobs(
        visible_owner=None,
        states=tuple(dict.fromkeys(_STATES[number] for number in message.states)),
        owner=owner("filter.owner", message.owner),
        labels=labels("filter.labels", message.labels),
    )


def page_size(value: int) -> int:
    """How many jobs a page is to have."""
    return within("page_size", value, 1, PAGE_SIZE_MAX) if value else PAGE_SIZE_DEFAULT


def page_token(text: str) -> str:
    """A token from the page before; the executor knows what it means."""
    if not _PAGE_TOKEN.fullmatch(text):
        raise invalid("page_token: malformed", "use next_page_token of the page before, as it is")
    return text


def labels(field: str, entries: Mapping[str, str]) -> dict[str, str]:
    """Labels: names as names are, values short and printable."""
    _at_most(field, len(entries), LABELS_MAX)
    for value in entries.values():
        if len(value) > LABEL_VALUE_CHARACTERS_MAX or not (value.isprintable() or not value):
            raise invalid(
                f"{field}: malformed value {value[:40]!r}",
                f"use at most {LABEL_VALUE_CHARACTERS_MAX} printable characters",
            )
    return {parse_name(key, "label"): value for key, value in entries.items()}


def _arguments(spec: job_pb2.JobSpec) -> tuple[str, ...]:
    _at_most("args", len(spec.args), ARGUMENTS_MAX)
    arguments = tuple(_text("args", one, ARGUMENT_BYTES_MAX) for one in spec.args)
    entries = itertools.chain(spec.environment.items(), spec.secret_environment.items())
    variables = (text for entry in entries for text in entry)
    total = sum(len(text.encode()) + 1 for text in (spec.command, *arguments, *variables))
    if total > ARGUMENTS_BYTES_MAX:
        raise invalid(
            f"args and environment have {total} bytes together, at most {ARGUMENTS_BYTES_MAX}", "upload a file instead"
        )
    return arguments


def _environment(field: str, entries: Mapping[str, str]) -> dict[str, str]:
    _at_most(field, len(entries), VARIABLES_MAX)
    for name, value in entries.items():
        if not _VARIABLE.fullmatch(name):
            raise invalid(
                f"{field}: malformed name {name[:40]!r}",
                "use letters, digits, '_' and '.', not beginning with a digit",
            )
        _text(f"{field}: {name}", value, ARGUMENT_BYTES_MAX - 256)
    return dict(entries)


def _limits(message: job_pb2.Limits) -> jobs.Limits:
    values: dict[str, int] = {}
    for field, (low, high) in LIMIT_RANGES.items():
        if message.HasField(field):
            values[field] = within(f"limits.{field}", getattr(message, field), low, high)
    cores = message.cpu_cores if message.HasField("cpu_cores") else None
    if cores is not None:
        checked_cpu_list(cores, "limits.cpu_cores")
    return jobs.Limits(cpu_cores=cores, **values)


def _volumes(mounts: Iterable[job_pb2.VolumeMount]) -> tuple[jobs.VolumeMount, ...]:
    volumes = tuple(volume_mount("volumes.path", mount.name, mount.path, read_only=mount.read_only) for mount in mounts)
    _at_most("volumes", len(volumes), VOLUMES_MAX)
    return volumes


def _network(number: job_pb2.NetworkMode, default: jobs.Network) -> jobs.Network:
    if number == job_pb2.NETWORK_MODE_UNSPECIFIED:
        return default
    network = _NETWORKS.get(number)
    if network is None:
        raise invalid(f"network: no such mode {number}", "see NetworkMode in proto/joblet/v1/job.proto")
    return network


def _on_full(number: job_pb2.OnFull, default: jobs.OnFull) -> jobs.OnFull:
    if number == job_pb2.ON_FULL_UNSPECIFIED:
        return default
    on_full = _ON_FULL.get(number)
    if on_full is None:
        raise invalid(f"on_full: no such policy {number}", "see OnFull in proto/joblet/v1/job.proto")
    return on_full


def volume_mount(field: str, name: str, path: str, *, read_only: bool) -> jobs.VolumeMount:
    """A volume's place in a job, in its one spelling; an empty path: /volumes/<name>."""
    plain = _plain(_absolute(field, path or f"/volumes/{name}"))
    if plain == "/":
        raise invalid(f"{field}: a volume cannot be the job's root", "use a path such as /data")
    return jobs.VolumeMount(name=parse_name(name, "volume"), path=plain, read_only=read_only)


def owner(field: str, text: str) -> str:
    """Whose things are wanted; empty: anybody's."""
    return _text(field, text, OWNER_BYTES_MAX)


def _absolute(field: str, path: str) -> str:
    """An absolute path in the job, without a step up, outside the kernel's own file systems."""
    _text(field, path, COMMAND_BYTES_MAX)
    if not path.startswith("/") or any(part in {".", ".."} for part in path.split("/")):
        raise invalid(f"{field}: {path[:80]!r} is no plain absolute path", "use such as /work, without . and ..")
    if f"{_plain(path)}/".startswith(_KERNEL_DIRECTORIES):
        raise invalid(f"{field}: {path[:80]!r} belongs to the kernel", "use a path such as /work")
    return path


def _plain(path: str) -> str:
    """An absolute path without empty parts: two leading slashes are one here, and a trailing one means nothing."""
    return "/" + "/".join(part for part in path.split("/") if part)


def _text(field: str, text: str, bytes_max: int, *, empty: bool = True) -> str:
    if not text and not empty:
        raise invalid(f"{field} is missing")
    if "\0" in text:
        raise invalid(f"{field} has a NUL byte")
    size = len(text.encode())
    if size > bytes_max:
        raise invalid(f"{field} has {size} bytes, at most {bytes_max}")
    return text


def within(field: str, value: int, low: int, high: int) -> int:
    """`value`, or INVALID with the range."""
    if not low <= value <= high:
        raise invalid(f"{field}: {value} is out of range", f"use {low} to {high}")
    return value


def _at_most(field: str, count: int, count_max: int) -> None:
    if count > count_max:
        raise invalid(f"{field} has {count} entries, at most {count_max}")
