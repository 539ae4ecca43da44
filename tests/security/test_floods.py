"""Floods at the front door: what one client sends that no client should, and others are served as before.

The api is a process of its own (`door_process.py`), so its memory and descriptors are its own. Clients have a good
certificate: whoever has none does not get past TLS (test_api_access.py), but for `test_silent_connections_are_dropped`.
"""

import asyncio
import gzip
import socket
import zlib
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from typing import Final, TypeAlias

import pytest

from tests.http2 import (
    FRAME_BYTES_MAX,
    Error,
    Http2,
    Type,
    client_context,
    connected,
    literal,
    request_headers,
)
from tests.security.door_process import CHECK, WATCH, DoorProcess, door_process
from tests.waiting import await_for, wait_for

MIB: Final = 2**20
GROWTH_BYTES_MAX: Final = 48 * MIB
"""What floods of bytes send, or would become, is larger than this."""
HANDSHAKE_MS: Final = 2000
OK, CANCELLED, EXHAUSTED = "0", "1", "8"


@pytest.fixture(scope="module")
def door() -> Iterator[DoorProcess]:
    """One api for all floods: what one leaves, the next ones meet."""
    with door_process({"handshake_timeout_ms": HANDSHAKE_MS}) as process:
        process.serves()
        yield process


Flood: TypeAlias = Callable[[Http2], Coroutine[None, None, None]]


async def sent(connection: Http2, count: int, put: Callable[[int], object]) -> None:
    """Do `put` so often, or until the server has had enough."""
    for number in range(count):
        put(number)
        if number % 50 == 49 and not await connection.drain():
            return


async def rapid_reset(connection: Http2) -> None:
    """10,000 requests, each taken back at once (CVE-2023-44487)."""

    def put(_: int) -> None:
        stream = connection.request(CHECK, b"")
        connection.put(Type.RST_STREAM, Error.CANCEL.to_bytes(4, "big"), stream=stream)

    await sent(connection, 10_000, put)


async def made_reset(connection: Http2) -> None:
    """Streams that the server has to reset, because a window grows by nothing (CVE-2025-8671)."""
    await sent(connection, 2000, lambda _: connection.grant(connection.request(WATCH, b"", end=False), 0))


async def pings(connection: Http2) -> None:
    """10,000 of them."""
    await sent(connection, 10_000, lambda number: connection.put(Type.PING, number.to_bytes(8, "big")))


async def settings(connection: Http2) -> None:
    """10,000 changes of the window, each of which has to be answered."""
    await sent(
        connection,
        10_000,
        lambda number: connection.put(Type.SETTINGS, b"\x00\x04" + (65_535 + number).to_bytes(4, "big")),
    )


async def indexed_headers(connection: Http2) -> None:
    """Blocks of 14 KB that mean 40 MB: one large header kept in the table and named 10,000 times in a byte each."""
    block = request_headers(CHECK) + literal(b"x-large", b"y" * 4000, indexed=True) + b"\xbe" * 10_000
    streams = [connection.headers(block) for _ in range(20)]
    for stream in streams:
        assert await connection.answered(stream) == EXHAUSTED


async def continuations(connection: Http2) -> None:
    """A block of headers of 64 MB that does not end (CVE-2024-27316 and others)."""
    stream = connection.headers(request_headers(CHECK), flags=0)
    piece = literal(b"x-a", b"z" * 4000) * 4
    await sent(connection, 4000, lambda _: connection.put(Type.CONTINUATION, piece, stream=stream))


async def empty_continuations(connection: Http2) -> None:
    """A block of headers that does not end and does not grow."""
    stream = connection.headers(request_headers(CHECK), flags=0)
    await sent(connection, 100_000, lambda _: connection.put(Type.CONTINUATION, stream=stream))


async def empty_data(connection: Http2) -> None:
    """Data without any (CVE-2019-9518)."""
    stream = connection.request(WATCH, end=False)
    await sent(connection, 100_000, lambda _: connection.put(Type.DATA, stream=stream))


async def beyond_the_window(connection: Http2) -> None:
    """64 MB on a stream that nobody reads, without waiting for room.

    gRPC refuses the stream or the connection; on a busy machine it was seen to take all of it, in silence.
    """
    stream = connection.request(WATCH, b"", end=False)
    await sent(connection, 4000, lambda _: connection.put(Type.DATA, bytes(FRAME_BYTES_MAX), stream=stream))
    behind = connection.request(CHECK, b"")

    def over() -> bool:
        return bool(connection.closed or connection.of(Type.RST_STREAM, stream) or connection.status(behind))

    await await_for(over, what="the refusal, or the answer to what was sent behind it")


ENDS_CONNECTION: Final = {made_reset, pings, empty_continuations, empty_data}
"""gRPC has had enough of these before they are over."""


