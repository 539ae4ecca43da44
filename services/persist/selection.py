"""What a query asks for: requests in, checked values out; INVALID_ARGUMENT for what cannot be meant. Pure."""

from typing import Final, NamedTuple

from common.errors import invalid
from common.identifiers import JobId, parse_job_id
from common.matching import Matcher, matcher
from common.quantities import request_time_ns
from common.records import Stream
from proto.joblet.v1 import persist_pb2 as pb
from services.persist.index import Bounds
from services.persist.lines import INTEGER_MAX

AGGREGATIONS: Final = ("", "avg", "min", "max", "sum")


class LogSelection(NamedTuple):
    """Which entries of a job. Without a `matcher`, all of them."""

    job: JobId
    streams: tuple[Stream, ...]
    bounds: Bounds
    matcher: Matcher | None
    limit: int | None
    offset: int
    tail: int | None
    wait: bool


class MetricSelection(NamedTuple):
    """Which samples of a job; bounds in time. With an aggregation, one sample is made of those."""

    job: JobId
    bounds: Bounds
    aggregation: str
    limit: int | None
    offset: int


def of_lines(request: pb.LogQueryRequest) -> LogSelection:
    """What QueryLogs asks for."""
    return _logs(request, Bounds(), tail=None, wait=False)


def of_batches(request: pb.LogBatchQueryRequest) -> LogSelection:
    """What QueryLogBatches asks for."""
    tail = request.tail if request.HasField("tail") else None
    if tail is not None and (request.query.limit or request.query.offset):
        raise invalid("tail excludes limit and offset", "ask for one of them")
    for name, sequence in (("from_sequence", request.from_sequence), ("until_sequence", request.until_sequence)):
        if sequence > INTEGER_MAX:
            raise invalid(f"{name} {sequence} is too large", f"at most {INTEGER_MAX}")
    bounds = Bounds(first_sequence=request.from_sequence, last_sequence=request.until_sequence or None)
    return _logs(request.query, bounds, tail=tail, wait=request.wait)


def of_metrics(request: pb.MetricQueryRequest) -> MetricSelection:
    """What QueryMetrics asks for."""
    if request.aggregation not in AGGREGATIONS:
        raise invalid(f"unknown aggregation {request.aggregation[:40]!r}", "use avg, min, max or sum")
    bounds = _times(Bounds(), request.start_time, request.end_time)
    limit, offset = _page(request.limit, request.offset)
    return MetricSelection(parse_job_id(request.job_id), bounds, request.aggregation, limit, offset)


def _logs(request: pb.LogQueryRequest, bounds: Bounds, *, tail: int | None, wait: bool) -> LogSelection:
    limit, offset = _page(request.limit, request.offset)
    return LogSelection(
        job=parse_job_id(request.job_id),
        streams=_streams(request),
        bounds=_times(bounds, request.start_time, request.end_time),
        matcher=matcher(text=request.filter, pattern=request.regex),
        limit=limit,
        offset=offset,
        tail=tail,
        wait=wait,
    )


def _streams(request: pb.LogQueryRequest) -> tuple[Stream, ...]:
    if not request.HasField("stream") or request.stream == pb.STREAM_TYPE_UNSPECIFIED:
        return (Stream.STDOUT, Stream.STDERR)
    if request.stream not in (pb.STDOUT, pb.STDERR):
        raise invalid(f"unknown stream {int(request.stream)}", "use STDOUT or STDERR, or leave it out")
    return (Stream(int(request.stream)),)


def _page(limit: int, offset: int) -> tuple[int | None, int]:
    for name, number in (("limit", limit), ("offset", offset)):
        if number < 0:
            raise invalid(f"{name} {number} is negative", "use 0 or more")
    return limit or None, offset


def _times(bounds: Bounds, start_time: int, end_time: int) -> Bounds:
    start_ns, end_ns = request_time_ns(start_time), request_time_ns(end_time)
    if end_ns and start_ns > end_ns:
        raise invalid(f"start_time {start_time} is after end_time {end_time}", "swap them")
    return bounds._replace(first_time_ns=start_ns or None, last_time_ns=end_ns - 1 if end_ns else None)
