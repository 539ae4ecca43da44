"""The wire format of messages: golden bytes, growth, and refusal of everything else."""

import json
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest

from common.bus import codec
from common.messages import jobs, logs, topics
from common.messages.envelope import Body, kind_of
from common.messages.topics import ENDPOINTS, EXECUTOR_COMMANDS, Endpoint
from tests.golden.samples import EARLIER, GOLDEN, JOB, SAMPLES, SENT_AT_NS, payload_of

BY_KIND = {kind_of(type(sample)): sample for sample in SAMPLES}
KINDS = sorted(BY_KIND)


def endpoint_of(kind: str) -> Endpoint:
    """An endpoint that carries messages of `kind`."""
    return next(each for each in ENDPOINTS if any(kind_of(message) == kind for message in each.messages))


def envelope(**changes: object) -> bytes:
    """A valid GetNode message with some fields changed; a field that is set to None is left out."""
    fields: dict[str, object] = {"v": 1, "kind": "get_node", "id": "i", "sent_at_ns": 1, "body": {}} | changes
    packed: bytes = msgpack.packb({name: value for name, value in fields.items() if value is not None})
    return packed


def cause(payload: bytes, endpoint: Endpoint = EXECUTOR_COMMANDS) -> str:
    """Why `payload` is refused."""
    with pytest.raises(codec.RejectedMessage) as caught:
        codec.decode(payload, endpoint)
    assert len(str(caught.value)) < 1000
    return caught.value.cause


def test_a_sample_of_every_message_is_golden() -> None:
    """No message travels whose bytes are not held fast; none is held that does not travel."""
    travelling = {kind_of(message) for endpoint in ENDPOINTS for message in endpoint.messages}
    assert travelling == set(BY_KIND) == set(json.loads(GOLDEN.read_text()))


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_of_version_1_do_not_change(kind: str) -> None:
    """What we send today is byte for byte what version 1 sent."""
    assert payload_of(BY_KIND[kind]).hex() == json.loads(GOLDEN.read_text())[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_golden_bytes_are_understood(kind: str) -> None:
    """What version 1 sent is read with every field."""
    message = codec.decode(bytes.fromhex(json.loads(GOLDEN.read_text())[kind]), endpoint_of(kind))
    assert message.body == BY_KIND[kind]
    assert (message.id, message.cause_id, message.reply_to) == ("id-1", "id-0", "api-replies-7.sock")
    assert message.sent_at_ns == SENT_AT_NS


@pytest.mark.parametrize(
    ("file", "kind"), [(file, kind) for file in EARLIER for kind in sorted(json.loads(file.read_text()))]
)
def test_bytes_from_before_the_newer_fields_are_understood(file: Path, kind: str) -> None:
    """What an older program of version 1 sends, or left on disk, is read whole; newer fields take their defaults."""
    payload = bytes.fromhex(json.loads(file.read_text())[kind])
    earlier = msgpack.unpackb(payload)["body"]
    understood = msgpack.unpackb(codec.encode(codec.decode(payload, endpoint_of(kind)).body))["body"]
    assert without_newer_fields(understood, earlier) == earlier


def without_newer_fields(value: Any, earlier: Any) -> Any:
    """`value` with those keys of its maps, at any depth, that `earlier` has."""
    if isinstance(value, dict):
        return {key: without_newer_fields(value[key], known) for key, known in earlier.items()}
    if isinstance(value, list):
        return [without_newer_fields(*pair) for pair in zip(value, earlier, strict=True)]
    return value


@pytest.mark.parametrize("kind", KINDS)
def test_samples_set_every_field(kind: str) -> None:
    """A field at its default would prove nothing about its name on the wire."""
    inside: list[msgspec.Struct] = [BY_KIND[kind]]
    while inside:
        one = inside.pop()
        for field in msgspec.structs.fields(one):
            value = getattr(one, field.name)
            assert value != field.default, field.name
            inside += [value] if isinstance(value, msgspec.Struct) else []


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_fields_pass(kind: str) -> None:
    """A newer sender may say more, in the envelope and in the body."""
    unpacked = msgpack.unpackb(payload_of(BY_KIND[kind]))
    unpacked["new"] = {"a": [1, 2.5, None, True, b"x"]}
    unpacked["body"]["newer"] = ["x"]
    assert codec.decode(msgpack.packb(unpacked), endpoint_of(kind)).body == BY_KIND[kind]


def test_fields_that_an_older_sender_does_not_know_take_their_defaults() -> None:
    """cause_id and reply_to came with a default; so did most fields of bodies."""
    message = codec.decode(envelope(kind="stop_job", body={"job": JOB}), EXECUTOR_COMMANDS)
    assert message.body == jobs.StopJob(job=JOB, signal=None, grace_ms=None)
    assert (message.cause_id, message.reply_to) == ("", "")


def test_kind_of_another_endpoint_is_refused() -> None:
    """Each endpoint takes its own messages only, however well-formed the others are."""
    for kind, sample in BY_KIND.items():
        for endpoint in ENDPOINTS:
            if type(sample) not in endpoint.messages:
                assert cause(payload_of(sample), endpoint) == "unknown_kind", (kind, endpoint.file)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"v": 2}, "version"),
        ({"v": 0}, "version"),
        ({"v": None}, "envelope"),
        ({"v": "1"}, "envelope"),
        ({"v": 2**63}, "version"),
        ({"kind": "no_such_kind"}, "unknown_kind"),
        ({"kind": "x" * 10_000}, "unknown_kind"),
        ({"kind": 7}, "envelope"),
        ({"id": None}, "envelope"),
        ({"id": b"raw"}, "envelope"),
        ({"sent_at_ns": 1.5}, "envelope"),
        ({"body": None}, "envelope"),
        ({"body": []}, "shape"),
        ({"body": 3}, "shape"),
        ({"kind": "stop_job", "body": {}}, "shape"),
        ({"kind": "stop_job", "body": {"job": 7}}, "shape"),
        ({"kind": "stop_job", "body": {"job": JOB, "signal": "9"}}, "shape"),
        ({"kind": "list_jobs", "body": {"visible_owner": None, "states": ["flying"]}}, "shape"),
    ],
)
def test_malformed_messages_are_refused_with_their_cause(changes: dict[str, object], why: str) -> None:
    """Wrong version, kind, type or shape: a word for the counter."""
    assert cause(envelope(**changes)) == why


