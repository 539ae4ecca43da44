"""Streams of output through the real server: stored and live as one, exact, once, in order; and what disturbs them."""

import asyncio
import resource
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from common import records
from common.config.settings import Grpc
from common.messages import jobs
from proto.joblet.v1 import job_pb2, persist_pb2
from tests.api_node import Client, running_node
from tests.waiting import SLOWNESS, await_for


async def collect(client: Client, job: str, **fields: Any) -> tuple[list[tuple[int, bytes]], job_pb2.Job | None]:
    """Every chunk of a stream until its end: (first sequence, data), and the ended job."""
    chunks, ended = [], None
    async for message in client.jobs.StreamLogs(job_pb2.StreamLogsRequest(job_id=job, **fields), timeout=30 * SLOWNESS):
        chunks += [(chunk.first_sequence, chunk.data) for chunk in message.chunks]
        ended = message.ended if message.HasField("ended") else ended
    return chunks, ended


def text(chunks: list[tuple[int, bytes]]) -> bytes:
    """The bytes of chunks in the order they came."""
    return b"".join(data for _, data in chunks)


@pytest.mark.requirement("S3.13")
def test_stored_output_then_live_output_then_the_ended_job(tmp_path: Path) -> None:
    """A follower of a running job gets what was written before it came, what is written then, and the end."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            client = node.client("ann", "user")
            run = await client.jobs.RunJob(job_pb2.RunJobRequest(spec=job_pb2.JobSpec(command="sh")))
            job = run.job.id
            node.executor.write(job, b"one\ntwo\n", publish=False)
            following = asyncio.create_task(collect(client, job, follow=True))
            await await_for(lambda: node.persist.queries, what="the history query")
            node.executor.write(job, b"three\n\0\xff\n")
            node.executor.write(job, b"no line end", stream=records.Stream.STDERR)
            node.executor.finish(job)
            chunks, ended = await following
            assert text(chunks) == b"one\ntwo\nthree\n\0\xff\nno line end"
            assert ended is not None
            assert ended.state == job_pb2.COMPLETED
            assert ended.last_sequence == 5
            assert (await client.jobs.GetJob(job_pb2.GetJobRequest(job_id=job[:8]))).id == job

    asyncio.run(scenario())


@pytest.mark.threat("E06")
@pytest.mark.threat("F02")
def test_lost_publications_and_an_absent_persist_leave_no_hole(tmp_path: Path) -> None:
    """PUB loses messages, persist is away and comes back: the client stays connected and gets every line once."""

    async def scenario() -> None:
        async with running_node(tmp_path, silence_s=0.2) as node:
            job = node.executor.add("ann").id
            client = node.client("ann", "user")
            following = asyncio.create_task(collect(client, job, follow=True))
            await await_for(lambda: node.api.hub.topics, what="the subscription")
            node.persist.away = True
            for number in range(300):
                node.executor.write(job, b"%d\n" % number, publish=number % 3 != 1)
                if number % 50 == 0:
                    await asyncio.sleep(0)
            await await_for(lambda: node.persist.queries > 1, what="a query while persist is away")
            node.persist.away = False
            node.executor.write(job, b"the last one, lost\n", publish=False)
            await await_for(lambda: node.persist.open == 0, what="the reads to end")
            node.executor.finish(job)
            chunks, ended = await following
            assert text(chunks) == b"".join(b"%d\n" % n for n in range(300)) + b"the last one, lost\n"
            assert [first for first, _ in chunks] == sorted({first for first, _ in chunks})
            assert ended is not None

    asyncio.run(scenario())


def test_the_end_is_found_when_its_event_was_lost(tmp_path: Path) -> None:
    """After a silence the record is looked at, so a follower and a waiter end although nobody told them."""

    async def scenario() -> None:
        async with running_node(tmp_path, silence_s=0.2) as node:
            job = node.executor.add("ann").id
            client = node.client("ann", "user")
            following = asyncio.create_task(collect(client, job, follow=True))
            await await_for(lambda: node.api.hub.topics, what="the subscription")
            node.executor.write(job, b"x\n", publish=False)
            node.executor.change(job, announce=False, state=jobs.State.FAILED, exit_code=3)
            chunks, ended = await following
            assert text(chunks) == b"x\n"
            assert ended is not None
            assert ended.exit_code == 3

    asyncio.run(scenario())


def test_a_restarted_executor_repeats_and_the_client_does_not_see_it(tmp_path: Path) -> None:
    """The live cursor begins again at an older place: what was sent already is dropped."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            job = node.executor.add("ann").id
            following = asyncio.create_task(collect(node.client("ann", "user"), job, follow=True))
            await await_for(lambda: node.api.hub.topics, what="the subscription")
            sent: list[bytes] = []
            for number in range(20):
                node.executor.write(job, b"%d\n" % number)
                sent.append(
                    records.encode(
                        records.RecordType.OUTPUT,
                        b"%d\n" % number,
                        time_ns=1,
                        sequence=number + 1,
                        lines=1,
                        stream=records.Stream.STDOUT,
                    )
                )
                if number % 7 == 6:
                    node.executor.publish_log(job, b"".join(sent[number - 5 :]))
                    node.executor.publish_log(job, b"no record at all")
            node.executor.finish(job)
            chunks, _ = await following
            assert text(chunks) == b"".join(b"%d\n" % n for n in range(20))

    asyncio.run(scenario())


