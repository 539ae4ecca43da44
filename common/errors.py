"""Errors that cross a process boundary: what went wrong, and what to do about it.

Here: the reasons and the one exception that carries them. Not here: how gRPC or the command line show them
(`services/api/status.py`, `cli/exits.py`).
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why a request was refused or failed. The value is the word on the wire."""

    INVALID = "invalid"
    UNAUTHENTICATED = "unauthenticated"
    DENIED = "denied"
    NOT_FOUND = "not_found"
    EXISTS = "exists"
    PRECONDITION = "precondition"
    EXHAUSTED = "exhausted"
    UNAVAILABLE = "unavailable"
    DEADLINE = "deadline"
    UNIMPLEMENTED = "unimplemented"
    DATA_LOSS = "data_loss"
    INTERNAL = "internal"


class JobletError(Exception):
    """A failure with a reason that a program can act on and a text that a person can.

    `message` says what was tried, with its value; `detail` what to do about it; `retryable` whether the same
    request may succeed later without a change, and `retry_after_s` how long to wait before it, where that is known.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        detail: str = "",
        retryable: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.detail = detail
        self.retryable = retryable
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.message}: {self.detail}" if self.detail else self.message


def invalid(message: str, detail: str = "") -> JobletError:
    """The request cannot be right, whoever sends it and whenever."""
    return JobletError(Reason.INVALID, message, detail=detail)


def not_found(message: str, detail: str = "") -> JobletError:
    """There is no such thing, or the caller may not know of it."""
    return JobletError(Reason.NOT_FOUND, message, detail=detail)


def precondition(message: str, detail: str = "") -> JobletError:
    """The request is well-formed, but the present state or this host does not allow it."""
    return JobletError(Reason.PRECONDITION, message, detail=detail)


def exhausted(message: str, detail: str = "", *, retry_after_s: float | None = None) -> JobletError:
    """A bound is reached; the same request may succeed later."""
    return JobletError(Reason.EXHAUSTED, message, detail=detail, retryable=True, retry_after_s=retry_after_s)


def unavailable(message: str, detail: str = "") -> JobletError:
    """A part that is needed does not answer now; the same request may succeed later."""
    return JobletError(Reason.UNAVAILABLE, message, detail=detail, retryable=True)
