"""One follower over history and live output: what it gets is what a plain filter over all entries gives."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import records
from common.errors import JobletError
from common.identifiers import JobId, new_job_id
from common.messages import jobs
from proto.joblet.v1 import job_pb2, persist_pb2
from services.api.followers.chunks import batches_of
from services.api.followers.follower import LogFollower
from services.api.followers.output import Output
from services.api.followers.wanted import wanted_of
from tests.waiting import SLOWNESS

JOB = new_job_id()


class Entry(NamedTuple):
    """One entry as it was written; a missing one has a reason."""

    sequence: int
    stream: int
    time_ns: int
    data: bytes
    partial: bool = False
    gap: str = ""


class FakeFeed:
    """Hands on what the test publishes."""

    def __init__(self) -> None:
        self.output = Output(800)
        self.joined = False

    @contextmanager
    def following(self, job: JobId) -> Iterator[Output]:
        """See feed.Feeds."""
        assert job == JOB
        self.joined = True
        yield self.output


class PlainHistory:
    """Persist without any of its cleverness: looks at each entry, and answers each alone. Has all up to `stored`."""

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries
        self.more = asyncio.Condition()
        self.stored = 0

    async def store(self, last: int) -> None:
        """Everything up to `last` is there now."""
        async with self.more:
            self.stored = max(self.stored, last)
            self.more.notify_all()

    async def raw(self, method: str, request: object) -> AsyncGenerator[bytes, None]:
        """See history.History."""
        assert method == "QueryLogBatches"
        assert isinstance(request, persist_pb2.LogBatchQueryRequest)
        last = min(request.until_sequence, len(self.entries))
        async with self.more:
            await self.more.wait_for(lambda: not request.wait or self.stored >= last)
        query = request.query
        assert query.offset == 0
        found = [
            entry
            for entry in self.entries[: self.stored]
            if request.from_sequence <= entry.sequence <= request.until_sequence and is_wanted(entry, query)
        ]
        if request.HasField("tail"):
            found = tail_of(found, request.tail)
        for entry in found:
            batch = persist_pb2.LogBatch(
                stream=entry.stream,  # type: ignore[arg-type]  # the numbers are the same
                first_sequence=entry.sequence,
                lines=1,
                timestamp=entry.time_ns,
                data=entry.data,
                partial=entry.partial,
                gap_reason=entry.gap,
            )
            yield persist_pb2.LogBatches(batches=[batch]).SerializeToString()


def is_wanted(entry: Entry, query: persist_pb2.LogQueryRequest | job_pb2.StreamLogsRequest) -> bool:
    """What the contract says, entry by entry. Python's own `re` is the judge."""
    content = entry.data.removesuffix(b"\n")
    return (
        (not query.stream or entry.stream == query.stream or (bool(entry.gap) and entry.stream == 0))
        and entry.time_ns >= query.start_time
        and (not query.end_time or entry.time_ns < query.end_time)
        and (bool(entry.gap) or (query.filter.encode() in content and bool(re.search(query.regex.encode(), content))))
    )


def tail_of(entries: list[Entry], tail: int) -> list[Entry]:
    """The last so many entries, with the gaps among them."""
    positions = [n for n, entry in enumerate(entries) if not entry.gap]
    if tail == 0:
        return []
    return entries[positions[-tail] :] if len(positions) >= tail else entries


def expected_of(entries: list[Entry], request: job_pb2.StreamLogsRequest, position: int) -> list[Entry]:
    """The plain filter: what `request` means, for a client that came when the output had reached `position`."""
    chosen = [entry for entry in entries[max(request.from_sequence, 1) - 1 :] if is_wanted(entry, request)]
    plain = not (request.stream or request.start_time or request.end_time or request.filter or request.regex)
    if request.HasField("tail"):
        before = [entry for entry in chosen if entry.sequence <= position]
        kept = (before[-request.tail :] if request.tail else []) if plain else tail_of(before, request.tail)
        chosen = kept + [entry for entry in chosen if entry.sequence > position]
    counted = [entry for entry in chosen if plain or not entry.gap]
    page = counted[request.offset :][: request.limit or None]
    if plain:
        return page
    full = bool(request.limit) and len(page) == request.limit
    return [entry for entry in chosen if entry in page or (entry.gap and (not full or entry < page[-1]))]


