"""Records as they are shown: with how much output there is by now, and the place of those that wait.

Neither is stored: it changes all the time. Not here: pages and filters (`job_pages.py`).
"""

from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec

from common.identifiers import JobId
from common.messages.jobs import JobRecord, State
from services.executor.events import Job
from services.executor.waiting import Waiting


class Published(Protocol):
    """What is needed of output.Output."""

    def last_sequence(self, job: JobId) -> int | None:
        """Of the last entry that was published; None: the job is not followed."""


def view(record: JobRecord, active: Mapping[JobId, Job], waiting: Waiting, output: Published) -> JobRecord:
    """One record. `active` are the jobs with a slot."""
    job = active.get(record.id)
    if job is None:
        position = waiting.position(record.id) if record.state is State.PENDING else 0
        return msgspec.structs.replace(record, queue_position=position) if position else record
    sequence = output.last_sequence(record.id)
    return job.record if sequence is None else job.with_record(last_sequence=sequence).record


def views(
    records: Iterable[JobRecord], active: Mapping[JobId, Job], waiting: Waiting, output: Published
) -> tuple[JobRecord, ...]:
    """A whole page: the queue is walked once at most."""
    positions: dict[JobId, int] | None = None
    shown = []
    for record in records:
        if record.state is not State.PENDING or record.id in active:
            shown.append(view(record, active, waiting, output))
            continue
        positions = waiting.positions() if positions is None else positions
        shown.append(msgspec.structs.replace(record, queue_position=positions.get(record.id, 0)))
    return tuple(shown)
