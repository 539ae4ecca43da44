"""Whether a job may run here: its spec against the limits of the wire and against what this host can enforce.

And whether the node has the room for another one. What is refused is refused with a name and a repair; nothing that was
asked for is ever ignored. Pure but for looking at staged uploads through `staged`. The spec that comes out has every
default of the node filled in.
"""

import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import msgspec

from common.config.limits import LIMIT_RANGES
from common.config.settings import Joblet as NodeSettings
from common.config.settings import Jobs as JobSettings
from common.errors import exhausted, invalid, precondition
from common.identifiers import parse_name
from common.messages.jobs import JobSpec, Limits, OnFull, Upload, VolumeMount
from common.quantities import DURATION_MS_MAX
from services.executor.mount_points import check_mounts
from services.executor.sandbox import HOME

SPEC_BYTES_MAX: Final = 1024 * 1024
"""All strings of a spec together; execve(2) takes about as much."""
STRING_BYTES_MAX: Final = 128 * 1024 - 1
"""One argument or variable: MAX_ARG_STRLEN of include/uapi/linux/binfmts.h, with its NUL."""
ARGS_MAX: Final = 4096
VARIABLES_MAX: Final = 1024
LABELS_MAX: Final = 64
LABEL_VALUE_CHARACTERS_MAX: Final = 256
UPLOADS_MAX: Final = 64
WORKDIR_BYTES_MAX: Final = 4095
SIGNAL_MAX: Final = 64
PRIORITY_MAX: Final = 100
AHEAD_NS_MAX: Final = 366 * 24 * 3600 * 10**9
"""How far ahead a job may be scheduled. api says a year and means 365 days: what it takes is not refused here."""
RESERVE_FILES: Final = 64
"""With fewer free inodes on the journals' disk no new job is taken: a job's directory takes five."""

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
_LABEL_VALUE: Final = re.compile(r"[A-Za-z0-9_./:@+ -]*")
_CPU_CORES: Final = re.compile(r"\d{1,4}(?:-\d{1,4})?(?:,\d{1,4}(?:-\d{1,4})?)*")
_UPLOAD_ID: Final = re.compile(r"[0-9a-f-]{8,64}")

Unsupported = Callable[[Limits], tuple[tuple[str, str], ...]]
"""Name and repair of each limit that this host cannot enforce: CgroupDriver.unsupported."""

Staged = Callable[[str], bool]
"""Whether the upload of this id is staged."""


class Room(NamedTuple):
    """What a file system has left for everybody, root or not. None: it has no bound, or does not tell."""

    bytes: int | None
    files: int | None


def check_room(room: Room, *, reserve_bytes: int) -> None:
    """Refuse a new job when the disk of the journals is nearly full: EXHAUSTED. `reserve_bytes` 0: never.

    Those that run go on: what is left is for what they print.
    """
    if not reserve_bytes:
        return
    repair = "free some below the base directory's jobs, or set joblet.journal.reserve_bytes; running jobs go on"
    if room.bytes is not None and room.bytes < reserve_bytes:
        raise exhausted(
            f"{room.bytes} bytes are free on the disk of the jobs' output, below the reserve of {reserve_bytes}", repair
        )
    if room.files is not None and room.files < RESERVE_FILES:
        raise exhausted(
            f"{room.files} inodes are free on the disk of the jobs' output, below the reserve of {RESERVE_FILES}",
            repair,
        )


def admit(spec: JobSpec, *, unsupported: Unsupported, staged: Staged, settings: NodeSettings, now_ns: int) -> JobSpec:
    """The spec as it will run. Raises INVALID or PRECONDITION with what to change."""
    _check_strings(spec)
    _check_names(spec)
    _check_workdir(spec.workdir)
    _check_end(spec)
    check_waiting(spec.priority, spec.start_at_ns, now_ns=now_ns)
    _check_volumes(spec, settings.jobs)
    limits = _checked_limits(spec.limits, unsupported, settings.jobs)
    refused = unsupported(limits)
    if refused:
        names = ", ".join(name for name, _ in refused)
        raise precondition(f"this node cannot enforce {names}", "; ".join(repair for _, repair in refused))
    for upload in spec.uploads:
        _check_upload(upload, staged)
    return msgspec.structs.replace(
        spec,
        limits=limits,
        work_bytes=_work_bytes(spec, settings.jobs),
        on_full=spec.on_full or OnFull(settings.journal.on_full),
    )


