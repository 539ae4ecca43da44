"""`ca.crl` beside a CA: which certificates it has revoked. What is in the list: `revocations.py`.

The file is replaced as a whole and readable by everybody: it is no secret, and the node reads it again when it changes.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509

from cli.joblet.certfiles import load_ca, locked, write_whole
from cli.joblet.certificates import Signer, is_authority, load_certificates, open_ca, was_signed_by
from cli.joblet.revocations import CRL_DAYS, Outcome, read_crls, revoke
from common.errors import exhausted, invalid, not_found, precondition
from common.identifiers import parse_name
from common.tls import PEM_BYTES_MAX, read_pem

CRL_FILE: Final = "ca.crl"


class Revoked(NamedTuple):
    """What became of a list: its file and number, the serials asked for, and those of them that were not in it."""

    file: Path
    number: int
    serials: tuple[int, ...]
    added: tuple[int, ...]


def revoke_certificate(
    directory: Path, target: str, *, reason: x509.ReasonFlags, days: int = CRL_DAYS, now: datetime | None = None
) -> Revoked:
    """Revoke the certificate in the file `target`, or in `directory` under that name. Raises JobletError.

    PRECONDITION when another CA signed it; INVALID for a CA's own.
    """
    file = _file_of(directory, target)
    certificate = load_certificates(read_pem(str(file), "certificate"), str(file))[0]
    if is_authority(certificate):
        raise invalid(f"{file} is a CA's own certificate", "take it out of ca.crt of the nodes: docs/certificates.md")
    with locked(directory):
        signer = open_ca(load_ca(directory))
        if not was_signed_by(certificate, signer.certificate):
            raise precondition(
                f"another CA signed {file}: {certificate.issuer.rfc4514_string()}",
                "use --dir with the directory of that CA",
            )
        return _extend(directory, signer, certificate.serial_number, reason=reason, days=days, now=now)


def revoke_serial(
    directory: Path, serial: int, *, reason: x509.ReasonFlags, days: int = CRL_DAYS, now: datetime | None = None
) -> Revoked:
    """Revoke the certificate with that serial number: nobody needs to have its file. Raises JobletError."""
    with locked(directory):
        signer = open_ca(load_ca(directory))
        return _extend(directory, signer, serial, reason=reason, days=days, now=now)


def refresh(directory: Path, *, days: int = CRL_DAYS, now: datetime | None = None) -> Revoked:
    """Make the list anew with the same entries and a later `nextUpdate`; an empty one where there is none."""
    with locked(directory):
        signer = open_ca(load_ca(directory))
        return _extend(directory, signer, None, reason=x509.ReasonFlags.unspecified, days=days, now=now)


def lists_of(file: Path) -> list[x509.CertificateRevocationList]:
    """The lists in `file`; none when there is no such file. Raises JobletError."""
    return read_crls(read_pem(str(file), "revocation list"), str(file)) if file.exists() else []


def _extend(
    directory: Path, signer: Signer, serial: int | None, *, reason: x509.ReasonFlags, days: int, now: datetime | None
) -> Revoked:
    file = directory / CRL_FILE
    outcome: Outcome = revoke(signer, lists_of(file), serial, reason=reason, now=now or datetime.now(UTC), days=days)
    if len(outcome.pem) > PEM_BYTES_MAX:
        raise exhausted(
            f"{file} would become larger than {PEM_BYTES_MAX} bytes",
            "make another CA and roll over: docs/certificates.md",
        )
    serials = () if serial is None else (serial,)
    if outcome.added or serial is None:
        write_whole(file, outcome.pem, mode=0o644)
    return Revoked(file, outcome.number, serials, serials if outcome.added else ())


def _file_of(directory: Path, target: str) -> Path:
    """A name of a certificate of the CA goes before a file in the working directory that is called the same."""
    if "/" not in target:
        named = directory / f"{target}.crt"
        if named.exists():
            return named
    if Path(target).is_file():
        return Path(target)
    if "/" in target or target.endswith((".crt", ".pem")):
        raise not_found(f"no certificate at {target}", "give a file, a name, or --serial")
    raise not_found(
        f"no certificate {parse_name(target, 'certificate file')} in {directory}", "see --dir, or use --serial"
    )
