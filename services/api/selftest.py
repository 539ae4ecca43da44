"""The proof, at every start, that this port speaks TLS 1.3 only.

grpcio has no setting for the lowest TLS version, so what forbids 1.2 is an environment variable that must be there
before grpc is imported (`__main__.py`, docs/adr/0009-tls13-in-grpcio.md). Should that ever stop to work, silently, the
service must not serve. Therefore it dials itself.

Only a ClientHello is sent. A server that would go on with that version answers with a handshake record (ServerHello),
long before any certificate matters (RFC 8446 section 5.1, RFC 5246 section 6.2.1). One that would not sends an alert,
or just closes, as grpc does. That the port is alive at all is shown by the same with TLS 1.3.
"""

import asyncio
import ssl
from typing import Final

from common.errors import JobletError, Reason

HANDSHAKE: Final = 22
ANSWER_S: Final = 10.0


async def require_tls13_only(host: str, port: int) -> None:
    """Raise JobletError unless the port refuses TLS 1.2 and takes TLS 1.3."""
    if await _first_record(host, port, ssl.TLSVersion.TLSv1_3) != HANDSHAKE:
        raise _refuse("does not answer a TLS 1.3 handshake")
    if await _first_record(host, port, ssl.TLSVersion.TLSv1_2) == HANDSHAKE:
        raise _refuse("would accept TLS 1.2")


async def _first_record(host: str, port: int, version: ssl.TLSVersion) -> int:
    """Type of the first record that comes back for a ClientHello of at most `version`; 0: closed without one."""
    try:
        async with asyncio.timeout(ANSWER_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(client_hello(version))
                answer = await reader.read(1)
            finally:
                writer.close()
    except (OSError, TimeoutError) as cause:
        raise _refuse(f"cannot be dialled ({cause})") from cause
    return answer[0] if answer else 0


def client_hello(version: ssl.TLSVersion) -> bytes:
    """The first flight of a client that speaks `version` at most."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    context.minimum_version = min(version, ssl.TLSVersion.TLSv1_2)
    context.maximum_version = version
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = context.wrap_bio(received, sent)
    try:
        connection.do_handshake()
    except ssl.SSLWantReadError:
        return sent.read()
    raise AssertionError("a handshake cannot end without an answer")


def _refuse(what: str) -> JobletError:
    return JobletError(
        Reason.INTERNAL,
        f"this port {what}, so nothing is served",
        detail="report this with the version of grpcio; see docs/adr/0009-tls13-in-grpcio.md",
    )
