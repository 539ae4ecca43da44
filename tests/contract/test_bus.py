"""One suite over both transports: whatever a service may rely on holds for the fake and for ZeroMQ alike."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import pytest

from common.bus import codec
from common.bus.events import Publisher, Subscriber
from common.bus.memory import Memory
from common.bus.requests import REQUEST_S_MAX, Handler, Receiver, Requester, Responder
from common.bus.transport import Transport
from common.bus.zeromq import ZeroMQ
from common.errors import JobletError, Reason, not_found
from common.identifiers import JobId
from common.messages import jobs, logs
from common.messages.envelope import Body
from common.messages.topics import (
    API_REPLIES,
    EVENTS,
    EXECUTOR_COMMANDS,
    PERSIST_ACKS,
    PERSIST_IPC,
    VOLUME_COMMANDS,
    VOLUMES_COMMANDS,
    log_topic,
    metrics_topic,
)
from common.messages.volumes import ListVolumes, VolumePage
from tests.waiting import SLOWNESS, await_for

JOB = JobId("6fa459ea-ee8a-4ca4-894e-db77e160355e")
OTHER = JobId("6fa459ea-ee8a-4ca4-894e-db77e160355f")
REPLY_FILE = f"api-replies-{os.getpid()}.sock"
MARK = "counted"
DEADLINE_S = 20.0 * SLOWNESS


@pytest.fixture(params=["memory", "zeromq"])
def transport(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Transport]:
    """The transport under test."""
    made: Transport = Memory() if request.param == "memory" else ZeroMQ(tmp_path)
    yield made
    made.close()


def run(scene: Callable[[], Awaitable[None]]) -> None:
    """Run one scene in an event loop, with a deadline instead of a hang."""

    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await scene()

    asyncio.run(bounded())


@dataclass
class Desk:
    """A responder's handlers with switches for the tests."""

    asked: int = 0

    async def stop(self, request: jobs.StopJob) -> Body:
        """Answer, fail in words, or break: by the signal asked for."""
        self.asked += 1
        match request.signal:
            case 1:
                raise not_found("no job 1", "list the jobs")
            case 2:
                raise KeyError("missing")  # a handler with a bug
            case 3:
                await asyncio.Event().wait()
            case 4:
                return jobs.JobDeleted(job=request.job)
        return jobs.LogSynced(job=request.job)

    async def other(self, request: Any) -> Body:
        """Every other command."""
        return jobs.JobPlan(steps=(type(request).__name__,))


@asynccontextmanager
async def conversation(transport: Transport, desk: Desk) -> AsyncIterator[tuple[Requester, Responder]]:
    """A running responder and requester."""
    handlers: Mapping[type[Body], Handler] = dict.fromkeys(EXECUTOR_COMMANDS.messages, desk.other) | {
        jobs.StopJob: desk.stop
    }
    responder = Responder(transport, EXECUTOR_COMMANDS, API_REPLIES, handlers)
    requester = Requester(transport, commands=EXECUTOR_COMMANDS, replies=API_REPLIES, reply_file=REPLY_FILE)
    tasks = [asyncio.create_task(responder.run()), asyncio.create_task(requester.run())]
    try:
        yield requester, responder
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        requester.close()
        await responder.close()


def stop(signal: int | None = None) -> jobs.StopJob:
    """A request whose treatment the signal chooses."""
    return jobs.StopJob(job=JOB, signal=signal)


def test_pushed_messages_arrive_once_and_in_order(transport: Transport) -> None:
    """One sender, one receiver, nobody dies: every message, in the order of sending."""

    async def scene() -> None:
        receiver = Receiver(transport, PERSIST_ACKS)
        push = transport.push(PERSIST_ACKS)
        for number in range(2000):
            await push.send(codec.encode(logs.Resend(job=JOB, epoch=number)))
        received = receiver.messages()
        got = [(await anext(received)).body for _ in range(2000)]
        assert got == [logs.Resend(job=JOB, epoch=number) for number in range(2000)]
        assert not receiver.rejected
        push.close()
        receiver.close()

    run(scene)


