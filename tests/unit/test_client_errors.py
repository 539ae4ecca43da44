"""What a client makes of a refusal: text, detail, and when to try again."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # ships no types

from cli.client.contexts import Context
from cli.client.errors import translate
from common.errors import JobletError, Reason, exhausted
from services.api.status import status_of

CONTEXT = Context(name="default", address="node:50051", node_id="", ca=b"", cert=b"", key=b"")


class Refused(grpc.RpcError, grpc.Call):
    """A call that ended with a status and this trailer."""

    def __init__(self, trailer: bytes) -> None:
        self._trailer = trailer

    def code(self) -> grpc.StatusCode:
        """The status."""
        return grpc.StatusCode.RESOURCE_EXHAUSTED

    def details(self) -> str:
        """Its text."""
        return "too many"

    def trailing_metadata(self) -> Any:
        """What the server added."""
        return (("grpc-status-details-bin", self._trailer),)

    def initial_metadata(self) -> Any:
        """Nothing."""
        return ()

    def is_active(self) -> bool:
        """It is over."""
        return False

    def time_remaining(self) -> float:
        """None."""
        return 0.0

    def cancel(self) -> bool:
        """Too late."""
        return False

    def add_callback(self, callback: Callable[[], None]) -> bool:  # noqa: ARG002  # the interface's
        """Too late."""
        return False


def seen(error: JobletError) -> JobletError:
    """An error of the server, as a client has it."""
    return translate(Refused(status_of(error).trailing_metadata[0][1]), CONTEXT)


@pytest.mark.parametrize(
    ("retry_after_s", "told"),
    [
        (0.4, "; try again in 0.4 s"),
        (0.401, "; try again in 0.5 s"),
        (1e-9, "; try again in 0.1 s"),
        (0.0, "; try again in 0 s"),
        (2.0, "; try again in 2 s"),
        (59.99, "; try again in 60 s"),
        (3600.0, "; try again in 3600 s"),
        (None, ""),
    ],
)
def test_the_time_to_try_again_is_told_and_kept(retry_after_s: float | None, told: str) -> None:
    """In the one line for a person, rounded up; and as it is for a program. Without it nothing is said."""
    error = seen(exhausted("too many", "call less often", retry_after_s=retry_after_s))
    assert str(error) == f"too many: call less often{told}"
    assert (error.reason, error.retryable, error.retry_after_s) == (Reason.EXHAUSTED, True, retry_after_s)
    assert seen(exhausted("too many", retry_after_s=0.4)).detail == "try again in 0.4 s"


def packed(*details: Any) -> list[any_pb2.Any]:
    """Details of a status."""
    found = [any_pb2.Any() for _ in details]
    for one, detail in zip(found, details, strict=True):
        one.Pack(detail)
    return found


@pytest.mark.threat("C20")
@pytest.mark.parametrize(
    ("delay", "kept"),
    [
        (duration_pb2.Duration(seconds=-1), None),
        (duration_pb2.Duration(nanos=-1), None),
        (duration_pb2.Duration(seconds=2**62), float(2**62)),
        (duration_pb2.Duration(), 0.0),
    ],
)
def test_whatever_a_node_claims_is_no_defect_here(delay: duration_pb2.Duration, kept: float | None) -> None:
    """Times before now, or beyond all times; and details that are no messages."""
    info = error_details_pb2.ErrorInfo(reason="EXHAUSTED", metadata={"detail": "wait"})
    status = status_pb2.Status(details=packed(info, error_details_pb2.RetryInfo(retry_delay=delay)))
    assert translate(Refused(status.SerializeToString()), CONTEXT).retry_after_s == kept
    for url in ("google.rpc.RetryInfo", "google.rpc.ErrorInfo"):
        broken = any_pb2.Any(type_url=f"type.googleapis.com/{url}", value=b"\xff\xff")
        damaged = status_pb2.Status(details=[broken, *packed(info)])
        error = translate(Refused(damaged.SerializeToString()), CONTEXT)
        assert (error.reason, error.message, error.retry_after_s) == (Reason.EXHAUSTED, "too many", None)
    assert translate(Refused(b"\xff\xff"), CONTEXT).message == "too many"
