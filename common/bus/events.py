"""Typed publishing and subscribing."""

from collections import Counter
from collections.abc import AsyncIterator

import structlog

from common.bus import codec
from common.bus.transport import Transport
from common.messages.envelope import Body, Message
from common.messages.topics import EVENTS

log = structlog.get_logger(__name__)


class Publisher:
    """Publishes on the events endpoint. Never waits: a subscriber that is too slow misses messages."""

    def __init__(self, transport: Transport) -> None:
        self._socket = transport.publisher(EVENTS)

    def publish(self, topic: str, body: Body) -> None:
        """Send `body` to the subscribers of `topic`."""
        self._socket.publish(topic, codec.encode(body))

    def close(self) -> None:
        """Stop publishing."""
        self._socket.close()


class Subscriber:
    """Receives from the events endpoint; what is no message is counted in `rejected` and dropped."""

    def __init__(self, transport: Transport) -> None:
        self._socket = transport.subscriber(EVENTS)
        self.rejected: Counter[str] = Counter()

    def subscribe(self, prefix: str) -> None:
        """Ask for topics that begin with `prefix`. Takes effect a little later: see jobs.SyncLog."""
        self._socket.subscribe(prefix)

    def unsubscribe(self, prefix: str) -> None:
        """Take one `subscribe` back."""
        self._socket.unsubscribe(prefix)

    async def messages(self) -> AsyncIterator[tuple[str, Message]]:
        """Topic and message, for ever."""
        while True:
            topic, payload = await self._socket.receive()
            try:
                yield topic, codec.decode(payload, EVENTS)
            except codec.RejectedMessage as rejected:
                self.rejected[rejected.cause] += 1
                if self.rejected[rejected.cause].bit_count() == 1:
                    log.warning("event refused", topic=topic[:100], why=str(rejected)[:300])

    def close(self) -> None:
        """Stop receiving."""
        self._socket.close()
