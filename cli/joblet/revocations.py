"""Certificate revocation lists: made, extended and read, as values; no file is touched here.

X.509 CRLs of version 2 (RFC 5280, section 5), signed by the CA, which say by serial number what is no longer valid. A
file holds one list or, while a CA is rolled over, one of each CA. Not here: the file (`crlfiles.py`), and refusing who
is revoked (`services/api`).
"""

import re
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from cli.joblet.certificates import Signer, authority_key
from common.errors import invalid, precondition

CRL_DAYS: Final = 30
"""How long a list says that it is the newest one."""
SERIAL_BITS_MAX: Final = 160  # RFC 5280, section 4.1.2.2: at most 20 octets

REASONS: Final = {
    each.value: each
    for each in (
        x509.ReasonFlags.unspecified,
        x509.ReasonFlags.key_compromise,
        x509.ReasonFlags.affiliation_changed,
        x509.ReasonFlags.superseded,
        x509.ReasonFlags.cessation_of_operation,
        x509.ReasonFlags.privilege_withdrawn,
    )
}
"""The reasons of RFC 5280, section 5.3.1, that make sense for a server or a client."""

_BLOCK = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----\s*", re.DOTALL)
_SERIAL = re.compile(r"(?:0x)?[0-9A-Fa-f]{1,2}(?::?[0-9A-Fa-f]{1,2})*", re.ASCII)


class Outcome(NamedTuple):
    """A file of lists as it should be from now on; `added`: a serial is in it that was not; `number` of our list."""

    pem: bytes
    number: int
    added: bool


def parse_serial(text: str) -> int:
    """A serial number in hexadecimal, as `show` and openssl print it. Raises JobletError(INVALID)."""
    if _SERIAL.fullmatch(text):
        serial = int(text.removeprefix("0x").replace(":", ""), 16)
        if 0 < serial < 1 << SERIAL_BITS_MAX:
            return serial
    raise invalid(f"malformed serial {text[:80]!r}", "give it in hexadecimal, as `joblet certs show` prints it")


def read_crls(pem: bytes, what: str) -> list[x509.CertificateRevocationList]:
    """The lists in a PEM text, other blocks left out. JobletError(INVALID) when there is none, or a bad one."""
    blocks = _BLOCK.findall(pem)
    if not blocks:
        raise invalid(f"{what} holds no revocation list", "expected PEM blocks X509 CRL")
    try:
        return [x509.load_pem_x509_crl(block) for block in blocks]
    except ValueError as cause:
        raise invalid(
            f"{what} is no revocation list: {cause}", "restore it, or make it anew from the audit log"
        ) from cause


def revoke(
    signer: Signer,
    lists: list[x509.CertificateRevocationList],
    serial: int | None,
    *,
    reason: x509.ReasonFlags = x509.ReasonFlags.unspecified,
    now: datetime,
    days: int = CRL_DAYS,
) -> Outcome:
    """`lists` with `serial` added to the one of `signer`; lists of other CAs stay as they are.

    `serial` None makes the same list anew, with a later `nextUpdate`. What is revoked already stays revoked since then,
    and the file as it was. Raises JobletError(PRECONDITION) for a list that has the CA's name and not its signature.
    """
    ours = [each for each in lists if _is_of(each, signer)]
    old = ours[-1] if ours else None
    known = {entry.serial_number for each in ours for entry in each}
    if serial is not None and serial in known:
        assert old is not None, "it is in one of them"
        return Outcome(_pem(*lists), number_of(old), added=False)
    number = max((number_of(each) for each in ours), default=0) + 1
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(signer.certificate.subject)
        .last_update(now)
        .next_update(now + timedelta(days=days))
        .add_extension(authority_key(signer.certificate), critical=False)
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    entries = {entry.serial_number: entry for each in ours for entry in each}
    for entry in entries.values():
        builder = builder.add_revoked_certificate(entry)
    if serial is not None:
        builder = builder.add_revoked_certificate(_entry(serial, reason, now))
    made = builder.sign(signer.key, hashes.SHA256())
    others = [each for each in lists if each not in ours]
    return Outcome(_pem(*others, made), number, added=serial is not None)


def number_of(crl: x509.CertificateRevocationList) -> int:
    """Its CRL number; 0 when it has none."""
    return next((each.value.crl_number for each in crl.extensions if isinstance(each.value, x509.CRLNumber)), 0)


def reason_of(entry: x509.RevokedCertificate) -> str:
    """Why, in the words of RFC 5280."""
    values = [each.value for each in entry.extensions if isinstance(each.value, x509.CRLReason)]
    return str(values[0].reason.value) if values else x509.ReasonFlags.unspecified.value


def find(lists: list[x509.CertificateRevocationList], certificate: x509.Certificate) -> x509.RevokedCertificate | None:
    """The entry that revokes `certificate`; None when no list of its CA does. Signatures are not looked at."""
    for crl in lists:
        if crl.issuer == certificate.issuer:
            entry = crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
            if entry is not None:
                return entry
    return None


def _is_of(crl: x509.CertificateRevocationList, signer: Signer) -> bool:
    if crl.issuer != signer.certificate.subject:
        return False
    public = signer.key.public_key()
    if not crl.is_signature_valid(public):
        raise precondition(
            "the revocation list has the name of this CA, but this CA did not sign it",
            "find out who changed it, and restore it",
        )
    critical = [each.oid.dotted_string for each in crl.extensions if each.critical]
    if critical:
        raise precondition(
            f"the revocation list is of a special kind: extension {', '.join(critical)}", "extend it with what made it"
        )
    return True


def _entry(serial: int, reason: x509.ReasonFlags, now: datetime) -> x509.RevokedCertificate:
    builder = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
    if reason is not x509.ReasonFlags.unspecified:  # RFC 5280, section 5.3.1: then it should be absent
        builder = builder.add_extension(x509.CRLReason(reason), critical=False)
    return builder.build()


def _pem(*lists: x509.CertificateRevocationList) -> bytes:
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in lists)
