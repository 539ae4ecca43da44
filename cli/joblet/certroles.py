"""Where in a client certificate its roles stand: the three schemes, written and read.

Here: what `joblet certs` puts into a certificate for a role, and what it tells of one. Not here: what the node makes of
it (`services/api/identity.py`, which is strict, and can be told to read fewer places or further words). The schemes:
subject O (RFC 5280, section 4.1.2.6), extension 1.2.840.10070.8.1 (a UTF8String of X.690, section 8.23), and the mere
presence of extension 1.3.6.1.4.1.12345.1.1 or .2.
"""

from enum import StrEnum
from typing import Final, NamedTuple, assert_never

from cryptography import x509
from cryptography.x509.oid import NameOID

from common.errors import invalid

ROLES: Final = ("admin", "writer", "user", "reader")
ROLES_EXTENSION: Final = x509.ObjectIdentifier("1.2.840.10070.8.1")
MARKS: Final = {
    "admin": x509.ObjectIdentifier("1.3.6.1.4.1.12345.1.1"),
    "reader": x509.ObjectIdentifier("1.3.6.1.4.1.12345.1.2"),
}

_UTF8STRING_TAG: Final = 0x0C
_DER_NULL: Final = b"\x05\x00"
_SHORT_LENGTH_MAX: Final = 127


class Scheme(StrEnum):
    """A place where roles stand."""

    ORGANIZATION = "organization"
    EXTENSION = "extension"
    MARK = "mark"


class Grant(NamedTuple):
    """A role, and where it was found."""

    role: str
    scheme: Scheme


class RoleParts(NamedTuple):
    """What a certificate has for its roles: values of O, and extensions."""

    organizations: tuple[str, ...] = ()
    extensions: tuple[x509.UnrecognizedExtension, ...] = ()


def role_parts(roles: tuple[str, ...], scheme: Scheme) -> RoleParts:
    """What a certificate needs for `roles`, each of which is given once. Raises JobletError(INVALID)."""
    for role in roles:
        if role not in ROLES:
            raise invalid(f"unknown role {role[:40]!r}", f"use one of {', '.join(ROLES)}")
    distinct = tuple(dict.fromkeys(roles))
    match scheme:
        case Scheme.ORGANIZATION:
            return RoleParts(organizations=distinct)
        case Scheme.EXTENSION:
            value = _utf8_string(",".join(distinct))
            return RoleParts(extensions=(x509.UnrecognizedExtension(ROLES_EXTENSION, value),))
        case Scheme.MARK:
            for role in distinct:
                if role not in MARKS:
                    raise invalid(
                        f"there is no mark for the role {role}",
                        f"marks are for {' and '.join(MARKS)}; use --role-in organization or extension",
                    )
            marks = tuple(x509.UnrecognizedExtension(MARKS[role], _DER_NULL) for role in distinct)
            return RoleParts(extensions=marks)
        case _ as never:
            assert_never(never)


def grants_of(certificate: x509.Certificate) -> tuple[Grant, ...]:
    """Every role that the certificate names, scheme after scheme; what names none is left out."""
    organizations = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    grants = [Grant(str(each.value), Scheme.ORGANIZATION) for each in organizations if each.value in ROLES]
    marked = {oid: role for role, oid in MARKS.items()}
    for extension in certificate.extensions:
        if extension.oid == ROLES_EXTENSION and isinstance(extension.value, x509.UnrecognizedExtension):
            words = [word.strip() for word in read_utf8_string(extension.value.value).split(",")]
            grants += [Grant(word, Scheme.EXTENSION) for word in words if word in ROLES]
        elif extension.oid in marked:
            grants.append(Grant(marked[extension.oid], Scheme.MARK))
    return tuple(grants)


def read_utf8_string(der: bytes) -> str:
    """The text of a DER UTF8String of at most 127 bytes; empty when it is anything else: such a role counts nowhere."""
    if len(der) < 2 or der[0] != _UTF8STRING_TAG or der[1] > _SHORT_LENGTH_MAX or len(der) != 2 + der[1]:
        return ""
    try:
        return der[2:].decode("utf-8")
    except UnicodeDecodeError:
        return ""


def _utf8_string(text: str) -> bytes:
    data = text.encode()
    assert len(data) <= _SHORT_LENGTH_MAX, "all roles together are shorter"
    return bytes((_UTF8STRING_TAG, len(data))) + data