@pytest.mark.parametrize("live", [False, True])
def test_filters_mean_the_same_for_stored_and_live_output(tmp_path: Path, *, live: bool) -> None:
    """Stream, text, time, start sequence and limit choose the same entries, whichever way they come."""
    second = 10**9
    written = [
        (b"alpha\n", records.Stream.STDOUT, 1000),
        (b"beta\nalpha beta\ngamma\n", records.Stream.STDERR, 1001),
        (b"alpha 3\ndelta\n", records.Stream.STDOUT, 1002),
        (b"alpha tail", records.Stream.STDOUT, 1003),
    ]
    cases: list[tuple[dict[str, Any], bytes]] = [
        ({}, b"alpha\nbeta\nalpha beta\ngamma\nalpha 3\ndelta\nalpha tail"),
        ({"stream": persist_pb2.STDERR}, b"beta\nalpha beta\ngamma\n"),
        ({"filter": "alpha"}, b"alpha\nalpha beta\nalpha 3\nalpha tail"),
        ({"filter": "beta", "stream": persist_pb2.STDERR}, b"beta\nalpha beta\n"),
        ({"from_sequence": 3}, b"alpha beta\ngamma\nalpha 3\ndelta\nalpha tail"),
        ({"from_sequence": 3, "filter": "alpha"}, b"alpha beta\nalpha 3\nalpha tail"),
        ({"limit": 2}, b"alpha\nbeta\n"),
        ({"limit": 2, "filter": "alpha"}, b"alpha\nalpha beta\n"),
        ({"start_time": 1001 * second, "limit": 4}, b"beta\nalpha beta\ngamma\nalpha 3\n"),
        ({"start_time": 10**10}, b""),  # the year 2286, as seconds: more nanoseconds than 64 bits hold
        ({"end_time": 10**11 - 1, "limit": 1}, b"alpha\n"),
        ({"regex": "^alpha .*[0-9]$"}, b"alpha 3\n"),
        ({"regex": "^alpha( beta| .{0,300}3)$"}, b"alpha beta\nalpha 3\n"),  # a heavy one, tried in a thread
        ({"filter": "nothing has this"}, b""),
        ({"from_sequence": 100}, b""),
    ]

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            client = node.client("ann", "user")
            for fields, expected in cases:
                job = node.executor.add("ann").id
                following = None
                if live:
                    following = asyncio.create_task(collect(client, job, follow=True, **fields))
                    await await_for(lambda: f"log.{job}" in node.api.hub.topics, what="the subscription")  # noqa: B023
                for data, stream, seconds in written:
                    node.executor.write(job, data, stream=stream, time_ns=seconds * second)
                node.executor.finish(job)
                chunks, _ = await (following or asyncio.create_task(collect(client, job, follow=True, **fields)))
                assert text(chunks) == expected, fields

    asyncio.run(scenario())


