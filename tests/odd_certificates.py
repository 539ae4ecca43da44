"""Certificates that no sound authority would sign, but that one may be made to sign: names and extensions at will.

Belongs here: making them, beyond what `certificates.py` offers. Does not belong here: what is expected of them.
"""

import base64
import datetime
import warnings
from collections.abc import Iterable, Sequence
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.name import _ASN1Type  # the type of a name's text has no public way in
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.certificates import DAY, Authority, Identity

CN: Final = NameOID.COMMON_NAME
O: Final = NameOID.ORGANIZATION_NAME  # noqa: E741  # that is what it is called
Encoding = _ASN1Type
TEXTS: Final = tuple(
    one for one in Encoding if one.name.endswith("String") and one.name not in {"BitString", "OctetString"}
)
FOR_CLIENTS: Final = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])

_ECDSA_SHA256: Final = bytes.fromhex("300a06082a8648ce3d040302")


def text(oid: x509.ObjectIdentifier, value: str, encoding: Encoding | None = None) -> x509.NameAttribute[str]:
    """An attribute of a name, with a text that need not be a good one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which the library has about that
        return x509.NameAttribute(oid, value, encoding, _validate=False)


def issue(
    authority: Authority,
    *parts: Sequence[x509.NameAttribute[str]],
    extensions: Iterable[tuple[x509.ExtensionType, bool]] = ((FOR_CLIENTS, False),),
) -> Identity:
    """A certificate with these parts of its subject, each of one attribute or more; extensions are critical or not."""
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.RelativeDistinguishedName(part) for part in parts]))
        .issuer_name(authority._name)
        .public_key(authority._client_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
    )
    for value, critical in extensions:
        builder = builder.add_extension(value, critical=critical)
    return _with_key(authority, builder.sign(authority._key, hashes.SHA256()).public_bytes(serialization.Encoding.DER))


def with_extension_twice(authority: Authority, value: x509.ExtensionType, *, last_arc: int = 9) -> Identity:
    """A certificate of ann, an admin, with this extension twice. No library makes that: it is signed by hand."""
    oid = value.oid.dotted_string
    place = x509.ObjectIdentifier(f"{oid.rpartition('.')[0]}.{last_arc}")
    other = x509.UnrecognizedExtension(place, value.public_bytes())
    usage = [] if isinstance(value, x509.ExtendedKeyUsage) else [(FOR_CLIENTS, False)]
    made = issue(authority, [text(CN, "ann")], [text(O, "admin")], extensions=[*usage, (value, False), (other, False)])
    return resigned(authority, made, old=_oid(place), new=_oid(value.oid))


def resigned(authority: Authority, identity: Identity, *, old: bytes, new: bytes) -> Identity:
    """The certificate with some bytes in place of others of the same number, and a signature that is good again."""
    to_be_signed = x509.load_pem_x509_certificate(identity.cert).tbs_certificate_bytes
    assert to_be_signed.count(old) == 1
    assert len(old) == len(new)
    to_be_signed = to_be_signed.replace(old, new)
    signature = b"\0" + authority._key.sign(to_be_signed, ec.ECDSA(hashes.SHA256()))
    return _with_key(authority, der(0x30, to_be_signed + _ECDSA_SHA256 + der(0x03, signature)))


def der(tag: int, content: bytes) -> bytes:
    """A value in DER, of any length."""
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def _oid(oid: x509.ObjectIdentifier) -> bytes:
    """An object identifier in DER: the shortest way to it leads through an extended key usage."""
    return x509.ExtendedKeyUsage([oid]).public_bytes()[2:]


def _with_key(authority: Authority, certificate: bytes) -> Identity:
    block = base64.encodebytes(certificate).decode()
    pem = f"-----BEGIN CERTIFICATE-----\n{block}-----END CERTIFICATE-----\n".encode()
    return Identity(
        pem,
        authority._client_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )
