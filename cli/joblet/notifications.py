"""The receiving end of sd_notify(3): which of our services are ready.

A datagram is believed only from a process that we started, as the kernel names the sender (SCM_CREDENTIALS, unix(7)).
"""

import array
import asyncio
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

NOTIFY_FILE: Final = "notify.sock"
DATAGRAM_BYTES_MAX: Final = 4096
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid
_CONTROL_BYTES: Final = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(16 * array.array("i").itemsize)


class NotificationSocket:
    """Bound below the run directory, for root only: services connect before they drop privileges.

    `address` leads there through our descriptor of the directory: its own path may be longer than the 107 bytes that
    unix(7) has for it.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / NOTIFY_FILE
        self._directory = os.open(run_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.address = f"/proc/{os.getpid()}/fd/{self._directory}/{NOTIFY_FILE}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._path.unlink(missing_ok=True)  # of a supervisor that was killed; ours is the lock
        self._socket.bind(self.address)
        self._path.chmod(0o600)

    def listen(self, heard: Callable[[int, str], None]) -> None:
        """From now on call `heard(pid, state)` in the event loop for each `KEY=value` of each datagram."""
        asyncio.get_running_loop().add_reader(self._socket, self._receive, heard)

    def close(self) -> None:
        """Stop and remove the socket file."""
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        os.close(self._directory)
        self._path.unlink(missing_ok=True)

    def _receive(self, heard: Callable[[int, str], None]) -> None:
        try:
            data, control, _, _ = self._socket.recvmsg(DATAGRAM_BYTES_MAX, _CONTROL_BYTES)
        except BlockingIOError:
            return
        pid = 0
        for level, kind, content in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                pid = _CREDENTIALS.unpack(content[: _CREDENTIALS.size])[0]
            elif level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                # Descriptors that somebody passes along would pile up here.
                for descriptor in array.array("i", content[: len(content) - len(content) % 4]):
                    os.close(descriptor)
        for state in data.decode("utf-8", "replace").splitlines():
            heard(pid, state)
