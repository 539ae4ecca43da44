"""Errors as gRPC shows them: status, text, and a google.rpc.ErrorInfo. The api has its own twin of this table."""

from typing import Any, Final, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import ErrorInfo  # type: ignore[import-untyped]  # ships no types
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # ships no types

from common.errors import JobletError, Reason

DOMAIN: Final = "joblet"
DETAILS_KEY: Final = "grpc-status-details-bin"

CODES: Final = {
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


async def refuse(context: "grpc.aio.ServicerContext[Any, Any]", error: JobletError) -> NoReturn:
    """End the call with `error`. INTERNAL tells of our insides: the caller gets two words, the log has the rest."""
    internal = error.reason is Reason.INTERNAL
    message = "internal error" if internal else error.message
    info = ErrorInfo(
        reason=error.reason.value.upper(),
        domain=DOMAIN,
        metadata={"detail": "" if internal else error.detail, "retryable": "true" if error.retryable else "false"},
    )
    packed = AnyMessage()
    packed.Pack(info)
    code = CODES[error.reason]
    status = Status(code=code.value[0], message=message, details=[packed])
    await context.abort(code, message, trailing_metadata=((DETAILS_KEY, status.SerializeToString()),))
    raise AssertionError("abort raises")
