"""Whether certificate, key, authorities and revocation lists are fit to be used. Pure: bytes in, material or words out.

Three parts are judged each by itself, so that a wrong one keeps no other from its change: the server's pair, the
authorities, the revocation lists. What is no good is told and what was in force stays: half a file, a certificate whose
key is still being copied, a list of somebody else's. Signatures of lists: RFC 5280 sections 5 and 6.3.

Here: those rules. Not here: reading files (`keeper_program.py`), who is refused for it (`revocation.py`).
"""

import os
import re
from enum import StrEnum
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from common.errors import JobletError, invalid
from common.expiry import nanoseconds
from common.tls import ServerMaterial, ServerSources, checked_pem
from services.api.looks import Look, Reading

_CERTIFICATE: Final = b"-----BEGIN CERTIFICATE-----"
_LIST: Final = b"-----BEGIN X509 CRL-----"
_LIST_BLOCK: Final = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)
_PROBE: Final = b"joblet: does this key belong to that certificate?"


class Part(StrEnum):
    """What changes together."""

    PAIR = "server certificate and key"
    AUTHORITIES = "CA certificates"
    LISTS = "revocation lists"


class RevocationList(NamedTuple):
    """What one list says: serial numbers of one issuer, and when the next is due (Unix nanoseconds; 0: unsaid)."""

    issuer: x509.Name
    serials: frozenset[int]
    next_update_ns: int


class Material(NamedTuple):
    """Checked material: the bytes for TLS, and what they say about clients."""

    pem: ServerMaterial
    authorities: tuple[x509.Certificate, ...]
    lists: tuple[RevocationList, ...]


class Problem(NamedTuple):
    """Why a part was not taken, and what to do."""

    part: Part
    error: JobletError


def checked(pem: ServerMaterial) -> Material:
    """The material that a service begins with. Raises JobletError(INVALID) when any part is no good."""
    _check_pair(pem.cert, pem.key)
    authorities = _authorities(pem.ca)
    return Material(pem, authorities, _lists(pem.crl, authorities) if pem.crl else ())


def judged(look: Look, in_force: Material, sources: ServerSources) -> tuple[Material, tuple[Problem, ...]]:
    """What is in force after a look: each part of it if it is good, else as it was; and what was wrong."""
    now, problems = in_force, []
    for part, take in ((Part.PAIR, _with_pair), (Part.AUTHORITIES, _with_authorities), (Part.LISTS, _with_lists)):
        try:
            now = take(look, now, sources)
        except JobletError as error:
            problems.append(Problem(part, error))
    return now, tuple(problems)


def readings_of(part: Part, look: Look) -> tuple[Reading | None, ...]:
    """The files that a part is made of."""
    match part:
        case Part.PAIR:
            return look.cert, look.key
        case Part.AUTHORITIES:
            return (look.ca,)
        case Part.LISTS:
            return (look.crl,)


def _with_pair(look: Look, now: Material, sources: ServerSources) -> Material:
    cert = _content(look.cert, now.pem.cert, what="server certificate", path=sources.cert)
    key = _content(look.key, now.pem.key, what="server key", path=sources.key)
    if (cert, key) == (now.pem.cert, now.pem.key):
        return now
    _check_pair(cert, key)
    return now._replace(pem=now.pem._replace(cert=cert, key=key))


def _with_authorities(look: Look, now: Material, sources: ServerSources) -> Material:
    ca = _content(look.ca, now.pem.ca, what="CA certificate", path=sources.ca)
    if ca == now.pem.ca:
        return now
    return now._replace(pem=now.pem._replace(ca=ca), authorities=_authorities(ca))


def _with_lists(look: Look, now: Material, sources: ServerSources) -> Material:
    if look.crl is not None and (look.crl.error or not look.crl.content):
        if not now.pem.crl and not sources.crl_required:
            return now  # there never was one
        # Whoever was shut out must not come back because a file is gone, by mistake or in the middle of a copy.
        why = os.strerror(look.crl.error) if look.crl.error else "it is empty"
        raise invalid(
            f"cannot read revocation list {sources.crl}: {why}",
            "what was revoked stays so until the service is started again; put a list there",
        )
    crl = _content(look.crl, now.pem.crl, what="revocation list", path=sources.crl)
    if crl == now.pem.crl:
        return now
    return now._replace(pem=now.pem._replace(crl=crl), lists=_lists(crl, now.authorities))


