"""Bytes to typed messages and back, under explicit limits. Nothing that arrives here can stop a process.

A payload that is too large, not MessagePack, not an envelope, of an unknown kind for its endpoint or of a wrong
shape is refused with `RejectedMessage`; the receiver counts it and goes on.

Bytes are decoded straight into the declared types, and what no type declares is skipped without becoming an object.
Unpacking into maps and lists first would let 128 MB of nested empty maps become 9 GB, whatever the limit on the items
of each one (tests/security/test_bus_messages.py).
"""

import time
import uuid
from functools import lru_cache
from typing import Final

import msgpack
import msgspec

from common.messages.envelope import PROTOCOL_VERSION, Body, Envelope, Message, kind_of
from common.messages.topics import REPLY_FILE, Endpoint

_UNDECODABLE: Final = (msgspec.DecodeError, ValueError, OverflowError, RecursionError)
"""What decoding bytes from outside can raise: ValueError for text that is not UTF-8, RecursionError for depth."""


class RejectedMessage(Exception):
    """A payload that is no message of its endpoint. `cause` is one word for the counter."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause


def new_message_id() -> str:
    """A fresh message id."""
    return uuid.uuid4().hex


def encode(body: Body, *, message_id: str = "", cause_id: str = "", reply_to: str = "") -> bytes:
    """The payload that carries `body`."""
    packed: bytes = msgpack.packb(
        {
            "v": PROTOCOL_VERSION,
            "kind": kind_of(type(body)),
            "id": message_id or new_message_id(),
            "cause_id": cause_id,
            "sent_at_ns": time.time_ns(),
            "reply_to": reply_to,
            "body": msgspec.to_builtins(body, builtin_types=(bytes,)),
        }
    )
    return packed


def decode(payload: bytes, endpoint: Endpoint) -> Message:
    """The message in `payload`, one of the endpoint's types, or `RejectedMessage`."""
    if len(payload) > endpoint.message_bytes_max:
        raise RejectedMessage("too_large", f"{len(payload)} bytes, at most {endpoint.message_bytes_max}")
    envelope = _envelope(payload)
    if envelope.v != PROTOCOL_VERSION:
        raise RejectedMessage("version", f"protocol version {envelope.v}, this is {PROTOCOL_VERSION}")
    body_type = _types_by_kind(endpoint.messages).get(envelope.kind)
    if body_type is None:
        raise RejectedMessage("unknown_kind", f"{envelope.kind[:64]!r} on {endpoint.file}")
    if envelope.reply_to and not REPLY_FILE.fullmatch(envelope.reply_to):
        raise RejectedMessage("reply_to", repr(envelope.reply_to[:64]))
    try:
        body = msgspec.msgpack.decode(envelope.body, type=body_type)
    except _UNDECODABLE as cause:
        raise RejectedMessage("shape", f"{envelope.kind}: {cause}") from cause
    return Message(
        id=envelope.id,
        cause_id=envelope.cause_id,
        sent_at_ns=envelope.sent_at_ns,
        reply_to=envelope.reply_to,
        body=body,
    )


def _envelope(payload: bytes) -> Envelope:
    try:
        return msgspec.msgpack.decode(payload, type=Envelope)
    except msgspec.ValidationError as cause:
        raise RejectedMessage("envelope", str(cause)[:200]) from cause
    except _UNDECODABLE as cause:
        raise RejectedMessage("not_msgpack", str(cause)[:200]) from cause


@lru_cache
def _types_by_kind(messages: tuple[type[Body], ...]) -> dict[str, type[Body]]:
    return {kind_of(message): message for message in messages}
