"""Making certificates: what is in them, as values; no file is touched here.

A client's user is its subject CN; its roles stand where `certroles.py` tells. RSA 4096, SHA-256; CA and server 365
days, clients 45 days, so that clients rotate. X.509: RFC 5280, section 4.2 for the extensions. Not here: revocation
(`revocations.py`), and what is told of a certificate (`certviews.py`).
"""

import hashlib
import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cli.joblet.certnames import alternatives_of
from cli.joblet.certroles import RoleParts, Scheme, role_parts
from common.errors import invalid, precondition

KEY_BITS: Final = 4096
CA_DAYS: Final = 365
SERVER_DAYS: Final = 365
CLIENT_DAYS: Final = 45
DEV_DAYS: Final = 3650
DAYS_MAX: Final = 36_500
BACKDATED: Final = timedelta(minutes=5)
"""A certificate is valid a little before it was made, for clocks that differ."""

_CN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}", re.ASCII)  # 64 is RFC 5280's ub-common-name
SigningKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


class Issued(NamedTuple):
    """A certificate and its private key, both PEM (PKCS#8, not encrypted)."""

    certificate: bytes
    key: bytes


class Signer(NamedTuple):
    """A CA that was read: its certificate, and the key that belongs to it."""

    certificate: x509.Certificate
    key: SigningKey


def make_ca(*, now: datetime, days: int = CA_DAYS) -> Issued:
    """A certificate authority that can sign servers and clients, but no further authority.

    Its name holds a part of its key's digest: two authorities that are trusted at once have names that differ.
    """
    key = _new_key()
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    name = _name(f"joblet CA {hashlib.sha256(public).hexdigest()[:8]}", "joblet")
    builder = _builder(name, name, key, now=now, until=now + _validity(days)).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    builder = builder.add_extension(_key_usage(authority=True), critical=True)
    return _signed(builder, key, key)


def make_server(
    ca: Issued, *, names: tuple[str, ...], now: datetime, days: int = SERVER_DAYS, cn: str = "joblet"
) -> Issued:
    """A server certificate for `names`: DNS names and IP addresses. Raises JobletError(INVALID)."""
    _require_cn(cn)
    alternatives = alternatives_of(names)
    return _make_leaf(
        open_ca(ca),
        subject=_name(cn, "joblet server"),
        extensions=(
            *_leaf_extensions(ExtendedKeyUsageOID.SERVER_AUTH),
            x509.Extension(x509.SubjectAlternativeName.oid, critical=False, value=alternatives),
        ),
        now=now,
        days=days,
    )


def make_client(
    ca: Issued,
    *,
    cn: str,
    roles: tuple[str, ...],
    now: datetime,
    days: int = CLIENT_DAYS,
    scheme: Scheme = Scheme.ORGANIZATION,
) -> Issued:
    """A client certificate for the user `cn` with `roles`, which stand where `scheme` says. Raises JobletError."""
    _require_cn(cn)
    parts: RoleParts = role_parts(roles, scheme)
    return _make_leaf(
        open_ca(ca),
        subject=_name(cn, *parts.organizations),
        extensions=(
            *_leaf_extensions(ExtendedKeyUsageOID.CLIENT_AUTH),
            *(x509.Extension(each.oid, critical=False, value=each) for each in parts.extensions),
        ),
        now=now,
        days=days,
    )


def make_again(ca: Issued, old: x509.Certificate, *, now: datetime, days: int, names: tuple[str, ...] = ()) -> Issued:
    """A certificate that says what `old` says, with a new key, new dates, and further `names` when it is a server's.

    So a role stays in the place where it stood, whoever made the old one. Raises JobletError: INVALID when `old` is an
    authority's, or names are given for a client.
    """
    if is_authority(old):
        raise invalid("a CA is not renewed like this", "roll it over: docs/certificates.md")
    extensions = [each for each in old.extensions if each.oid not in _MADE_ANEW]
    if names:
        if not for_servers(old):
            raise invalid("a client's certificate has no names", "leave out --name")
        kept = [each.value for each in extensions if isinstance(each.value, x509.SubjectAlternativeName)]
        extensions = [each for each in extensions if each.oid != x509.SubjectAlternativeName.oid]
        all_names = dict.fromkeys([*(name for value in kept for name in value), *alternatives_of(names)])
        value = x509.SubjectAlternativeName(all_names)
        extensions.append(x509.Extension(x509.SubjectAlternativeName.oid, critical=False, value=value))
    return _make_leaf(open_ca(ca), subject=old.subject, extensions=extensions, now=now, days=days)