def test_sender_may_come_before_the_receiver(transport: Transport) -> None:
    """Services start in any order: what was queued meanwhile arrives."""

    async def scene() -> None:
        push = transport.push(PERSIST_ACKS)
        await push.send(codec.encode(logs.PersistStarted(instance="early")))
        receiver = Receiver(transport, PERSIST_ACKS)
        assert (await anext(receiver.messages())).body == logs.PersistStarted(instance="early")
        push.close()
        receiver.close()

    run(scene)


@pytest.mark.threat("F23")
def test_full_queue_refuses_instead_of_growing(transport: Transport) -> None:
    """Nobody receives: after the queue's bound try_send says no, and says so at once."""

    async def scene() -> None:
        push = transport.push(EXECUTOR_COMMANDS)
        payload = codec.encode(jobs.GetNode())
        sent = 0
        while sent <= 10 * EXECUTOR_COMMANDS.queue_messages_max and push.try_send(payload):
            sent += 1
        assert sent <= 2 * EXECUTOR_COMMANDS.queue_messages_max
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await push.send(payload)
        push.close()

    run(scene)


def test_second_binder_is_refused(transport: Transport) -> None:
    """A second service on the same endpoint would take the first one's traffic: EXISTS."""

    async def scene() -> None:
        pull = transport.pull(EXECUTOR_COMMANDS)
        publisher = transport.publisher(EVENTS)
        for bind in (lambda: transport.pull(EXECUTOR_COMMANDS), lambda: transport.publisher(EVENTS)):
            with pytest.raises(JobletError) as caught:
                bind()
            assert caught.value.reason is Reason.EXISTS
        pull.close()
        publisher.close()
        transport.pull(EXECUTOR_COMMANDS).close()  # and once the first has gone it can be had

    run(scene)


def test_subscriber_gets_topics_by_prefix(transport: Transport) -> None:
    """`log.` is every job's output, `log.<id>` one job's; after unsubscribe there is silence."""

    async def scene() -> None:
        publisher, one, every = Publisher(transport), Subscriber(transport), Subscriber(transport)
        one.subscribe(log_topic(JOB))
        every.subscribe("log.")
        async with listening(publisher, one) as heard_by_one, listening(publisher, every) as heard_by_every:
            for number in range(1, 11):
                body = logs.LogMarker(job=JOB, marker=MARK, last_sequence=number)
                for topic in (log_topic(OTHER), metrics_topic(JOB), log_topic(JOB)):
                    publisher.publish(topic, body)
            await await_for(lambda: len(heard_by_every) == 20, what="all that was published on log.")
            assert heard_by_every == [log_topic(OTHER), log_topic(JOB)] * 10
            await await_for(lambda: len(heard_by_one) == 10, what="all that was published on the job's topic")
            assert heard_by_one == [log_topic(JOB)] * 10
        for each in (publisher, one, every):
            each.close()

    run(scene)


@asynccontextmanager
async def listening(publisher: Publisher, subscriber: Subscriber) -> AsyncIterator[list[str]]:
    """The topics of messages that carry MARK, growing, from when the subscription is known to be in effect.

    A subscription takes effect a little later, so something else is published until it arrives, as jobs.SyncLog does.
    """
    heard: list[str] = []
    joined = asyncio.Event()

    async def listen() -> None:
        async for topic, message in subscriber.messages():
            joined.set()
            if isinstance(message.body, logs.LogMarker) and message.body.marker == MARK:
                heard.append(topic)

    def arrived() -> bool:
        publisher.publish(log_topic(JOB), logs.LogMarker(job=JOB, marker="join", last_sequence=0))
        return joined.is_set()

    task = asyncio.create_task(listen())
    await await_for(arrived, what="the subscription to take effect")
    try:
        yield heard
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_published_before_anyone_listens_is_nothing(transport: Transport) -> None:
    """PUB never waits and never fails, whether anyone listens or not."""

    async def scene() -> None:
        publisher = Publisher(transport)
        for _ in range(10 * EVENTS.queue_messages_max):
            publisher.publish(log_topic(JOB), logs.LogMarker(job=JOB, marker="", last_sequence=0))
        publisher.close()

    run(scene)


