"""What a failed call means: a gRPC status becomes a JobletError with a text for a person and a reason for an exit code.

Here: the mapping, with the ErrorInfo that the server adds (google.rpc error model), and what the bare transport errors
of gRPC most likely mean. Not here: printing (`cli/front/program.py`), exit codes (`exits.py`).
"""

from datetime import UTC, datetime
from typing import Final

import grpc
from cryptography import x509
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # ships no types

from cli.client.contexts import Context
from cli.client.renewal import advice
from common.errors import JobletError, Reason

_DETAILS_KEY: Final = "grpc-status-details-bin"

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
    info = _error_info(error)
    if info is not None:
        return JobletError(
            reason, text, detail=info.metadata.get("detail", ""), retryable=info.metadata.get("retryable") == "true"
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


def _error_info(call: grpc.Call) -> error_details_pb2.ErrorInfo | None:
    """The ErrorInfo among the status details; None when there is none that can be read."""
    for key, value in call.trailing_metadata() or ():
        if key != _DETAILS_KEY or not isinstance(value, bytes):
            continue
        try:
            status = status_pb2.Status.FromString(value)
        except DecodeError:
            return None  # the code and the text of the status still tell what happened
        for detail in status.details:
            info = error_details_pb2.ErrorInfo()
            if detail.Is(info.DESCRIPTOR) and detail.Unpack(info):
                return info
    return None


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
            detail=_certificate_advice(certificate),
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
