"""Every message of the bus, malformed in every way: it is refused, counted, and no process ends or answers INTERNAL.

The receivers are the real ones (`middle.py`). What the limits of bytes and depth hold off is in test_bus_messages.py.
"""

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any, Final, NamedTuple

import msgpack
import pytest
from grpc import aio
from hypothesis import strategies as st

from common.bus import codec
from common.errors import JobletError, Reason
from common.messages import jobs, logs
from common.messages.envelope import Body, kind_of
from common.messages.topics import (
    API_REPLIES,
    ENDPOINTS,
    EVENTS,
    EXECUTOR_COMMANDS,
    JOB_COMMANDS,
    PERSIST_ACKS,
    PERSIST_IPC,
    Endpoint,
    job_topic,
    log_topic,
    metrics_topic,
)
from proto.joblet.v1 import job_pb2, job_pb2_grpc
from tests.security.fuzzing import explore
from tests.security.malformed import DAMAGES, MAPS, Damage, bodies, integers, placed
from tests.security.middle import Middle, running_middle
from tests.waiting import SLOWNESS, await_for

EXAMPLES: Final = 60
DOORS: Final = (EXECUTOR_COMMANDS, PERSIST_IPC, PERSIST_ACKS, API_REPLIES)


class Bus(NamedTuple):
    """The middle of a node and the event loop behind it."""

    runner: asyncio.Runner
    middle: Middle
    channel: aio.Channel

    def send(self, endpoint: Endpoint, payload: bytes) -> None:
        """Put bytes where the receiver of this endpoint takes them."""
        file = endpoint.file.format(pid=os.getpid())
        self.runner.run(self.middle.transport.push(endpoint, file).send(payload))

    def still_works(self) -> None:
        """A job runs from its start to stored output, and nothing of the middle has ended."""
        self.runner.run(self._still_works())

    async def _still_works(self) -> None:
        job = await self.middle.ended_job("ann")
        stub: Any = job_pb2_grpc.JobServiceStub(self.channel)
        output = b""
        async for response in stub.StreamLogs(job_pb2.StreamLogsRequest(job_id=job), timeout=20 * SLOWNESS):
            output += b"".join(chunk.data for chunk in response.chunks)
        assert output == b"one\ntwo\n"
        assert self.middle.ended_tasks() == []


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bus]:
    """One middle for all messages: what one of them spoils, the next ones find."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def start() -> Bus:
            middle = await stack.enter_async_context(running_middle(tmp_path_factory.mktemp("middle")))
            channel = middle.channel(middle.authority.client("ann", "admin"))
            stack.push_async_callback(channel.close, None)
            return Bus(runner, middle, channel)

        yield runner.run(start())
        runner.run(stack.aclose())


def envelopes(endpoint: Endpoint) -> st.SearchStrategy[bytes]:
    """Payloads that are nearly messages of this endpoint: a good envelope with any content, or any fields at all."""
    kinds = st.sampled_from([kind_of(kind) for kind in endpoint.messages] or ["none"])
    fields = {
        "v": st.one_of(st.just(1), MAPS),
        "kind": st.one_of(kinds, MAPS),
        "id": st.one_of(st.just("id"), MAPS),
        "sent_at_ns": st.one_of(st.just(time.time_ns()), MAPS),
        "body": MAPS,
        "cause_id": st.one_of(st.just(""), MAPS),
        "reply_to": st.one_of(st.sampled_from(("", "api-replies-1.sock", "../x")), MAPS),
        "more": MAPS,
    }
    good = st.tuples(kinds, MAPS).map(
        lambda drawn: {"v": 1, "kind": drawn[0], "id": "i", "sent_at_ns": time.time_ns(), "body": drawn[1]}
    )
    return st.one_of(good, st.fixed_dictionaries({}, optional=fields)).map(packed)


def packed(content: Any) -> bytes:
    """MessagePack, with numbers that it cannot hold left out."""
    try:
        return bytes(msgpack.packb(content))
    except (OverflowError, ValueError):
        return b"\xc1"


@pytest.mark.threat("E03")
@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.file)
def test_decoding_refuses_and_does_nothing_else(endpoint: Endpoint) -> None:
    """Whatever the bytes are: a message of the endpoint, or RejectedMessage."""

    def check(drawn: tuple[bytes, Damage]) -> None:
        try:
            message = codec.decode(drawn[1].of(drawn[0]), endpoint)
        except codec.RejectedMessage:
            return
        assert isinstance(message.body, endpoint.messages)

    payloads = st.one_of(envelopes(endpoint), st.binary(max_size=100))
    explore(st.tuples(payloads, DAMAGES), check, examples=2 * EXAMPLES, share=0.01)


@pytest.mark.threat("E03")
@pytest.mark.parametrize("endpoint", DOORS, ids=lambda endpoint: endpoint.file)
def test_no_payload_stops_a_receiver(bus: Bus, endpoint: Endpoint) -> None:
    """Well-formed nonsense and broken bytes on the endpoint of each process: afterwards jobs run as before."""

    def check(drawn: tuple[bytes, Damage]) -> None:
        bus.send(endpoint, drawn[1].of(drawn[0]))

    explore(st.tuples(envelopes(endpoint), DAMAGES), check, examples=EXAMPLES, share=0.01)
    bus.still_works()


@pytest.mark.threat("E03")
@pytest.mark.threat("E05")
@pytest.mark.parametrize("command", JOB_COMMANDS, ids=lambda kind: kind.__name__)
def test_every_command_of_the_right_type(bus: Bus, command: type[Body]) -> None:
    """The executor trusts no field, though only api can send: each command is done or refused, never INTERNAL."""

    async def ask(body: Body) -> None:
        tokens = await bus.middle.tokens()
        refused: Reason | None = None
        try:
            await bus.middle.api._executor.request(placed(body, tokens), Body)
        except JobletError as error:
            refused = error.reason
        assert refused not in {Reason.INTERNAL, Reason.UNAVAILABLE}, (body, refused)

    explore(bodies(command), lambda body: bus.runner.run(ask(body)), examples=EXAMPLES, share=0.01)
    bus.still_works()


@pytest.mark.threat("E03")
@pytest.mark.threat("E05")
@pytest.mark.parametrize("kind", [*PERSIST_IPC.messages, *PERSIST_ACKS.messages], ids=lambda kind: kind.__name__)
def test_every_message_about_output_of_the_right_type(bus: Bus, kind: type[Body]) -> None:
    """To persist and back: any numbers, any records; what was stored of other jobs is whole, and this one's is read."""
    endpoint = PERSIST_IPC if kind in PERSIST_IPC.messages else PERSIST_ACKS
    job = bus.runner.run(bus.middle.ended_job("ann"))
    stub: Any = job_pb2_grpc.JobServiceStub(bus.channel)

    async def ask(body: Body) -> None:
        message = placed(body, {"@ended": job, "@others": job})
        await bus.middle.transport.push(endpoint).send(codec.encode(message))

    async def read() -> None:
        for call in (
            stub.StreamLogs(job_pb2.StreamLogsRequest(job_id=job), timeout=20 * SLOWNESS),
            stub.StreamMetrics(job_pb2.StreamMetricsRequest(job_id=job), timeout=20 * SLOWNESS),
            stub.StreamMetrics(job_pb2.StreamMetricsRequest(job_id=job, aggregation="avg"), timeout=20 * SLOWNESS),
        ):
            async for _ in call:
                pass

    explore(bodies(kind), lambda body: bus.runner.run(ask(body)), examples=EXAMPLES, share=0.01)
    bus.still_works()
    bus.runner.run(read())


