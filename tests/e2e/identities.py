"""Client certificates of every kind, good and bad, signed by a node's own authority or by another one.

Belongs here: making certificates and the client configuration that uses them. Does not belong here: `joblet certs`,
which only makes good ones. Keys are P-256 because RSA 4096 takes seconds each. See RFC 5280.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

CLIENT: Final = (ExtendedKeyUsageOID.CLIENT_AUTH,)
SERVER: Final = (ExtendedKeyUsageOID.SERVER_AUTH,)
ROLES: Final = ObjectIdentifier("1.2.840.10070.8.1")
ADMIN_MARK: Final = ObjectIdentifier("1.3.6.1.4.1.12345.1.1")
READER_MARK: Final = ObjectIdentifier("1.3.6.1.4.1.12345.1.2")


class Authority(NamedTuple):
    """A CA that can sign."""

    certificate: x509.Certificate
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


def authority_of(certs: Path) -> Authority:
    """The CA of a node."""
    key = serialization.load_pem_private_key((certs / "ca.key").read_bytes(), None)
    assert isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey)
    return Authority(x509.load_pem_x509_certificate((certs / "ca.crt").read_bytes()), key)


def stranger() -> Authority:
    """A CA with the name of none that a node knows."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "stranger CA")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def client_certificate(
    authority: Authority,
    *,
    names: Sequence[str] = ("eve",),
    organizations: Sequence[str] = ("admin",),
    usage: Sequence[ObjectIdentifier] = CLIENT,
    extensions: Sequence[tuple[ObjectIdentifier, bytes]] = (),
    from_days: float = -1,
    until_days: float = 30,
) -> tuple[bytes, bytes]:
    """Certificate and key as PEM; a NUL or anything else in a name is taken as it is."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names]
    attributes += [x509.NameAttribute(NameOID.ORGANIZATION_NAME, each) for each in organizations]
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(attributes))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=from_days))
        .not_valid_after(now + timedelta(days=until_days))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    if usage:
        builder = builder.add_extension(x509.ExtendedKeyUsage(list(usage)), critical=False)
    for identifier, value in extensions:
        builder = builder.add_extension(x509.UnrecognizedExtension(identifier, value), critical=False)
    signed = builder.sign(authority.key, hashes.SHA256())
    return (
        signed.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def write_config(directory: Path, *, port: int, ca: bytes, certificate: bytes, key: bytes) -> Path:
    """A client configuration whose `default` context is this identity."""
    file = directory / "rnx-config.yml"
    node = {"address": f"127.0.0.1:{port}", "cert": certificate.decode(), "key": key.decode(), "ca": ca.decode()}
    file.write_text(yaml.safe_dump({"version": "3.0", "nodes": {"default": node}}))
    file.chmod(0o600)
    return file
