"""Who is calling: a client certificate becomes a principal, or is refused. Pure: bytes and a clock reading in.

Belongs here: every rule about what a client certificate must look like beyond what TLS has checked (chain, signature).
Does not belong here: what a principal may do (`permissions.py`).

gRPC's own properties are not used: `x509_common_name` is cut at a NUL, shows only the first of two names, and a
certificate without any extended key usage passes. So the PEM is parsed here, strictly (RFC 5280, X.690).
"""

import re
from collections.abc import Callable
from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import JobletError, Reason


class Role(StrEnum):
    """What a certificate authority may sign somebody to be."""

    ADMIN = "admin"
    WRITER = "writer"
    USER = "user"
    READER = "reader"


class Principal(NamedTuple):
    """An authenticated caller. `serial` is the certificate's, in hexadecimal; `scheme` tells where its roles stood."""

    name: str
    roles: frozenset[Role]
    serial: str
    scheme: str


class Certificate(NamedTuple):
    """What a well-formed client certificate says; valid from `not_before_s` until `not_after_s` (Unix seconds)."""

    principal: Principal
    not_before_s: float
    not_after_s: float


NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", re.ASCII)
"""A user name: one spelling has one look, so letters of other alphabets, spaces and controls are refused.
64 characters are ub-common-name of RFC 5280."""

ROLES_EXTENSION: Final = x509.ObjectIdentifier("1.2.840.10070.8.1")
ADMIN_MARK: Final = x509.ObjectIdentifier("1.3.6.1.4.1.12345.1.1")
READER_MARK: Final = x509.ObjectIdentifier("1.3.6.1.4.1.12345.1.2")
PEM_BYTES_MAX: Final = 64 * 1024
CERTIFICATES_CACHED_MAX: Final = 1024

_ROLE_WORDS: Final = {role.value: role for role in Role}
_UTF8STRING_TAG: Final = 0x0C
_LONG_LENGTH: Final = 0x80


def _refused(why: str) -> JobletError:
    return JobletError(
        Reason.UNAUTHENTICATED, f"client certificate refused: {why}", detail="ask your operator for a new certificate"
    )


def principal_of(pem: bytes, *, now_s: float) -> Principal:
    """The principal of a client certificate at the time `now_s` (Unix seconds).

    Raises JobletError: UNAUTHENTICATED when the certificate is malformed, ambiguous or out of its time, DENIED when it
    names no role. A connection outlives its certificate, so the time is compared on every call.
    """
    certificate = read_certificate(pem)
    if now_s < certificate.not_before_s:
        raise _refused("it is not valid yet")
    if now_s >= certificate.not_after_s:
        raise _refused("it has expired")
    if not certificate.principal.roles:
        raise JobletError(
            Reason.DENIED,
            f"{certificate.principal.name} has no role",
            detail=f"the certificate must name one of: {', '.join(Role)}",
        )
    return certificate.principal


@lru_cache(maxsize=CERTIFICATES_CACHED_MAX)
def read_certificate(pem: bytes) -> Certificate:
    """Parse and check everything about a client certificate that does not depend on the time. Parsed once, cached."""
    if len(pem) > PEM_BYTES_MAX:
        raise _refused("it is too large")
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        name = _common_name(certificate)
        _require_client(certificate)
        roles = {scheme: found for scheme, read in EXTRACTORS.items() if (found := read(certificate))}
        return Certificate(
            Principal(
                name=name,
                roles=frozenset().union(*roles.values()),
                serial=f"{certificate.serial_number:x}",
                scheme="+".join(roles),
            ),
            certificate.not_valid_before_utc.timestamp(),
            certificate.not_valid_after_utc.timestamp(),
        )
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, TypeError) as cause:
        raise _refused("it is malformed") from cause


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1:
        raise _refused(f"ambiguous identity: it has {len(names)} common names, not one")
    name = names[0].value
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise _refused("ambiguous identity: its common name may have 1 to 64 of A-Z a-z 0-9 . _ @ - only")
    return name


def _require_client(certificate: x509.Certificate) -> None:
    """Refuse authorities, and certificates that were not issued for clients, in whatever order they say so."""
    values = [extension.value for extension in certificate.extensions]
    if any(value.ca for value in values if isinstance(value, x509.BasicConstraints)):
        raise _refused("it belongs to a certificate authority")
    usages = [value for value in values if isinstance(value, x509.ExtendedKeyUsage)]
    if not any(ExtendedKeyUsageOID.CLIENT_AUTH in usage for usage in usages):
        raise _refused("it was not issued for client authentication")


def _organization_roles(certificate: x509.Certificate) -> frozenset[Role]:
    values = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return frozenset(_ROLE_WORDS[str(value.value)] for value in values if value.value in _ROLE_WORDS)


def _extension_roles(certificate: x509.Certificate) -> frozenset[Role]:
    words = [
        word.strip()
        for extension in certificate.extensions
        if extension.oid == ROLES_EXTENSION and isinstance(extension.value, x509.UnrecognizedExtension)
        for word in utf8_string(extension.value.value).split(",")
    ]
    return frozenset(_ROLE_WORDS[word] for word in words if word in _ROLE_WORDS)


def _marked_roles(certificate: x509.Certificate) -> frozenset[Role]:
    marks = {ADMIN_MARK: Role.ADMIN, READER_MARK: Role.READER}
    return frozenset(marks[extension.oid] for extension in certificate.extensions if extension.oid in marks)


EXTRACTORS: Final[dict[str, Callable[[x509.Certificate], frozenset[Role]]]] = {
    "organization": _organization_roles,  # subject O values (S3.25)
    "extension": _extension_roles,  # 1.2.840.10070.8.1, UTF8String (S4.19)
    "marks": _marked_roles,  # presence of 1.3.6.1.4.1.12345.1.1 or .2 (S2.24)
}
"""Where roles may stand. The union of all counts: whatever is there was signed by the authority."""


def utf8_string(der: bytes) -> str:
    """The text of a DER UTF8String. ValueError when it is anything else, or followed by anything."""
    if len(der) < 2 or der[0] != _UTF8STRING_TAG:
        raise ValueError("not a UTF8String")
    length, start = der[1], 2
    if length >= _LONG_LENGTH:
        start += length - _LONG_LENGTH
        length = int.from_bytes(der[2:start], "big")
        if start == 2 or length < _LONG_LENGTH or der[2] == 0:
            raise ValueError("the length is not in its shortest form")
    if len(der) != start + length:
        raise ValueError("the length does not match")
    return der[start:].decode("utf-8")