TOPICS: Final = {logs.LogRecords: log_topic, logs.LogMarker: log_topic, logs.StoreMetric: metrics_topic}


@pytest.mark.threat("E03")
@pytest.mark.threat("E05")
@pytest.mark.parametrize("kind", EVENTS.messages, ids=lambda kind: kind.__name__)
def test_no_event_stops_the_api(bus: Bus, kind: type[Body]) -> None:
    """Events of the right type and any content reach followers, watchers and metrics of the job: api goes on."""
    job = bus.runner.run(bus.middle.running_job("ann"))
    stub: Any = job_pb2_grpc.JobServiceStub(bus.channel)
    topic = TOPICS.get(kind, job_topic)(job)

    async def publish(body: Body) -> None:
        bus.middle.publisher.publish(topic, placed(body, {"@ended": job, "@others": job}))
        await asyncio.sleep(0)

    async def begin() -> list[Any]:
        streams = [
            stub.StreamLogs(job_pb2.StreamLogsRequest(job_id=job, follow=True)),
            stub.StreamMetrics(job_pb2.StreamMetricsRequest(job_id=job, follow=True)),
            stub.WatchJobs(job_pb2.WatchJobsRequest()),
        ]
        reading = [asyncio.create_task(drained(stream)) for stream in streams]
        await await_for(lambda: log_topic(job) in bus.middle.api.hub.topics, what="the subscription")
        await await_for(lambda: bus.middle.api.capacity.streams == len(streams), what="the streams")
        return [*zip(streams, reading, strict=True)]

    async def end(streams: list[Any]) -> None:
        for stream, reading in streams:
            stream.cancel()
            code = await reading
            assert code not in {"INTERNAL", "UNKNOWN"}, code
        await await_for(lambda: bus.middle.api.capacity.streams == 0, what="the streams to end")

    # The executor checked every number of a record before it wrote it down, so those of a job are such as can be told.
    events = bodies(kind, numbers=integers(0, 2**31 - 1)) if kind is jobs.JobChanged else bodies(kind)
    streams = bus.runner.run(begin())
    try:
        explore(events, lambda body: bus.runner.run(publish(body)), examples=EXAMPLES, share=0.01)
    finally:
        bus.runner.run(end(streams))
    bus.still_works()


async def drained(stream: Any) -> str:
    """Read to the end, and how that was."""
    try:
        async for _ in stream:
            pass
    except aio.AioRpcError as error:
        return error.code().name
    except asyncio.CancelledError:
        return "CANCELLED"
    return "OK"
