"""Reading one job's samples, and making one of many. Called in worker threads, a step at a time."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec
import structlog

from common.identifiers import JobId
from proto.joblet.v1 import persist_pb2 as pb
from services.persist import samples
from services.persist.index import Bounds
from services.persist.lines import INTEGER_MAX
from services.persist.member import DamagedMember
from services.persist.samples import Sample
from services.persist.segment import StaleSegment
from services.persist.selection import MetricSelection
from services.persist.store import Store

log = structlog.get_logger(__name__)

_INTEGERS: Final = frozenset(
    field.name for field in msgspec.structs.fields(Sample) if field.type is int and field.name != "timestamp"
)
_FLOATS: Final = frozenset(field.name for field in msgspec.structs.fields(Sample) if field.type is float)
_COMBINE: Final[dict[str, Callable[[float, float], float]]] = {
    "avg": lambda total, value: total + value,
    "sum": lambda total, value: total + value,
    "min": min,
    "max": max,
}


def read(store: Store, selection: MetricSelection) -> Iterator[list[pb.Metric]]:
    """The wanted samples, oldest first, a list a step; with an aggregation, one sample at the end, or none."""
    selected = _selected(store, selection)
    if not selection.aggregation:
        for step in selected:
            yield [_message(selection.job, sample) for sample in step]
        return
    summary = _Summary(selection.aggregation)
    for step in selected:
        summary.add(step)
        yield []
    if summary.count:
        yield [_message(selection.job, summary.sample())]


def _selected(store: Store, selection: MetricSelection) -> Iterator[list[Sample]]:
    bounds, skip, left = selection.bounds, selection.offset, selection.limit
    for step in _stored(store, selection.job, bounds):
        first, last = bounds.first_time_ns or 0, INTEGER_MAX if bounds.last_time_ns is None else bounds.last_time_ns
        wanted = [sample for sample in step if first <= sample.timestamp <= last]
        skipped = min(skip, len(wanted))
        skip -= skipped
        wanted = wanted[skipped:] if left is None else wanted[skipped : skipped + left]
        left = None if left is None else left - len(wanted)
        yield wanted
        if left == 0:
            return


def _stored(store: Store, job: JobId, bounds: Bounds) -> Iterator[Sequence[Sample]]:
    """Member by member. What was removed meanwhile is not there; nothing else refers to it."""
    segment = store.metrics(job)
    for found in segment.index.touched(bounds):
        try:
            yield samples.decode(store.read(job, segment, found))
        except (FileNotFoundError, StaleSegment):
            return
        except (DamagedMember, msgspec.DecodeError, ValueError) as cause:
            log.error("stored samples are damaged", job=job, offset=found.offset, why=str(cause))


class _Summary:
    """Field by field; the time is that of the last sample. An average of whole numbers is rounded."""

    def __init__(self, aggregation: str) -> None:
        self._aggregation = aggregation
        self._combine = _COMBINE[aggregation]
        self._values: dict[str, float] = {}
        self._timestamp = 0
        self.count = 0

    def add(self, step: Sequence[Sample]) -> None:
        for sample in step:
            for name in (*_INTEGERS, *_FLOATS):
                value = getattr(sample, name)
                self._values[name] = self._combine(self._values[name], value) if name in self._values else value
            self._timestamp = sample.timestamp
            self.count += 1

    def sample(self) -> Sample:
        divisor = self.count if self._aggregation == "avg" else 1
        integers = {name: min(INTEGER_MAX, round(self._values[name] / divisor)) for name in _INTEGERS}
        floats = {name: self._values[name] / divisor for name in _FLOATS}
        return msgspec.convert({"timestamp": self._timestamp, **integers, **floats}, Sample)


def _message(job: str, sample: Sample) -> pb.Metric:
    return pb.Metric(job_id=job, **msgspec.structs.asdict(sample))
