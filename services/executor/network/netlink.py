"""A socket to the kernel's network configuration: send a batch, hear what became of it. netlink(7).

Here: transport and errors. Not here: what is said (`links.py`, `nftables.py`, encoded by pyroute2). pyroute2's sockets
run an event loop a thread; for the short threads that this folder needs that costs more than the work itself
(docs/adr/0014-networks.md).

The kernel answers a request while it is being sent: when send(2) returns, every acknowledgement is in the receive
buffer. So there is nothing to wait for, and an answer that is not there never comes.
"""

import os
import socket
import struct
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Final, NamedTuple, Self

ROUTE: Final = 0  # NETLINK_ROUTE of linux/netlink.h
NETFILTER: Final = 12  # NETLINK_NETFILTER

_SOL_NETLINK: Final = 270
_NETLINK_CAP_ACK: Final = 10
_NETLINK_EXT_ACK: Final = 11
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_NLMSGERR_ATTR_MSG: Final = 1
_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ERROR: Final = struct.Struct("=i")
_ATTRIBUTE: Final = struct.Struct("=HH")
_ERROR_BYTES: Final = 16 + 4 + 16  # header, error, header of the request
RECEIVE_BYTES_MAX: Final = 256 * 1024
ANSWERS_BYTES_MAX: Final = 4 * 2**20
"""Room for the answers of a batch: each takes a page of the buffer at most, and no batch has 1000 messages."""


class Request(NamedTuple):
    """One message of a batch, encoded but for its sequence number."""

    what: str  # for the text of an error
    data: bytes
    tolerated: frozenset[int] = frozenset()  # errno values that mean: it is so already


class Netlink:
    """An open socket in the network namespace of the thread that made it, whichever thread uses it later."""

    def __init__(self, family: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
        try:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ANSWERS_BYTES_MAX)
            self._socket.bind((0, 0))
        except OSError:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptor back."""
        self._socket.close()

    def apply(self, requests: Sequence[Request]) -> None:
        """Send all at once. OSError: the first that failed and is not tolerated; the others may have been done.

        A batch of nftables (between its begin and end) is done as a whole or not at all.
        """
        self._send(requests)
        failures = dict(self._errors(self._receive(socket.MSG_DONTWAIT)))
        for sequence, request in enumerate(requests):
            number, text = failures.get(sequence, (0, ""))
            if number and number not in request.tolerated:
                said = f" ({text})" if text else ""
                raise OSError(number, f"{request.what}: {os.strerror(number)}{said}")

    def dump(self, request: Request) -> tuple[bytes, ...]:
        """The messages that answer one question for a list, each with its header. OSError when it is refused."""
        self._send([request])
        found: list[bytes] = []
        while True:
            for kind, message in self._receive():
                if kind == _NLMSG_DONE:
                    return tuple(found)
                if kind == _NLMSG_ERROR:
                    number = -_ERROR.unpack_from(message, _HEADER.size)[0]
                    raise OSError(number, f"{request.what}: {os.strerror(number)}")
                found.append(message)

    def _send(self, requests: Sequence[Request]) -> None:
        data = bytearray()
        for sequence, request in enumerate(requests):
            length, kind, flags, _, _ = _HEADER.unpack_from(request.data)
            data += _HEADER.pack(length, kind, flags, sequence, 0) + request.data[_HEADER.size :]
        self._socket.send(data)

    def _receive(self, flags: int = 0) -> list[tuple[int, bytes]]:
        """Type and bytes of messages: those that have come (MSG_DONTWAIT), or the next ones."""
        found: list[tuple[int, bytes]] = []
        while True:
            try:
                data = self._socket.recv(RECEIVE_BYTES_MAX, flags)
            except BlockingIOError:
                return found
            while data:
                length, kind, *_ = _HEADER.unpack_from(data)
                found.append((kind, data[:length]))
                data = data[length + -length % 4 :]
            if not flags:
                return found

    @staticmethod
    def _errors(messages: Iterable[tuple[int, bytes]]) -> Iterable[tuple[int, tuple[int, str]]]:
        for kind, message in messages:
            if kind == _NLMSG_ERROR:
                sequence = _HEADER.unpack_from(message)[3]
                yield sequence, (-_ERROR.unpack_from(message, _HEADER.size)[0], _explanation(message[_ERROR_BYTES:]))


def _explanation(attributes: bytes) -> str:
    """What the kernel says beyond the error's number (extended acknowledgement)."""
    while len(attributes) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(attributes)
        if kind == _NLMSGERR_ATTR_MSG:
            return attributes[_ATTRIBUTE.size : length].rstrip(b"\0").decode(errors="replace")
        if length < _ATTRIBUTE.size:
            return ""
        attributes = attributes[length + -length % 4 :]
    return ""
