"""What persist tells the executor. Of one kind and job only the newest is kept until it can be sent.

Acknowledgements are cumulative, so nothing is lost by that, and an executor that is away costs bounded memory.
"""

import asyncio

from common.bus import codec
from common.bus.transport import PushSocket
from common.failpoints import reached
from common.messages.envelope import Body
from common.messages.logs import Resend, Stored


class Outbox:
    """Sends in the order of the first mention."""

    def __init__(self, socket: PushSocket) -> None:
        self._socket = socket
        self._waiting: dict[tuple[str, str], Body] = {}
        self._more = asyncio.Event()

    def put(self, body: Body) -> None:
        """Have `body` sent. Never waits."""
        job = body.job if isinstance(body, Stored | Resend) else ""
        self._waiting[type(body).__name__, job] = body
        self._more.set()

    async def run(self) -> None:
        """Send for ever."""
        while True:
            await self._more.wait()
            self._more.clear()
            while self._waiting:
                body = self._waiting.pop(next(iter(self._waiting)))
                await self._socket.send(codec.encode(body))
                reached("persist.acknowledged")
