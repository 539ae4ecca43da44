"""A tar stream's two ends: bytes to a socket and bytes from it, neither waiting for ever nor piling up.

Only the standard library. Not here: what a tar archive is (`tarheader.py`, `tarwriter.py`, `tarreader.py`).
"""

import select
import socket
from typing import Final

from common.errors import JobletError, Reason, invalid, unavailable

BLOCK_BYTES: Final = 512
PIECE_BYTES: Final = 64 * 1024
ZEROS: Final = bytes(PIECE_BYTES)
_BUFFER_BYTES: Final = 256 * 1024
_AFTER_END_BYTES_MAX: Final = 2**20
"""What may follow an archive's end: programs fill the last record up, to 512 times 512 bytes at most as a rule."""


class _End:
    def __init__(self, connection: socket.socket, stall_s: float, event: int) -> None:
        connection.settimeout(0)
        self._connection = connection
        self._stall_s = stall_s
        self._poll = select.poll()
        self._poll.register(connection, event)

    def _wait(self) -> None:
        if not self._poll.poll(self._stall_s * 1000):
            raise JobletError(
                Reason.DEADLINE, f"the other end of the stream stood still for {self._stall_s:g} s", detail="try again"
            )


class Outgoing(_End):
    """What is written is sent when there is enough of it."""

    def __init__(self, connection: socket.socket, *, stall_s: float) -> None:
        super().__init__(connection, stall_s, select.POLLOUT)
        self._waiting = bytearray()
        self.bytes = 0

    def write(self, data: bytes | memoryview) -> None:
        """Raises JobletError: DEADLINE, or UNAVAILABLE when the other end is gone."""
        self._waiting += data
        self.bytes += len(data)
        if len(self._waiting) >= _BUFFER_BYTES:
            self.flush()

    def zeros(self, count: int) -> None:
        """Write so many zero bytes."""
        while count > 0:
            piece = min(count, PIECE_BYTES)
            self.write(memoryview(ZEROS)[:piece])
            count -= piece

    def flush(self) -> None:
        """Send what is waiting."""
        with memoryview(self._waiting) as all_of_it:
            sent = 0
            while sent < len(all_of_it):
                try:
                    sent += self._connection.send(all_of_it[sent:])
                except BlockingIOError:
                    self._wait()
                except (BrokenPipeError, ConnectionResetError) as cause:
                    raise unavailable("the receiver of the stream has gone", "try again") from cause
        self._waiting.clear()


class Incoming(_End):
    """What arrives, in pieces as they are asked for."""

    def __init__(self, connection: socket.socket, *, stall_s: float) -> None:
        super().__init__(connection, stall_s, select.POLLIN)
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._start = self._end = 0

    def some(self, bytes_max: int) -> memoryview:
        """Between one byte and `bytes_max`, good until the next call. INVALID: the stream has ended."""
        piece = self._some_or_end(bytes_max)
        if not piece:
            raise invalid("the archive is cut off", "send it again, whole")
        return piece

    def exactly(self, count: int) -> bytes:
        """So many bytes; `count` is bounded by the caller."""
        parts = bytearray()
        while len(parts) < count:
            parts += self.some(count - len(parts))
        return bytes(parts)

    def skip(self, count: int) -> None:
        """Read so many bytes and forget them."""
        while count > 0:
            count -= len(self.some(count))

    def block(self) -> bytes:
        """The next 512 bytes; fewer at the end of the stream."""
        parts = bytearray()
        while len(parts) < BLOCK_BYTES:
            piece = self._some_or_end(BLOCK_BYTES - len(parts))
            if not piece:
                break
            parts += piece
        return bytes(parts)

    def finish(self) -> None:
        """Read to the end, so that nobody writes to a closed socket. INVALID: there is more than an archive's rest."""
        left = _AFTER_END_BYTES_MAX
        while piece := self._some_or_end(_BUFFER_BYTES):
            left -= len(piece)
            if left < 0:
                raise invalid("there is more behind the end of the archive", "send one archive, and nothing else")

    def _some_or_end(self, bytes_max: int) -> memoryview:
        if self._start == self._end:
            self._start, self._end = 0, self._receive()
        length = min(bytes_max, self._end - self._start)
        piece = self._buffer[self._start : self._start + length]
        self._start += length
        return piece

    def _receive(self) -> int:
        while True:
            try:
                return self._connection.recv_into(self._buffer)
            except BlockingIOError:
                self._wait()
            except ConnectionResetError:
                return 0
