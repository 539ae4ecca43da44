"""What a failed call means: a gRPC status becomes a JobletError with a text for a person and a reason for an exit code.

Here: the mapping, with the ErrorInfo and RetryInfo that the server adds (google.rpc error model), and what the bare
transport errors of gRPC most likely mean. Not here: printing (`cli/front/program.py`), exit codes (`exits.py`).
"""

import math
from datetime import UTC, datetime
from typing import Final, TypeVar

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # ships no types

from cli.client.contexts import Context
from cli.client.renewal import advice
from common.errors import JobletError, Reason

_DETAILS_KEY: Final = "grpc-status-details-bin"

_Detail = TypeVar("_Detail", bound=Message)

_REASON_OF_CODE: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: Reason.INVALID,
    grpc.StatusCode.OUT_OF_RANGE: Reason.INVALID,
    grpc.StatusCode.UNAUTHENTICATED: Reason.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED: Reason.DENIED,
    grpc.StatusCode.NOT_FOUND: Reason.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS: Reason.EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION: Reason.PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Reason.EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE: Reason.UNAVAILABLE,
    # A server that is shut down cancels the calls it holds: for the caller that is the same as a lost connection.
    grpc.StatusCode.CANCELLED: Reason.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Reason.DEADLINE,
    grpc.StatusCode.UNIMPLEMENTED: Reason.UNIMPLEMENTED,
    grpc.StatusCode.DATA_LOSS: Reason.DATA_LOSS,
}


class ConnectionDropped(JobletError):
    """The peer closed the connection: a restart when it happens once, a refused certificate when it always does.

    With TLS 1.3 a client believes that the handshake is over before the server has looked at its certificate
    (RFC 8446, section 2), so that a refusal reaches it as a closed connection without a word.
    """


def translate(error: grpc.RpcError, context: Context) -> JobletError:
    """The JobletError that `error` of a call to `context`'s node means."""
    if not isinstance(error, grpc.Call):
        return JobletError(Reason.INTERNAL, f"call to {context.address} failed: {error}")
    code, text = error.code(), error.details() or ""
    reason = _REASON_OF_CODE.get(code, Reason.INTERNAL)
    status = _rich_status(error)
    info = _detail(status, error_details_pb2.ErrorInfo())
    if info is not None:
        retry_after_s = _retry_after_s(status)
        return JobletError(
            reason,
            text,
            detail=_with_time(info.metadata.get("detail", ""), retry_after_s),
            retryable=info.metadata.get("retryable") == "true",
            retry_after_s=retry_after_s,
        )
    if reason is Reason.UNAVAILABLE:
        return _transport_error(text, context)
    if reason is Reason.DEADLINE:
        return JobletError(
            reason,
            f"{context.address} did not answer in time",
            detail="ask again, or give it longer with --timeout",
            retryable=True,
        )
    if reason is Reason.UNIMPLEMENTED:
        text = text or "not implemented"
        return JobletError(reason, f"{context.address}: {text}", detail="this node does not offer it (yet)")
    return JobletError(reason, text or f"{context.address} answered {code.name}", retryable=reason is Reason.EXHAUSTED)


def _rich_status(call: grpc.Call) -> status_pb2.Status:
    """The status that the server added; an empty one when there is none that can be read."""
    for key, value in call.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                break  # the code and the text of the status still tell what happened
    return status_pb2.Status()


def _detail(status: status_pb2.Status, found: _Detail) -> _Detail | None:
    """`found`, filled in with the first detail of its kind; None when there is none that can be read."""
    for detail in status.details:
        try:
            if detail.Is(found.DESCRIPTOR) and detail.Unpack(found):
                return found
        except DecodeError:
            return None
    return None


def _retry_after_s(status: status_pb2.Status) -> float | None:
    """How long the server asks to wait; None when it does not say, or says what no time is."""
    retry = _detail(status, error_details_pb2.RetryInfo())
    if retry is None:
        return None
    seconds = float(retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9)
    return seconds if seconds >= 0 else None


def _with_time(detail: str, retry_after_s: float | None) -> str:
    """The detail, and when to try again: in tenths of a second, rounded up, because earlier would be too early."""
    if retry_after_s is None:
        return detail
    when = f"try again in {math.ceil(retry_after_s * 10) / 10:g} s"
    return f"{detail}; {when}" if detail else when


def _transport_error(text: str, context: Context) -> JobletError:
    where = f"{context.address} (context {context.name})"
    lowered = text.lower()
    if "certificate_verify_failed" in lowered or "hostname verification" in lowered or "peer name" in lowered:
        return JobletError(
            Reason.UNAVAILABLE,
            f"{where} shows a certificate that is not trusted",
            detail="the ca of this context did not sign it, or it is not made for this address",
        )
    if "socket closed" in lowered or "connection reset" in lowered or "handshake" in lowered:
        certificate = _own_certificate(context)
        if certificate is not None and datetime.now(UTC) > certificate.not_valid_after_utc:
            return _expired(context, certificate)
        return ConnectionDropped(
            Reason.UNAVAILABLE,
            f"{where} closed the connection",
            detail=_material_advice(context, certificate) or _certificate_advice(certificate),
            retryable=True,
        )
    if "refused" in lowered or "no such file" in lowered:
        return JobletError(
            Reason.UNAVAILABLE,
            f"nothing answers at {where}",
            detail="start the node with `joblet up`, or correct the address of this context",
            retryable=True,
        )
    if "dns" in lowered or "name resolution" in lowered or "domain name" in lowered:
        return JobletError(
            Reason.UNAVAILABLE, f"the name in {where} is not known", detail="correct the address of this context"
        )
    return JobletError(Reason.UNAVAILABLE, f"{where} is not available: {text}", detail="ask again", retryable=True)


def _own_certificate(context: Context) -> x509.Certificate | None:
    try:
        return x509.load_pem_x509_certificates(context.cert)[0]
    except ValueError:
        return None


def _expired(context: Context, certificate: x509.Certificate) -> JobletError:
    """Asking again is of no use."""
    return JobletError(
        Reason.UNAVAILABLE,
        f"{context.address} (context {context.name}) closed the connection: the certificate expired at"
        f" {certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}",
        detail=advice(context.cert_name, context.cert),
    )


def _material_advice(context: Context, certificate: x509.Certificate | None) -> str:
    """What is wrong with the files of the context, for which gRPC has the same words; empty when nothing is."""
    try:
        x509.load_pem_x509_certificates(context.ca)
    except ValueError:
        return "the ca of this context cannot be read: it must hold the certificate of the node's CA"
    try:
        key = load_pem_private_key(context.key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return "the key of this context cannot be read: it must hold the private key that its cert was made with"
    if certificate is not None and key.public_key() != certificate.public_key():
        return "the key of this context is not the one that its cert was made with: name the files that belong together"
    return ""


def _certificate_advice(certificate: x509.Certificate | None) -> str:
    """Why a node may have closed the connection, judged from our own certificate, which has not expired."""
    if certificate is None:
        return "the cert of this context cannot be read: get a new one"
    if datetime.now(UTC) < certificate.not_valid_before_utc:
        return (
            f"the certificate is valid from {certificate.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ} on: check the clock"
        )
    return (
        "if that repeats, it refuses this certificate: wrong CA, not for clients, or revoked; see the node's audit log"
    )
