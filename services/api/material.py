"""Whether certificate, key, authorities and revocation lists are fit to be used. Pure: bytes in, material or words out.

Three parts are judged each by itself, so that a wrong one keeps no other from its change: the server's pair, the
authorities, the revocation lists. What is no good is told and what was in force stays: half a file, a certificate whose
key is still being copied, a list that its authority did not sign. Signatures of lists: RFC 5280 sections 5 and 6.3.

Of a file with lists each is for one authority. One whose authority is not trusted says nothing of anybody: it is passed
over and told. An authority that is trusted and has no list in the file any more keeps its last one.

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
    """What one list says: serial numbers of one issuer, and when the next is due (Unix nanoseconds; 0: unsaid).

    `signer`: the public key that signed it (SubjectPublicKeyInfo, DER), since two authorities may have one name.
    """

    issuer: x509.Name
    serials: frozenset[int]
    next_update_ns: int
    signer: bytes = b""


class Material(NamedTuple):
    """Checked material: the bytes for TLS, and what they say about clients. `remarks`: what is odd about the lists."""

    pem: ServerMaterial
    authorities: tuple[x509.Certificate, ...]
    lists: tuple[RevocationList, ...] = ()
    remarks: tuple[str, ...] = ()


class Problem(NamedTuple):
    """Why a part was not taken, and what to do."""

    part: Part
    error: JobletError


def checked(pem: ServerMaterial) -> Material:
    """The material that a service begins with. Raises JobletError(INVALID) when any part is no good."""
    _check_pair(pem.cert, pem.key)
    material = Material(pem, _certificates(pem.ca, "CA certificate"))
    return _listed(material, pem.crl) if pem.crl else material


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
    return now._replace(pem=now.pem._replace(ca=ca), authorities=_certificates(ca, "CA certificate"))


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
    return _listed(now, crl) if crl else now  # also when the file is the same: the authorities may be others


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


def _listed(now: Material, crl: bytes) -> Material:
    """`now` with the lists of this file."""
    blocks = _LIST_BLOCK.findall(crl)
    if not blocks or len(blocks) != crl.count(_LIST):
        raise invalid("the revocation list cannot be read: a block of it is not whole", "expected PEM blocks X509 CRL")
    lists, remarks = [], []
    for block in blocks:
        parsed, found = _list(block, now.authorities)
        if found is not None:
            lists.append(found)
        else:
            issuer = parsed.issuer.rfc4514_string()
            remarks.append(f"the list of {issuer} does not count: that authority is not among the CA certificates")
    trusted = {_key_of(authority) for authority in now.authorities}
    for before in now.lists:
        if before.signer in trusted and before.signer not in {one.signer for one in lists}:
            lists.append(before)
            issuer = before.issuer.rfc4514_string()
            remarks.append(f"the list of {issuer} is gone: what it revoked stays so until the service is started again")
    return now._replace(pem=now.pem._replace(crl=crl), lists=tuple(lists), remarks=tuple(remarks))


def _list(
    block: bytes, authorities: tuple[x509.Certificate, ...]
) -> tuple[x509.CertificateRevocationList, RevocationList | None]:
    """A list, and what it says; None: nothing, because its authority is none of these."""
    try:
        parsed = x509.load_pem_x509_crl(block)
        _require_complete(parsed)
        serials = frozenset(entry.serial_number for entry in parsed)
        next_update = parsed.next_update_utc
        candidates = [authority for authority in authorities if _may_be_of(parsed, authority)]
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension) as cause:
        raise invalid(f"the revocation list cannot be read: {cause}", "make it anew with the CA's key") from cause
    if not candidates:
        return parsed, None
    signer = next((authority for authority in candidates if _signed(parsed, authority)), None)
    if signer is None:
        raise invalid(
            f"the revocation list of {parsed.issuer.rfc4514_string()} is not signed by the CA certificate of that name",
            "make it anew with the CA's key; take the list of a CA away together with the CA",
        )
    due_ns = 0 if next_update is None else nanoseconds(next_update)
    return parsed, RevocationList(parsed.issuer, serials, due_ns, _key_of(signer))


def _require_complete(parsed: x509.CertificateRevocationList) -> None:
    """Refuse lists that say less than all of one issuer's certificates: deltas, indirect ones, single reasons."""
    for extension in parsed.extensions:
        value = extension.value
        if isinstance(value, x509.IssuingDistributionPoint):
            if value.indirect_crl or value.only_some_reasons or value.only_contains_attribute_certs:
                raise ValueError("it does not tell all of one issuer's revocations")
        elif extension.critical:
            raise ValueError(f"it has the critical extension {extension.oid.dotted_string}, such as that of a delta")


def _may_be_of(parsed: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    """Same name, and not another key by the identifiers of both (RFC 5280, section 5.2.1)."""
    if authority.subject != parsed.issuer:
        return False
    try:
        wanted = parsed.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        own = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        return True
    return wanted is None or wanted == own


def _signed(parsed: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    try:
        return parsed.is_signature_valid(authority.public_key())  # type: ignore[arg-type]  # TypeError for other kinds
    except (TypeError, ValueError, UnsupportedAlgorithm):
        return False


def _key_of(authority: x509.Certificate) -> bytes:
    return authority.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
