"""Who is calling: a client certificate becomes a principal, or is refused. Pure: bytes and a clock reading in.

Belongs here: every rule about what a client certificate must look like beyond what TLS has checked (chain, signature).
Does not belong here: what a principal may do (`permissions.py`).

gRPC's own properties are not used: `x509_common_name` is cut at a NUL, shows only the first of two names, and a
certificate without any extended key usage passes. So the PEM is parsed here, strictly (RFC 5280, X.690).
"""

import codecs
import re
from collections.abc import Callable
from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from common.config import settings
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


class Schemes(NamedTuple):
    """Where roles may stand and which words mean them: `security.identity` as a value, which is part of a cache's key.

    `marks` are object identifiers whose presence is a role; `words` mean roles beside the roles' own names.
    """

    organization: bool = True
    extension: bool = True
    marks: tuple[tuple[str, Role], ...] = ()
    words: tuple[tuple[str, Role], ...] = ()


class Certificate(NamedTuple):
    """What a well-formed client certificate says; valid from `not_before_s` until `not_after_s` (Unix seconds)."""

    principal: Principal
    not_before_s: float
    not_after_s: float


NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", re.ASCII)
"""A user name: one spelling has one look, so letters of other alphabets, spaces and controls are refused.
64 characters are ub-common-name of RFC 5280."""

ROLES_EXTENSION: Final = x509.ObjectIdentifier("1.2.840.10070.8.1")
PEM_BYTES_MAX: Final = 64 * 1024
CERTIFICATES_CACHED_MAX: Final = 1024

_UTF8STRING_TAG: Final = 0x0C
_PRINTABLESTRING_TAG: Final = 0x13
_NAME_TAGS: Final = frozenset({_UTF8STRING_TAG, _PRINTABLESTRING_TAG})
"""What authorities must write names in (RFC 5280, 4.1.2.4); in the others one name has several spellings."""

_HANDLED: Final = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.CERTIFICATE_POLICIES,
    }
)
"""Extensions that may be critical: what TLS or this file acts upon. Ours are not among them: TLS, which looks first,
knows nothing of them and refuses a certificate that makes them critical."""

_LONG_LENGTH: Final = 0x80

# cryptography reads a BMPString or UniversalString by these. They are loaded when first used, and then the process has
# dropped its privileges: where its user cannot read Python's own files that fails, and a refusal becomes a defect.
for _name in ("utf_16_be", "utf_32_be"):
    codecs.lookup(_name)


def _refused(why: str) -> JobletError:
    return JobletError(
        Reason.UNAUTHENTICATED, f"client certificate refused: {why}", detail="ask your operator for a new certificate"
    )


def schemes_of(identity: settings.Identity) -> Schemes:
    """The schemes that the (checked) settings mean. Their order there makes no difference."""
    return Schemes(
        organization=identity.organization,
        extension=identity.extension,
        marks=tuple(sorted((oid, Role(role)) for oid, role in identity.marks.items())),
        words=tuple(sorted((word, Role(role)) for word, role in identity.roles.items())),
    )


DEFAULT_SCHEMES: Final = schemes_of(settings.Identity())


def principal_of(pem: bytes, schemes: Schemes = DEFAULT_SCHEMES, *, now_s: float) -> Principal:
    """The principal of a client certificate at the time `now_s` (Unix seconds).

    Raises JobletError: UNAUTHENTICATED when the certificate is malformed, ambiguous or out of its time, DENIED when it
    names no role. A connection outlives its certificate, so the time is compared on every call.
    """
    certificate = read_certificate(pem, schemes)
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
def read_certificate(pem: bytes, schemes: Schemes = DEFAULT_SCHEMES) -> Certificate:
    """Parse and check everything about a client certificate that does not depend on the time. Parsed once, cached."""
    if len(pem) > PEM_BYTES_MAX:
        raise _refused("it is too large")
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        _require_client(certificate)
        name = _common_name(certificate)
        roles = {scheme: found for scheme, read in EXTRACTORS.items() if (found := read(certificate, schemes))}
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
    except x509.DuplicateExtension as cause:
        raise _refused(f"it has the extension {cause.oid.dotted_string} twice") from cause
    except (ValueError, x509.InvalidVersion, x509.UnsupportedGeneralNameType, TypeError) as cause:
        raise _refused("it is malformed") from cause


