"""Certificates and keys as PEM bytes, from the configuration or from files.

Here: finding and reading them, and refusing a private key that others can read. Not here: what a certificate says
(`services/api`), and making them (`joblet certs`). PEM: RFC 7468.
"""

import os
import stat
from pathlib import Path
from typing import Final, NamedTuple

from common.config.layout import Layout
from common.config.settings import Settings
from common.errors import invalid, not_found, precondition

PEM_BYTES_MAX: Final = 1024 * 1024

_MARK: Final = b"-----BEGIN "
_KEY_MARK: Final = b"PRIVATE KEY-----"
_ENCRYPTED_MARKS: Final = (b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"Proc-Type: 4,ENCRYPTED")  # RFC 7468, RFC 1421


class ServerMaterial(NamedTuple):
    """What the front door shows, and whose certificates it trusts. PEM, all of them.

    `crl`: certificate revocation lists, of RFC 5280 section 5; empty: there is none.
    """

    cert: bytes
    key: bytes
    ca: bytes
    crl: bytes = b""


class ServerSources(NamedTuple):
    """Where each part of a ServerMaterial comes from: PEM text of the configuration, or a path.

    `crl_required`: the configuration names a list, so that its absence is an error.
    """

    cert: str
    key: str
    ca: str
    crl: str
    crl_required: bool


def read_pem(value_or_path: str, what: str) -> bytes:
    """The PEM text itself, or the content of the file at that path. `what` names it in errors.

    Raises JobletError: NOT_FOUND, INVALID when it is no PEM, PRECONDITION for a private key in a file that its
    group or others can read.
    """
    if is_pem_text(value_or_path):
        return value_or_path.encode()
    if not value_or_path:
        raise invalid(f"no {what} given", "give PEM text or a path")
    path = Path(value_or_path)
    try:
        content, mode = _read(path)
    except FileNotFoundError as cause:
        raise not_found(f"no {what} at {path}", "make certificates with: joblet certs init DIR") from cause
    except (OSError, ValueError) as cause:
        raise invalid(f"cannot read {what} {str(path)[:200]!r}: {cause}") from cause
    return checked_pem(content, mode, what=what, path=value_or_path)


def is_pem_text(value_or_path: str) -> bool:
    """Whether a setting holds PEM text, and not the path of a file."""
    return "-----BEGIN" in value_or_path


def checked_pem(content: bytes, mode: int, *, what: str, path: str) -> bytes:
    """`content` of a file with the permission bits `mode`, when it can be PEM. Raises as `read_pem` does."""
    if len(content) > PEM_BYTES_MAX:
        raise invalid(f"{what} {path} is larger than {PEM_BYTES_MAX} bytes", "this is no PEM file")
    if _MARK not in content:
        raise invalid(f"{what} {path} holds no PEM block", "expected a line that begins with -----BEGIN")
    if _KEY_MARK in content and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise precondition(f"{what} {path} has mode {mode:04o}: others can read it", f"chmod 600 {path}")
    return content


def server_sources(settings: Settings, layout: Layout) -> ServerSources:
    """What `security` names, else the files of `{base}/certs`."""
    security = settings.security
    return ServerSources(
        cert=security.server_cert or str(layout.certs / "server.crt"),
        key=security.server_key or str(layout.certs / "server.key"),
        ca=security.ca_cert or str(layout.certs / "ca.crt"),
        crl=security.crl or str(layout.certs / "ca.crl"),
        crl_required=bool(security.crl),
    )


def server_material(settings: Settings, layout: Layout) -> ServerMaterial:
    """The server's certificate, key, CA and revocation lists, read now. A list that nobody named may be missing."""
    sources = server_sources(settings, layout)
    return ServerMaterial(
        cert=read_pem(sources.cert, "server certificate"),
        key=_private_key(sources.key),
        ca=read_pem(sources.ca, "CA certificate"),
        crl=read_pem(sources.crl, "revocation list") if sources.crl_required or Path(sources.crl).exists() else b"",
    )


def _private_key(value_or_path: str) -> bytes:
    key = read_pem(value_or_path, "server key")
    if _KEY_MARK not in key:
        raise invalid("the server key is no private key", "check security.serverKey")
    if any(mark in key for mark in _ENCRYPTED_MARKS):  # gRPC would refuse it without saying why
        raise invalid(
            "the server key is encrypted, and nobody is there to type its passphrase",
            "decrypt it: openssl pkey -in server.key -out plain.key, mode 0600",
        )
    return key


def _read(path: Path) -> tuple[bytes, int]:
    """Content, and permission bits of the very file that was read."""
    with path.open("rb") as stream:
        mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
        return stream.read(PEM_BYTES_MAX + 1), mode
