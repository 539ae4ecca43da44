"""Reading a range of history: what persist does not have, is late with, or gives twice."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from common.errors import JobletError, Reason, unavailable
from common.identifiers import new_job_id
from proto.joblet.v1 import job_pb2, persist_pb2
from services.api.followers.chunks import Chunk, encode
from services.api.followers.reader import Reader
from services.api.followers.selection import Selection, selection
from tests.waiting import SLOWNESS

Answer = list[persist_pb2.LogBatch] | JobletError
SILENCE: list[persist_pb2.LogBatch] = []
"""As an answer: none, the process is stopped."""


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
        if answer is SILENCE:
            await asyncio.Event().wait()
        for batch in answer:
            yield persist_pb2.LogBatches(batches=[batch]).SerializeToString()
        if self._stay and request.wait:
            await asyncio.Event().wait()


def lines(first: int, last: int) -> persist_pb2.LogBatch:
    """A stored batch that says its sequences."""
    data = b"".join(b"%d\n" % n for n in range(first, last + 1))
    return persist_pb2.LogBatch(stream=persist_pb2.STDOUT, first_sequence=first, lines=last - first + 1, data=data)


class Told:
    """What a read gave."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.through = 0

    @property
    def data(self) -> bytes:
        """All bytes."""
        return b"".join(chunk.data for chunk in self.chunks)

    @property
    def gaps(self) -> list[tuple[int, int, str]]:
        """From, to and why of each gap."""
        return [(chunk.first, chunk.last, chunk.gap_reason) for chunk in self.chunks if chunk.gap_reason]


def told(
    script: Script,
    first: int,
    last: int,
    *,
    final: bool = False,
    wanted: Selection | None = None,
    tail: int | None = None,
    complete: bool = False,
    delivered: bool = False,
    missing_s: float = 0.15,
) -> Told:
    """All of the range. `complete`: it is known before, `delivered`: when asked, that persist has had all."""

    async def is_delivered() -> bool:
        return delivered

    async def scenario() -> Told:
        reader = Reader(script, new_job_id(), wanted or Selection(), missing_s=missing_s, delivered=is_delivered)
        got = Told()
        async for part in reader.read(first, last, tail=tail, ended=lambda: final, complete=complete):
            got.chunks += part.chunks
            got.through = part.through
        return got

    return asyncio.run(scenario())


def read(script: Script, first: int, last: int, *, final: bool = False) -> tuple[bytes, int]:
    """All bytes of the range, and up to where it was read."""
    got = told(script, first, last, final=final)
    return got.data, got.through


def numbers(first: int, last: int) -> bytes:
    """What `lines` has in it."""
    return b"".join(b"%d\n" % n for n in range(first, last + 1))


def test_answers_beyond_the_range_are_cut() -> None:
    """Batches that reach over both ends are cut line by line."""
    assert read(Script([lines(1, 5), lines(6, 12)]), 3, 8) == (numbers(3, 8), 8)


def test_a_query_that_breaks_goes_on_where_it_was() -> None:
    """Persist dies in the middle, is away, comes back crowded: the next query begins behind what was got."""
    crowded = JobletError(Reason.EXHAUSTED, "too many queries at once")
    script = Script([lines(1, 3)], unavailable("away"), crowded, [lines(2, 9)])
    assert read(script, 1, 9) == (numbers(1, 9), 9)
    assert [query.from_sequence for query in script.asked] == [1, 4, 4, 4]


@pytest.mark.parametrize("stay", [True, False])
def test_the_missing_end_of_an_ended_job_is_an_error(*, stay: bool) -> None:
    """Persist answers and has no more, by silence or by ending: an error that says from where, and not a wait for ever.

    It is no loss: nobody has said that persist had it, so the job's journal has it still.
    """
    with pytest.raises(JobletError, match="from entry 3 to 9") as lost:
        read(Script([lines(1, 2)], [], stay=stay), 1, 9, final=True)
    assert lost.value.reason is Reason.UNAVAILABLE
    assert lost.value.retryable
    assert "from sequence 3" in lost.value.detail


def test_a_job_that_ends_while_its_output_is_waited_for() -> None:
    """It ran when the read began: from its end on nobody waits for ever for what persist cannot take."""
    script, looks = Script([lines(1, 2)], []), 0

    async def scenario() -> None:
        nonlocal looks

        async def is_delivered() -> bool:
            nonlocal looks
            looks += 1
            return False

        reader = Reader(script, new_job_id(), Selection(), missing_s=0.05, delivered=is_delivered)
        async with asyncio.timeout(10 * SLOWNESS):
            async for _ in reader.read(1, 9, tail=None, ended=lambda: looks > 2, complete=False):
                pass

    with pytest.raises(JobletError, match="from entry 3 to 9") as lost:
        asyncio.run(scenario())
    assert lost.value.retryable


def test_other_errors_are_not_retried() -> None:
    """What will not go away by waiting reaches the client."""
    with pytest.raises(JobletError) as gone:
        read(Script(JobletError(Reason.NOT_FOUND, "deleted")), 1, 2)
    assert gone.value.reason is Reason.NOT_FOUND


def test_with_a_filter_the_range_is_done_when_the_query_is() -> None:
    """Nothing of the rest is wanted: that is progress too, or the follower would ask for ever."""
    got = told(Script([lines(2, 2)]), 1, 9, wanted=selection(text="2"))
    assert (got.data, got.through) == (b"2\n", 9)
    got = told(Script([]), 1, 9, wanted=selection(pattern="x$"))
    assert (got.data, got.through) == (b"", 9)


