"""What can happen to a job, and what the state machine answers. Values only; the rules are in `machine.py`.

Times are Unix nanoseconds. `Job` is what the executor keeps of a job: the record that others see and, privately,
the stop that was asked for and whether the monitor has it.
"""

from typing import Any

import msgspec

from common.errors import JobletError
from common.messages.jobs import JobRecord, Usage, VolumeMount


class StopOrder(msgspec.Struct, frozen=True, kw_only=True):
    """A stop that a client asked for. `delivered`: the job's monitor has it and needs nobody any more."""

    signal: int
    grace_ms: int
    requested_at_ns: int
    delivered: bool = False


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """How many jobs the owner may have at once, in slots and waiting; None: no bound but the node's."""

    running_max: int | None = None
    queued_max: int | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job as the executor keeps it. Gaps of its output up to `lost_through` are counted in its record.

    `bounds` are its owner's as they were when it came; those of his newest job count for all. None: it was admitted by
    a release that had no queue. `chosen_boot` is the boot of the machine in which it was chosen to start, durable
    before anybody is asked to launch it; empty: it was not.
    """

    record: JobRecord
    stop: StopOrder | None = None
    lost_through: int = 0
    bounds: Bounds | None = None
    chosen_boot: str = ""

    def with_record(self, **changes: Any) -> "Job":
        """The same job with fields of its record changed."""
        return msgspec.structs.replace(self, record=msgspec.structs.replace(self.record, **changes))


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened at `at_ns`."""

    at_ns: int


class Submitted(Event, frozen=True, kw_only=True):
    """The job was admitted."""


class Recorded(Event, frozen=True, kw_only=True):
    """The record is durable: the job may be launched, or wait."""


class Due(Event, frozen=True, kw_only=True):
    """The time has come before which the job was not to start."""


class Chosen(Event, frozen=True, kw_only=True):
    """There is a slot, and it is the job's turn. `boot` is that of the machine as it runs now."""

    boot: str


class NeverLaunched(Event, frozen=True, kw_only=True):
    """After a restart: it is certain that the job was not launched, and that nobody will launch it any more."""


class Launched(Event, frozen=True, kw_only=True):
    """The launcher made a monitor. Its journal will tell the rest."""


class LaunchFailed(Event, frozen=True, kw_only=True):
    """There is no monitor, for `reason`."""

    reason: str


class Started(Event, frozen=True, kw_only=True):
    """The journal's START: the job's command runs as `pid` of the host."""

    pid: int


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Which step of a launch failed. Fields as in the EXIT record (docs/protocol.md)."""

    step: str = ""
    path: str = ""
    errno: int = 0
    message: str = ""


class Ended(Event, frozen=True, kw_only=True):
    """The journal's EXIT. `last_sequence` is that of the job's last output entry."""

    outcome: str
    exit_code: int | None = None
    signal: int | None = None
    ended_by: str = ""
    usage: Usage = Usage()
    failure: Failure | None = None
    last_sequence: int = 0


class MonitorLost(Event, frozen=True, kw_only=True):
    """The monitor is gone and its journal has no EXIT that can be read. `reason` says more, when there is more.

    `lost_bytes` at the end of the journal are no records.
    """

    last_sequence: int = 0
    reason: str = ""
    lost_bytes: int = 0


class JournalDamaged(Event, frozen=True, kw_only=True):
    """Some bytes of the journal are no records. The job itself goes on."""

    problem: str


class OutputLost(Event, frozen=True, kw_only=True):
    """A GAP of the journal: `entries` entries from `first` on are lost for good, `bytes` as far as known.

    It comes again when a journal is read again.
    """

    first: int
    entries: int
    bytes: int = 0


class StopRequested(Event, frozen=True, kw_only=True):
    """A client wants the job to end. None: as the job's spec says."""

    signal: int | None = None
    grace_ms: int | None = None


class StopDelivered(Event, frozen=True, kw_only=True):
    """The monitor has the stop."""


class StopUndelivered(Event, frozen=True, kw_only=True):
    """No monitor took the stop: it is not there yet, or not any more."""


class CancelRequested(Event, frozen=True, kw_only=True):
    """A client withdraws a job that has not started."""


class DeleteRequested(Event, frozen=True, kw_only=True):
    """A client wants an ended job forgotten."""


class VolumeGranted(Event, frozen=True, kw_only=True):
    """A client wants the running job to have one volume more. It appears in it when this is durable."""

    mount: VolumeMount


class VolumeWithdrawn(Event, frozen=True, kw_only=True):
    """The job has the volume of this name no more, or never got it."""

    name: str


AnyEvent = (
    Submitted
    | Recorded
    | Due
    | Chosen
    | NeverLaunched
    | Launched
    | LaunchFailed
    | Started
    | Ended
    | MonitorLost
    | JournalDamaged
    | OutputLost
    | StopRequested
    | StopDelivered
    | StopUndelivered
    | CancelRequested
    | DeleteRequested
    | VolumeGranted
    | VolumeWithdrawn
)


class Instruction(msgspec.Struct, frozen=True, kw_only=True):
    """Something to do, in the order given."""


class Save(Instruction, frozen=True, kw_only=True):
    """Store the job. `durable`: it must survive a power cut; answered by Recorded when the job is new."""

    durable: bool = False


class Announce(Instruction, frozen=True, kw_only=True):
    """Publish the record on `job.<id>`."""


class Schedule(Instruction, frozen=True, kw_only=True):
    """Wait for the job's time. Answered by Due."""


class LineUp(Instruction, frozen=True, kw_only=True):
    """Wait for a slot. Answered by Chosen."""


class Launch(Instruction, frozen=True, kw_only=True):
    """Make a monitor. Answered by Launched or LaunchFailed, once. `when_saved`: not before all is durable."""

    when_saved: bool = False


class SignalStop(Instruction, frozen=True, kw_only=True):
    """Tell the monitor to stop the job. Answered by StopDelivered or StopUndelivered."""

    signal: int
    grace_ms: int


class CleanUp(Instruction, frozen=True, kw_only=True):
    """Remove what the host still holds of the job: processes, groups, staged uploads. The journal stays."""


class Forget(Instruction, frozen=True, kw_only=True):
    """Remove the record and the journal, and tell that they are gone."""


class Transition(msgspec.Struct, frozen=True, kw_only=True):
    """The job as it is now, and what to do."""

    job: Job
    instructions: tuple[Instruction, ...] = ()


class Ignored(msgspec.Struct, frozen=True, kw_only=True):
    """The event changes nothing, and that is right: `why`."""

    why: str


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """The request cannot be granted in this state."""

    error: JobletError


Decision = Transition | Ignored | Refused
