"""The envelope of every ZeroMQ message: one MessagePack map, version 1.

`{v, kind, id, cause_id, sent_at_ns, reply_to, body}`. `kind` is the tag of the body's struct; unknown fields pass,
unknown kinds are refused. docs/protocol.md is the authority.
"""

from typing import Final

import msgspec

PROTOCOL_VERSION: Final = 1


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every message body. A subclass names itself by `kind=` in its definition: see `kind_of`."""


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """What travels. `body` stays packed until the receiver knows its kind."""

    v: int
    kind: str
    id: str
    sent_at_ns: int
    body: msgspec.Raw
    cause_id: str = ""
    reply_to: str = ""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A decoded message: who sent it when and why, and its typed body."""

    id: str
    cause_id: str
    sent_at_ns: int
    reply_to: str
    body: Body


def kind_of(body_type: type[Body]) -> str:
    """The word on the wire for a body type: `RunJob` is "run_job"."""
    name = body_type.__name__
    return "".join(f"_{c.lower()}" if c.isupper() and i else c.lower() for i, c in enumerate(name))


class Failure(Body, frozen=True, kw_only=True):
    """The answer when a request could not be done: the fields of `common.errors.JobletError`."""

    reason: str
    message: str
    detail: str = ""
    retryable: bool = False
    retry_after_s: float | None = None