def test_request_and_answer(transport: Transport) -> None:
    """A request gets its own answer, also among many at once."""

    async def scene() -> None:
        async with conversation(transport, Desk()) as (requester, _):
            assert await requester.request(stop(), jobs.LogSynced) == jobs.LogSynced(job=JOB)
            answers = await asyncio.gather(
                *(requester.request(jobs.StopJob(job=JobId(f"job-{n}")), jobs.LogSynced) for n in range(200))
            )
            assert [answer.job for answer in answers] == [f"job-{n}" for n in range(200)]

    run(scene)


def test_failure_crosses_with_all_its_fields(transport: Transport) -> None:
    """A JobletError of the handler is the same JobletError for the asker."""

    async def scene() -> None:
        async with conversation(transport, Desk()) as (requester, _):
            with pytest.raises(JobletError) as caught:
                await requester.request(stop(1), jobs.LogSynced)
            error = caught.value
            assert (error.reason, error.message, error.detail) == (Reason.NOT_FOUND, "no job 1", "list the jobs")

    run(scene)


@pytest.mark.threat("B21")
def test_responder_survives_a_handler_with_a_bug(transport: Transport) -> None:
    """The asker learns INTERNAL and no inner detail; the next request is answered."""

    async def scene() -> None:
        async with conversation(transport, Desk()) as (requester, _):
            with pytest.raises(JobletError) as caught:
                await requester.request(stop(2), jobs.LogSynced)
            assert caught.value.reason is Reason.INTERNAL
            assert "missing" not in str(caught.value)
            assert await requester.request(stop(), jobs.LogSynced)

    run(scene)


def test_silence_is_unavailable_after_the_deadline(transport: Transport) -> None:
    """A handler that never answers holds up nobody else; a late answer is dropped."""

    async def scene() -> None:
        async with conversation(transport, Desk()) as (requester, _):
            with pytest.raises(JobletError) as caught:
                await requester.request(stop(3), jobs.LogSynced, timeout_s=0.1)
            assert caught.value.reason is Reason.UNAVAILABLE
            assert caught.value.retryable
            assert await requester.request(stop(), jobs.LogSynced)

    run(scene)


def test_two_are_asked_and_answer_to_one_place(transport: Transport) -> None:
    """Answers of two services come over one socket, each to who asked; one that is silent holds nobody up."""

    async def scene() -> None:
        async with conversation(transport, Desk()) as (requester, _):
            volumes = requester.beside(VOLUMES_COMMANDS)

            async def page(request: Any) -> Body:
                return VolumePage(volumes=(), next_page_token=request.owner)

            handlers: Mapping[type[Body], Handler] = dict.fromkeys(VOLUME_COMMANDS, page)
            responder = Responder(transport, VOLUMES_COMMANDS, API_REPLIES, handlers)
            answering = asyncio.create_task(responder.run())
            asked = [volumes.request(ListVolumes(visible_owner=None, owner=str(n)), VolumePage) for n in range(20)]
            others = [requester.request(stop(), jobs.LogSynced) for _ in range(20)]
            answers = await asyncio.gather(*asked, *others)
            assert [one.next_page_token for one in answers[:20] if isinstance(one, VolumePage)] == [
                str(n) for n in range(20)
            ]
            with pytest.raises(JobletError, match="volumes answered with VolumePage"):
                await volumes.request(ListVolumes(visible_owner=None), jobs.LogSynced)
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
            await responder.close()
            with pytest.raises(JobletError, match="volumes did not answer"):
                await volumes.request(ListVolumes(visible_owner=None), VolumePage, timeout_s=0.1)
            assert await requester.request(stop(), jobs.LogSynced)
            volumes.close()

    run(scene)


def test_nobody_there_is_unavailable(transport: Transport) -> None:
    """Without an answerer at all the asker hears so in time."""

    async def scene() -> None:
        requester = Requester(transport, commands=EXECUTOR_COMMANDS, replies=API_REPLIES, reply_file=REPLY_FILE)
        with pytest.raises(JobletError, match="executor did not answer"):
            await requester.request(stop(), jobs.LogSynced, timeout_s=0.1)
        requester.close()

    run(scene)