def _content(reading: Reading | None, in_force: bytes, *, what: str, path: str) -> bytes:
    if reading is None:
        return in_force
    if reading.error:
        raise invalid(f"cannot read {what} {path}: {os.strerror(reading.error)}", "put it back")
    return checked_pem(reading.content, reading.mode, what=what, path=path)


def _check_pair(cert: bytes, key: bytes) -> None:
    leaf = _certificates(cert, "server certificate")[0]
    try:
        # Not validated: that takes 0.4 s for RSA 4096. The signature below shows more: that it works.
        private = load_pem_private_key(key, None, unsafe_skip_rsa_key_validation=True)
        public = leaf.public_key()
        theirs, ours = (
            each.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            for each in (public, private.public_key())
        )
    except (ValueError, TypeError, UnsupportedAlgorithm) as cause:
        raise invalid(f"the server key cannot be read: {cause}", "expected a PEM block without a password") from cause
    if theirs != ours:
        raise invalid("the server key does not belong to the server certificate", "put both files of one pair there")
    if isinstance(private, rsa.RSAPrivateKey) and isinstance(public, rsa.RSAPublicKey):
        try:
            scheme, digest = padding.PKCS1v15(), hashes.SHA256()
            public.verify(private.sign(_PROBE, scheme, digest), _PROBE, scheme, digest)
        except (ValueError, InvalidSignature) as cause:
            raise invalid("the server key is damaged: what it signs does not verify", "put it back") from cause


def _authorities(ca: bytes) -> tuple[x509.Certificate, ...]:
    return _certificates(ca, "CA certificate")


def _certificates(pem: bytes, what: str) -> tuple[x509.Certificate, ...]:
    try:
        found = tuple(x509.load_pem_x509_certificates(pem))
        for one in found:
            one.public_key()
    except (ValueError, UnsupportedAlgorithm) as cause:
        raise invalid(f"the {what} cannot be read: {cause}", "expected PEM blocks CERTIFICATE") from cause
    if len(found) != pem.count(_CERTIFICATE):
        raise invalid(f"the {what} cannot be read: a block of it is not whole", "expected PEM blocks CERTIFICATE")
    return found


def _lists(crl: bytes, authorities: tuple[x509.Certificate, ...]) -> tuple[RevocationList, ...]:
    blocks = _LIST_BLOCK.findall(crl)
    if not blocks or len(blocks) != crl.count(_LIST):
        raise invalid("the revocation list cannot be read: a block of it is not whole", "expected PEM blocks X509 CRL")
    return tuple(_list(block, authorities) for block in blocks)


def _list(block: bytes, authorities: tuple[x509.Certificate, ...]) -> RevocationList:
    try:
        parsed = x509.load_pem_x509_crl(block)
        _require_complete(parsed)
        serials = frozenset(entry.serial_number for entry in parsed)
        issuer, next_update = parsed.issuer, parsed.next_update_utc
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension) as cause:
        raise invalid(f"the revocation list cannot be read: {cause}", "make it anew with the CA's key") from cause
    if not any(_signed(parsed, authority) for authority in authorities):
        raise invalid(
            f"the revocation list of {issuer.rfc4514_string()} is signed by none of the CA certificates",
            "put the list of a CA there that clients are trusted by, and take it away together with the CA",
        )
    return RevocationList(issuer, serials, 0 if next_update is None else nanoseconds(next_update))


def _require_complete(parsed: x509.CertificateRevocationList) -> None:
    """Refuse lists that say less than all of one issuer's certificates: deltas, indirect ones, single reasons."""
    for extension in parsed.extensions:
        value = extension.value
        if isinstance(value, x509.IssuingDistributionPoint):
            if value.indirect_crl or value.only_some_reasons or value.only_contains_attribute_certs:
                raise ValueError("it does not tell all of one issuer's revocations")
        elif extension.critical:
            raise ValueError(f"it has the critical extension {extension.oid.dotted_string}, such as that of a delta")


def _signed(parsed: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    if authority.subject != parsed.issuer:
        return False
    try:
        return parsed.is_signature_valid(authority.public_key())  # type: ignore[arg-type]  # TypeError for other kinds
    except (TypeError, ValueError, UnsupportedAlgorithm):
        return False
