"""The doctor's look at a node's certificates: which of server, CA and revocation list end soon, or have ended.

Here: one row for each, as the running node tells, or from the files that the configuration names. Not here: what counts
as soon (`common/expiry.py`), printing (`doctor.py`).
"""

from pathlib import Path
from typing import Final

import msgspec

from cli.joblet.revocations import read_crls
from common.config.layout import layout_of
from common.config.settings import Settings
from common.errors import JobletError, invalid
from common.expiry import days_left, expiries, is_soon, nanoseconds
from common.tls import read_pem
from proto.joblet.v1 import node_pb2

REPAIRS: Final = {
    "server": "joblet certs renew server",
    "ca": "roll it over: docs/certificates.md",
    "crl": "joblet certs revoke --refresh",
}
_PEM_MARK: Final = "-----BEGIN"


class CertificateRow(msgspec.Struct, frozen=True):
    """`level`: valid, soon, expired, overdue (a list whose successor is due), missing, or unknown; `detail`: repair."""

    name: str
    level: str
    detail: str


def certificate_rows(info: node_pb2.NodeInfo | None, settings: Settings, *, now_ns: int) -> tuple[CertificateRow, ...]:
    """Server, CA and revocation list. `info` is what the running node says; None, or without certificates: files count.

    Of a host that has no certificates yet there is nothing to tell: `joblet up` makes them. Never raises: what is wrong
    with one of them is its row.
    """
    told = tuple(
        _ending(each.name, each.subject, each.not_after.ToNanoseconds(), soon=each.soon, now_ns=now_ns)
        for each in (info.certificates if info is not None else ())
    )
    return (*(told or _rows_of_files(settings, now_ns=now_ns)), *_rows_of_list(settings, now_ns=now_ns))


def unusable(rows: tuple[CertificateRow, ...]) -> tuple[str, ...]:
    """Names of the rows that keep every client out. A CA of several is one of them only when all have ended."""
    bad = [row.name for row in rows if row.level in {"expired", "missing"}]
    good = {row.name for row in rows if row.level not in {"expired", "missing"}}
    return tuple(dict.fromkeys(name for name in bad if name not in good))


def _rows_of_files(settings: Settings, *, now_ns: int) -> tuple[CertificateRow, ...]:
    security, certs = settings.security, layout_of(settings).certs
    own = security.server_cert or security.ca_cert
    if not own and not _is_there(certs / "ca.crt") and not _is_there(certs / "server.crt"):
        return ()
    rows: list[CertificateRow] = []
    for name, value in (("server", security.server_cert), ("ca", security.ca_cert)):
        try:
            pem = _read(value or str(certs / f"{name}.crt"), f"{name} certificate")
            found = expiries({name: pem}, now_ns=now_ns, warning_days=security.expiry_warning_days)
            rows += [_ending(name, each.subject, each.not_after_ns, soon=each.soon, now_ns=now_ns) for each in found]
        except PermissionError as cause:
            rows.append(CertificateRow(_row_name(name), "unknown", f"cannot read {cause.filename}: run it as root"))
        except JobletError as error:
            rows.append(CertificateRow(_row_name(name), "missing", str(error)))
    return tuple(rows)


def _rows_of_list(settings: Settings, *, now_ns: int) -> tuple[CertificateRow, ...]:
    value = settings.security.crl
    try:
        if not value and not _is_there(layout_of(settings).certs / "ca.crl"):
            return ()
        lists = read_crls(_read(value or str(layout_of(settings).certs / "ca.crl"), "revocation list"), "ca.crl")
    except PermissionError as cause:
        return (CertificateRow(_row_name("crl"), "unknown", f"cannot read {cause.filename}: run it as root"),)
    except JobletError as error:
        return (CertificateRow(_row_name("crl"), "missing", str(error)),)
    ends = [(each.issuer.rfc4514_string(), nanoseconds(each.next_update_utc)) for each in lists if each.next_update_utc]
    days = settings.security.expiry_warning_days
    return tuple(_due(issuer, end_ns, days=days, now_ns=now_ns) for issuer, end_ns in ends)


def _ending(name: str, subject: str, end_ns: int, *, soon: bool, now_ns: int) -> CertificateRow:
    left = days_left(end_ns, now_ns=now_ns)
    level = "expired" if left < 0 else "soon" if soon else "valid"
    detail = f"{subject} {f'ended {-left} days ago' if left < 0 else f'ends in {left} days'}"
    return CertificateRow(_row_name(name), level, f"{detail}: {REPAIRS[name]}" if soon and name in REPAIRS else detail)


def _due(issuer: str, end_ns: int, *, days: int, now_ns: int) -> CertificateRow:
    """A list that is overdue counts as before: better an old list than none. But somebody should know."""
    left = days_left(end_ns, now_ns=now_ns)
    soon = is_soon(end_ns, now_ns=now_ns, warning_days=days)
    level = "overdue" if left < 0 else "soon" if soon else "valid"
    detail = f"list of {issuer} {f'was due {-left} days ago' if left < 0 else f'is due in {left} days'}"
    return CertificateRow(_row_name("crl"), level, f"{detail}: {REPAIRS['crl']}" if soon else detail)


def _row_name(name: str) -> str:
    return f"certificate.{name}"


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        return True  # closed to us: reading it tells so


def _read(value: str, what: str) -> bytes:
    """As `read_pem`, and PermissionError for what is closed to us. Raises JobletError for everything else."""
    if _PEM_MARK not in value:
        try:
            with Path(value).open("rb"):
                pass
        except PermissionError:
            raise
        except (OSError, ValueError) as cause:
            raise invalid(f"cannot read {what} {value[:200]}: {cause}") from cause
    return read_pem(value, what)
