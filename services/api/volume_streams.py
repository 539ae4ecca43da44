"""The content of volumes on its way between clients and the volumes service, as tar streams.

Belongs here: a socket for each stream, and moving bytes between it and a call. Does not belong here: tar (the volumes
service packs and unpacks), who may (`volume_access.py`).

    client            api                                      volumes service
      │── ExportVolume ─▶│ listen on run/streams/volume-stream-<hex>.sock  │
      │                  │── open_volume_stream {file} ────────▶│ starts a process
      │                  │◀───────────── connect ───────────────│ root (or our own user): SO_PEERCRED, unix(7)
      │◀── chunks ───────│◀───────────── bytes, end ────────────│
      │◀── OK ───────────│◀── volume_stream_closed, or failure ─│

An import is the same with the bytes in the other direction: api's end of file says that it was all. Nothing is kept but
one piece: the kernel's buffer of the socket and the window of the HTTP/2 stream make each side wait for the other.
"""

import asyncio
import os
import secrets
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, Final

import structlog

from common.bus.requests import Asker
from common.errors import JobletError, Reason, unavailable
from common.identifiers import VolumeId
from common.messages.volumes import Direction, OpenVolumeStream, VolumeStreamClosed
from proto.joblet.v1 import volume_pb2
from services.api.calls import current

log = structlog.get_logger(__name__)

CHUNK_BYTES: Final = 256 * 1024
STREAM_S_MAX: Final = 24 * 3600.0
BEGIN_S_MAX: Final = 60.0
"""How long the volumes service may take to connect: it mounts the volume, or a snapshot, first."""
ANSWER_S_MAX: Final = 30.0
"""How long its answer may take when the stream has ended."""

_FILE: Final = "volume-stream-{}.sock"  # topics.STREAM_FILE
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid


class VolumeStreams:
    """Streams below `directory`. They end with the calls that they are for."""

    def __init__(
        self, service: Asker, directory: Path, *, begin_s: float = BEGIN_S_MAX, answer_s: float = ANSWER_S_MAX
    ) -> None:
        self._service = service
        self._directory = directory
        self._begin_s = begin_s
        self._answer_s = answer_s

    def clear(self) -> None:
        """Remove what an earlier process left."""
        for path in self._directory.glob(_FILE.format("*")):
            path.unlink(missing_ok=True)

    async def export(self, volume: VolumeId, snapshot: str) -> AsyncGenerator[volume_pb2.VolumeChunk, None]:
        """The content, piece by piece. Raises JobletError when it is not whole."""
        moved = 0
        async with _Stream(self._service, self._directory) as stream:
            await stream.begin(volume, Direction.EXPORT, snapshot, self._begin_s)
            while data := await stream.receive():
                moved += len(data)
                current().note = f"{moved} bytes"
                yield volume_pb2.VolumeChunk(data=data)
            await stream.outcome(self._answer_s)

    async def fill(self, volume: VolumeId, content: AsyncGenerator[bytes, None]) -> None:
        """Unpack `content`. Raises JobletError when not all of it was."""
        async with aclosing(content), _Stream(self._service, self._directory) as stream:
            await stream.begin(volume, Direction.IMPORT, "", self._begin_s)
            await stream.send_all(content)
            await stream.outcome(self._answer_s)


class _Stream:
    """One stream: its socket, the connection, and the question that the volumes service answers at its end."""

    def __init__(self, service: Asker, directory: Path) -> None:
        self._service = service
        self._path = directory / _FILE.format(secrets.token_hex(16))
        self._connection: socket.socket | None = None
        self._tasks: list[asyncio.Task[Any]] = []
        self._answer: asyncio.Task[VolumeStreamClosed]

    async def __aenter__(self) -> "_Stream":
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        if self._connection is not None:
            self._connection.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def begin(self, volume: VolumeId, direction: Direction, snapshot: str, within_s: float) -> None:
        """Return when the volumes service has connected."""
        wanted = OpenVolumeStream(volume=volume, direction=direction, file=self._path.name, snapshot=snapshot)
        with _listening(self._path) as listener:
            self._answer = self._begun(self._service.request(wanted, VolumeStreamClosed, timeout_s=STREAM_S_MAX))
            accepted = self._begun(self._accept(listener))
            await asyncio.wait({self._answer, accepted}, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
            if accepted.done():
                accepted.result()
                return
        if not self._answer.done():
            raise unavailable(f"the volumes service did not begin the stream within {within_s:g} s", "try again")
        self._answer.result()
        raise JobletError(Reason.INTERNAL, "the volumes service ended a stream that it had not begun")

    async def receive(self) -> bytes:
        """The next piece; empty at the end."""
        assert self._connection is not None
        try:
            return await asyncio.get_running_loop().sock_recv(self._connection, CHUNK_BYTES)
        except ConnectionError:
            return b""  # whether that was all the answer tells

    async def send_all(self, content: AsyncIterator[bytes]) -> None:
        """Send the pieces, and that it was all; return as soon as nobody wants more of them."""
        sending = self._begun(self._send_all(content))
        await asyncio.wait({sending, self._answer}, return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            sending.result()
        else:
            sending.cancel()
            await asyncio.wait({sending})  # the call is read by one at a time

    async def _send_all(self, content: AsyncIterator[bytes]) -> None:
        assert self._connection is not None
        loop, moved = asyncio.get_running_loop(), 0
        try:
            async for data in content:
                await loop.sock_sendall(self._connection, data)
                moved += len(data)
                current().note = f"{moved} bytes"
            self._connection.shutdown(socket.SHUT_WR)
        except ConnectionError:
            return  # it has what it wants, or has failed: the answer tells
        while await self.receive():
            pass  # it sends nothing; its end is waited for

    async def outcome(self, within_s: float) -> None:
        """Raise JobletError unless the volumes service says that all went well. The stream is over."""
        await asyncio.wait({self._answer}, timeout=within_s)
        if not self._answer.done():
            raise unavailable(
                f"the volumes service did not tell within {within_s:g} s what became of the stream", "try again"
            )
        closed = self._answer.result()
        log.info("volume stream ended", file=self._path.name, entries=closed.entries, bytes=closed.bytes)

    async def _accept(self, listener: socket.socket) -> None:
        """Take the first connection of root or of our own user; others are closed."""
        while True:
            connection, _ = await asyncio.get_running_loop().sock_accept(listener)
            if _peer_uid(connection) in {0, os.geteuid()}:
                self._connection = connection
                return
            log.warning("a stranger at the socket of a stream", uid=_peer_uid(connection))
            connection.close()

    def _begun(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.append(task)
        return task


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """A socket that listens at `path`; the file is gone behind. Others are kept out by its directory."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as listener:
        try:
            # By descriptor: an address has 107 bytes at most (unix(7)), and the base directory may be anywhere.
            directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                listener.bind(f"/proc/self/fd/{directory}/{path.name}")
            finally:
                os.close(directory)
        except OSError as cause:
            raise unavailable(
                f"cannot make the socket for the stream: {cause.strerror}", "the node's disk may be full"
            ) from cause
        try:
            listener.listen(1)
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _peer_uid(connection: socket.socket) -> int:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(credentials)[1]
    return uid
