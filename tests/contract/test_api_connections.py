"""Each limit of a connection, shown on the wire: the real server, and a client that sees frames (tests/http2.py)."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import grpc
import pytest
from grpc import aio

from common.config.settings import Grpc
from common.messages import jobs
from proto.joblet.v1 import job_pb2
from services.api.server import options_of
from tests.api_node import Node, running_node
from tests.http2 import Error, Http2, Setting, Type, client_context, connected
from tests.waiting import SLOWNESS, await_for

CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
UPLOAD = "/joblet.v1.JobService/UploadFiles"
OK, EXHAUSTED = "0", "8"
PATIENCE_MS = round(5_000 * SLOWNESS)
"""Of the node with what this client does in time: both share a process, which a busy machine may hold up."""
NEVER_MS = 3_600_000


@asynccontextmanager
async def connection(base: Path, limits: Grpc) -> AsyncIterator[tuple[Node, Http2]]:
    """A node with these limits and a connection that was used once."""
    async with running_node(base / "node", limits=limits) as node:
        context = client_context(node.authority, node.authority.client("ann", "admin"), base)
        async with connected(node.api.port, context) as client:
            assert await client.answered(client.request(CHECK, b"")) == OK
            yield node, client


def run(base: Path, limits: Grpc, scenario: Callable[[Node, Http2], Awaitable[None]]) -> None:
    """A scenario with a node and a connection."""

    async def all_of_it() -> None:
        async with connection(base, limits) as (node, client):
            await scenario(node, client)

    asyncio.run(all_of_it())


def went_away(client: Http2, error: Error, text: bytes) -> bool:
    """Whether the server said so before it closed."""
    return any(frame.error == error and text in frame.payload for frame in client.of(Type.GOAWAY))


def pings(client: Http2) -> list[bytes]:
    """What the server asked, and has got no answer to yet: this client gives none by itself."""
    return [frame.payload for frame in client.of(Type.PING) if not frame.flags]


def asked(client: Http2, number: int) -> bool:
    """Whether that many pings came before the last one."""
    return len(pings(client)) > number


def answered(client: Http2, number: int) -> bool:
    """Whether the ping with this number was answered."""
    return any(frame.payload[-1] == number for frame in client.of(Type.PING) if frame.flags)


def passed(until: float) -> bool:
    """Whether it is later."""
    return time.monotonic() > until


@pytest.mark.requirement("S2.14")
@pytest.mark.parametrize("window", [100_000, 2**20, 6 * 2**20])
def test_the_window_is_what_was_set(tmp_path: Path, window: int) -> None:
    """Of a stream: announced, and no more is granted until somebody reads. The connection begins with as much.

    What becomes of a client that sends more all the same is in tests/security/test_floods.py.
    """

    async def scenario(_: Node, client: Http2) -> None:
        assert client.settings[Setting.INITIAL_WINDOW_SIZE] == window
        granted = sum(int.from_bytes(one.payload, "big") for one in client.of(Type.WINDOW_UPDATE, 0))
        assert window <= 65_535 + granted < window + 100
        # Nobody reads the data of a Watch: what is sent there is not given back.
        stream = client.request(WATCH, b"", end=False)
        await await_for(lambda: client.data_bytes(stream), what="the first answer")
        for _sent in range(10_000, window, 10_000):
            client.put(Type.DATA, b"\0" * 10_000, stream=stream)
        await client.drain()
        assert await client.answered(client.request(CHECK, b"")) == OK
        given_back = sum(int.from_bytes(one.payload, "big") for one in client.of(Type.WINDOW_UPDATE, stream))
        assert given_back < 10_000, "nobody has read more than the request"

    run(tmp_path, Grpc(stream_window_bytes=window), scenario)


@pytest.mark.requirement("S2.14")
def test_more_streams_than_set_are_refused_one_by_one(tmp_path: Path) -> None:
    """The number is announced; a stream beyond it is reset with REFUSED_STREAM, and the others go on."""

    async def scenario(_: Node, client: Http2) -> None:
        assert client.settings[Setting.MAX_CONCURRENT_STREAMS] == 5
        streams = [client.request(WATCH, b"") for _ in range(5)]
        await await_for(lambda: all(map(client.data_bytes, streams)), what="five open streams")
        extra = client.request(CHECK, b"")
        await await_for(lambda: client.of(Type.RST_STREAM, extra), what="the refusal")
        assert client.of(Type.RST_STREAM, extra)[0].error == Error.REFUSED_STREAM
        assert not any(map(client.status, streams))
        client.put(Type.RST_STREAM, Error.CANCEL.to_bytes(4, "big"), stream=streams[0])
        assert await client.answered(client.request(CHECK, b"")) == OK

    run(tmp_path, Grpc(concurrent_streams_max=5), scenario)


@pytest.mark.requirement("S2.14")
def test_messages_are_bounded_in_both_directions(tmp_path: Path) -> None:
    """At the limit a request is taken and above it RESOURCE_EXHAUSTED; an answer above its limit, too."""

    async def scenario(node: Node, client: Http2) -> None:
        length = 4096 - 4
        # Field 1023, bytes, and their length as a varint: nobody knows the field, so it may hold what it likes.
        exact = b"\xfa\x3f" + bytes((length & 0x7F | 0x80, length >> 7)) + bytes(length)
        assert len(exact) == 4096
        assert await client.answered(client.request(CHECK, exact)) == OK
        assert await client.answered(client.request(CHECK, exact + b"\0")) == EXHAUSTED
        caller = node.client("ann", "admin")
        node.executor.add("ann", spec=jobs.JobSpec(command="x" * 2000))
        request = job_pb2.ListJobsRequest()
        assert len((await caller.jobs.ListJobs(request)).jobs) == 1
        for _ in range(5):
            node.executor.add("ann", spec=jobs.JobSpec(command="x" * 2000))
        with pytest.raises(aio.AioRpcError) as refused:
            await caller.jobs.ListJobs(request)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len((await caller.jobs.ListJobs(job_pb2.ListJobsRequest(page_size=2))).jobs) == 2

    run(tmp_path, Grpc(receive_message_bytes_max=4096, send_message_bytes_max=8192), scenario)


@pytest.mark.requirement("S2.14")
def test_metadata_is_bounded(tmp_path: Path) -> None:
    """The limit is announced, and what is above it refused."""

    async def scenario(_: Node, client: Http2) -> None:
        assert client.settings[Setting.MAX_HEADER_LIST_SIZE] == 3000
        assert await client.answered(client.request(CHECK, b"", extra=[(b"x-a", b"y" * 2000)])) == OK
        assert await client.answered(client.request(CHECK, b"", extra=[(b"x-a", b"y" * 3000)])) == EXHAUSTED

    run(tmp_path, Grpc(metadata_bytes_max=3000), scenario)


@pytest.mark.requirement("S2.9")
def test_keepalive_pings_and_closes(tmp_path: Path) -> None:
    """A silent client is pinged after the time set; who answers stays, who does not is cut off after the time-out.

    With a stream and without calls.
    """

    async def answers_thrice(client: Http2) -> None:
        for number in range(3):
            await await_for(partial(asked, client, number), what="a ping")
            assert not client.closed
            client.put(Type.PING, pings(client)[number], flags=1)
        await client.ended(timeout_s=40)
        assert len(pings(client)) == 4

    async def scenario(node: Node, client: Http2) -> None:
        context = client_context(node.authority, node.authority.client("bob", "admin"), tmp_path)
        async with connected(node.api.port, context) as busy:
            stream = busy.request(WATCH, b"")
            await await_for(lambda: busy.data_bytes(stream), what="the stream")
            await asyncio.gather(answers_thrice(client), answers_thrice(busy))
        assert node.api.capacity.streams == 0

    run(tmp_path, Grpc(keepalive_time_ms=1000, keepalive_timeout_ms=PATIENCE_MS), scenario)


@pytest.mark.requirement("S2.9")
@pytest.mark.threat("D19")
def test_who_pings_too_often_is_sent_away(tmp_path: Path) -> None:
    """Pings in the interval set are answered; a burst ends in GOAWAY, ENHANCE_YOUR_CALM, too_many_pings."""

    async def scenario(_: Node, client: Http2) -> None:
        client.put_at_once(Type.PING, [number.to_bytes(8, "big") for number in range(10)])
        await await_for(lambda: went_away(client, Error.ENHANCE_YOUR_CALM, b"too_many_pings"), what="the GOAWAY")
        await client.ended()

    run(tmp_path, Grpc(ping_interval_ms_min=60_000), scenario)


@pytest.mark.requirement("S2.9")
def test_pings_within_the_interval_are_answered(tmp_path: Path) -> None:
    """The same ten pings do no harm where so many are allowed."""

    async def scenario(_: Node, client: Http2) -> None:
        for number in range(10):
            client.put(Type.PING, number.to_bytes(8, "big"))
            await await_for(partial(answered, client, number), what="the answer to a ping")
            until = time.monotonic() + 0.02
            await await_for(partial(passed, until), what="20 ms")
        assert not client.closed
        assert not client.of(Type.GOAWAY)

    run(tmp_path, Grpc(ping_interval_ms_min=1), scenario)


@pytest.mark.requirement("S2.9")
def test_an_idle_connection_is_closed_and_one_with_a_stream_is_not(tmp_path: Path) -> None:
    """Without calls for so long: GOAWAY and the end. As long as a stream is open nobody is idle."""

    async def scenario(node: Node, busy: Http2) -> None:
        stream = busy.request(WATCH, b"")
        await await_for(lambda: busy.data_bytes(stream), what="the stream")
        context = client_context(node.authority, node.authority.client("bob", "admin"), tmp_path)
        async with connected(node.api.port, context) as idle:
            await idle.ended(timeout_s=40)
            assert any(b"idle" in frame.payload for frame in idle.of(Type.GOAWAY))
            assert not busy.closed  # it has had its stream for longer than that

    run(tmp_path, Grpc(connection_idle_ms=PATIENCE_MS), scenario)


@pytest.mark.requirement("S2.14")
def test_an_old_connection_is_asked_to_leave_and_then_closed(tmp_path: Path) -> None:
    """GOAWAY, max_age: no new calls; what runs may go on for the grace period, and is then cut off.

    Two nodes: whether the period is over when the GOAWAY is read here nobody could say of one.
    """

    async def old(name: str, grace_ms: int, then: Callable[[Http2, int], Awaitable[None]]) -> None:
        (tmp_path / name).mkdir()
        limits = Grpc(connection_age_ms=PATIENCE_MS, connection_age_grace_ms=grace_ms)
        async with connection(tmp_path / name, limits) as (_, client):
            stream = client.request(WATCH, b"")
            await await_for(lambda: client.data_bytes(stream), what="the stream")
            away = partial(went_away, client, Error.NO_ERROR, b"max_age")
            await await_for(away, timeout_s=40, what="the GOAWAY")
            await then(client, stream)

    async def goes_on(client: Http2, stream: int) -> None:
        await await_for(partial(passed, time.monotonic() + 2), what="two seconds")
        assert not client.status(stream)
        assert not client.closed

    async def is_cut_off(client: Http2, _: int) -> None:
        await client.ended()

    async def both() -> None:
        await asyncio.gather(old("long", NEVER_MS, goes_on), old("short", 500, is_cut_off))

    asyncio.run(both())


@pytest.mark.requirement("S2.9")
@pytest.mark.threat("D20")
def test_a_handshake_has_to_end_in_time(tmp_path: Path) -> None:
    """A client that connects and says nothing is dropped after the time set, and nobody else is."""

    async def scenario(node: Node, client: Http2) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", node.api.port)
        assert await asyncio.wait_for(reader.read(1), 40 * SLOWNESS) == b""
        writer.close()
        assert await client.answered(client.request(CHECK, b"")) == OK

    run(tmp_path, Grpc(handshake_timeout_ms=PATIENCE_MS), scenario)


def test_every_setting_of_a_connection_reaches_grpc() -> None:
    """Two different sets of limits differ in the arguments by as many as there are settings, so none is forgotten."""
    own = {"active_streams_max", "follower_queue_bytes"}  # kept by the api itself: see test_api_streaming.py
    names = set(Grpc.__struct_fields__) - own
    usual = options_of(Grpc())
    for name in names:
        changed = options_of(Grpc(**{name: getattr(Grpc(), name) + 1}))
        assert changed != usual, f"{name} changes nothing"