def _common_name(certificate: x509.Certificate) -> str:
    """The one name, of one spelling: RFC 5280 leaves more to choose from than an identity can bear."""
    found = [
        (attribute, len(part))
        for part in certificate.subject.rdns
        for attribute in part.get_attributes_for_oid(NameOID.COMMON_NAME)
    ]
    if len(found) != 1:
        raise _refused(f"ambiguous identity: it has {len(found)} common names, not one")
    attribute, beside = found[0]
    if beside != 1:
        raise _refused("ambiguous identity: its common name shares its part of the subject with another attribute")
    name = attribute.value
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise _refused(
            "ambiguous identity: its common name may have 1 to 64 of A-Z a-z 0-9 . _ @ - only, and begins with one of "
            "A-Z a-z 0-9"
        )
    if not _plainly_written(attribute, name):
        raise _refused("ambiguous identity: its common name is neither a UTF8String nor a PrintableString")
    return name


def _plainly_written(attribute: x509.NameAttribute[str | bytes], text: str) -> bool:
    """Whether the attribute is `text`, in ASCII and at most 64 characters, in one of the two types for names.

    The parsed value does not tell its type. In DER it ends with tag, one byte of length, and the text byte by byte;
    where characters are wider, something stands there that is no such tag.
    """
    der = x509.Name([attribute]).public_bytes()
    return der.endswith(bytes((len(text),)) + text.encode()) and der[-len(text) - 2] in _NAME_TAGS


def _require_client(certificate: x509.Certificate) -> None:
    """Refuse authorities, and certificates that were not issued for clients, in whatever order they say so."""
    for extension in certificate.extensions:
        if extension.critical and extension.oid not in _HANDLED:  # RFC 5280, 4.2
            raise _refused(f"its extension {extension.oid.dotted_string} is critical and not known here")
    values = [extension.value for extension in certificate.extensions]
    if any(value.ca for value in values if isinstance(value, x509.BasicConstraints)) or any(
        value.key_cert_sign for value in values if isinstance(value, x509.KeyUsage)
    ):
        raise _refused("it belongs to a certificate authority")
    usages = [value for value in values if isinstance(value, x509.ExtendedKeyUsage)]
    if not any(ExtendedKeyUsageOID.CLIENT_AUTH in usage for usage in usages):  # nor is anyExtendedKeyUsage enough
        raise _refused("it was not issued for client authentication")


def _words(schemes: Schemes) -> dict[str, Role]:
    return {role.value: role for role in Role} | dict(schemes.words)


def _organization_roles(certificate: x509.Certificate, schemes: Schemes) -> frozenset[Role]:
    if not schemes.organization:
        return frozenset()
    words = _words(schemes)
    return frozenset(
        words[text]
        for attribute in certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        if (text := str(attribute.value)) in words and _plainly_written(attribute, text)
    )


def _extension_roles(certificate: x509.Certificate, schemes: Schemes) -> frozenset[Role]:
    if not schemes.extension:
        return frozenset()
    words = _words(schemes)
    return frozenset(
        words[word.strip(" ")]
        for extension in certificate.extensions
        if extension.oid == ROLES_EXTENSION and isinstance(extension.value, x509.UnrecognizedExtension)
        for word in _listed(extension.value.value)
        if word.strip(" ") in words
    )


def _listed(der: bytes) -> list[str]:
    try:
        return utf8_string(der).split(",")
    except ValueError as cause:
        raise _refused(f"its extension {ROLES_EXTENSION.dotted_string} is not one UTF8String: {cause}") from cause


def _marked_roles(certificate: x509.Certificate, schemes: Schemes) -> frozenset[Role]:
    marks = dict(schemes.marks)
    present = (extension.oid.dotted_string for extension in certificate.extensions)
    return frozenset(marks[oid] for oid in present if oid in marks)


EXTRACTORS: Final[dict[str, Callable[[x509.Certificate, Schemes], frozenset[Role]]]] = {
    "organization": _organization_roles,  # subject O values (S3.25)
    "extension": _extension_roles,  # 1.2.840.10070.8.1, UTF8String (S4.19)
    "marks": _marked_roles,  # presence of 1.3.6.1.4.1.12345.1.1 or .2 (S2.24), or what the operator names
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
