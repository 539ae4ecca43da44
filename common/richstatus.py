"""An error as it travels over gRPC: a google.rpc.Status with an ErrorInfo. One table from reason to code.

A RetryInfo goes with it where it is known when to try again.

Belongs here: what api and persist answer with, as protobuf messages; the codes are those of google/rpc/code.proto, and
so gRPC's. Not here: gRPC itself, which common does not import. The richer error model is that of
https://grpc.io/docs/guides/error/.
"""

from typing import Final

from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]  # ships no types

from common.errors import JobletError, Reason

DOMAIN: Final = "joblet"
TEXT_CHARACTERS_MAX: Final = 1000
"""Of the message and of the detail, each: together they stay below the 8 KiB of trailers that clients accept."""

DETAILS_TRAILER: Final = "grpc-status-details-bin"

CODES: Final[dict[Reason, int]] = {
    Reason.INVALID: code_pb2.INVALID_ARGUMENT,
    Reason.UNAUTHENTICATED: code_pb2.UNAUTHENTICATED,
    Reason.DENIED: code_pb2.PERMISSION_DENIED,
    Reason.NOT_FOUND: code_pb2.NOT_FOUND,
    Reason.EXISTS: code_pb2.ALREADY_EXISTS,
    Reason.PRECONDITION: code_pb2.FAILED_PRECONDITION,
    Reason.EXHAUSTED: code_pb2.RESOURCE_EXHAUSTED,
    Reason.UNAVAILABLE: code_pb2.UNAVAILABLE,
    Reason.DEADLINE: code_pb2.DEADLINE_EXCEEDED,
    Reason.UNIMPLEMENTED: code_pb2.UNIMPLEMENTED,
    Reason.DATA_LOSS: code_pb2.DATA_LOSS,
    Reason.INTERNAL: code_pb2.INTERNAL,
}


def rich_status(error: JobletError) -> tuple[int, str, tuple[tuple[str, bytes], ...]]:
    """Code, text and trailer of an error. What was tried and what to do reach the client; nothing else does.

    INTERNAL is our fault and may tell of our insides: the client gets two words, the log gets the rest.
    """
    internal = error.reason is Reason.INTERNAL
    message = "internal error" if internal else error.message[:TEXT_CHARACTERS_MAX]
    info = error_details_pb2.ErrorInfo(
        reason=error.reason.value.upper(),
        domain=DOMAIN,
        metadata={
            "detail": "" if internal else error.detail[:TEXT_CHARACTERS_MAX],
            "retryable": "true" if error.retryable else "false",
        },
    )
    details = [info]
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        details.append(retry)
    code = CODES[error.reason]
    status = status_pb2.Status(code=code, message=message, details=[_packed(detail) for detail in details])
    # Two errors with the same text must be the same bytes on the wire: map entries have no order of their own.
    return code, message, ((DETAILS_TRAILER, status.SerializeToString(deterministic=True)),)


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