def test_answer_of_the_wrong_type_is_an_error(transport: Transport) -> None:
    """A well-formed answer to another question is not taken for this one's."""

    async def scene() -> None:
        async with conversation(transport, Desk()) as (requester, _):
            with pytest.raises(JobletError, match="answered with JobDeleted"):
                await requester.request(stop(4), jobs.LogSynced)

    run(scene)


@pytest.mark.threat("E03")
def test_bad_messages_are_counted_and_the_good_ones_answered(transport: Transport) -> None:
    """Garbage, unknown kinds, wrong shapes and forged answers' addresses: each counted by its cause."""

    async def scene() -> None:
        async with conversation(transport, Desk()) as (requester, responder):
            push = transport.push(EXECUTOR_COMMANDS)
            for payload in (
                b"\x00" * 50,
                codec.encode(logs.PersistStarted(instance="not for you")),
                codec.encode(stop(), reply_to="../../../tmp/evil.sock"),
                codec.encode(stop()).replace(JOB.encode(), b"\xff" * len(JOB)),
            ):
                await push.send(payload)
            await await_for(lambda: responder.rejected.total() == 4, what="four refusals")
            assert set(responder.rejected) == {"envelope", "unknown_kind", "reply_to", "shape"}
            assert await requester.request(stop(), jobs.LogSynced)
            push.close()

    run(scene)


@pytest.mark.threat("D23")
def test_a_request_that_nobody_waits_for_is_not_done(transport: Transport) -> None:
    """Queued while the answerer was away, and found later: its asker was told that it failed, so it must not happen."""

    async def scene() -> None:
        desk = Desk()
        async with conversation(transport, desk) as (requester, responder):
            late = msgpack.unpackb(codec.encode(stop()))
            late["sent_at_ns"] -= int((REQUEST_S_MAX + 1) * 1e9)
            push = transport.push(EXECUTOR_COMMANDS)
            await push.send(msgpack.packb(late))
            await await_for(lambda: responder.rejected["expired"] == 1, what="the refusal")
            assert await requester.request(stop(), jobs.LogSynced)
            assert desk.asked == 1
            push.close()

    run(scene)


@pytest.mark.threat("E03")
def test_oversized_message_is_dropped_and_the_next_one_arrives(transport: Transport) -> None:
    """A message over the endpoint's limit never reaches the service."""

    async def scene() -> None:
        receiver = Receiver(transport, PERSIST_ACKS)
        push = transport.push(PERSIST_ACKS)
        await push.send(codec.encode(logs.PersistStarted(instance="x" * PERSIST_ACKS.message_bytes_max)))
        waiting = asyncio.ensure_future(anext(receiver.messages()))

        def arrives() -> bool:
            push.try_send(codec.encode(logs.PersistStarted(instance="small")))
            return waiting.done()

        await await_for(arrives, what="the small message")
        assert waiting.result().body == logs.PersistStarted(instance="small")
        push.close()
        receiver.close()

    run(scene)


def test_answers_reach_each_asker(transport: Transport) -> None:
    """Two api processes (old and new, during a restart) each hear their own answers."""

    async def scene() -> None:
        async with conversation(transport, Desk()) as (first, _):
            second = Requester(
                transport, commands=EXECUTOR_COMMANDS, replies=API_REPLIES, reply_file="api-replies-1.sock"
            )
            task = asyncio.create_task(second.run())
            answers = await asyncio.gather(
                first.request(jobs.StopJob(job=JOB), jobs.LogSynced),
                second.request(jobs.StopJob(job=OTHER), jobs.LogSynced),
            )
            assert [answer.job for answer in answers] == [JOB, OTHER]
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            second.close()

    run(scene)


@pytest.mark.requirement("S0.34")
def test_large_records_pass(transport: Transport) -> None:
    """8 MiB of records in one message: more than one gRPC message may have, far below this channel's 128 MB."""

    async def scene() -> None:
        receiver = Receiver(transport, PERSIST_IPC)
        push = transport.push(PERSIST_IPC)
        body = logs.StoreRecords(job=JOB, epoch=0, batch=0, records=os.urandom(8 * 2**20))
        await push.send(codec.encode(body))
        assert (await anext(receiver.messages())).body == body
        push.close()
        receiver.close()

    run(scene)
