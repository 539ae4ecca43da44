"""A client of HTTP/2 at the level of frames, for what no well-behaved client would send (RFC 9113, RFC 7541).

Belongs here: frames in and out over TLS, just enough HPACK to ask for a gRPC method and to read its status. Does not
belong here: gRPC's own client, which most tests use, and expectations.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple

from tests.certificates import Authority, Identity
from tests.waiting import await_for

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BYTES: Final = 9
FRAME_BYTES_MAX: Final = 16_384
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4


class Type(IntEnum):
    """Kinds of frames, RFC 9113 section 6."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Setting(IntEnum):
    """What a peer asks for, RFC 9113 section 6.5.2."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class Error(IntEnum):
    """Codes of RST_STREAM and GOAWAY, RFC 9113 section 7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    FLOW_CONTROL_ERROR = 3
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class Frame(NamedTuple):
    """One frame as it came."""

    type: int
    flags: int
    stream: int
    payload: bytes

    @property
    def error(self) -> int:
        """The code of a RST_STREAM or a GOAWAY."""
        start = 4 if self.type == Type.GOAWAY else 0
        return int.from_bytes(self.payload[start : start + 4], "big")


class Http2:
    """One connection. Whatever the server sends is read at once and kept in `frames`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._next_stream = 1
        self._headers = Headers()
        self.frames: list[Frame] = []
        self.settings: dict[int, int] = {}
        self.trailers: dict[int, dict[str, str]] = {}
        self.closed = False

    async def read_forever(self) -> None:
        """Collect frames until the end, acknowledging settings and nothing else."""
        with suppress(asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            while True:
                head = await self._reader.readexactly(HEADER_BYTES)
                payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
                frame = Frame(head[3], head[4], int.from_bytes(head[5:], "big"), payload)
                if frame.type == Type.SETTINGS and not frame.flags & ACK:
                    for start in range(0, len(payload), 6):
                        number = int.from_bytes(payload[start : start + 2], "big")
                        self.settings[number] = int.from_bytes(payload[start + 2 : start + 6], "big")
                    self.put(Type.SETTINGS, flags=ACK)
                elif frame.type == Type.HEADERS:
                    self.trailers.setdefault(frame.stream, {}).update(self._headers.read(payload))
                self.frames.append(frame)
        self.closed = True

    @property
    def tls_version(self) -> str:
        """Such as "TLSv1.3"."""
        return str(self._writer.get_extra_info("ssl_object").version())

    def put(self, kind: Type, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> None:
        """Send a frame as soon as there is room; `drain` waits for that. After the end of the connection: nothing."""
        if self.closed or self._writer.is_closing():
            return
        self._writer.write(len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload)

    def put_at_once(self, kind: Type, payloads: Iterable[bytes]) -> None:
        """Send frames as one TLS record: the server has read the last before it judges the first.

        Were any of them unread when it closes the connection, the kernel would reset it (RFC 2525, 2.17), and what
        the server said last might never be seen here.
        """
        frames = ((len(one).to_bytes(3, "big") + bytes((kind, 0)) + bytes(4) + one) for one in payloads)
        self._writer.write(b"".join(frames))

    async def drain(self) -> bool:
        """Wait until most of it is on its way; False when the server has closed the connection."""
        try:
            await self._writer.drain()
        except (ConnectionError, ssl.SSLError):
            return False
        await asyncio.sleep(0)  # there may be room at once, and what came has to be read, too
        return not self.closed

    def headers(self, block: bytes, *, flags: int = END_HEADERS | END_STREAM) -> int:
        """Open a stream with these headers, in as many frames as they need; its number.

        Without END_HEADERS in `flags` the block must fit into one frame, and goes on in what the caller sends.
        """
        stream = self._next_stream
        self._next_stream += 2
        pieces = [block[start : start + FRAME_BYTES_MAX] for start in range(0, len(block), FRAME_BYTES_MAX)]
        last = len(pieces) - 1
        for number, piece in enumerate(pieces):
            ends = flags & END_HEADERS if number == last else 0
            if number:
                self.put(Type.CONTINUATION, piece, flags=ends, stream=stream)
            else:
                self.put(Type.HEADERS, piece, flags=flags & ~END_HEADERS | ends, stream=stream)
        return stream

    def request(
        self,
        path: str,
        *messages: bytes,
        extra: Iterable[tuple[bytes, bytes]] = (),
        end: bool = True,
        compressed: bool = False,
    ) -> int:
        """Begin a call with these messages; its stream. `end`: these are all."""
        flags = END_STREAM if end and not messages else 0
        stream = self.headers(request_headers(path, extra), flags=flags | END_HEADERS)
        data = b"".join(bytes((compressed,)) + len(one).to_bytes(4, "big") + one for one in messages)
        for start in range(0, len(data), FRAME_BYTES_MAX):
            last = start + FRAME_BYTES_MAX >= len(data)
            piece = data[start : start + FRAME_BYTES_MAX]
            self.put(Type.DATA, piece, flags=END_STREAM if end and last else 0, stream=stream)
        return stream

    def of(self, kind: Type, stream: int | None = None) -> list[Frame]:
        """The frames of one kind that came, of one stream or of all."""
        return [one for one in self.frames if one.type == kind and stream in (None, one.stream)]

    def data_bytes(self, stream: int) -> int:
        """How much data came on a stream."""
        return sum(len(one.payload) for one in self.of(Type.DATA, stream))

    def status(self, stream: int) -> str:
        """The grpc-status of a call, as it stands on the wire; empty: none yet."""
        return self.trailers.get(stream, {}).get("grpc-status", "")

    async def answered(self, stream: int, *, timeout_s: float = 20.0) -> str:
        """Wait for the status of a call."""
        return await await_for(lambda: self.status(stream), timeout_s=timeout_s, what=f"a status of stream {stream}")

    async def ended(self, *, timeout_s: float = 20.0) -> None:
        """Wait until the server has closed the connection."""
        await await_for(lambda: self.closed, timeout_s=timeout_s, what="the connection to be closed")

    def grant(self, stream: int, size_bytes: int) -> None:
        """Let the server send more: on a stream, or on the connection (0)."""
        self.put(Type.WINDOW_UPDATE, size_bytes.to_bytes(4, "big"), stream=stream)


def client_context(
    authority: Authority, identity: Identity | None, directory: Path, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> ssl.SSLContext:
    """TLS of a client with this certificate; `directory` is for a file that the ssl module wants to read it from."""
    context = ssl.create_default_context(cadata=authority.pem.decode())
    if identity is not None:
        file = directory / "client.pem"
        file.write_bytes(identity.key + identity.cert)
        context.load_cert_chain(file)
    context.set_alpn_protocols(["h2"])
    context.minimum_version = context.maximum_version = version
    return context


@asynccontextmanager
async def connected(
    port: int, context: ssl.SSLContext, settings: Mapping[Setting, int] | None = None
) -> AsyncIterator[Http2]:
    """A connection to a server on loopback, whose preface is sent, until the end of the block."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
    connection = Http2(reader, writer)
    writer.write(PREFACE)
    wanted = settings or {}
    connection.put(Type.SETTINGS, b"".join(key.to_bytes(2, "big") + wanted[key].to_bytes(4, "big") for key in wanted))
    reading = asyncio.create_task(connection.read_forever())
    try:
        yield connection
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        writer.transport.abort()  # whatever is still unsent: this client has seen enough
        with suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()