def record_of(run: list[Entry]) -> bytes:
    """The journal record that holds these entries."""
    head = run[0]
    if head.gap:
        payload = json.dumps({"reason": head.gap, "bytes": 0}).encode()
        return records.encode(
            records.RecordType.GAP,
            payload,
            time_ns=head.time_ns,
            sequence=head.sequence,
            lines=len(run),
            stream=records.Stream(head.stream),
        )
    return records.encode(
        records.RecordType.OUTPUT,
        b"".join(entry.data for entry in run),
        time_ns=head.time_ns,
        sequence=head.sequence,
        lines=len(run),
        stream=records.Stream(head.stream),
        flags=records.Flags.PARTIAL if head.partial else records.Flags.NONE,
    )


@st.composite
def outputs(draw: st.DrawFn) -> list[list[Entry]]:
    """What a job wrote, record by record; times do not fall."""
    runs: list[list[Entry]] = []
    sequence, time_ns = 1, 10**18
    for _ in range(draw(st.integers(0, 12))):
        kind = draw(st.sampled_from(["lines", "lines", "lines", "piece", "gap"]))
        stream = draw(st.sampled_from([1, 2]))
        time_ns += draw(st.integers(0, 2))
        count = 1 if kind == "piece" else draw(st.integers(1, 5))
        run = []
        for _ in range(count):
            text = draw(st.sampled_from([b"", b"a", b"b", b"ab", b"\0\xff", b"ba "]))
            match kind:
                case "lines":
                    run.append(Entry(sequence, stream, time_ns, text + b"\n"))
                case "piece":
                    run.append(Entry(sequence, stream, time_ns, text, partial=True))
                case _:
                    run.append(Entry(sequence, draw(st.just(0)), time_ns, b"", gap="journal_full"))
            sequence += 1
        runs.append(run)
    return runs


REQUESTS = st.fixed_dictionaries(
    {},
    optional={
        "stream": st.sampled_from([1, 2]),
        "from_sequence": st.integers(0, 30),
        "start_time": st.integers(10**18, 10**18 + 10),
        "end_time": st.integers(10**18, 10**18 + 20),
        "limit": st.integers(1, 12),
    },
)
CHOICES = st.sampled_from(
    [{}, {"filter": "a"}, {"filter": "ab"}, {"regex": "^a"}, {"regex": "b$"}, {"regex": "^$"}, {"regex": "zz"}]
)
COUNTS: st.SearchStrategy[dict[str, int]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"offset": st.integers(0, 12)}),
    st.fixed_dictionaries({"tail": st.integers(0, 12)}),
)


async def followed(
    runs: list[list[Entry]], request: job_pb2.StreamLogsRequest, before: int, fates: list[str]
) -> tuple[list[Entry], int, bool]:
    """What a client gets that comes when the first `before` records are written; how far the output was then."""
    entries = [entry for run in runs for entry in run]
    history, feed = PlainHistory(entries), FakeFeed()
    record = jobs.JobRecord(
        id=JOB,
        owner="ann",
        node_id="n",
        state=jobs.State.RUNNING,
        spec=jobs.JobSpec(command="x"),
        created_at_ns=1,
        last_sequence=0,
    )

    async def look(job: JobId) -> jobs.JobFound:
        raise AssertionError(job)

    follower = LogFollower(
        jobs.JobFound(job=record),
        wanted_of(request, now_ns=1),
        feeds=feed,
        queries=history,
        look=look,
    )
    got: list[Entry] = []
    ended = False

    async def take() -> None:
        nonlocal ended
        async for message in follower.messages():
            answer = job_pb2.StreamLogsResponse.FromString(message)
            ended = ended or answer.HasField("ended")
            for chunk in answer.chunks:
                got.extend(entries_of(chunk))

    task = asyncio.create_task(take())
    position = sum(len(run) for run in runs[:before])
    await asyncio.sleep(0)  # the follower comes
    assert feed.joined or task.done()
    feed.output.marked(position)
    for _ in range(3):
        await asyncio.sleep(0)  # a tail counts from where the output is when the client hears of it
    for number, run in enumerate(runs[before:]):
        fate = fates[number % len(fates)] if fates else "live"
        if fate != "lost":
            for batch in batches_of(record_of(run)):
                feed.output.published(batch)
            feed.output.tell()
        if fate == "slow":
            continue
        await history.store(run[-1].sequence)
        for _ in range(3):
            await asyncio.sleep(0)
    final = jobs.JobRecord(
        id=JOB,
        owner="ann",
        node_id="n",
        state=jobs.State.COMPLETED,
        spec=record.spec,
        created_at_ns=1,
        last_sequence=len(entries),
    )
    await history.store(len(entries))
    feed.output.ended(final)
    async with asyncio.timeout(20):
        await task
    return got, position, ended


