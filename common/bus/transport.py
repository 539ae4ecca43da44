"""What a transport gives: four kinds of socket, each opened for a row of the table in common/messages/topics.py.

Two implementations with the same behaviour: `zeromq.py` (the real one) and `memory.py` (for tests, one process).
One contract suite runs over both (tests/contract/test_bus.py).
"""

from typing import Protocol

from common.messages.topics import Endpoint


class PushSocket(Protocol):
    """The sending end of a PUSH→PULL endpoint."""

    async def send(self, payload: bytes) -> None:
        """Queue `payload`, waiting while the queue is full. Queued is not delivered."""

    def try_send(self, payload: bytes) -> bool:
        """Queue `payload` if there is room; tell whether."""

    def close(self) -> None:
        """Give the socket up; what is still queued may be lost."""


class PullSocket(Protocol):
    """The receiving, binding end of a PUSH→PULL endpoint."""

    async def receive(self) -> bytes:
        """The next payload from any sender. Nothing is promised about its content."""

    def close(self) -> None:
        """Give the socket up."""


class PubSocket(Protocol):
    """The publishing, binding end of a PUB→SUB endpoint."""

    def publish(self, topic: str, payload: bytes) -> None:
        """Send to every subscriber of a prefix of `topic` whose queue has room. Never waits."""

    def close(self) -> None:
        """Give the socket up."""


class SubSocket(Protocol):
    """The subscribing end of a PUB→SUB endpoint."""

    def subscribe(self, prefix: str) -> None:
        """Ask for topics that begin with `prefix`. Takes effect a little later."""

    def unsubscribe(self, prefix: str) -> None:
        """Take one `subscribe` back."""

    async def receive(self) -> tuple[str, bytes]:
        """The next topic and payload."""

    def close(self) -> None:
        """Give the socket up."""


class Transport(Protocol):
    """Opens sockets. `file` stands in for the endpoint's own where that is a pattern (replies)."""

    def push(self, endpoint: Endpoint, file: str = "") -> PushSocket:
        """Connect for sending. The binder need not exist yet."""

    def pull(self, endpoint: Endpoint, file: str = "") -> PullSocket:
        """Bind for receiving. Raises `JobletError(EXISTS)` when another process holds the endpoint."""

    def publisher(self, endpoint: Endpoint) -> PubSocket:
        """Bind for publishing. Raises `JobletError(EXISTS)` when another process holds the endpoint."""

    def subscriber(self, endpoint: Endpoint) -> SubSocket:
        """Connect for subscribing. The binder need not exist yet."""

    def close(self) -> None:
        """Close every socket that this transport opened."""
