"""The life of a volume: one table, pure. An event comes in, the volume as it is now and instructions come out.

Rules:
- No I/O, no clock, no randomness: times and ids come in as fields of events.
- Every pair of status and event is in `TABLE`: a transition, an `Ignored` that says why, or a `Refused`.
- A use is recorded before anything is mounted for it, and removed after everything was let go: who dies in between
  finds it named, and the executor, who knows its jobs, releases it.
- What is done to the content (`Work`, a resize) is recorded before it begins: Restarted undoes or finishes it.
- CREATING is left to AVAILABLE, or the volume is removed. DELETING is left by Deleted only.
- BUSY means that there is work, IN_USE that there are uses and no work, AVAILABLE neither. DAMAGED stays until the
  volume is found whole or removed; it may keep uses, and work that touches nothing but its snapshots.

Who may have it together is in `sharing.py`. Executed by `life.py`, `uses.py`, `copies.py`, `transfers.py` and
`reconcile.py`. The drawing is in docs/volumes.md.
"""

from collections.abc import Callable
from typing import Any, Final

from msgspec.structs import replace

from common.errors import JobletError, invalid, precondition
from common.identifiers import JobId
from common.messages.volumes import VolumeKind, VolumeStatus, VolumeUse
from common.quantities import format_size
from services.volumes.events import (
    AnyEvent,
    Created,
    CreateFailed,
    Decision,
    Deleted,
    DeleteFailed,
    DeleteRequested,
    Forget,
    FoundDamaged,
    FoundWhole,
    IdleTooLong,
    Ignored,
    Instruction,
    Measured,
    Mount,
    MountFailed,
    Refused,
    Released,
    ReleaseRequested,
    Remove,
    Repair,
    Resize,
    Resized,
    ResizeFailed,
    ResizeRequested,
    Restarted,
    Save,
    Transition,
    Unmount,
    UseRequested,
    Volume,
    WorkBegun,
    WorkEnded,
    WorkKind,
)
from services.volumes.sharing import busy_with, refused_use, refused_work, used_by

Rule = Callable[[Volume, Any], Decision]
"""One cell of the table. The event is of the type that the cell stands under."""


def handle(volume: Volume, event: AnyEvent) -> Decision:
    """What `event` means for `volume`."""
    return TABLE[volume.record.status, type(event)](volume, event)


def _ignored(why: str) -> Rule:
    def rule(volume: Volume, event: AnyEvent) -> Decision:  # noqa: ARG001  # the table's shape
        return Ignored(why=why)

    return rule


def _refused(what: str, detail: str) -> Rule:
    def rule(volume: Volume, event: AnyEvent) -> Decision:  # noqa: ARG001  # the table's shape
        return Refused(error=precondition(f"volume {volume.record.name} is {what}", detail))

    return rule


def _broken(volume: Volume, event: AnyEvent) -> Decision:  # noqa: ARG001  # the table's shape
    return Refused(error=_damaged_error(volume))


def _damaged_error(volume: Volume) -> JobletError:
    record = volume.record
    return precondition(
        f"volume {record.name} is damaged: {record.reason}", "clone one of its snapshots, or remove it; see the log"
    )


def _saved(volume: Volume, *more: Instruction) -> Transition:
    return Transition(volume=volume, instructions=(Save(), *more))


def _settled(volume: Volume) -> Volume:
    """With the status that follows from its uses and its work."""
    if volume.record.status is VolumeStatus.DAMAGED:
        return volume
    idle = VolumeStatus.IN_USE if volume.record.uses else VolumeStatus.AVAILABLE
    return volume.with_record(status=idle if volume.work is None else VolumeStatus.BUSY)


def _finish(volume: Volume, event: Created) -> Decision:  # noqa: ARG001
    return _saved(volume.with_record(status=VolumeStatus.AVAILABLE))


def _drop(volume: Volume, event: CreateFailed | Deleted) -> Decision:  # noqa: ARG001
    return Transition(volume=volume, instructions=(Forget(),))


def _use(volume: Volume, event: UseRequested) -> Decision:
    record = volume.record
    known = _use_of(volume, event.job)
    if known is not None:
        if (known.path, known.read_only) == (event.path, event.read_only):
            return Ignored(why="the job has it already")
        how = f"{known.path}{', read-only' if known.read_only else ''}"
        return Refused(error=precondition(f"the job has volume {record.name} already, at {how}", "detach it first"))
    refusal = refused_use(volume, event)
    if refusal is not None:
        return Refused(error=refusal)
    use = VolumeUse(job=event.job, path=event.path, read_only=event.read_only, since_ns=event.at_ns)
    used = volume.with_record(uses=(*record.uses, use), last_used_at_ns=event.at_ns, last_used_by=event.job)
    return _saved(_settled(used), Mount())


