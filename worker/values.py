"""What goes into the library and comes out of it: commands, statuses, jobs, output. Values only, no effects.

The names are those of the interface that the library answers to (requirements S4.7 to S4.9); the words for a status
are those of each of the sources (X8).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from common.errors import invalid
from common.identifiers import JobId
from common.messages.jobs import TERMINAL, JobRecord, JobSpec, Limits, Network, State
from common.records import RecordType, Stream, decode_all

NO_EXIT_CODE: Final = -1


@dataclasses.dataclass(frozen=True, slots=True)
class Command:
    """A program and how to run it.

    `name`: a path, or a name that is looked up in the job's PATH. `resources`: its limits; None in one is "not set".
    `environment` is all that the job has beside PATH, HOME and their like; nothing of the caller's is passed on.
    `stop_signal` and `grace_s` are what `Worker.stop` does when it is told nothing else.
    """

    name: str
    args: Sequence[str] = ()
    resources: Limits = Limits()  # noqa: RUF009  # frozen
    _: dataclasses.KW_ONLY
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    workdir: str = "/work"
    work_bytes: int | None = None
    network: Network = Network.NONE
    stop_signal: int = 15
    grace_s: float = 10.0

    def spec(self) -> JobSpec:
        """The same in the terms of the executor. Raises INVALID where a value is of another type."""
        if isinstance(self.args, str):
            raise invalid(f"args is the string {self.args[:40]!r}", "give a sequence of strings, one an argument")
        wish = {
            "command": self.name,
            "args": tuple(self.args),
            "environment": dict(self.environment),
            "workdir": self.workdir,
            "work_bytes": self.work_bytes,
            "limits": msgspec.structs.asdict(self.resources),
            "network": self.network,
            "stop_signal": self.stop_signal,
            "grace_ms": milliseconds(self.grace_s),
        }
        try:
            return msgspec.convert(wish, JobSpec)
        except msgspec.ValidationError as cause:
            raise invalid(f"malformed command: {cause}", "see worker.Command") from cause


@dataclasses.dataclass(frozen=True, slots=True)
class Status:
    """How a job is, or how it ended.

    `pid`: of the host; 0: it has not started. `exit_code`: -1 while it has not exited, and when a signal ended it.
    `exited`: it has ended, in whatever way. `signal` ended it, when one did. `reason`: words, where there is more to
    say. Times are Unix nanoseconds, 0: not yet. `lost_entries`, `lost_bytes`: of its output, for good.
    """

    pid: int
    exit_code: int
    exited: bool
    state: State
    signal: int | None = None
    reason: str = ""
    oom_killed: bool = False
    started_at_ns: int = 0
    ended_at_ns: int = 0
    last_sequence: int = 0
    lost_entries: int = 0
    lost_bytes: int = 0

    @property
    def word(self) -> str:
        """`running`, `exited` or `signaled` (S2.3); of a job that never ran, its state."""
        if self.signal is not None:
            return "signaled"
        if self.exit_code != NO_EXIT_CODE:
            return "exited"
        return str(self.state)

    @property
    def sentence(self) -> str:
        """`running`, `stopped (signal: 9)` or `finished (exit code: 0)` (S3.8); of a job that never ran, its state."""
        if self.signal is not None:
            return f"stopped (signal: {self.signal})"
        if self.exit_code != NO_EXIT_CODE:
            return f"finished (exit code: {self.exit_code})"
        return str(self.state)


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """A job of the worker's (S4.9). `command` has every default filled in."""

    id: JobId
    command: Command
    status: Status


@dataclasses.dataclass(frozen=True, slots=True)
class Output:
    """A piece of what a job wrote, as it wrote it: whole lines, or a part of one when `partial`.

    Sequences count lines, or parts of one, over both streams, from 1 and without a hole; `sequence` is the first one's
    and `entries` how many there are. `lost`: they are lost for good and `data` is empty, with Stream.NONE.
    `time_ns` is Unix time.
    """

    sequence: int
    stream: Stream
    data: bytes
    entries: int = 1
    time_ns: int = 0
    partial: bool = False
    lost: bool = False


def milliseconds(seconds: float) -> int:
    """Whole milliseconds. Raises INVALID for what is no number, or endless."""
    try:
        return round(seconds * 1000)
    except (TypeError, ValueError, OverflowError) as cause:
        raise invalid(f"{seconds!r} is no number of seconds", "use a number such as 2.5") from cause


def status_of(record: JobRecord) -> Status:
    """What a record says."""
    return Status(
        pid=record.pid,
        exit_code=NO_EXIT_CODE if record.exit_code is None else record.exit_code,
        exited=record.state in TERMINAL,
        state=record.state,
        signal=record.signal,
        reason=record.reason,
        oom_killed=record.oom_killed,
        started_at_ns=record.started_at_ns,
        ended_at_ns=record.ended_at_ns,
        last_sequence=record.last_sequence,
        lost_entries=record.lost_entries,
        lost_bytes=record.lost_bytes,
    )


def job_of(record: JobRecord) -> Job:
    """The job that a record is about."""
    spec = record.spec
    command = Command(
        spec.command,
        spec.args,
        spec.limits,
        environment=spec.environment,
        workdir=spec.workdir,
        work_bytes=spec.work_bytes,
        network=spec.network,
        stop_signal=spec.stop_signal,
        grace_s=spec.grace_ms / 1000,
    )
    return Job(record.id, command, status_of(record))


def outputs_of(records: bytes) -> tuple[Output, ...]:
    """The output in whole records of a journal."""
    found = []
    for record in decode_all(records):
        if record.type == RecordType.OUTPUT:
            found.append(
                Output(
                    sequence=record.sequence,
                    stream=Stream(record.stream),
                    data=bytes(record.payload),
                    entries=record.lines,
                    time_ns=record.time_ns,
                    partial=record.partial,
                )
            )
        elif record.type == RecordType.GAP:
            found.append(
                Output(
                    sequence=record.sequence,
                    stream=Stream.NONE,
                    data=b"",
                    entries=record.lines,
                    time_ns=record.time_ns,
                    lost=True,
                )
            )
    return tuple(found)
