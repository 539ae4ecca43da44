"""The transport of tests, and of the library `worker`: as `zeromq.py` behaves, in one event loop, without a socket."""

import asyncio
from collections import Counter

from common.errors import JobletError, Reason
from common.messages.topics import Endpoint


class Memory:
    """Every socket opened on one instance can reach the others of it."""

    def __init__(self) -> None:
        self._queues: dict[str, asyncio.Queue[bytes]] = {}
        self._bound: set[str] = set()
        self._subscribers: dict[str, list[_Sub]] = {}

    def push(self, endpoint: Endpoint, file: str = "") -> "_Push":
        """See Transport.push."""
        return _Push(self._queue(endpoint, file))

    def pull(self, endpoint: Endpoint, file: str = "") -> "_Pull":
        """See Transport.pull."""
        return _Pull(self._queue(endpoint, file), self._claim(file or endpoint.file))

    def publisher(self, endpoint: Endpoint) -> "_Pub":
        """See Transport.publisher."""
        return _Pub(self._subscribers.setdefault(endpoint.file, []), self._claim(endpoint.file))

    def subscriber(self, endpoint: Endpoint) -> "_Sub":
        """See Transport.subscriber."""
        subscriber = _Sub(endpoint.queue_messages_max)
        self._subscribers.setdefault(endpoint.file, []).append(subscriber)
        return subscriber

    def close(self) -> None:
        """See Transport.close."""
        self._queues.clear()
        self._bound.clear()
        self._subscribers.clear()

    def _queue(self, endpoint: Endpoint, file: str) -> asyncio.Queue[bytes]:
        return self._queues.setdefault(file or endpoint.file, asyncio.Queue(endpoint.queue_messages_max))

    def _claim(self, file: str) -> "_Claim":
        if file in self._bound:
            raise JobletError(Reason.EXISTS, f"another process serves {file}")
        self._bound.add(file)
        return _Claim(self._bound, file)


class _Claim:
    def __init__(self, bound: set[str], file: str) -> None:
        self._bound, self._file = bound, file

    def close(self) -> None:
        self._bound.discard(self._file)


class _Push:
    def __init__(self, queue: asyncio.Queue[bytes]) -> None:
        self._queue = queue

    async def send(self, payload: bytes) -> None:
        await self._queue.put(payload)

    def try_send(self, payload: bytes) -> bool:
        try:
            self._queue.put_nowait(payload)
        except asyncio.QueueFull:
            return False
        return True

    def close(self) -> None:
        """Nothing is held."""


class _Pull:
    def __init__(self, queue: asyncio.Queue[bytes], claim: _Claim) -> None:
        self._queue, self._claim = queue, claim

    async def receive(self) -> bytes:
        return await self._queue.get()

    def close(self) -> None:
        self._claim.close()


class _Pub:
    def __init__(self, subscribers: "list[_Sub]", claim: _Claim) -> None:
        self._subscribers, self._claim = subscribers, claim

    def publish(self, topic: str, payload: bytes) -> None:
        for subscriber in self._subscribers:
            subscriber.offer(topic, payload)

    def close(self) -> None:
        self._claim.close()


class _Sub:
    def __init__(self, queue_messages_max: int) -> None:
        self._queue: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue(queue_messages_max)
        self._prefixes: Counter[str] = Counter()
        self._closed = False

    def subscribe(self, prefix: str) -> None:
        self._prefixes[prefix] += 1

    def unsubscribe(self, prefix: str) -> None:
        self._prefixes[prefix] -= 1

    def offer(self, topic: str, payload: bytes) -> None:
        if self._closed or self._queue.full():
            return
        if any(count > 0 and topic.startswith(prefix) for prefix, count in self._prefixes.items()):
            self._queue.put_nowait((topic, payload))

    async def receive(self) -> tuple[str, bytes]:
        return await self._queue.get()

    def close(self) -> None:
        self._closed = True
