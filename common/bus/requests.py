"""Requests and answers over two one-way channels, matched by message id; and the receiving loop both stand on.

Asker                                     Answerer
  PUSH executor-commands.sock  ──────────▶  PULL     {id: A, reply_to: api-replies-7.sock}
  PULL api-replies-7.sock      ◀──────────  PUSH     {cause_id: A, kind: the answer's, or failure}
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

import structlog

from common.bus import codec
from common.bus.transport import PullSocket, PushSocket, Transport
from common.errors import JobletError, Reason, unavailable
from common.messages.envelope import Body, Failure, Message
from common.messages.topics import Endpoint

log = structlog.get_logger(__name__)

Handler = Callable[[Any], Awaitable[Body]]
"""Does one request and returns its answer, or raises JobletError."""

Answer = TypeVar("Answer", bound=Body)

ANSWER_CHANNELS_MAX: Final = 64
REQUESTS_AT_ONCE_MAX: Final = 1000
REQUEST_S_MAX: Final = 10.0
"""How long a request is waited for. One that is older when it is received is dropped: it was queued while its answerer
was away, its asker was told that nobody answered, and nothing may happen behind his back."""


class Receiver:
    """Messages of one PULL endpoint; what is no message is counted in `rejected`, logged and dropped."""

    def __init__(self, transport: Transport, endpoint: Endpoint, file: str = "") -> None:
        self._socket: PullSocket = transport.pull(endpoint, file)
        self._endpoint = endpoint
        self.rejected: Counter[str] = Counter()

    async def messages(self) -> AsyncIterator[Message]:
        """Every valid message, for ever."""
        while True:
            payload = await self._socket.receive()
            try:
                yield codec.decode(payload, self._endpoint)
            except codec.RejectedMessage as rejected:
                self.rejected[rejected.cause] += 1
                if self.rejected[rejected.cause].bit_count() == 1:  # 1, 2, 4, 8 …: a flood does not fill the log
                    log.warning(
                        "message refused",
                        endpoint=self._endpoint.file,
                        why=str(rejected)[:300],
                        times=self.rejected[rejected.cause],
                    )

    def close(self) -> None:
        """Stop receiving."""
        self._socket.close()


class _Replies:
    """Where the answers to a process arrive, whomever it asked, and who waits for them."""

    def __init__(self, transport: Transport, endpoint: Endpoint, file: str) -> None:
        self.file = file
        self.waiting: dict[str, asyncio.Future[Body]] = {}
        self._receiver = Receiver(transport, endpoint, file)

    async def run(self) -> None:
        async for message in self._receiver.messages():
            waiting = self.waiting.get(message.cause_id)
            if waiting is not None and not waiting.done():
                waiting.set_result(message.body)

    def close(self) -> None:
        for waiting in self.waiting.values():
            waiting.cancel()
        self._receiver.close()


class Asker:
    """Asks one endpoint and waits for the answer, which arrives where its Requester listens."""

    def __init__(self, transport: Transport, commands: Endpoint, replies: _Replies) -> None:
        self._commands = transport.push(commands)
        self._replies = replies
        self._name = commands.binder.value

    async def request(self, body: Body, answer: type[Answer], *, timeout_s: float = REQUEST_S_MAX) -> Answer:
        """The answer to `body`. Raises the JobletError of a Failure; UNAVAILABLE when none comes in time."""
        message_id = codec.new_message_id()
        waiting: asyncio.Future[Body] = asyncio.get_running_loop().create_future()
        self._replies.waiting[message_id] = waiting
        try:
            async with asyncio.timeout(timeout_s):
                await self._commands.send(codec.encode(body, message_id=message_id, reply_to=self._replies.file))
                received = await waiting
        except TimeoutError as cause:
            raise unavailable(f"the {self._name} did not answer within {timeout_s:g} s", "try again") from cause
        finally:
            del self._replies.waiting[message_id]
        if isinstance(received, Failure):
            raise _as_error(received)
        if not isinstance(received, answer):
            raise JobletError(Reason.INTERNAL, f"the {self._name} answered with {type(received).__name__}")
        return received

    def close(self) -> None:
        """Stop asking."""
        self._commands.close()


class Requester(Asker):
    """An Asker that owns the place where answers arrive. `run` must be running while `request` waits."""

    def __init__(self, transport: Transport, *, commands: Endpoint, replies: Endpoint, reply_file: str) -> None:
        self._transport = transport
        super().__init__(transport, commands, _Replies(transport, replies, reply_file))

    def beside(self, commands: Endpoint) -> Asker:
        """Asks another endpoint, and hears its answers here. Close it before this one."""
        return Asker(self._transport, commands, self._replies)

    async def run(self) -> None:
        """Hand answers to those who wait for them, for ever."""
        await self._replies.run()

    def close(self) -> None:
        """Stop asking; whoever waits is cancelled."""
        super().close()
        self._replies.close()


class Responder:
    """Answers the requests of one endpoint, each in a task of its own.

    `replies`: where the answers go; `also`: further such endpoints, each for the asker that names its file.
    """

    def __init__(
        self,
        transport: Transport,
        endpoint: Endpoint,
        replies: Endpoint,
        handlers: Mapping[type[Body], Handler],
        *,
        also: tuple[Endpoint, ...] = (),
    ) -> None:
        missing = set(endpoint.messages) - set(handlers)
        assert not missing, f"{endpoint.file}: no handler for {missing}"
        self._transport = transport
        self._receiver = Receiver(transport, endpoint)
        self._replies = replies
        self._also = {other.file: other for other in also}
        self._handlers = handlers
        self._channels: dict[str, PushSocket] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def rejected(self) -> Counter[str]:
        """How many messages were refused, by cause."""
        return self._receiver.rejected

    async def run(self) -> None:
        """Answer for ever."""
        slots = asyncio.Semaphore(REQUESTS_AT_ONCE_MAX)
        async for message in self._receiver.messages():
            if time.time_ns() - message.sent_at_ns > REQUEST_S_MAX * 1e9:
                self.rejected["expired"] += 1
                log.warning("request dropped: nobody waits for it any more", kind=type(message.body).__name__)
                continue
            await slots.acquire()
            task = asyncio.create_task(self._answer(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(lambda _: slots.release())

    async def _answer(self, message: Message) -> None:
        answer: Body
        try:
            answer = await self._handlers[type(message.body)](message.body)
        except JobletError as error:
            answer = _as_failure(error)
        except Exception:
            log.exception("request failed", kind=type(message.body).__name__, message_id=message.id)
            answer = Failure(reason=Reason.INTERNAL, message="internal error", detail="see the log of the service")
        if message.reply_to:
            payload = codec.encode(answer, cause_id=message.id)
            if not self._channel(message.reply_to).try_send(payload):
                log.warning("answer dropped: the asker does not read", reply_to=message.reply_to)

    def _channel(self, file: str) -> PushSocket:
        channel = self._channels.pop(file, None) or self._transport.push(self._also.get(file, self._replies), file)
        self._channels[file] = channel  # youngest last
        while len(self._channels) > ANSWER_CHANNELS_MAX:
            self._channels.pop(next(iter(self._channels))).close()
        return channel

    async def close(self) -> None:
        """Stop answering."""
        self._receiver.close()
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks, return_exceptions=True)
        for channel in self._channels.values():
            channel.close()


def _as_failure(error: JobletError) -> Failure:
    return Failure(
        reason=error.reason,
        message=error.message,
        detail=error.detail,
        retryable=error.retryable,
        retry_after_s=error.retry_after_s,
    )


def _as_error(failure: Failure) -> JobletError:
    try:
        reason = Reason(failure.reason)
    except ValueError:
        reason = Reason.INTERNAL
    return JobletError(
        reason,
        failure.message,
        detail=failure.detail,
        retryable=failure.retryable,
        retry_after_s=failure.retry_after_s,
    )