@pytest.mark.requirement("S2.11")
def test_the_tail_and_what_exists_now(tmp_path: Path) -> None:
    """Tail counts entries, with a filter those that match; without follow a running job's stream ends where it is."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            client = node.client("ann", "user")
            job = node.executor.add("ann").id
            for number in range(1, 11):
                node.executor.write(job, b"%s %d\n" % (b"even" if number % 2 == 0 else b"odd", number))
            assert text((await collect(client, job, tail=3))[0]) == b"even 8\nodd 9\neven 10\n"
            assert text((await collect(client, job, tail=2, filter="odd"))[0]) == b"odd 7\nodd 9\n"
            assert text((await collect(client, job, tail=0))[0]) == b""
            assert text((await collect(client, job, tail=99, from_sequence=10))[0]) == b"even 10\n"
            chunks, ended = await collect(client, job)
            assert (len(text(chunks).splitlines()), ended) == (10, None)
            asked = node.persist.queries
            following = asyncio.create_task(collect(client, job, tail=1, follow=True))
            await await_for(lambda: node.persist.queries > asked, what="the tail to be read")
            node.executor.write(job, b"11\n")
            node.executor.finish(job)
            assert text((await following)[0]) == b"even 10\n11\n"

    asyncio.run(scenario())


def test_output_that_is_not_stored_is_told_not_hidden(tmp_path: Path) -> None:
    """A hole in what persist has becomes a gap that the client sees."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            job = node.executor.add("ann").id
            client = node.client("ann", "user")
            node.executor.write(job, b"1\n", publish=False)
            node.executor.write(job, b"2\n3\n", publish=False, store=False)
            node.executor.write(job, b"4\n", publish=False)
            node.executor.finish(job)
            stream = client.jobs.StreamLogs(job_pb2.StreamLogsRequest(job_id=job, follow=True), timeout=20)
            chunks = [chunk async for message in stream for chunk in message.chunks]
            told = [(chunk.first_sequence, chunk.lines, chunk.data, chunk.gap.reason) for chunk in chunks]
            assert told == [(1, 1, b"1\n", ""), (2, 2, b"", "not_stored"), (4, 1, b"4\n", "")]

    asyncio.run(scenario())


@pytest.mark.requirement("S0.45")
@pytest.mark.threat("C23")
@pytest.mark.parametrize("live", [False, True])
def test_expressions_and_offsets_over_the_wire(tmp_path: Path, *, live: bool) -> None:
    """Evaluated on the server, with an engine that no expression makes slow; refused in words when it is none."""
    cases: list[tuple[dict[str, Any], bytes]] = [
        ({"regex": "^b"}, b"b1\nb2\nb3\n"),
        ({"regex": "^b", "offset": 1}, b"b2\nb3\n"),
        ({"regex": "^b", "offset": 1, "limit": 1}, b"b2\n"),
        ({"regex": "2$"}, b"a2\nb2\n"),
        ({"offset": 5}, b"b3\n"),
        ({"offset": 99}, b""),
        ({"filter": "a", "offset": 2}, b"a3\n"),
        ({"regex": "(a+)+$"}, b""),
    ]

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            client = node.client("ann", "user")
            for fields, expected in cases:
                job = node.executor.add("ann").id
                following = None
                if live:
                    following = asyncio.create_task(collect(client, job, follow=True, **fields))
                    await await_for(lambda: f"log.{job}" in node.api.hub.topics, what="the subscription")  # noqa: B023
                for number in (1, 2, 3):
                    node.executor.write(job, b"a%d\nb%d\n" % (number, number))
                node.executor.finish(job)
                chunks, _ = await (following or asyncio.create_task(collect(client, job, follow=True, **fields)))
                assert text(chunks) == expected, fields
            for refused in ({"regex": "("}, {"regex": "a", "filter": "a"}, {"tail": 1, "offset": 1}):
                with pytest.raises(aio.AioRpcError) as error:
                    await collect(client, job, **refused)
                assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    asyncio.run(scenario())


def gaps(chunks: list[job_pb2.LogChunk]) -> list[tuple[int, int, str]]:
    """From, to and why of each gap."""
    return [
        (one.first_sequence, one.first_sequence + one.lines - 1, one.gap.reason) for one in chunks if one.gap.reason
    ]


