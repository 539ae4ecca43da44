"""Errors as gRPC shows them to whoever asks persist. The table is common/richstatus.py."""

from typing import Any, Final, NoReturn

import grpc

from common.errors import JobletError
from common.richstatus import rich_status

_STATUS_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


async def refuse(context: "grpc.aio.ServicerContext[Any, Any]", error: JobletError) -> NoReturn:
    """End the call with `error`."""
    number, message, trailers = rich_status(error)
    await context.abort(_STATUS_CODES[number], message, trailing_metadata=trailers)
    raise AssertionError("abort raises")
