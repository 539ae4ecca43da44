"""The real transport: ZeroMQ over ipc:// files. The only module that imports zmq.

A second process that binds the same ipc file would silently take its traffic, so a lock file is held before every
bind. Sockets are made while the process is still root; a socket belongs to the one unprivileged service that
connects to it, or to the group where operators connect too.
"""

import fcntl
import os
from pathlib import Path
from typing import Any, Final, TypeVar

import zmq
import zmq.asyncio

from common.errors import JobletError, Reason, invalid
from common.messages.topics import Endpoint, Pattern, Service

IPC_PATH_BYTES_MAX: Final = 107
"""sizeof(sockaddr_un.sun_path) less the NUL (unix(7))."""


S = TypeVar("S", bound="_Socket")


class SocketOwners:
    """Who may connect to the sockets that this process binds: uids of the unprivileged services and their group.

    Without privileges (rootless, tests) everything belongs to the caller, and `None` is given instead.
    """

    def __init__(self, *, api_uid: int, persist_uid: int, gid: int) -> None:
        self._uids = {Service.API: api_uid, Service.PERSIST: persist_uid}
        self._gid = gid

    def of(self, endpoint: Endpoint) -> tuple[int, int]:
        """Uid and gid of the endpoint's socket file."""
        if Service.OPERATOR in endpoint.connectors:
            return 0, self._gid
        uids = [self._uids[service] for service in endpoint.connectors if service in self._uids]
        assert len(uids) <= 1, f"{endpoint.file}: two unprivileged connectors need the group"
        return (uids[0] if uids else 0), 0


class ZeroMQ:
    """Opens sockets below `run_dir`. One instance a process, used from its event loop's thread only."""

    def __init__(self, run_dir: Path, owners: SocketOwners | None = None) -> None:
        self._run_dir = run_dir
        self._owners = owners
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._async_context = zmq.asyncio.Context.shadow(self._context.underlying)
        self._sockets: list[_Socket] = []

    def push(self, endpoint: Endpoint, file: str = "") -> "_Push":
        """See Transport.push."""
        return self._keep(_Push(self._connect(zmq.PUSH, Pattern.PUSH_PULL, endpoint, file)))

    def pull(self, endpoint: Endpoint, file: str = "") -> "_Pull":
        """See Transport.pull."""
        socket, lock = self._bind(zmq.PULL, Pattern.PUSH_PULL, endpoint, file)
        return self._keep(_Pull(socket, lock))

    def publisher(self, endpoint: Endpoint) -> "_Pub":
        """See Transport.publisher."""
        socket, lock = self._bind(zmq.PUB, Pattern.PUB_SUB, endpoint, "")
        return self._keep(_Pub(socket, lock))

    def subscriber(self, endpoint: Endpoint) -> "_Sub":
        """See Transport.subscriber."""
        return self._keep(_Sub(self._connect(zmq.SUB, Pattern.PUB_SUB, endpoint, "")))

    def close(self) -> None:
        """See Transport.close."""
        for socket in self._sockets:
            socket.close()
        self._sockets.clear()
        self._context.term()

    def _keep(self, socket: S) -> S:
        self._sockets = [other for other in self._sockets if not other.closed]
        self._sockets.append(socket)
        return socket

    def _open(self, kind: int, pattern: Pattern, endpoint: Endpoint) -> zmq.asyncio.Socket:
        assert endpoint.pattern is pattern, endpoint.file
        socket = self._async_context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, endpoint.queue_messages_max)
        socket.setsockopt(zmq.RCVHWM, endpoint.queue_messages_max)
        socket.setsockopt(zmq.MAXMSGSIZE, endpoint.message_bytes_max)
        socket.setsockopt(zmq.RECONNECT_IVL, 20)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        return socket

    def _connect(self, kind: int, pattern: Pattern, endpoint: Endpoint, file: str) -> zmq.asyncio.Socket:
        socket = self._open(kind, pattern, endpoint)
        socket.connect(f"ipc://{self._path(endpoint, file)}")
        return socket

    def _bind(self, kind: int, pattern: Pattern, endpoint: Endpoint, file: str) -> tuple[zmq.asyncio.Socket, int]:
        path = self._path(endpoint, file)
        lock = _hold_lock(path)
        umask = os.umask(0o177)
        try:
            socket = self._open(kind, pattern, endpoint)
            socket.bind(f"ipc://{path}")
            if self._owners is not None:
                uid, gid = self._owners.of(endpoint)
                os.chown(path, uid, gid)
            path.chmod(0o660)
        except BaseException:
            os.close(lock)
            raise
        finally:
            os.umask(umask)
        return socket, lock

    def _path(self, endpoint: Endpoint, file: str) -> Path:
        path = self._run_dir / (file or endpoint.file)
        if len(os.fsencode(path)) > IPC_PATH_BYTES_MAX:
            raise invalid(
                f"socket path {path} is longer than {IPC_PATH_BYTES_MAX} bytes", "use a shorter base directory"
            )
        return path


def _hold_lock(path: Path) -> int:
    """A descriptor that holds `<path>.lock`; closing it releases the lock."""
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as cause:
        os.close(lock)
        raise JobletError(
            Reason.EXISTS, f"another process serves {path}", detail="stop it, or use another base directory"
        ) from cause
    return lock


class _Socket:
    def __init__(self, socket: zmq.asyncio.Socket, lock: int | None = None) -> None:
        self._socket = socket
        self._lock = lock

    @property
    def closed(self) -> bool:
        return bool(self._socket.closed)

    def close(self) -> None:
        if not self._socket.closed:
            self._socket.close(linger=0)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class _Push(_Socket):
    def __init__(self, socket: zmq.asyncio.Socket) -> None:
        super().__init__(socket)
        self._now: zmq.Socket[Any] = zmq.Socket.shadow(socket.underlying)

    async def send(self, payload: bytes) -> None:
        await self._socket.send(payload)

    def try_send(self, payload: bytes) -> bool:
        try:
            self._now.send(payload, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True


class _Pull(_Socket):
    async def receive(self) -> bytes:
        while True:
            frames: list[bytes] = await self._socket.recv_multipart()
            if len(frames) == 1:
                return frames[0]


class _Pub(_Socket):
    def __init__(self, socket: zmq.asyncio.Socket, lock: int) -> None:
        super().__init__(socket, lock)
        self._now: zmq.Socket[Any] = zmq.Socket.shadow(socket.underlying)

    def publish(self, topic: str, payload: bytes) -> None:
        self._now.send_multipart([topic.encode(), payload], zmq.NOBLOCK)


class _Sub(_Socket):
    def subscribe(self, prefix: str) -> None:
        self._socket.setsockopt(zmq.SUBSCRIBE, prefix.encode())

    def unsubscribe(self, prefix: str) -> None:
        self._socket.setsockopt(zmq.UNSUBSCRIBE, prefix.encode())

    async def receive(self) -> tuple[str, bytes]:
        while True:
            frames: list[bytes] = await self._socket.recv_multipart()
            if len(frames) == 2:
                return frames[0].decode("utf-8", "replace"), frames[1]
