"""What can happen to a volume, and what the state machine answers. Values only; the rules are in `machine.py`.

Times are Unix nanoseconds. `Volume` is what the service keeps of a volume: the record that others see and, privately,
what is being done to it, so that the next start knows what this one did not finish.
"""

from enum import StrEnum
from typing import Any

import msgspec

from common.errors import JobletError
from common.identifiers import JobId, VolumeId
from common.messages.volumes import VolumeRecord


class WorkKind(StrEnum):
    """What a volume is busy with. The value completes the sentence "it is busy with …"."""

    SNAPSHOT = "a snapshot"
    RESTORE = "a restore"
    COPY = "a copy"
    DROP = "the removal of a snapshot"
    EXPORT = "an export"
    IMPORT = "an import"
    SHOW = "an export of a snapshot"


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """One of them. `snapshot`: the id of the one that is made, read or removed; empty: the volume itself is read."""

    kind: WorkKind
    snapshot: str = ""


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """A volume as the service keeps it.

    `resizing_bytes`: the size that it is being given; 0: none.
    """

    record: VolumeRecord
    work: Work | None = None
    resizing_bytes: int = 0

    def with_record(self, **changes: Any) -> "Volume":
        """The same volume with fields of its record changed."""
        return msgspec.structs.replace(self, record=msgspec.structs.replace(self.record, **changes))

    @property
    def id(self) -> VolumeId:
        """Its id."""
        return self.record.id

    @property
    def promised_bytes(self) -> int:
        """The size that counts for limits: while it grows, the new one."""
        return max(self.record.size_bytes, self.resizing_bytes)


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened at `at_ns`."""

    at_ns: int


class Created(Event, frozen=True, kw_only=True):
    """It is on the disk, whole. Nothing is there yet of a memory volume, and that is right."""


class CreateFailed(Event, frozen=True, kw_only=True):
    """Nothing of it is on the disk."""


class UseRequested(Event, frozen=True, kw_only=True):
    """A job is to have it."""

    job: JobId
    path: str
    read_only: bool


class MountFailed(Event, frozen=True, kw_only=True):
    """The job does not get it after all. `damage`: its content is not as it was left; empty: for another reason."""

    job: JobId
    damage: str = ""


class ReleaseRequested(Event, frozen=True, kw_only=True):
    """A job needs it no more. `keep_mounted`: it may stay mounted for the next one."""

    job: JobId
    keep_mounted: bool


class Released(Event, frozen=True, kw_only=True):
    """It is not mounted any more, and so the job has it no more."""

    job: JobId


class WorkBegun(Event, frozen=True, kw_only=True):
    """Somebody wants something done with its content."""

    work: Work


class WorkEnded(Event, frozen=True, kw_only=True):
    """That is over, well or not."""


class ResizeRequested(Event, frozen=True, kw_only=True):
    """It is to be larger."""

    size_bytes: int


class Resized(Event, frozen=True, kw_only=True):
    """It is."""


class ResizeFailed(Event, frozen=True, kw_only=True):
    """It is as large as it was."""


class DeleteRequested(Event, frozen=True, kw_only=True):
    """It is to be removed."""


class IdleTooLong(Event, frozen=True, kw_only=True):
    """Nobody used it for as long as a memory volume is kept."""


class Deleted(Event, frozen=True, kw_only=True):
    """Nothing of it is on the disk any more."""


class DeleteFailed(Event, frozen=True, kw_only=True):
    """Something of it is still there."""

    reason: str


class FoundDamaged(Event, frozen=True, kw_only=True):
    """Its content is not as it was left."""

    reason: str


class FoundWhole(Event, frozen=True, kw_only=True):
    """It could be mounted."""


class Measured(Event, frozen=True, kw_only=True):
    """What it holds. Comes when it is unmounted: until then the number is not worth a write."""

    used_bytes: int
    used_inodes: int
    inodes: int


class Restarted(Event, frozen=True, kw_only=True):
    """The service has begun anew: nobody is doing anything to the volume any more."""


AnyEvent = (
    Created
    | CreateFailed
    | UseRequested
    | MountFailed
    | ReleaseRequested
    | Released
    | WorkBegun
    | WorkEnded
    | ResizeRequested
    | Resized
    | ResizeFailed
    | DeleteRequested
    | IdleTooLong
    | Deleted
    | DeleteFailed
    | FoundDamaged
    | FoundWhole
    | Measured
    | Restarted
)


class Instruction(msgspec.Struct, frozen=True, kw_only=True):
    """Something to do, in the order given."""


class Save(Instruction, frozen=True, kw_only=True):
    """Store the volume as it is now, so that it survives a power cut."""


class Forget(Instruction, frozen=True, kw_only=True):
    """Remove its record and those of its snapshots."""


class Mount(Instruction, frozen=True, kw_only=True):
    """Mount it for a job. Answered by MountFailed when that fails."""


class Unmount(Instruction, frozen=True, kw_only=True):
    """Let go its mount and its device. Answered by Released where a job was about to leave it."""


class Remove(Instruction, frozen=True, kw_only=True):
    """Remove everything of it from the disk. Answered by Deleted or DeleteFailed."""


class Resize(Instruction, frozen=True, kw_only=True):
    """Make its space larger. Answered by Resized or ResizeFailed."""


class Repair(Instruction, frozen=True, kw_only=True):
    """Undo what is half done of `work`. Answered by WorkEnded."""

    work: Work


class Transition(msgspec.Struct, frozen=True, kw_only=True):
    """The volume as it is now, and what to do."""

    volume: Volume
    instructions: tuple[Instruction, ...] = ()


class Ignored(msgspec.Struct, frozen=True, kw_only=True):
    """The event changes nothing, and that is right: `why`."""

    why: str


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """The request cannot be granted in this state."""

    error: JobletError


Decision = Transition | Ignored | Refused


def asks(decision: Decision, instruction: type[Instruction]) -> bool:
    """Whether `instruction` is among what is to do."""
    return isinstance(decision, Transition) and any(isinstance(each, instruction) for each in decision.instructions)
