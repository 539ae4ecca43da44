"""Making certificates: what is in them, as values; no file is touched here.

A client's user is its subject CN, its roles are its subject O (architecture: identity). RSA 4096, SHA-256; CA and
server 365 days, clients 45 days, so that clients rotate. X.509: RFC 5280, section 4.2 for the extensions.
"""

import ipaddress
import re
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import invalid

KEY_BITS: Final = 4096
CA_DAYS: Final = 365
SERVER_DAYS: Final = 365
CLIENT_DAYS: Final = 45
DEV_DAYS: Final = 3650
DAYS_MAX: Final = 36_500
BACKDATED: Final = timedelta(minutes=5)
"""A certificate is valid a little before it was made, for clocks that differ."""

ROLES: Final = ("admin", "writer", "user", "reader")

_CN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}", re.ASCII)  # 64 is RFC 5280's ub-common-name


class Issued(NamedTuple):
    """A certificate and its private key, both PEM (PKCS#8, not encrypted)."""

    certificate: bytes
    key: bytes


def make_ca(*, now: datetime, days: int = CA_DAYS) -> Issued:
    """A certificate authority that can sign servers and clients, but no further authority."""
    key = _new_key()
    name = _name("joblet CA", "joblet")
    builder = _builder(name, name, key, now=now, days=days).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    builder = builder.add_extension(_key_usage(authority=True), critical=True)
    return _signed(builder, key, key)


def make_server(ca: Issued, *, names: tuple[str, ...], now: datetime, days: int = SERVER_DAYS) -> Issued:
    """A server certificate for `names`: DNS names and IP addresses."""
    return _make_leaf(
        ca,
        subject=_name("joblet", "joblet server"),
        purpose=ExtendedKeyUsageOID.SERVER_AUTH,
        alternatives=tuple(_alternative(name) for name in names),
        now=now,
        days=days,
    )


def make_client(ca: Issued, *, cn: str, roles: tuple[str, ...], now: datetime, days: int = CLIENT_DAYS) -> Issued:
    """A client certificate for the user `cn` with `roles`. Raises JobletError(INVALID)."""
    if not _CN.fullmatch(cn):
        raise invalid(f"malformed user name {cn[:80]!r}", "use 1 to 64 letters, digits and any of _ . @ -")
    for role in roles:
        if role not in ROLES:
            raise invalid(f"unknown role {role[:40]!r}", f"use one of {', '.join(ROLES)}")
    return _make_leaf(
        ca,
        subject=_name(cn, *roles),
        purpose=ExtendedKeyUsageOID.CLIENT_AUTH,
        alternatives=(),
        now=now,
        days=days,
    )


def describe(certificate: x509.Certificate) -> dict[str, str]:
    """What `joblet certs show` tells of a certificate."""
    subject = certificate.subject
    lines = {
        "subject": subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "user (CN)": ", ".join(str(a.value) for a in subject.get_attributes_for_oid(NameOID.COMMON_NAME)),
        "roles (O)": ", ".join(str(a.value) for a in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)),
        "serial": f"{certificate.serial_number:x}",
        "valid from": certificate.not_valid_before_utc.isoformat(),
        "valid until": certificate.not_valid_after_utc.isoformat(),
        "sha-256": certificate.fingerprint(hashes.SHA256()).hex(),
    }
    for extension in certificate.extensions:
        match extension.value:
            case x509.ExtendedKeyUsage() as usage:
                lines["purpose"] = ", ".join(oid._name for oid in usage)
            case x509.SubjectAlternativeName() as names:
                lines["names"] = ", ".join(str(name.value) for name in names)
            case x509.BasicConstraints(ca=True):
                lines["purpose"] = "certificate authority"
            case _:
                pass
    return lines


def _make_leaf(
    ca: Issued,
    *,
    subject: x509.Name,
    purpose: x509.ObjectIdentifier,
    alternatives: tuple[x509.GeneralName, ...],
    now: datetime,
    days: int,
) -> Issued:
    authority = x509.load_pem_x509_certificate(ca.certificate)
    ca_key = _load_key(ca.key)
    if ca_key.public_key() != authority.public_key():
        raise invalid("the CA key does not belong to the CA certificate", "use the pair of one `joblet certs init`")
    key = _new_key()
    builder = _builder(subject, authority.subject, key, now=now, days=days)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(authority=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
    )
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return _signed(builder, key, ca_key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: rsa.RSAPrivateKey, *, now: datetime, days: int
) -> x509.CertificateBuilder:
    if not 1 <= days <= DAYS_MAX:
        raise invalid(f"{days} days of validity", f"use 1 to {DAYS_MAX}")
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _signed(builder: x509.CertificateBuilder, key: rsa.RSAPrivateKey, signer: rsa.RSAPrivateKey) -> Issued:
    certificate = builder.sign(signer, hashes.SHA256())
    return Issued(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def _new_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65_537, key_size=KEY_BITS)


def _load_key(pem: bytes) -> rsa.RSAPrivateKey:
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise invalid("the CA key is no RSA key", "make a CA with: joblet certs init DIR")
    return key


def _name(cn: str, *organizations: str) -> x509.Name:
    return x509.Name(
        [
            *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization) for organization in organizations),
            x509.NameAttribute(NameOID.COMMON_NAME, cn),
        ]
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


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