def _lose_use(volume: Volume, event: MountFailed) -> Decision:
    left = _without(volume, event.job)
    if event.damage:
        left = left.with_record(status=VolumeStatus.DAMAGED, reason=event.damage)
    # What a mount that failed has got hold of is let go, if nobody else has it.
    return _saved(_settled(left), *(() if _held(left) else (Unmount(),)))


def _ask_release(volume: Volume, event: ReleaseRequested) -> Decision:
    if _use_of(volume, event.job) is None:
        return Ignored(why="the job does not have it")
    stays = event.keep_mounted and volume.record.kind is not VolumeKind.MEMORY
    if _held(_without(volume, event.job)) or (stays and volume.record.status is not VolumeStatus.DAMAGED):
        return _release(volume, event)
    return Transition(volume=volume, instructions=(Unmount(),))


def _release(volume: Volume, event: ReleaseRequested | Released) -> Decision:
    if _use_of(volume, event.job) is None:
        return Ignored(why="the job does not have it")
    left = _without(volume, event.job).with_record(last_used_at_ns=event.at_ns, last_used_by=event.job)
    return _saved(_settled(left))


def _begin_work(volume: Volume, event: WorkBegun) -> Decision:
    if volume.work is not None or volume.resizing_bytes:
        return Refused(error=busy_with(volume))
    if volume.record.status is VolumeStatus.DAMAGED and not _apart(event):
        return Refused(error=_damaged_error(volume))
    refusal = refused_work(volume, event.work)
    if refusal is not None:
        return Refused(error=refusal)
    return _saved(_settled(replace(volume, work=event.work)))


def _apart(event: WorkBegun) -> bool:
    """Whether it touches nothing but a snapshot."""
    return event.work.kind in (WorkKind.SHOW, WorkKind.DROP) or (
        event.work.kind is WorkKind.COPY and bool(event.work.snapshot)
    )


def _end_work(volume: Volume, event: WorkEnded) -> Decision:  # noqa: ARG001
    if volume.work is None:
        return Ignored(why="nothing is done to it")
    ended = _settled(replace(volume, work=None))
    clears = ended.record.kind is VolumeKind.MEMORY and not ended.record.uses
    return _saved(ended, *((Unmount(),) if clears else ()))


def _begin_resize(volume: Volume, event: ResizeRequested) -> Decision:
    record = volume.record
    if volume.resizing_bytes:
        return Refused(error=busy_with(volume))
    if event.size_bytes == record.size_bytes:
        return Ignored(why="it has that size")
    if event.size_bytes < record.size_bytes:
        size = f"{format_size(record.size_bytes)} ({record.size_bytes} bytes)"
        return Refused(error=invalid(f"volume {record.name} has {size} and cannot shrink", "ask for more"))
    return _saved(replace(volume, resizing_bytes=event.size_bytes), Resize())


def _end_resize(volume: Volume, event: Resized) -> Decision:  # noqa: ARG001
    if not volume.resizing_bytes:
        return Ignored(why="it is not being resized")
    return _saved(replace(volume, resizing_bytes=0).with_record(size_bytes=volume.resizing_bytes))


def _drop_resize(volume: Volume, event: ResizeFailed) -> Decision:  # noqa: ARG001
    if not volume.resizing_bytes:
        return Ignored(why="it is not being resized")
    return _saved(replace(volume, resizing_bytes=0))


def _delete(volume: Volume, event: DeleteRequested | IdleTooLong) -> Decision:  # noqa: ARG001
    if volume.record.uses:
        return Refused(error=precondition(used_by(volume.record), "detach it, or remove with --force"))
    if volume.work is not None or volume.resizing_bytes:
        return Refused(error=busy_with(volume))
    return _saved(volume.with_record(status=VolumeStatus.DELETING, reason=""), Remove())


def _expire(volume: Volume, event: IdleTooLong) -> Decision:
    if volume.record.kind is not VolumeKind.MEMORY or volume.resizing_bytes:
        return Ignored(why="only what a memory volume holds is gone anyway")
    return _delete(volume, event)


def _delete_again(volume: Volume, event: DeleteRequested | Restarted) -> Decision:  # noqa: ARG001
    return Transition(volume=volume, instructions=(Remove(),))


def _keep_deleting(volume: Volume, event: DeleteFailed) -> Decision:
    return _saved(volume.with_record(reason=event.reason))


def _damage(volume: Volume, event: FoundDamaged) -> Decision:
    return _saved(volume.with_record(status=VolumeStatus.DAMAGED, reason=event.reason))


def _heal(volume: Volume, event: FoundWhole) -> Decision:  # noqa: ARG001
    return _saved(_settled(volume.with_record(status=VolumeStatus.AVAILABLE, reason="")))


def _measure(volume: Volume, event: Measured) -> Decision:
    measured = volume.with_record(used_bytes=event.used_bytes, used_inodes=event.used_inodes, inodes=event.inodes)
    return Ignored(why="it holds what it held") if measured == volume else _saved(measured)


