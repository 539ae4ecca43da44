"""Certificates for tests: a small authority that can also issue what a good one never would.

Belongs here: making them in memory, fast (P-256 keys; the product's own are RSA 4096, made by `joblet certs`). Does not
belong here: what is expected of them.
"""

import datetime
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CLIENT: Final = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER: Final = ExtendedKeyUsageOID.SERVER_AUTH
ROLES_EXTENSION: Final = x509.ObjectIdentifier("1.2.840.10070.8.1")
ADMIN_MARK: Final = x509.ObjectIdentifier("1.3.6.1.4.1.12345.1.1")
READER_MARK: Final = x509.ObjectIdentifier("1.3.6.1.4.1.12345.1.2")
DAY: Final = datetime.timedelta(days=1)


class Identity(NamedTuple):
    """A certificate and its key, PEM."""

    cert: bytes
    key: bytes


def utf8_der(text: str) -> bytes:
    """A DER UTF8String of less than 128 bytes."""
    data = text.encode()
    return bytes((0x0C, len(data))) + data


class Authority:
    """Issues certificates. One private key serves all of them: nothing here is secret."""

    def __init__(self, name: str = "test authority", *, left: datetime.timedelta = 30 * DAY) -> None:
        self._left = left
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._client_key = ec.generate_private_key(ec.SECP256R1())

    @cached_property
    def pem(self) -> bytes:
        """The authority's own certificate."""
        return self._authority_certificate(self)

    def _authority_certificate(self, subject: "Authority") -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject._name)
            .issuer_name(self._name)
            .public_key(subject._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + self._left)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )

    @cached_property
    def key_pem(self) -> bytes:
        """The authority's own private key."""
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def server(self) -> Identity:
        """A server certificate for localhost and 127.0.0.1."""
        return self.issue(["localhost"], usages=[SERVER], names=["localhost", "127.0.0.1"])

    def client(self, name: str, *roles: str) -> Identity:
        """An ordinary client certificate: roles as organizations."""
        return self.issue([name], roles)

    def crl(self, *revoked: Identity, next_update: datetime.timedelta = DAY) -> bytes:
        """A revocation list of these certificates; `next_update` is from now."""
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._name)
            .last_update(now - DAY)
            .next_update(now + next_update)
        )
        for identity in revoked:
            serial = x509.load_pem_x509_certificate(identity.cert).serial_number
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now - DAY).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def intermediate(self, name: str) -> "Authority":
        """An authority whose certificate this one has signed: `pem` is not signed by itself."""
        below = Authority(name)
        below.pem = self._authority_certificate(below)
        return below

    def issue(
        self,
        common_names: Sequence[str],
        organizations: Iterable[str] = (),
        *,
        usages: Sequence[x509.ObjectIdentifier] | None = (CLIENT,),
        extensions: Iterable[tuple[x509.ObjectIdentifier, bytes]] = (),
        names: Sequence[str] = (),
        not_before: datetime.timedelta = -DAY,
        not_after: datetime.timedelta = 30 * DAY,
        ca: bool = False,
    ) -> Identity:
        """Whatever is asked for. Times are from now; `usages` None: no such extension at all."""
        now = datetime.datetime.now(datetime.UTC)
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, name) for name in common_names]
        subject += [x509.NameAttribute(NameOID.ORGANIZATION_NAME, name) for name in organizations]
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(subject))
            .issuer_name(self._name)
            .public_key(self._client_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + not_before)
            .not_valid_after(now + not_after)
        )
        if usages is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False
            )
        for oid, der in extensions:
            builder = builder.add_extension(x509.UnrecognizedExtension(oid, der), critical=False)
        if ca:  # last, where a reader that stops early would miss it
            builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        return Identity(
            builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM),
            self._client_key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )
