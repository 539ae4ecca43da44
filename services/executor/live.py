"""Publishes what happens to jobs as it happens, and never waits for anyone.

A slow subscriber misses messages and sees a hole in the sequence; what it missed is with persist.

On `log.<job>`: whole records as they stand in the journal, and markers. On `job.<job>`: every change of state, the
last one after the job's last log records.
"""

from typing import Protocol

from common.identifiers import JobId
from common.messages.envelope import Body
from common.messages.jobs import JobChanged, JobRecord
from common.messages.logs import LogMarker, LogRecords
from common.messages.topics import job_topic, log_topic


class Publishes(Protocol):
    """What is needed of common.bus.events.Publisher."""

    def publish(self, topic: str, body: Body) -> None:
        """Send `body` to the subscribers of `topic`."""


class Live:
    """The topics of all jobs."""

    def __init__(self, publisher: Publishes) -> None:
        self._publisher = publisher

    def records(self, job: JobId, records: bytes) -> None:
        """Publish whole records of a job, in the order of its journal."""
        if records:
            self._publisher.publish(log_topic(job), LogRecords(job=job, records=records))

    def marker(self, job: JobId, marker: str, last_sequence: int) -> None:
        """Tell every subscriber of the job's log where the topic is: all up to `last_sequence` is behind it."""
        self._publisher.publish(log_topic(job), LogMarker(job=job, marker=marker, last_sequence=last_sequence))

    def changed(self, record: JobRecord, *, deleted: bool = False) -> None:
        """Publish a job's record after a change, or its last one when it was deleted."""
        self._publisher.publish(job_topic(record.id), JobChanged(job=record, deleted=deleted))