def _give_up(volume: Volume, event: Restarted) -> Decision:  # noqa: ARG001
    # Nobody was told that it exists, and what is on the disk of it may be anything.
    given_up = volume.with_record(status=VolumeStatus.DELETING, reason="the service ended while it was made")
    return _saved(given_up, Remove())


def _take_up(volume: Volume, event: Restarted) -> Decision:  # noqa: ARG001
    repair = () if volume.work is None else (Repair(work=volume.work),)
    resize = (Resize(),) if volume.resizing_bytes else ()
    if not repair and not resize:
        return Ignored(why="nothing was being done to it")
    return Transition(volume=volume, instructions=(*repair, *resize))


def _held(volume: Volume) -> bool:
    return bool(volume.record.uses) or volume.work is not None


def _use_of(volume: Volume, job: JobId) -> VolumeUse | None:
    return next((use for use in volume.record.uses if use.job == job), None)


def _without(volume: Volume, job: JobId) -> Volume:
    return volume.with_record(uses=tuple(use for use in volume.record.uses if use.job != job))


_LIVE: Final = (VolumeStatus.AVAILABLE, VolumeStatus.IN_USE, VolumeStatus.BUSY)
_UNUSED: Final = _ignored("no job has it")
_NOT_MADE: Final = _refused("being made", "try again when it is available")
_GOING: Final = _refused("being removed", "make another one when it is gone")


def _build() -> dict[tuple[VolumeStatus, type[AnyEvent]], Rule]:
    table: dict[tuple[VolumeStatus, type[AnyEvent]], Rule] = {}
    for status, refusal in ((VolumeStatus.CREATING, _NOT_MADE), (VolumeStatus.DELETING, _GOING)):
        for request in (UseRequested, WorkBegun, ResizeRequested):
            table[status, request] = refusal
        for leaving in (MountFailed, ReleaseRequested, Released):
            table[status, leaving] = _UNUSED
        for ending in (WorkEnded, Resized, ResizeFailed):
            table[status, ending] = _ignored("nothing but that is done to it")
        table[status, IdleTooLong] = _ignored("it is not idle")
        table[status, FoundDamaged] = _ignored("what is on the disk of it is removed, or made anew")
        table[status, FoundWhole] = _ignored("what is on the disk of it is removed, or made anew")
        table[status, Measured] = _ignored("it holds nothing that anybody counts on")
    table[VolumeStatus.CREATING, Created] = _finish
    table[VolumeStatus.CREATING, CreateFailed] = _drop
    table[VolumeStatus.CREATING, DeleteRequested] = _NOT_MADE
    table[VolumeStatus.CREATING, Deleted] = _ignored("it was not to be removed")
    table[VolumeStatus.CREATING, DeleteFailed] = _ignored("it was not to be removed")
    table[VolumeStatus.CREATING, Restarted] = _give_up
    table[VolumeStatus.DELETING, Created] = _ignored("it was given up")
    table[VolumeStatus.DELETING, CreateFailed] = _ignored("it was given up")
    table[VolumeStatus.DELETING, DeleteRequested] = _delete_again
    table[VolumeStatus.DELETING, Deleted] = _drop
    table[VolumeStatus.DELETING, DeleteFailed] = _keep_deleting
    table[VolumeStatus.DELETING, Restarted] = _delete_again
    for status in (*_LIVE, VolumeStatus.DAMAGED):
        table[status, Created] = _ignored("it was made before")
        table[status, CreateFailed] = _ignored("it was made before")
        table[status, UseRequested] = _use
        table[status, MountFailed] = _lose_use
        table[status, ReleaseRequested] = _ask_release
        table[status, Released] = _release
        table[status, WorkBegun] = _begin_work
        table[status, WorkEnded] = _end_work
        table[status, ResizeRequested] = _begin_resize
        table[status, Resized] = _end_resize
        table[status, ResizeFailed] = _drop_resize
        table[status, DeleteRequested] = _delete
        table[status, IdleTooLong] = _ignored("it is not idle")
        table[status, Deleted] = _ignored("it was not to be removed")
        table[status, DeleteFailed] = _ignored("it was not to be removed")
        table[status, FoundDamaged] = _damage
        table[status, FoundWhole] = _ignored("nobody doubted it")
        table[status, Measured] = _measure
        table[status, Restarted] = _take_up
    table[VolumeStatus.AVAILABLE, IdleTooLong] = _expire
    table[VolumeStatus.BUSY, ResizeRequested] = _busy
    table[VolumeStatus.DAMAGED, UseRequested] = _broken
    table[VolumeStatus.DAMAGED, ResizeRequested] = _broken
    table[VolumeStatus.DAMAGED, FoundDamaged] = _ignored("told already")
    table[VolumeStatus.DAMAGED, FoundWhole] = _heal
    return table


def _busy(volume: Volume, event: ResizeRequested) -> Decision:  # noqa: ARG001
    return Refused(error=busy_with(volume))


TABLE: Final = _build()
