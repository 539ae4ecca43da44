"""Payloads made to hurt the receiver: each is refused within bounded memory and time, and the service goes on.

A payload is decoded in a process of its own, whose peak memory the kernel tells: VmHWM of /proc/self/status, set back
before by writing 5 to /proc/self/clear_refs (proc(5)). ru_maxrss would not do: it is inherited from the parent.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgpack
import pytest

from common.bus import codec
from common.messages.topics import API_REPLIES, ENDPOINTS, EXECUTOR_COMMANDS, PERSIST_ACKS, PERSIST_IPC, Endpoint

GROWTH_BYTES_MAX = 300 * 2**20
SECONDS_MAX = 10.0
"""Generous for a slow machine; without a bound it took 47 s."""


class Cost(NamedTuple):
    """What decoding one payload took."""

    cause: str
    growth_bytes: int
    seconds: float


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


def cost_of(payload: bytes, endpoint: Endpoint) -> Cost:
    """Decode `payload` in a forked process and tell what became of it."""
    return cost_of_call(lambda: codec.decode(payload, endpoint))


def cost_of_call(call: Callable[[], object]) -> Cost:
    """Make `call` in a forked process; its cause is "accepted", that of the refusal, or "raised …"."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        Path("/proc/self/clear_refs").write_text("5")
        before, began = peak_bytes(), time.monotonic()
        try:
            call()
            cause = "accepted"
        except codec.RejectedMessage as rejected:
            cause = rejected.cause
        except BaseException as broken:  # noqa: BLE001  # a task boundary: the parent judges
            cause = f"raised {type(broken).__name__}"
        os.write(writing, f"{cause};{peak_bytes() - before};{time.monotonic() - began}".encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        words = told.read().decode()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"decoding ended the process: wait status {status}"
    cause, growth_bytes, seconds = words.split(";")
    return Cost(cause, int(growth_bytes), float(seconds))


def peak_bytes() -> int:
    """The largest resident size of this process since it was last set back."""
    line = next(each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


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
    endpoint: Endpoint, kind: str, make: Callable[[int], bytes], wrap: Callable[[str, bytes], bytes]
) -> None:
    """At the endpoint's own limit no content costs more than 300 MB or 10 s, or raises anything but a refusal."""
    payload = wrap(kind, make(endpoint.message_bytes_max - 100))
    assert len(payload) <= endpoint.message_bytes_max
    cost = cost_of(payload, endpoint)
    assert not cost.cause.startswith("raised"), cost
    assert cost.growth_bytes < GROWTH_BYTES_MAX, cost
    assert cost.seconds < SECONDS_MAX, cost


@pytest.mark.threat("E03")
def test_known_field_filled_with_as_much_as_fits_is_bounded() -> None:
    """Types that do hold many items (args, labels, jobs) cost memory in proportion to the bytes sent."""
    body = {"owner": "a", "spec": {"command": "x", "args": [f"{n:02x}" for n in range(256)] * 5000}}
    args = inside_body("run_job", msgpack.packb(body))
    labels = {f"{n:x}": "" for n in range(500_000)}
    spec = inside_body("run_job", msgpack.packb({"owner": "a", "spec": {"command": "x", "labels": labels}}))
    for payload in (args, spec):
        assert len(payload) <= EXECUTOR_COMMANDS.message_bytes_max
        cost = cost_of(payload, EXECUTOR_COMMANDS)
        assert cost.cause == "accepted"
        assert cost.growth_bytes < GROWTH_BYTES_MAX, cost


@pytest.mark.threat("E03")
@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.file)
def test_ten_megabytes_of_empty_maps(endpoint: Endpoint) -> None:
    """10 MB of empty maps once became 724 MB in 11 s: here they are refused at once, on every endpoint."""
    cost = cost_of(b"\xdd" + (10**7).to_bytes(4, "big") + b"\x80" * 10**7, endpoint)
    assert cost.cause in {"too_large", "envelope"}
    assert cost.growth_bytes < 20 * 2**20, cost
    assert cost.seconds < 1.0, cost


@pytest.mark.threat("E03")
def test_the_control_is_not_bounded() -> None:
    """Positive control: unpacking the same payload into maps and lists, as a naive receiver would, costs far more."""
    payload = inside_body("get_node", arrays_of_empty_maps(API_REPLIES.message_bytes_max // 8))
    cost = cost_of_call(lambda: msgpack.unpackb(payload))
    assert cost.cause == "accepted"
    assert cost.growth_bytes > GROWTH_BYTES_MAX, cost
