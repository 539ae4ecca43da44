"""What a client asks for in a StreamLogsRequest, checked. Pure. Does not belong here: doing it (`follower.py`)."""

from typing import NamedTuple

from common.errors import invalid
from common.quantities import request_time_ns
from proto.joblet.v1 import job_pb2, persist_pb2
from services.api.followers.selection import Selection, selection


class Wanted(NamedTuple):
    """What a client asked for."""

    selection: Selection
    from_sequence: int
    tail: int | None
    offset: int
    limit: int  # 0: none
    follow: bool


def wanted_of(request: job_pb2.StreamLogsRequest, *, now_ns: int) -> Wanted:
    """The request, checked. Raises JobletError(INVALID) naming the field."""
    stream = request.stream if request.HasField("stream") else None
    if stream is not None and stream not in {persist_pb2.STDOUT, persist_pb2.STDERR}:
        raise invalid(f"stream: no such stream {stream}", "use STDOUT or STDERR, or leave it out for both")
    tail = request.tail if request.HasField("tail") else None
    if tail is not None and request.offset:
        raise invalid("tail and offset exclude each other", "leave one of them out")
    end_ns = request_time_ns(request.end_time)
    return Wanted(
        selection=selection(
            stream=stream,
            start_ns=request_time_ns(request.start_time),
            end_ns=end_ns,
            text=request.filter,
            pattern=request.regex,
        ),
        from_sequence=max(request.from_sequence, 1),
        tail=tail,
        offset=request.offset,
        limit=request.limit,
        follow=request.follow and not 0 < end_ns <= now_ns,  # nothing that is still to come would be before the end
    )
