"""Reading a range of history: what persist does not have, is late with, or gives twice."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from common.errors import JobletError, Reason, unavailable
from common.identifiers import new_job_id
from proto.joblet.v1 import persist_pb2
from services.api.followers.chunks import Selection
from services.api.followers.reader import Reader

Answer = list[persist_pb2.LogBatch] | JobletError


class Script:
    """Answers queries from a list, one after the other, and then as the last one. Keeps the queries."""

    def __init__(self, *answers: Answer, stay: bool = False) -> None:
        self.asked: list[persist_pb2.LogBatchQueryRequest] = []
        self._answers = list(answers)
        self._stay = stay

    async def raw(self, method: str, request: object) -> AsyncGenerator[bytes, None]:
        """See history.History."""
        assert method == "QueryLogBatches"
        assert isinstance(request, persist_pb2.LogBatchQueryRequest)
        self.asked.append(request)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, JobletError):
            raise answer
        for batch in answer:
            yield persist_pb2.LogBatches(batches=[batch]).SerializeToString()
        if self._stay:
            await asyncio.Event().wait()


def lines(first: int, last: int) -> persist_pb2.LogBatch:
    """A stored batch that says its sequences."""
    data = b"".join(b"%d\n" % n for n in range(first, last + 1))
    return persist_pb2.LogBatch(stream=persist_pb2.STDOUT, first_sequence=first, lines=last - first + 1, data=data)


def read(
    script: Script,
    first: int,
    last: int,
    *,
    final: bool = False,
    selection: Selection | None = None,
    tail: int | None = None,
) -> tuple[bytes, int]:
    """All bytes of the range, and up to where it was read."""

    async def scenario() -> tuple[bytes, int]:
        reader = Reader(script, new_job_id(), selection or Selection(), missing_s=0.15)
        data, through = b"", first - 1
        async for part in reader.read(first, last, tail=tail, final=final):
            data += b"".join(chunk.data for chunk in part.chunks)
            through = part.through
        return data, through

    return asyncio.run(scenario())


def numbers(first: int, last: int) -> bytes:
    """What `lines` has in it."""
    return b"".join(b"%d\n" % n for n in range(first, last + 1))


def test_answers_beyond_the_range_are_cut() -> None:
    """Batches that reach over both ends are cut line by line."""
    assert read(Script([lines(1, 5), lines(6, 12)]), 3, 8) == (numbers(3, 8), 8)


def test_a_query_that_breaks_goes_on_where_it_was() -> None:
    """Persist dies in the middle, is away, and comes back: the next query begins behind what was got."""
    script = Script([lines(1, 3)], unavailable("away"), [lines(2, 9)])
    assert read(script, 1, 9) == (numbers(1, 9), 9)
    assert [query.from_sequence for query in script.asked] == [1, 4, 4]


@pytest.mark.parametrize("stay", [True, False])
def test_the_missing_end_of_an_ended_job_is_an_error(*, stay: bool) -> None:
    """Persist answers and has no more, by silence or by ending: DATA_LOSS that says from where, not a wait for ever."""
    with pytest.raises(JobletError, match="from entry 3 to 9") as lost:
        read(Script([lines(1, 2)], [], stay=stay), 1, 9, final=True)
    assert lost.value.reason is Reason.DATA_LOSS


def test_other_errors_are_not_retried() -> None:
    """What will not go away by waiting reaches the client."""
    with pytest.raises(JobletError) as gone:
        read(Script(JobletError(Reason.NOT_FOUND, "deleted")), 1, 2)
    assert gone.value.reason is Reason.NOT_FOUND


def test_with_a_filter_the_range_is_done_when_the_query_is() -> None:
    """Nothing of the rest is wanted: that is progress too, or the follower would ask for ever."""
    assert read(Script([lines(2, 2)]), 1, 9, selection=Selection(text=b"2")) == (b"2\n", 9)
    assert read(Script([]), 1, 9, selection=Selection(text=b"x")) == (b"", 9)


def test_a_filtered_tail_is_asked_for_when_all_is_stored() -> None:
    """First the last entry is waited for, then the tail is counted."""
    script = Script([lines(9, 9)], [lines(7, 7)])
    assert read(script, 1, 9, selection=Selection(text=b"7"), tail=1) == (b"7\n", 9)
    assert [(query.from_sequence, query.HasField("tail")) for query in script.asked] == [(9, False), (1, True)]
    assert script.asked[0].query.filter == ""
