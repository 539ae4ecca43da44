"""What `joblet certs show` tells of certificates and revocation lists: as values, as text, as JSON.

Here: reading what is of interest. Not here: whether a node would let somebody in; that is decided by TLS and
`services/api/identity.py`. RFC 5280 for the fields; subjects as RFC 4514 writes them.
"""

import json
from datetime import datetime

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from cli.client.escape import escape_line
from cli.joblet.certfiles import Stored
from cli.joblet.certificates import is_authority, purposes
from cli.joblet.certroles import Grant, grants_of
from cli.joblet.crlfiles import Revoked
from cli.joblet.revocations import find, number_of, reason_of
from common.expiry import days_left, nanoseconds


class GrantView(msgspec.Struct, frozen=True):
    """A role, and the place where it stands."""

    role: str
    scheme: str


class CertificateView(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate. Times are RFC 3339; `revoked` is None when there is no list to look it up in."""

    subject: str
    issuer: str
    users: tuple[str, ...]
    roles: tuple[GrantView, ...]
    authority: bool
    purposes: tuple[str, ...]
    names: tuple[str, ...]
    serial: str
    valid_from: str
    valid_until: str
    days_left: int
    sha256: str
    revoked: bool | None
    revoked_at: str
    reason: str


class RevocationView(msgspec.Struct, frozen=True):
    """One line of a list."""

    serial: str
    revoked_at: str
    reason: str


class ListView(msgspec.Struct, frozen=True, kw_only=True):
    """A revocation list. `next_update` is empty, and `days_left` None, when it names no end."""

    issuer: str
    number: int
    last_update: str
    next_update: str
    days_left: int | None
    revoked: tuple[RevocationView, ...]


class FileView(msgspec.Struct, frozen=True):
    """Everything that a file holds."""

    file: str
    certificates: tuple[CertificateView, ...]
    lists: tuple[ListView, ...]


class StoredView(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate and a key that were written."""

    name: str
    certificate: str
    key: str
    subject: str
    serial: str
    valid_until: str


class WrittenView(msgspec.Struct, frozen=True):
    """What a command wrote."""

    written: tuple[StoredView, ...]


class RevokedView(msgspec.Struct, frozen=True, kw_only=True):
    """A list that was extended: `added` are those of `serials` that were not in it before."""

    file: str
    number: int
    serials: tuple[str, ...]
    added: tuple[str, ...]


def written_view(stored: tuple[Stored, ...]) -> WrittenView:
    """Certificates that were written."""
    return WrittenView(
        tuple(
            StoredView(
                name=each.name,
                certificate=str(each.certificate_file),
                key=str(each.key_file),
                subject=each.certificate.subject.rfc4514_string(),
                serial=f"{each.certificate.serial_number:x}",
                valid_until=time_text(each.certificate.not_valid_after_utc),
            )
            for each in stored
        )
    )


def revoked_view(done: Revoked) -> RevokedView:
    """A list that was extended."""
    return RevokedView(
        file=str(done.file),
        number=done.number,
        serials=tuple(f"{serial:x}" for serial in done.serials),
        added=tuple(f"{serial:x}" for serial in done.added),
    )


def certificate_view(
    certificate: x509.Certificate, *, now_ns: int, lists: list[x509.CertificateRevocationList]
) -> CertificateView:
    """A certificate, looked up in `lists`."""
    subject = certificate.subject
    entry = find(lists, certificate)
    known = any(each.issuer == certificate.issuer for each in lists)
    names = [each.value for each in certificate.extensions if isinstance(each.value, x509.SubjectAlternativeName)]
    return CertificateView(
        subject=subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        users=tuple(str(each.value) for each in subject.get_attributes_for_oid(NameOID.COMMON_NAME)),
        roles=tuple(_grant_view(each) for each in grants_of(certificate)),
        authority=is_authority(certificate),
        purposes=tuple(oid._name for oid in purposes(certificate)),
        names=tuple(str(name.value) for value in names for name in value),
        serial=f"{certificate.serial_number:x}",
        valid_from=time_text(certificate.not_valid_before_utc),
        valid_until=time_text(certificate.not_valid_after_utc),
        days_left=days_left(nanoseconds(certificate.not_valid_after_utc), now_ns=now_ns),
        sha256=certificate.fingerprint(hashes.SHA256()).hex(),
        revoked=None if not known else entry is not None,
        revoked_at=time_text(entry.revocation_date_utc) if entry else "",
        reason=reason_of(entry) if entry else "",
    )


def list_view(crl: x509.CertificateRevocationList, *, now_ns: int) -> ListView:
    """A revocation list, entries in its order."""
    end = crl.next_update_utc
    return ListView(
        issuer=crl.issuer.rfc4514_string(),
        number=number_of(crl),
        last_update=time_text(crl.last_update_utc),
        next_update=time_text(end) if end else "",
        days_left=days_left(nanoseconds(end), now_ns=now_ns) if end else None,
        revoked=tuple(
            RevocationView(f"{each.serial_number:x}", time_text(each.revocation_date_utc), reason_of(each))
            for each in crl
        ),
    )


def json_of(view: msgspec.Struct) -> str:
    """One JSON object on one line, ASCII only: msgspec's own leaves characters that steer a terminal as they are."""
    return json.dumps(msgspec.to_builtins(view))


def text_of(view: FileView) -> str:
    """Lines for people, one paragraph for each certificate and list; nothing in them moves a terminal's cursor."""
    paragraphs = [_paragraph(_certificate_rows(each)) for each in view.certificates]
    paragraphs += [
        "\n".join([_paragraph(_list_rows(each)), *(_revocation_line(one) for one in each.revoked)])
        for each in view.lists
    ]
    return "\n\n".join(paragraphs)


def time_text(moment: datetime) -> str:
    """RFC 3339, in whole seconds."""
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _grant_view(grant: Grant) -> GrantView:
    return GrantView(grant.role, grant.scheme.value)


def _certificate_rows(view: CertificateView) -> list[tuple[str, str]]:
    rows = [("subject", view.subject), ("issuer", view.issuer), ("user (CN)", ", ".join(view.users))]
    if not view.authority:
        roles = ", ".join(f"{each.role} ({each.scheme})" for each in view.roles)
        rows.append(("roles", roles or "none"))
    rows.append(("purpose", "certificate authority" if view.authority else ", ".join(view.purposes) or "none"))
    if view.names:
        rows.append(("names", ", ".join(view.names)))
    return [
        *rows,
        ("serial", view.serial),
        ("valid from", view.valid_from),
        ("valid until", f"{view.valid_until} ({_left(view.days_left)})"),
        ("sha-256", view.sha256),
        ("revoked", _revoked_text(view)),
    ]


def _revoked_text(view: CertificateView) -> str:
    if view.revoked is None:
        return "unknown: no revocation list of its issuer is beside it"
    return f"since {view.revoked_at} ({view.reason})" if view.revoked else "no"


def _list_rows(view: ListView) -> list[tuple[str, str]]:
    end = f"{view.next_update} ({_left(view.days_left)})" if view.days_left is not None else "none"
    return [
        ("list of", view.issuer),
        ("number", str(view.number)),
        ("made", view.last_update),
        ("next update", end),
        ("revoked", f"{len(view.revoked)} {'certificate' if len(view.revoked) == 1 else 'certificates'}"),
    ]


def _revocation_line(view: RevocationView) -> str:
    return f"  {view.serial:40}  {view.revoked_at}  {view.reason}"


def _left(days: int) -> str:
    return f"{days} days left" if days >= 0 else f"{-days} days ago"


def _paragraph(rows: list[tuple[str, str]]) -> str:
    width = max(len(key) for key, _ in rows)
    return "\n".join(f"{key:{width}}  {escape_line(value)}".rstrip() for key, value in rows)
