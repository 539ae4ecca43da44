"""What requests may ask for: checked once, refused in words."""

import pytest

from common.errors import JobletError, Reason
from common.identifiers import new_job_id
from common.matching import RegexMatcher, TextMatcher
from common.records import Stream
from proto.joblet.v1 import persist_pb2 as pb
from services.persist import selection

JOB = new_job_id()


@pytest.mark.threat("C24")
@pytest.mark.parametrize(
    "fields",
    [
        {"limit": -1},
        {"offset": -1},
        {"start_time": -1},
        {"end_time": -(2**63)},
        {"start_time": 200, "end_time": 100},
        {"filter": "x" * 5000},
        {"regex": "x" * 5000},
        {"filter": "a", "regex": "a"},
        {"regex": "("},
        {"regex": r"(a)\1"},
        {"regex": "a{1001}"},
        {"regex": "(.{0,1000}){3}"},
        {"stream": 7},
        {"job_id": ""},
        {"job_id": "../../etc/passwd\0"},
        {"job_id": JOB.upper()},
        {"job_id": f"{JOB}/"},
    ],
)
def test_a_log_query_that_cannot_be_meant_is_invalid(fields: dict[str, object]) -> None:
    """Negative, reversed, too long, unknown, malformed: INVALID, with a text."""
    with pytest.raises(JobletError) as error:
        selection.of_lines(pb.LogQueryRequest(**{"job_id": JOB, **fields}))  # type: ignore[arg-type]
    assert error.value.reason is Reason.INVALID


@pytest.mark.threat("C24")
@pytest.mark.parametrize(
    "request_",
    [
        pb.LogBatchQueryRequest(query=pb.LogQueryRequest(job_id=JOB, limit=1), tail=5),
        pb.LogBatchQueryRequest(query=pb.LogQueryRequest(job_id=JOB, offset=1), tail=5),
        pb.LogBatchQueryRequest(query=pb.LogQueryRequest(job_id=JOB), from_sequence=2**63),
        pb.LogBatchQueryRequest(query=pb.LogQueryRequest(job_id=JOB), until_sequence=2**64 - 1),
        pb.LogBatchQueryRequest(),
    ],
)
def test_a_batch_query_that_cannot_be_meant_is_invalid(request_: pb.LogBatchQueryRequest) -> None:
    """A tail excludes limit and offset; sequences end at 2**63 - 1; a job must be named."""
    with pytest.raises(JobletError) as error:
        selection.of_batches(request_)
    assert error.value.reason is Reason.INVALID


@pytest.mark.requirement("S0.46")
def test_metric_queries_are_checked() -> None:
    """Only the four aggregations, and no negative page."""
    assert selection.of_metrics(pb.MetricQueryRequest(job_id=JOB, aggregation="avg")).aggregation == "avg"
    for fields in ({"aggregation": "median"}, {"limit": -1}, {"offset": -2}, {"start_time": -5}, {"job_id": "x"}):
        with pytest.raises(JobletError) as error:
            selection.of_metrics(pb.MetricQueryRequest(**{"job_id": JOB, **fields}))  # type: ignore[arg-type]
        assert error.value.reason is Reason.INVALID


@pytest.mark.requirement("X14")
def test_times_are_seconds_or_nanoseconds() -> None:
    """Below 10**11 they are seconds; the end is exclusive; 0 is no bound."""
    bounds = selection.of_lines(pb.LogQueryRequest(job_id=JOB, start_time=1_700_000_000, end_time=2 * 10**18)).bounds
    assert (bounds.first_time_ns, bounds.last_time_ns) == (1_700_000_000 * 10**9, 2 * 10**18 - 1)
    bounds = selection.of_lines(pb.LogQueryRequest(job_id=JOB)).bounds
    assert (bounds.first_time_ns, bounds.last_time_ns) == (None, None)


@pytest.mark.requirement("S0.45")
def test_a_text_or_an_expression_is_looked_for() -> None:
    """Each is given to its matcher, and neither is no matcher; in batches as in lines."""
    for query, kind in (
        (pb.LogQueryRequest(job_id=JOB, filter="a.b"), TextMatcher),
        (pb.LogQueryRequest(job_id=JOB, regex="a.b"), RegexMatcher),
    ):
        for found in (selection.of_lines(query), selection.of_batches(pb.LogBatchQueryRequest(query=query))):
            assert isinstance(found.matcher, kind)
            assert found.matcher.matches(b"a.b")
            assert found.matcher.matches(b"axb") == (kind is RegexMatcher)
    assert selection.of_lines(pb.LogQueryRequest(job_id=JOB)).matcher is None


def test_no_stream_means_both() -> None:
    """Unset and UNSPECIFIED are the same."""
    both = (Stream.STDOUT, Stream.STDERR)
    assert selection.of_lines(pb.LogQueryRequest(job_id=JOB)).streams == both
    assert selection.of_lines(pb.LogQueryRequest(job_id=JOB, stream=pb.STREAM_TYPE_UNSPECIFIED)).streams == both
    assert selection.of_lines(pb.LogQueryRequest(job_id=JOB, stream=pb.STDERR)).streams == (Stream.STDERR,)