@pytest.mark.requirement("S0.63")
def test_removed_output_of_an_ended_job_is_a_gap_at_once(tmp_path: Path) -> None:
    """Retention, or somebody's hand: the stream does not wait for what was there once, tells it, and ends as usual."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            client = node.client("ann", "user")
            job = node.executor.add("ann").id
            for number in range(1, 10):
                node.executor.write(job, b"line %d\n" % number, publish=False)
            node.executor.finish(job)
            node.executor.delivered.add(job)

            async def stream(**fields: Any) -> tuple[list[job_pb2.LogChunk], bool]:
                request = job_pb2.StreamLogsRequest(job_id=job, follow=True, **fields)
                chunks, ended = [], False
                async for message in client.jobs.StreamLogs(request, timeout=20):  # MISSING_S is longer
                    chunks += message.chunks
                    ended = ended or message.HasField("ended")
                return chunks, ended

            chunks, ended = await stream()
            assert (len(chunks), gaps(chunks), ended) == (9, [], True)
            node.persist.remove(job, first=1, last=3)
            node.persist.remove(job, first=8)
            for fields, lines in (
                ({}, 4),
                ({"filter": "5"}, 1),
                ({"regex": "[56]$", "tail": 1}, 1),
                ({"stream": 2}, 0),
            ):
                chunks, ended = await stream(**fields)
                assert gaps(chunks) == [(1, 3, "removed"), (8, 9, "removed")], fields
                assert (len(chunks) - 2, ended) == (lines, True), fields
            node.persist.remove(job)
            for fields in ({}, {"filter": "5"}, {"tail": 9}):
                chunks, ended = await stream(**fields)
                assert (gaps(chunks), ended) == ([(1, 9, "removed")], True), fields
            chunks, ended = await stream(tail=2)
            assert (gaps(chunks), ended) == ([(8, 9, "removed")], True)

    asyncio.run(scenario())


def test_a_lost_part_is_told_live_and_stored(tmp_path: Path) -> None:
    """A GAP record reaches the client with its reason and its bytes, whichever way it comes."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            client = node.client("ann", "user")
            job = node.executor.add("ann").id
            request = job_pb2.StreamLogsRequest(job_id=job, follow=True, filter="no such text")
            live = client.jobs.StreamLogs(request, timeout=20)
            await await_for(lambda: f"log.{job}" in node.api.hub.topics, what="the subscription")
            node.executor.write(job, b"1\n")
            node.executor.lose(job, 5, "journal_full", lost_bytes=77)
            node.executor.write(job, b"7\n")
            node.executor.finish(job, lost_entries=5, lost_bytes=77)
            stored = client.jobs.StreamLogs(job_pb2.StreamLogsRequest(job_id=job), timeout=20)
            for stream in (live, stored):
                chunks = [chunk async for message in stream for chunk in message.chunks]
                assert gaps(chunks) == [(2, 6, "journal_full")]
                assert [chunk.gap.bytes for chunk in chunks if chunk.gap.reason] == [77]
            record = await client.jobs.GetJob(job_pb2.GetJobRequest(job_id=job))
            assert (record.lost_entries, record.lost_bytes) == (5, 77)

    asyncio.run(scenario())


