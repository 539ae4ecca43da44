"""How errors look to gRPC clients: one table from reason to status code, with google.rpc.ErrorInfo as detail.

Belongs here: the table, and building the status. Does not belong here: deciding that something is an error.
The richer error model is that of https://grpc.io/docs/guides/error/; its message travels in the trailer
`grpc-status-details-bin`.
"""

from typing import Final, NamedTuple

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # ships no types

from common.errors import JobletError, Reason

DOMAIN: Final = "joblet"
TEXT_CHARACTERS_MAX: Final = 1000
"""Of the message and of the detail, each: together they stay below the 8 KiB of trailers that clients accept."""

DETAILS_TRAILER: Final = "grpc-status-details-bin"

CODES: Final[dict[Reason, grpc.StatusCode]] = {
    Reason.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Reason.DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Reason.PRECONDITION: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.DEADLINE: grpc.StatusCode.DEADLINE_EXCEEDED,
    Reason.UNIMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
    Reason.DATA_LOSS: grpc.StatusCode.DATA_LOSS,
    Reason.INTERNAL: grpc.StatusCode.INTERNAL,
}
_REASONS: Final = {code: reason for reason, code in CODES.items()}


class Status(NamedTuple):
    """What `ServicerContext.abort` takes."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, bytes], ...]


def status_of(error: JobletError) -> Status:
    """The status of an error. What was tried and what to do reach the client; nothing else does.

    INTERNAL is our fault and may tell of our insides: the client gets two words, the log gets the rest.
    """
    internal = error.reason is Reason.INTERNAL
    message = "internal error" if internal else error.message[:TEXT_CHARACTERS_MAX]
    detail = "" if internal else error.detail[:TEXT_CHARACTERS_MAX]
    code = CODES[error.reason]
    info = error_details_pb2.ErrorInfo(
        reason=error.reason.value.upper(),
        domain=DOMAIN,
        metadata={"detail": detail, "retryable": "true" if error.retryable else "false"},
    )
    packed = any_pb2.Any()
    packed.Pack(info)
    number: int = code.value[0]
    rich = status_pb2.Status(code=number, message=message, details=[packed])
    # Two errors with the same text must be the same bytes on the wire: map entries have no order of their own.
    return Status(code, message, ((DETAILS_TRAILER, rich.SerializeToString(deterministic=True)),))


def reason_of(code: grpc.StatusCode) -> Reason:
    """The reason behind a status that another service of this node answered with."""
    return _REASONS.get(code, Reason.INTERNAL)
