"""Payloads made to hurt the receiver: each is refused within bounded memory and time, and the service goes on."""

from collections.abc import Callable, Iterator

import msgpack
import pytest

from common.messages.topics import API_REPLIES, ENDPOINTS, EXECUTOR_COMMANDS, PERSIST_ACKS, PERSIST_IPC, Endpoint
from tests.security.decode_cost import Decoder

GROWTH_BYTES_MAX = 300 * 2**20
SECONDS_MAX = 10.0
"""Of processor time. Generous for a slow machine; without a bound it took 47 s."""


def array(items: int) -> bytes:
    """The head of a MessagePack array."""
    return b"\xdd" + items.to_bytes(4, "big")


def inside_body(kind: str, hostile: bytes) -> bytes:
    """A valid envelope whose body is `hostile`."""
    head: bytes = msgpack.packb({"v": 1, "kind": kind, "id": "i", "sent_at_ns": 1})
    return b"\x85" + head[1:] + b"\xa4body" + hostile


def inside_unknown_field(kind: str, hostile: bytes) -> bytes:
    """A valid envelope and body with `hostile` in a field that nobody knows."""
    head: bytes = msgpack.packb({"v": 1, "kind": kind, "id": "i", "sent_at_ns": 1, "body": {}})
    return b"\x86" + head[1:] + b"\xa1x" + hostile


def empty_maps(room: int) -> bytes:
    """One array with as many empty maps as fit."""
    return array(room - 5) + b"\x80" * (room - 5)


def arrays_of_empty_maps(room: int) -> bytes:
    """Many arrays, each of a modest length, so that no limit on one array helps."""
    each = array(50_000) + b"\x80" * 50_000
    count = (room - 5) // len(each)
    return array(count) + each * count


def deep(room: int) -> bytes:
    """An array in an array in an array, down to an empty map."""
    return b"\x91" * (room - 1) + b"\x80"


def one_map_of_many_keys(room: int) -> bytes:
    """One map with as many short keys as fit, 65,536 of them different."""
    block = b"".join(b"\xa5%05x\xc0" % number for number in range(2**16))
    count = (room - 5) // 7
    return b"\xdf" + count.to_bytes(4, "big") + (block * (count // 2**16 + 1))[: count * 7]


def binary(room: int) -> bytes:
    """One piece of bytes: what a large message should be."""
    return b"\xc6" + (room - 5).to_bytes(4, "big") + bytes(room - 5)


def false_lengths(_: int) -> bytes:
    """An array that claims 4 billion items and ends."""
    return array(2**32 - 1) + b"\x80"


HOSTILE: tuple[Callable[[int], bytes], ...] = (
    empty_maps,
    arrays_of_empty_maps,
    deep,
    one_map_of_many_keys,
    binary,
    false_lengths,
)


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    """Tells what a payload costs."""
    process = Decoder()
    yield process
    process.close()


@pytest.mark.threat("E03")
@pytest.mark.parametrize("wrap", [inside_body, inside_unknown_field], ids=["body", "unknown-field"])
@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
@pytest.mark.parametrize(
    ("endpoint", "kind"),
    [
        (EXECUTOR_COMMANDS, "get_node"),
        (EXECUTOR_COMMANDS, "run_job"),
        (PERSIST_ACKS, "resend"),
        (PERSIST_IPC, "store_records"),
    ],
    ids=["get-node", "run-job", "acks", "persist"],
)
def test_largest_allowed_hostile_payload_is_bounded(
    decoder: Decoder, endpoint: Endpoint, kind: str, make: Callable[[int], bytes], wrap: Callable[[str, bytes], bytes]
) -> None:
    """At the endpoint's own limit no content costs more than 300 MB or 10 s, or raises anything but a refusal."""
    payload = wrap(kind, make(endpoint.message_bytes_max - 100))
    assert len(payload) <= endpoint.message_bytes_max
    cost = decoder.cost(payload, endpoint)
    assert not cost.cause.startswith("raised"), cost
    assert cost.growth_bytes < GROWTH_BYTES_MAX, cost
    assert cost.seconds < SECONDS_MAX, cost


@pytest.mark.threat("E03")
def test_known_field_filled_with_as_much_as_fits_is_bounded(decoder: Decoder) -> None:
    """Types that do hold many items (args, labels, jobs) cost memory in proportion to the bytes sent."""
    body = {"owner": "a", "spec": {"command": "x", "args": [f"{n:02x}" for n in range(256)] * 5000}}
    args = inside_body("run_job", msgpack.packb(body))
    labels = {f"{n:x}": "" for n in range(500_000)}
    spec = inside_body("run_job", msgpack.packb({"owner": "a", "spec": {"command": "x", "labels": labels}}))
    for payload in (args, spec):
        assert len(payload) <= EXECUTOR_COMMANDS.message_bytes_max
        cost = decoder.cost(payload, EXECUTOR_COMMANDS)
        assert cost.cause == "accepted"
        assert cost.growth_bytes < GROWTH_BYTES_MAX, cost


@pytest.mark.threat("E03")
@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.file)
def test_ten_megabytes_of_empty_maps(decoder: Decoder, endpoint: Endpoint) -> None:
    """10 MB of empty maps once became 724 MB in 11 s: here they are refused at once, on every endpoint."""
    cost = decoder.cost(b"\xdd" + (10**7).to_bytes(4, "big") + b"\x80" * 10**7, endpoint)
    assert cost.cause in {"too_large", "envelope"}
    assert cost.growth_bytes < 20 * 2**20, cost
    assert cost.seconds < 1.0, cost


@pytest.mark.threat("E03")
def test_the_control_is_not_bounded(decoder: Decoder) -> None:
    """Positive control: unpacking the same payload into maps and lists, as a naive receiver would, costs far more."""
    payload = inside_body("get_node", arrays_of_empty_maps(API_REPLIES.message_bytes_max // 8))
    cost = decoder.cost(payload, None)
    assert cost.cause == "accepted"
    assert cost.growth_bytes > GROWTH_BYTES_MAX, cost
