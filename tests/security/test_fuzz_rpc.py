"""Every RPC with requests that nobody in his right mind would send: a status comes, never INTERNAL, nothing hangs.

The services are the real ones (`middle.py`); the caller is an admin, whose requests get the farthest. `make fuzz` runs
this for ten minutes, CI for seconds; what was found stays as a row of FOUND.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Final, NamedTuple

import grpc
import pytest
from google.protobuf.message import Message
from grpc import aio
from hypothesis import strategies as st

from services.api.permissions import RULES
from tests.security.front_door import CALL_S, JOBS, NODE, PERSIST, described
from tests.security.fuzzing import explore
from tests.security.malformed import DAMAGES, Damage, filled, messages
from tests.security.middle import Middle, running_middle
from tests.waiting import SLOWNESS

Code = grpc.StatusCode
EXAMPLES: Final = 40
SHARE: Final = 0.5 / len(RULES)
QUIET: Final = {JOBS + "WatchJobs", NODE + "QueryAudit", PERSIST + "QueryAudit"}
"""May have nothing to say for ever: when nothing matches, and with `follow`."""
QUIET_S: Final = 0.2
EXPECTED: Final = frozenset(
    {
        *(Code.OK, Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.PERMISSION_DENIED),
        *(Code.FAILED_PRECONDITION, Code.RESOURCE_EXHAUSTED, Code.UNIMPLEMENTED, Code.OUT_OF_RANGE),
    }
)
"""What a service may say to a request that it does not like. Not: INTERNAL, UNKNOWN, UNAVAILABLE, DATA_LOSS."""

FOUND: Final[tuple[tuple[str, str], ...]] = ()
"""Method and request, each of which once had an answer that none may have."""


class Door:
    """The middle of a node, driven from outside of its event loop: hypothesis knows no coroutines."""

    def __init__(self, middle: Middle, channel: aio.Channel) -> None:
        self.middle = middle
        self._channel = channel

    async def ask(self, method: str, *requests: bytes) -> grpc.StatusCode | None:
        """The status of a call as soon as there is one, or OK with the first answer; None: it has nothing to say."""
        quiet = method in QUIET
        call = self._channel.stream_stream(method, None, None)(_each(requests), timeout=CALL_S * SLOWNESS)
        try:
            async with asyncio.timeout(QUIET_S if quiet else None):
                if await call.read() is not aio.EOF:  # type: ignore[attr-defined]  # missing in the stubs
                    return Code.OK
                return await call.code()
        except TimeoutError:
            return None
        except aio.AioRpcError as error:
            if (
                error.details() == "Internal error from Core"
            ):  # of this client, when the call is over before its writing
                return None
            return error.code()
        finally:
            call.cancel()


async def _each(requests: tuple[bytes, ...]) -> AsyncIterator[bytes]:
    for request in requests:
        yield request


class Rpc(NamedTuple):
    """A door and the event loop behind it."""

    runner: asyncio.Runner
    door: Door

    def status(self, method: str, *requests: bytes) -> grpc.StatusCode | None:
        """See Door.ask."""
        return self.runner.run(self.door.ask(method, *requests))

    def check(self, method: str, *requests: bytes) -> None:
        """What must hold of every answer."""
        status = self.status(method, *requests)
        assert status is None or status in EXPECTED, (method, status, [one[:1000].hex() for one in requests])


@pytest.fixture(scope="module")
def rpc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rpc]:
    """One middle for all methods: what one request spoils, the next ones find."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def start() -> Door:
            middle = await stack.enter_async_context(running_middle(tmp_path_factory.mktemp("middle")))
            channel = middle.channel(middle.authority.client("ann", "admin"))
            stack.push_async_callback(channel.close, None)
            return Door(middle, channel)

        door = runner.run(start())
        yield Rpc(runner, door)
        runner.run(stack.aclose())


def test_what_was_found_once(rpc: Rpc) -> None:
    """Has an ordinary answer now."""
    for method, request_hex in FOUND:
        rpc.check(method, bytes.fromhex(request_hex))


@pytest.mark.threat("B21")
@pytest.mark.threat("D25")
@pytest.mark.parametrize("method", sorted(RULES), ids=lambda method: method.rpartition(".")[2])
def test_no_request_breaks_a_method(rpc: Rpc, method: str) -> None:
    """Messages of the right type with any content, damaged ones and unknown fields: an ordinary status, in time."""
    descriptor = described(method)
    count = st.integers(1, 4) if descriptor.client_streaming else st.just(1)
    drawn = count.flatmap(
        lambda n: st.lists(st.tuples(messages(descriptor.input_type), DAMAGES), min_size=n, max_size=n)
    )

    def check(requests: list[tuple[Message, Damage]]) -> None:
        tokens = rpc.runner.run(rpc.door.middle.tokens())
        rpc.check(method, *(damage.of(filled(one, tokens).SerializeToString()) for one, damage in requests))

    explore(drawn, check, examples=EXAMPLES, share=SHARE)


@pytest.mark.threat("B21")
def test_no_bytes_break_a_method(rpc: Rpc) -> None:
    """Bytes that are no message at all, to any method."""

    def check(drawn: tuple[str, bytes]) -> None:
        rpc.check(*drawn)

    strategy = st.tuples(st.sampled_from(sorted(RULES)), st.binary(max_size=200))
    explore(strategy, check, examples=10 * EXAMPLES, share=0.05)