def _check_strings(spec: JobSpec) -> None:
    if not spec.command:
        raise invalid("the command is empty", "name a program, such as /bin/true")
    _at_most(len(spec.args), ARGS_MAX, "arguments")
    _at_most(len(spec.environment), VARIABLES_MAX, "environment variables")
    _at_most(len(spec.labels), LABELS_MAX, "labels")
    _at_most(len(spec.uploads), UPLOADS_MAX, "uploads")
    variables = [f"{name}={value}" for name, value in spec.environment.items()]
    labels = [*spec.labels, *spec.labels.values()]
    total = 0
    for text in (spec.command, spec.workdir, spec.name, *spec.args, *variables, *labels):
        if "\0" in text:
            raise invalid(f"NUL in {text[:40]!r}", "the kernel ends strings at a NUL: take it out")
        size = _encoded_bytes(text)
        if size > STRING_BYTES_MAX:
            raise invalid(
                f"{text[:40]!r}… has {size} bytes, at most {STRING_BYTES_MAX} are possible", "upload it as a file"
            )
        total += size
    if total > SPEC_BYTES_MAX:
        raise invalid(
            f"command, arguments, environment and labels have {total} bytes, at most {SPEC_BYTES_MAX} are taken",
            "upload data as files",
        )


def _encoded_bytes(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as cause:
        raise invalid(f"{text[:40]!r} is not valid Unicode", "send text that can be encoded as UTF-8") from cause


def _at_most(count: int, most: int, what: str) -> None:
    if count > most:
        raise invalid(f"{count} {what}, at most {most} are taken", "use fewer")


def _check_names(spec: JobSpec) -> None:
    if spec.name:
        parse_name(spec.name, "job")
    for label, value in spec.labels.items():
        parse_name(label, "label")
        if len(value) > LABEL_VALUE_CHARACTERS_MAX or not _LABEL_VALUE.fullmatch(value):
            raise invalid(
                f"malformed value {value[:40]!r} of label {label}",
                f"use at most {LABEL_VALUE_CHARACTERS_MAX} letters, digits, spaces and any of _ . / : @ + -",
            )
    for name in spec.environment:
        if not _VARIABLE.fullmatch(name):
            raise invalid(
                f"malformed environment variable name {name[:40]!r}",
                "use letters, digits and '_', not beginning with a digit, at most 256 characters",
            )


def check_secrets(spec: JobSpec, secrets: Mapping[str, str]) -> None:
    """Refuse secrets that are not those the spec names, or cannot be variables. Values never stand in a refusal."""
    if set(spec.secret_names) != secrets.keys() or len(spec.secret_names) != len(secrets):
        raise invalid("the secret variables are not those that the job names", "send each name with its value")
    _at_most(len(spec.environment) + len(secrets), VARIABLES_MAX, "environment variables")
    total = 0
    for name, value in secrets.items():
        if not _VARIABLE.fullmatch(name):
            raise invalid(f"malformed name of a secret variable {name[:40]!r}", "use letters, digits and '_'")
        if name in spec.environment:
            raise invalid(f"{name} is a variable and a secret one", "give it once")
        if "\0" in value:
            raise invalid(f"NUL in the secret {name}", "the kernel ends strings at a NUL: take it out")
        size = len(name) + len(value.encode(errors="surrogatepass")) + 1
        total += size
        if size > STRING_BYTES_MAX or total > SPEC_BYTES_MAX:
            raise invalid(
                f"the secret {name} is too long", f"use {STRING_BYTES_MAX} bytes at most, upload it as a file"
            )


def _check_workdir(path: str) -> None:
    plain = path.startswith("/") and ".." not in path.split("/") and len(path.encode()) <= WORKDIR_BYTES_MAX
    if not plain or path.split("/")[1] in ("proc", "dev"):
        raise invalid(
            f"malformed working directory {path[:64]!r}", "use an absolute path without '..', outside /proc and /dev"
        )


def _check_end(spec: JobSpec) -> None:
    check_stop(spec.stop_signal, spec.grace_ms)


def check_waiting(priority: int, start_at_ns: int, *, now_ns: int) -> None:
    """Refuse a priority or a time of start beyond what is kept. A time that is over means at once."""
    if not -PRIORITY_MAX <= priority <= PRIORITY_MAX:
        raise invalid(f"priority of {priority} is out of range", f"use -{PRIORITY_MAX} to {PRIORITY_MAX}")
    if not 0 <= start_at_ns <= now_ns + AHEAD_NS_MAX:
        raise invalid("the time of start is out of range", "use one within a year from now")


def check_stop(signal: int | None, grace_ms: int | None) -> None:
    """Refuse a stop that means nothing: a signal outside 1 to 64, a grace outside 0 ms to 10 years."""
    if signal is not None and not 1 <= signal <= SIGNAL_MAX:
        raise invalid(f"there is no signal {signal}", f"use 1 to {SIGNAL_MAX}")
    if grace_ms is not None and not 0 <= grace_ms <= DURATION_MS_MAX:
        raise invalid(f"grace of {grace_ms} ms is out of range", f"use 0 to {DURATION_MS_MAX} ms")


def _check_volumes(spec: JobSpec, settings: JobSettings) -> None:
    check_mounts(spec.volumes, settings.read_only_paths)
    home = _volume_at_home(spec)
    if home is None:
        return
    if spec.work_bytes is not None:
        raise invalid(
            f"{HOME} is volume {home.name}, which has its own size", f"leave the size of {HOME} out, or the volume"
        )
    if home.read_only and spec.uploads:
        raise invalid(
            f"uploads go to {HOME}, which is volume {home.name}, read-only",
            "mount it writable, or at another path",
        )


def _volume_at_home(spec: JobSpec) -> VolumeMount | None:
    return next((mount for mount in spec.volumes if mount.path == HOME), None)


def _checked_limits(limits: Limits, unsupported: Unsupported, settings: JobSettings) -> Limits:
    for name, (least, most) in LIMIT_RANGES.items():
        value = getattr(limits, name)
        if value is not None and not least <= value <= most:
            raise invalid(f"limit {name} of {value} is out of range", f"use {least} to {most}")
    if limits.cpu_cores is not None and not _CPU_CORES.fullmatch(limits.cpu_cores):
        raise invalid(f"malformed limit cpu_cores {limits.cpu_cores[:40]!r}", 'use a list such as "0-1,4"')
    if limits.pids is not None or unsupported(Limits(pids=settings.pids)):  # a default is no wish
        return limits
    return msgspec.structs.replace(limits, pids=settings.pids)


def _check_upload(upload: Upload, staged: Staged) -> None:
    if not _UPLOAD_ID.fullmatch(upload.id):
        raise invalid(f"malformed upload id {upload.id[:64]!r}", "use the id that the upload answered with")
    if upload.bytes < 0 or upload.entries < 0:
        raise invalid(f"upload {upload.id} has a negative size", "upload the files again")
    if not staged(upload.id):
        raise precondition(f"upload {upload.id} is not staged any more", "upload the files again")


def _work_bytes(spec: JobSpec, settings: JobSettings) -> int | None:
    """Size of /work. Without a wish: the node's default, and room for the uploads with a page per entry.

    None: it is a volume.
    """
    if _volume_at_home(spec) is not None:
        return None
    if spec.work_bytes is None:
        uploads = sum(upload.bytes + 4096 * (upload.entries + 1) for upload in spec.uploads)
        size = settings.work_bytes + uploads
    else:
        size = spec.work_bytes
    if not 4096 <= size <= settings.work_bytes_max:
        raise invalid(f"/work of {size} bytes is out of range", f"use 4096 to {settings.work_bytes_max} bytes")
    return size