def integer(value: int, prefix_bits: int, first: int = 0) -> bytes:
    """An integer of HPACK, RFC 7541 section 5.1."""
    most = (1 << prefix_bits) - 1
    if value < most:
        return bytes((first | value,))
    encoded = bytearray((first | most,))
    value -= most
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def literal(name: bytes, value: bytes, *, indexed: bool = False) -> bytes:
    """A header as literals without Huffman; `indexed`: to be kept in the table (RFC 7541 sections 6.2.1 and 6.2.2)."""
    return bytes((0x40 if indexed else 0x00,)) + integer(len(name), 7) + name + integer(len(value), 7) + value


def request_headers(path: str, extra: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """What every gRPC request has, and more."""
    usual = (
        (b":method", b"POST"),
        (b":scheme", b"https"),
        (b":path", path.encode()),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    )
    return b"".join(literal(name, value) for name, value in (*usual, *extra))


class Headers:
    """Reads blocks of headers. Names of the static table and Huffman strings are not spelled out: nobody asks."""

    def __init__(self) -> None:
        self._table: list[tuple[str, str]] = []

    def read(self, block: bytes) -> dict[str, str]:
        """The headers of one block."""
        found: dict[str, str] = {}
        position = 0

        def number(prefix_bits: int) -> int:
            nonlocal position
            most = (1 << prefix_bits) - 1
            value = block[position] & most
            position += 1
            if value < most:
                return value
            shift = 0
            while True:
                byte = block[position]
                position += 1
                value += (byte & 0x7F) << shift
                shift += 7
                if not byte & 0x80:
                    return value

        def text() -> str:
            nonlocal position
            huffman = block[position] & 0x80
            length = number(7)
            position += length
            return "?" if huffman else block[position - length : position].decode("latin-1")

        def entry(index: int) -> tuple[str, str]:
            return self._table[index - 62] if index > 61 else (f"static-{index}", "")

        while position < len(block):
            first = block[position]
            if first & 0x80:
                name, value = entry(number(7))
            elif first & 0xE0 == 0x20:
                number(5)  # a new size of the table, which is larger than these tests need
                continue
            else:
                index = number(6 if first & 0x40 else 4)
                name = entry(index)[0] if index else text()
                value = text()
                if first & 0x40:
                    self._table.insert(0, (name, value))
            found[name] = value
        return found


def has(connection: Http2, kind: Type, error: Error | None = None) -> Callable[[], bool]:
    """Whether such a frame came: a condition to wait for."""
    return lambda: any(error in (None, one.error) for one in connection.of(kind))