def open_ca(ca: Issued) -> Signer:
    """The CA that `ca` holds; of several certificates the one that the key belongs to. Raises JobletError.

    There are several while a CA is rolled over, when both are trusted.
    """
    key = _load_key(ca.key)
    for certificate in load_certificates(ca.certificate, "the CA certificate"):
        if certificate.public_key() == key.public_key():
            if not is_authority(certificate):
                raise invalid("the CA certificate is no authority's", "use the pair of one `joblet certs init`")
            return Signer(certificate, key)
    raise invalid("the CA key does not belong to the CA certificate", "use the pair of one `joblet certs init`")


def load_certificates(pem: bytes, what: str) -> list[x509.Certificate]:
    """Every certificate of a PEM text, other blocks left out. JobletError(INVALID) when there is none, or a bad one."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as cause:
        raise invalid(f"{what} is no certificate: {cause}", "expected PEM blocks CERTIFICATE") from cause


def was_signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether the key of `authority`, under its name, signed `certificate`."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):  # another name, another kind of key, another key
        return False
    return True


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether it may sign others."""
    return any(isinstance(each.value, x509.BasicConstraints) and each.value.ca for each in certificate.extensions)


def for_servers(certificate: x509.Certificate) -> bool:
    """Whether it is a server's."""
    return ExtendedKeyUsageOID.SERVER_AUTH in purposes(certificate)


def purposes(certificate: x509.Certificate) -> tuple[x509.ObjectIdentifier, ...]:
    """The extended key usages."""
    values = (each.value for each in certificate.extensions)
    return tuple(oid for value in values if isinstance(value, x509.ExtendedKeyUsage) for oid in value)


def _require_cn(cn: str) -> None:
    if not _CN.fullmatch(cn):
        raise invalid(f"malformed user name {cn[:80]!r}", "use 1 to 64 letters, digits and any of _ . @ -")


_MADE_ANEW: Final = frozenset({x509.SubjectKeyIdentifier.oid, x509.AuthorityKeyIdentifier.oid})
"""Extensions that follow from the keys."""


def _leaf_extensions(purpose: x509.ObjectIdentifier) -> tuple[x509.Extension[x509.ExtensionType], ...]:
    basic = x509.BasicConstraints(ca=False, path_length=None)
    usage = _key_usage(authority=False)
    return (
        x509.Extension(basic.oid, critical=True, value=basic),
        x509.Extension(usage.oid, critical=True, value=usage),
        x509.Extension(x509.ExtendedKeyUsage.oid, critical=False, value=x509.ExtendedKeyUsage([purpose])),
    )


def _make_leaf(
    signer: Signer,
    *,
    subject: x509.Name,
    extensions: Iterable[x509.Extension[x509.ExtensionType]],
    now: datetime,
    days: int,
) -> Issued:
    authority = signer.certificate
    validity = _validity(days)
    if authority.not_valid_after_utc <= now:
        raise precondition(
            f"the CA expired at {authority.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}",
            "make another one and roll over: docs/certificates.md",
        )
    # Nobody believes a certificate after its CA has ended: it shall not promise more than it can hold.
    until = min(now + validity, authority.not_valid_after_utc)
    key = _new_key()
    builder = _builder(subject, authority.subject, key, now=now, until=until)
    for each in extensions:
        builder = builder.add_extension(each.value, critical=each.critical)
    return _signed(builder.add_extension(authority_key(authority), critical=False), key, signer.key)


def authority_key(authority: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """How what `authority` signs refers to its key (RFC 5280, section 4.2.1.1)."""
    for each in authority.extensions:
        if isinstance(each.value, x509.SubjectKeyIdentifier):
            return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(each.value)
    public = authority.public_key()
    assert isinstance(public, rsa.RSAPublicKey | ec.EllipticCurvePublicKey), "open_ca compared it with such a key"
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(public)


def _validity(days: int) -> timedelta:
    if not 1 <= days <= DAYS_MAX:
        raise invalid(f"{days} days of validity", f"use 1 to {DAYS_MAX}")
    return timedelta(days=days)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: rsa.RSAPrivateKey, *, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _signed(builder: x509.CertificateBuilder, key: rsa.RSAPrivateKey, signer: SigningKey) -> Issued:
    certificate = builder.sign(signer, hashes.SHA256())
    return Issued(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def _new_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65_537, key_size=KEY_BITS)


def _load_key(pem: bytes) -> SigningKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError as cause:  # what cryptography raises where a passphrase is needed
        raise invalid(
            "the CA key is encrypted", "decrypt it for the time of signing: openssl pkey -in ca.key -out plain.key"
        ) from cause
    except ValueError as cause:
        raise invalid(f"the CA key cannot be read: {cause}", "expected one PEM block PRIVATE KEY") from cause
    if not isinstance(key, SigningKey):
        raise invalid("the CA key is neither RSA nor ECDSA", "make a CA with: joblet certs init DIR")
    return key


def _name(cn: str, *organizations: str) -> x509.Name:
    return x509.Name(
        [
            *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization) for organization in organizations),
            x509.NameAttribute(NameOID.COMMON_NAME, cn),
        ]
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
