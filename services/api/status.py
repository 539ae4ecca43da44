"""How errors look to gRPC clients, and what those of persist mean here. The table is common/richstatus.py.

Does not belong here: deciding that something is an error.
"""

from typing import Final, NamedTuple

import grpc

from common.errors import JobletError, Reason
from common.richstatus import CODES, rich_status

_STATUS_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
_REASONS: Final = {_STATUS_CODES[number]: reason for reason, number in CODES.items()}


class Status(NamedTuple):
    """What `ServicerContext.abort` takes."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, bytes], ...]


def status_of(error: JobletError) -> Status:
    """The status of an error."""
    number, message, trailers = rich_status(error)
    return Status(_STATUS_CODES[number], message, trailers)


def reason_of(code: grpc.StatusCode) -> Reason:
    """The reason behind a status that another service of this node answered with."""
    return _REASONS.get(code, Reason.INTERNAL)