@pytest.mark.threat("D19")
@pytest.mark.requirement("S2.14")
@pytest.mark.parametrize(
    "flood",
    [
        *(rapid_reset, made_reset, pings, settings),
        *(indexed_headers, continuations, empty_continuations, empty_data, beyond_the_window),
    ],
    ids=lambda flood: flood.__name__,
)
def test_a_flood_costs_little_and_others_are_served(door: DoorProcess, flood: Flood) -> None:
    """The flood is refused or borne, memory stays within bounds, and meanwhile and afterwards others are answered."""
    before, descriptors = door.figure("VmRSS"), door.descriptors()
    door.forget_peak()

    async def scenario() -> None:
        async with connected(door.port, client_context(door.authority, door.identity, door.base)) as connection:
            assert await connection.answered(connection.request(CHECK, b"")) == OK
            flooding = asyncio.create_task(flood(connection))
            await asyncio.to_thread(door.serves)
            await flooding
            if flood in ENDS_CONNECTION:
                await connection.ended()
            await asyncio.to_thread(door.serves)

    asyncio.run(scenario())
    assert door.figure("VmHWM") - before < GROWTH_BYTES_MAX
    wait_for(lambda: door.descriptors() <= descriptors, what="its connection to be gone")


@pytest.mark.threat("D16")
@pytest.mark.requirement("S2.14")
def test_a_compressed_message_is_measured_by_what_it_becomes(door: DoorProcess) -> None:
    """64 MiB of zeros in 64 KB of gzip or deflate are RESOURCE_EXHAUSTED before they are memory; so is saying 5 MiB."""
    zeros = bytes(64 * MIB)
    bombs = ((b"gzip", gzip.compress(zeros)), (b"deflate", zlib.compress(zeros)))
    before = door.figure("VmRSS")
    door.forget_peak()

    async def scenario() -> None:
        async with connected(door.port, client_context(door.authority, door.identity, door.base)) as connection:
            for _ in range(10):
                for encoding, bomb in bombs:
                    stream = connection.request(CHECK, bomb, extra=[(b"grpc-encoding", encoding)], compressed=True)
                    assert await connection.answered(stream) == EXHAUSTED
            stream = connection.request(CHECK, end=False)
            connection.put(Type.DATA, b"\0" + (5 * MIB).to_bytes(4, "big"), stream=stream)
            assert await connection.answered(stream) == EXHAUSTED
            assert await connection.answered(connection.request(CHECK, b"")) == OK

    asyncio.run(scenario())
    assert door.figure("VmHWM") - before < GROWTH_BYTES_MAX


@pytest.mark.threat("D21")
@pytest.mark.requirement("S2.14")
def test_large_metadata(door: DoorProcess) -> None:
    """17 KB, 10,000 headers and 1 MB are RESOURCE_EXHAUSTED, less is served, and the connection lives."""
    table: tuple[tuple[list[tuple[bytes, bytes]], str], ...] = (
        ([(b"x-a", b"y" * 15_000)], OK),
        ([(b"x-a", b"y" * 17_000)], EXHAUSTED),
        ([(b"x-%d" % number, b"y") for number in range(10_000)], EXHAUSTED),
        ([(b"x-a", b"y" * MIB)], EXHAUSTED),
        ([], OK),
    )

    async def scenario() -> None:
        async with connected(door.port, client_context(door.authority, door.identity, door.base)) as connection:
            for extra, expected in table:
                assert await connection.answered(connection.request(CHECK, b"", extra=extra)) == expected

    asyncio.run(scenario())
    door.serves()


@pytest.mark.threat("D18")
@pytest.mark.requirement("S2.13")
@pytest.mark.requirement("S2.14")
def test_twenty_connections_of_a_hundred_streams(door: DoorProcess) -> None:
    """A thousand streams are open, the other thousand refused, and unary calls of others are answered meanwhile.

    When they are gone, their descriptors are, too.
    """
    descriptors = door.descriptors()

    async def scenario() -> None:
        context = client_context(door.authority, door.identity, door.base)
        async with AsyncExitStack() as stack:
            connections = [await stack.enter_async_context(connected(door.port, context)) for _ in range(20)]
            streams = [(one, one.request(WATCH, b"")) for one in connections for _ in range(100)]

            def told() -> bool:
                return all(one.data_bytes(stream) or one.status(stream) for one, stream in streams)

            await await_for(told, timeout_s=60, what="each stream to be open or refused")
            statuses = Counter(one.status(stream) for one, stream in streams)
            # Of more than a thousand calls that it has not yet handed on gRPC itself turns some away, with CANCELLED.
            assert statuses[""] == 1000
            assert statuses[EXHAUSTED] + statuses[CANCELLED] == 1000
            assert statuses[EXHAUSTED]
            await asyncio.to_thread(door.serves)

    asyncio.run(scenario())
    wait_for(lambda: door.descriptors() <= descriptors, what="the connections to be gone")
    door.serves()


@pytest.mark.threat("D18")
@pytest.mark.threat("D20")
@pytest.mark.requirement("S2.14")
def test_silent_connections_are_dropped(door: DoorProcess) -> None:
    """A thousand that never begin the handshake, a hundred that end it and say no word of HTTP/2: closed in time."""
    descriptors = door.descriptors()
    idle = [socket.create_connection(("127.0.0.1", door.port), timeout=30) for _ in range(1000)]

    async def half_open() -> None:
        context = client_context(door.authority, door.identity, door.base)
        opened = [
            await asyncio.open_connection("127.0.0.1", door.port, ssl=context, server_hostname="localhost")
            for _ in range(100)
        ]
        for reader, _ in opened:
            while await reader.read(1000):  # its settings, then the end
                pass
        for _, writer in opened:
            writer.close()

    try:
        door.serves()
        for each in idle:
            assert each.recv(1) == b""
        asyncio.run(half_open())
    finally:
        for each in idle:
            each.close()
    wait_for(lambda: door.descriptors() <= descriptors, what="their descriptors to be given back")
    door.serves()