def test_a_filtered_tail_is_asked_for_when_all_is_stored() -> None:
    """First the last entry is waited for, then the tail is counted."""
    script = Script([lines(9, 9)], [lines(7, 7)])
    assert told(script, 1, 9, wanted=selection(text="7"), tail=1).data == b"7\n"
    assert [(query.from_sequence, query.HasField("tail")) for query in script.asked] == [(9, False), (1, True)]
    assert script.asked[0].query.filter == ""


def test_what_is_selected_is_asked_for() -> None:
    """Stream, times, text or expression go to persist, and no offset: that is counted where live output is, too."""
    script = Script([])
    told(script, 3, 9, wanted=selection(stream=2, start_ns=10**18, end_ns=10**18 + 7, pattern="a|b"))
    assert script.asked == [
        persist_pb2.LogBatchQueryRequest(
            query=persist_pb2.LogQueryRequest(
                stream=persist_pb2.STDERR,
                start_time=10**18,
                end_time=10**18 + 7,
                regex="a|b",
                job_id=script.asked[0].query.job_id,
            ),
            from_sequence=3,
            until_sequence=9,
            wait=True,
        )
    ]


@pytest.mark.parametrize(
    ("stored", "gaps"),
    [
        ([], [(1, 9, "removed")]),
        ([lines(4, 9)], [(1, 3, "removed")]),
        ([lines(1, 4)], [(5, 9, "removed")]),
        ([lines(2, 3), lines(6, 7)], [(1, 1, "removed"), (4, 5, "removed"), (8, 9, "removed")]),
        ([lines(1, 9)], []),
    ],
)
def test_what_was_delivered_and_is_gone_is_a_gap_at_once(
    stored: list[persist_pb2.LogBatch], gaps: list[tuple[int, int, str]]
) -> None:
    """Persist has had all: it is asked once and without waiting, and every hole is told, at both ends, too."""
    script = Script(stored)
    got = told(script, 1, 9, final=True, complete=True, missing_s=60)
    assert (got.gaps, got.through) == (gaps, 9)
    assert got.data == b"".join(batch.data for batch in stored)
    assert [query.wait for query in script.asked] == [False]


def test_a_hole_of_any_size_can_be_told() -> None:
    """A message counts entries in 32 bits, and a job that writes line ends alone has more within minutes."""
    last = 3 * 2**32
    got = told(Script([]), 1, last, final=True, complete=True, missing_s=60)
    answer = job_pb2.StreamLogsResponse.FromString(encode(got.chunks))
    assert sum(chunk.lines for chunk in answer.chunks) == last
    assert [chunk.first_sequence for chunk in answer.chunks] == sorted({chunk.first for chunk in got.chunks})
    assert (got.through, {reason for _, _, reason in got.gaps}) == (last, {"removed"})


def test_removed_ends_are_told_beside_a_filter() -> None:
    """A query for some lines does not show what is missing: where the stored output begins and ends is asked first."""
    script = Script([lines(4, 4)], [lines(7, 7)], [lines(5, 5)])
    got = told(script, 1, 9, wanted=selection(text="5"), final=True, complete=True, missing_s=60)
    assert (got.gaps, got.data) == ([(1, 3, "removed"), (8, 9, "removed")], b"5\n")
    assert [(query.query.limit, query.tail, query.wait) for query in script.asked] == [
        *((1, 0, False), (0, 1, False), (0, 0, False))
    ]
    assert (script.asked[2].from_sequence, script.asked[2].until_sequence) == (4, 7)
    got = told(Script([]), 1, 9, wanted=selection(text="5"), tail=3, final=True, complete=True, missing_s=60)
    assert (got.gaps, got.through) == ([(1, 9, "removed")], 9)


def test_a_job_that_is_removed_while_it_is_read() -> None:
    """What was read stays read, and the rest is a gap; without waiting for what will never come."""
    script = Script([lines(1, 3)], JobletError(Reason.NOT_FOUND, "was deleted meanwhile"), [])
    got = told(script, 1, 3, final=True, complete=True, missing_s=60)
    assert (got.data, got.gaps) == (numbers(1, 3), [])
    script = Script(JobletError(Reason.NOT_FOUND, "was deleted meanwhile"), [])
    got = told(script, 1, 3, final=True, complete=True, missing_s=60)
    assert (got.data, got.gaps) == (b"", [(1, 3, "removed")])
    script = Script([lines(1, 2)], JobletError(Reason.NOT_FOUND, "was deleted meanwhile"))
    got = told(script, 1, 9, wanted=selection(text="no end of it"), final=True, complete=True, missing_s=60)
    assert (got.data, got.gaps) == (b"", [(1, 9, "removed")])


def test_delivery_is_asked_for_when_patience_is_over() -> None:
    """A job that ended while it was followed: what was delivered since, and removed, is a gap and no error."""
    got = told(Script([lines(1, 2)], [], [], stay=True), 1, 9, final=True, delivered=True)
    assert (got.data, got.gaps) == (numbers(1, 2), [(3, 9, "removed")])


@pytest.mark.threat("F20")
@pytest.mark.threat("F19")
@pytest.mark.parametrize("complete", [False, True])
def test_a_stopped_persist_is_no_loss(*, complete: bool) -> None:
    """It is silent, which says nothing of what it has: no error, no gap, and all lines when it goes on."""
    script = Script(SILENCE, SILENCE, SILENCE, [lines(1, 9)])
    assert told(script, 1, 9, final=True, complete=complete, wanted=None).data == numbers(1, 9)