def entries_of(chunk: job_pb2.LogChunk) -> list[Entry]:
    """The entries of a chunk as the model has them."""
    if chunk.HasField("gap"):
        return [
            Entry(chunk.first_sequence + n, chunk.stream, chunk.timestamp, b"", gap=chunk.gap.reason)
            for n in range(chunk.lines)
        ]
    if chunk.partial:
        assert chunk.lines == 1
        return [Entry(chunk.first_sequence, chunk.stream, chunk.timestamp, chunk.data, partial=True)]
    lines = chunk.data.split(b"\n")[:-1]
    assert len(lines) == chunk.lines
    return [
        Entry(chunk.first_sequence + n, chunk.stream, chunk.timestamp, line + b"\n") for n, line in enumerate(lines)
    ]


@pytest.mark.requirement("S0.45")
@pytest.mark.threat("E06")
@settings(max_examples=250, deadline=None)
@given(
    runs=outputs(),
    fields=st.tuples(REQUESTS, CHOICES, COUNTS),
    before=st.integers(0, 12),
    fates=st.lists(st.sampled_from(["live", "lost", "slow"]), max_size=5),
)
def test_history_and_live_give_what_a_plain_filter_gives(
    runs: list[list[Entry]],
    fields: tuple[dict[str, int], dict[str, str], dict[str, int]],
    before: int,
    fates: list[str],
) -> None:
    """Whatever is stored, live, lost or late: the same entries and gaps; offset, limit and tail count over the seam."""
    request = job_pb2.StreamLogsRequest(follow=True)
    for part in fields:
        request.MergeFrom(job_pb2.StreamLogsRequest(**part))
    if "tail" in fields[2]:
        request.tail = fields[2]["tail"]
    before = min(before, len(runs))
    got, position, ended = asyncio.run(followed(runs, request, before, fates))
    every = [entry for run in runs for entry in run]
    expected = expected_of(every, request, position)
    assert got == expected
    if not request.limit and not request.end_time:
        assert ended


@pytest.mark.parametrize("follow", [True, False])
def test_a_job_that_ends_while_its_output_is_waited_for(*, follow: bool) -> None:
    """It ran when its stored output was asked for, and the disk of the logs is full: an error, and no wait for ever."""
    entries = [Entry(number, records.Stream.STDOUT, 1, b"a\n") for number in range(1, 4)]
    running = jobs.JobRecord(
        id=JOB,
        owner="ann",
        node_id="n",
        state=jobs.State.RUNNING,
        spec=jobs.JobSpec(command="x"),
        created_at_ns=1,
        last_sequence=3,
    )
    ended = msgspec.structs.replace(running, state=jobs.State.COMPLETED)

    async def scenario() -> None:
        history, feed, is_over = PlainHistory(entries), FakeFeed(), False

        async def look(job: JobId) -> jobs.JobFound:
            assert job == JOB
            return jobs.JobFound(job=ended if is_over else running)

        follower = LogFollower(
            jobs.JobFound(job=running),
            wanted_of(job_pb2.StreamLogsRequest(follow=follow), now_ns=1),
            feeds=feed,
            queries=history,
            look=look,
            missing_s=0.05,
        )

        async def take() -> list[bytes]:
            return [message async for message in follower.messages()]

        taking = asyncio.create_task(take())
        await asyncio.sleep(0)
        feed.output.marked(3)
        await asyncio.sleep(0.12)
        assert not taking.done()  # while it runs what is missing is on its way
        is_over = True
        feed.output.ended(ended)
        async with asyncio.timeout(10 * SLOWNESS):
            await taking

    with pytest.raises(JobletError, match="cannot be stored now") as lost:
        asyncio.run(scenario())
    assert lost.value.retryable
