"""Who may have a volume at once: jobs among each other, and jobs beside what else is done with it. Pure.

One writer or many readers, unless the volume was made to be shared; then any number of both. An export reads, an import
writes. While the content is copied or replaced as a whole, nobody comes in.
"""

from typing import Final

from common.errors import JobletError, exhausted, precondition
from common.messages.volumes import VolumeKind, VolumeRecord, VolumeUse
from services.volumes.events import UseRequested, Volume, Work, WorkKind

USES_MAX: Final = 500
"""Of one volume at once: its record, with all of them, has to fit into an answer."""
JOB_CHARACTERS: Final = 8
"""So much of a job's id is told: what its other commands take."""

_APART: Final = frozenset({WorkKind.DROP, WorkKind.SHOW})
"""These touch a snapshot only."""


def refused_use(volume: Volume, event: UseRequested) -> JobletError | None:
    """Why the job, which does not have the volume, cannot have it now; None: it can."""
    record = volume.record
    refusal = None if volume.work is None else _refused_beside(record, volume.work, event)
    if refusal is not None:
        return refusal
    if len(record.uses) >= USES_MAX:
        return exhausted(f"volume {record.name} is used by {USES_MAX} jobs", "wait for the end of one of them")
    if record.shared:
        return None
    writer = next((use for use in record.uses if not use.read_only), None)
    if writer is not None:
        return precondition(
            used_by(record, writer), "wait for its end; several may share only a volume made with shared"
        )
    if record.uses and not event.read_only:
        return precondition(used_by(record), "its readers go first; or read it too, with :ro")
    return None


def refused_work(volume: Volume, work: Work) -> JobletError | None:
    """Why `work` cannot begin on the volume, on which no other is going on; None: it can."""
    record = volume.record
    match work.kind:
        case WorkKind.DROP | WorkKind.SHOW | WorkKind.SNAPSHOT | WorkKind.COPY:
            return None  # the storage sees to a consistent copy, also while jobs write
        case WorkKind.RESTORE:
            return precondition(used_by(record), "stop the job, or detach the volume") if record.uses else None
        case WorkKind.EXPORT | WorkKind.IMPORT:
            return _refused_stream(record, work.kind)


def used_by(record: VolumeRecord, use: VolumeUse | None = None) -> str:
    """That jobs use it, naming `use`'s or the one that has had it longest."""
    named = use or record.uses[0]
    others = len(record.uses) - 1
    more = f" (and {others} more)" if others else ""
    return f"volume {record.name} is used by job {named.job[:JOB_CHARACTERS]}{more}"


def busy_with(volume: Volume) -> JobletError:
    """That something is done to it."""
    what = volume.work.kind.value if volume.work is not None else "a resize"
    return precondition(f"volume {volume.record.name} is busy with {what}", "try again when that is done")


def _refused_beside(record: VolumeRecord, work: Work, event: UseRequested) -> JobletError | None:
    if work.kind in _APART:
        return None
    if work.kind is WorkKind.EXPORT and (event.read_only or record.shared):
        return None
    if work.kind is WorkKind.IMPORT and record.shared:
        return None
    detail = "try again when that is done"
    return precondition(f"volume {record.name} is busy with {work.kind.value}", detail)


def _refused_stream(record: VolumeRecord, kind: WorkKind) -> JobletError | None:
    if record.kind is VolumeKind.MEMORY and not record.uses:
        return precondition(
            f"memory volume {record.name} holds nothing while no job uses it", "export or import while a job has it"
        )
    if record.shared:
        return None
    if kind is WorkKind.IMPORT and record.uses:
        return precondition(used_by(record), "stop the job, or detach the volume")
    writer = next((use for use in record.uses if not use.read_only), None)
    if writer is not None:
        return precondition(used_by(record, writer), "take a snapshot and export that, or wait for the job's end")
    return None