def test_a_followed_tail_says_where_it_goes_on(tmp_path: Path) -> None:
    """A chunk without entries tells the next sequence: who has not got a line yet can be taken up without a hole."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            client = node.client("ann", "user")
            job = node.executor.add("ann").id
            node.executor.write(job, b"1\n2\n3\n")
            for fields, first, data in (
                ({"tail": 0}, [4], b""),
                ({"tail": 2}, [2, 4], b"2\n3\n"),
                ({"tail": 2, "regex": "9"}, [4], b""),
                ({"tail": 1, "filter": "2"}, [2, 4], b"2\n"),
            ):
                request = job_pb2.StreamLogsRequest(job_id=job, follow=True, **fields)
                stream = client.jobs.StreamLogs(request, timeout=20)
                chunks: list[job_pb2.LogChunk] = []
                while not chunks or chunks[-1].lines:
                    chunks += (await stream.read()).chunks
                stream.cancel()
                assert [chunk.first_sequence for chunk in chunks] == first
                assert b"".join(chunk.data for chunk in chunks) == data

    asyncio.run(scenario())


@pytest.mark.threat("D17")
@pytest.mark.threat("F26")
@pytest.mark.requirement("S2.6")
def test_fifty_followers_one_of_which_never_reads(tmp_path: Path) -> None:
    """Forty-nine get every byte while one holds only its bound; when that one reads at last, it too has everything."""
    chunk = (b"x" * 99 + b"\n") * 640
    chunks = 160  # 10 MB, far above the queue and the HTTP/2 window of one client

    async def scenario() -> None:
        limits = Grpc(follower_queue_bytes=256 * 1024)
        async with running_node(tmp_path, limits=limits) as node:
            job = node.executor.add("ann").id
            clients = [node.client("ann", "user") for _ in range(5)]
            request = job_pb2.StreamLogsRequest(job_id=job, follow=True)

            async def count(client: Client) -> tuple[int, int]:
                size = lines = 0
                async for message in client.jobs.StreamLogs(request, timeout=60 * SLOWNESS):
                    for one in message.chunks:
                        assert one.first_sequence == lines + 1
                        lines += one.lines
                        size += len(one.data)
                return size, lines

            lazy_client = node.client("ann", "user")
            lazy = lazy_client.jobs.StreamLogs(request, timeout=60 * SLOWNESS)
            readers = [asyncio.create_task(count(clients[n % 5])) for n in range(49)]
            await await_for(lambda: node.api.capacity.streams == 50, what="fifty streams")
            before = peak_rss_bytes()
            for _ in range(chunks):
                node.executor.write(job, chunk)
                await asyncio.sleep(0)
            node.executor.finish(job)
            expected = (len(chunk) * chunks, 640 * chunks)
            assert await asyncio.gather(*readers) == [expected] * 49
            assert node.api.capacity.streams == 1
            assert peak_rss_bytes() - before < 400 * 2**20
            size = 0
            async for message in lazy:
                size += sum(len(one.data) for one in message.chunks)
            assert size == expected[0]

    asyncio.run(scenario())


def peak_rss_bytes() -> int:
    """The most memory this process (server, fakes and fifty clients) ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.requirement("S2.13")
@pytest.mark.threat("D18")
@pytest.mark.threat("D22")
def test_capacity_is_bounded_and_given_back(tmp_path: Path) -> None:
    """One stream above the bound is refused; unary calls go on; leaving, by cancelling or deadline, frees."""

    async def scenario() -> None:
        async with running_node(tmp_path, limits=Grpc(active_streams_max=3)) as node:
            job = node.executor.add("ann").id
            client = node.client("ann", "user")
            request = job_pb2.StreamLogsRequest(job_id=job, follow=True)
            open_streams = [client.jobs.StreamLogs(request), client.jobs.WatchJobs(job_pb2.WatchJobsRequest())]
            metrics = job_pb2.StreamMetricsRequest(job_id=job, follow=True)
            open_streams.append(client.jobs.StreamMetrics(metrics))
            await await_for(lambda: node.api.capacity.streams == 3, what="three streams")
            with pytest.raises(aio.AioRpcError) as refused:
                await client.jobs.StreamLogs(request).read()
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert refused.value.details() == "Max capacity reached"
            assert (await client.jobs.GetJob(job_pb2.GetJobRequest(job_id=job))).id == job
            for stream in open_streams:
                stream.cancel()
            await await_for(lambda: node.api.capacity.streams == 0, timeout_s=2, what="all streams to be given back")
            # Behind the others: as long as they are checked above, all three have to be there.
            with pytest.raises(aio.AioRpcError) as late:
                await client.jobs.StreamMetrics(metrics, timeout=0.5 * SLOWNESS).read()
            assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await await_for(lambda: node.api.capacity.streams == 0, timeout_s=2, what="its place to be given back")
            await await_for(lambda: not node.api.hub.topics, timeout_s=2, what="no subscription left")
            assert len(node.api.feeds) == 0
            await await_for(lambda: node.persist.open == 0, what="the reads to end")

    asyncio.run(scenario())


@pytest.mark.threat("F38")
def test_streams_end_with_unavailable_when_the_service_stops(tmp_path: Path) -> None:
    """Followers learn that they should come again; nothing hangs."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            job = node.executor.add("ann").id
            client = node.client("ann", "user")
            following = asyncio.create_task(collect(client, job, follow=True))
            waiting = asyncio.ensure_future(client.jobs.WaitJob(job_pb2.WaitJobRequest(job_id=job)))
            await await_for(lambda: len(node.api.hub.topics) == 2, what="the subscriptions")
            await node.api.stop()
            for call in (following, waiting):
                with pytest.raises(aio.AioRpcError) as ended:
                    await call
                assert ended.value.code() is grpc.StatusCode.UNAVAILABLE

    asyncio.run(scenario())