@pytest.mark.parametrize(
    "reply_to",
    [
        "/tmp/evil.sock",
        "../executor-commands.sock",
        "executor-commands.sock",
        "api-replies-7.sock/../x",
        "api-replies-.sock",
        "api-replies-12345678901.sock",
        "api-replies-7.sock\n",
        "api-replies-٧.sock",
        "@abstract",
        "api-replies-7.sock\x00",
        "tcp://127.0.0.1:1",
    ],
)
def test_forged_reply_to_is_refused(reply_to: str) -> None:
    """An answer goes to a reply socket of the run directory and nowhere else."""
    assert cause(envelope(reply_to=reply_to)) == "reply_to"


@pytest.mark.parametrize("payload", [b"", b"\x00", b"\xc1", b"\x80\x80", b"GET / HTTP/1.1\r\n", b"\xff" * 64, b"\x85"])
def test_what_is_no_map_is_refused(payload: bytes) -> None:
    """Nothing, a number, a reserved byte, two maps, another protocol, a map that ends too early."""
    assert cause(payload) in {"not_msgpack", "envelope"}


def test_size_limit_is_exact() -> None:
    """A message of the endpoint's limit passes; one byte more does not."""
    room = topics.PERSIST_ACKS.message_bytes_max
    empty = codec.encode(logs.PersistStarted(instance="x" * 70_000))  # the length takes five bytes from here on
    full = codec.encode(logs.PersistStarted(instance="x" * (70_000 + room - len(empty))))
    assert len(full) == room
    assert isinstance(codec.decode(full, topics.PERSIST_ACKS).body, logs.PersistStarted)
    over = codec.encode(logs.PersistStarted(instance="x" * (70_001 + room - len(empty))))
    assert cause(over, topics.PERSIST_ACKS) == "too_large"


def test_every_message_has_a_fresh_id_and_its_time() -> None:
    """Ids bind requests to answers, so no two are the same."""
    bodies: list[Body] = [jobs.GetNode()] * 100
    decoded = [codec.decode(codec.encode(body), EXECUTOR_COMMANDS) for body in bodies]
    assert len({message.id for message in decoded}) == 100
    assert all(message.sent_at_ns > SENT_AT_NS for message in decoded)
