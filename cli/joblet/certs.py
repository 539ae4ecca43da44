"""`joblet certs`: make a CA, issue certificates, renew and revoke them, show what is in a file.

Here: the commands, and what they print. Not here: what is in a certificate (`certificates.py`, `certroles.py`) or in a
revocation list (`revocations.py`), how files are written (`certfiles.py`, `crlfiles.py`), what is told of them
(`certviews.py`).
"""

import time
from pathlib import Path
from typing import Final

import click
from click.shell_completion import CompletionItem

from cli.joblet.certfiles import (
    DEFAULT_VALIDITY,
    DEV_VALIDITY,
    Stored,
    Validity,
    init,
    issue,
    issue_server,
    names_in,
    renew,
)
from cli.joblet.certificates import CA_DAYS, CLIENT_DAYS, DAYS_MAX, DEV_DAYS, SERVER_DAYS, load_certificates
from cli.joblet.certroles import ROLES, Scheme
from cli.joblet.certviews import (
    FileView,
    certificate_view,
    json_of,
    list_view,
    revoked_view,
    text_of,
    time_text,
    written_view,
)
from cli.joblet.crlfiles import CRL_FILE, Revoked, lists_of, refresh, revoke_certificate, revoke_serial
from cli.joblet.revocations import CRL_DAYS, REASONS, parse_serial, read_crls
from common.errors import invalid
from common.privileges import default_base_dir
from common.tls import read_pem

_CRL_MARK: Final = b"-----BEGIN X509 CRL-----"
_CERTIFICATE_MARK: Final = b"-----BEGIN CERTIFICATE-----"


def _default_dir() -> Path:
    return default_base_dir() / "certs"


_directory_option = click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=_default_dir,
    show_default="certs in the base directory",
    help="Directory of the CA.",
)
_dev_option = click.option("--dev", is_flag=True, help=f"Valid for {DEV_DAYS} days: for development only.")
_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object.")
_days = click.IntRange(1, DAYS_MAX)
_name_option = click.option(
    "--name", "names", multiple=True, metavar="NAME", help="DNS name or IP address of the server, more than once."
)
_file_option = click.option("--file", default="", metavar="NAME", help="Name of the files, when it is not that of CN.")


def _complete_name(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Certificates of the CA by name, then files."""
    del parameter
    directory = context.params.get("directory") or _default_dir()
    found = [CompletionItem(name) for name in names_in(directory) if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]


@click.group(epilog="Example: joblet certs issue --cn alice --role writer --dir /opt/joblet/certs")
def certs() -> None:
    """Make, show, renew and revoke certificates: RSA 4096, SHA-256, user in CN, role in O."""


@certs.command("init", epilog="Example: joblet certs init /opt/joblet/certs --name node-1.example.com")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@_name_option
@click.option("--days", type=_days, help=f"Days of validity of the clients [default: {CLIENT_DAYS}].")
@click.option("--ca-days", type=_days, help=f"Days of validity of CA and server [default: {CA_DAYS}].")
@_dev_option
@_json_option
def init_command(
    *, directory: Path, names: tuple[str, ...], days: int | None, ca_days: int | None, dev: bool, as_json: bool
) -> None:
    """Make a CA, a server certificate and clients admin, writer, user, reader. An existing CA is never replaced.

    The server's certificate is for localhost, 127.0.0.1, ::1, the name of this host, and each --name.
    """
    usual = DEV_VALIDITY if dev else DEFAULT_VALIDITY
    validity = Validity(ca_days or usual.ca, ca_days or usual.server, days or usual.client)
    _tell(init(directory, names=names, validity=validity), as_json=as_json)


@certs.command("issue", epilog="Example: joblet certs issue --cn alice --role writer")
@click.option("--cn", required=True, help="User name; with --server the server's name.")
@click.option("--role", "roles", type=click.Choice(ROLES), multiple=True, help="What the user may do, more than once.")
@click.option(
    "--role-in",
    "scheme",
    type=click.Choice([each.value for each in Scheme]),
    default=Scheme.ORGANIZATION.value,
    show_default=True,
    help="Where the roles stand: O, extension 1.2.840.10070.8.1, or extension 1.3.6.1.4.1.12345.1.1 (admin), .2"
    " (reader).",
)
@click.option("--server", is_flag=True, help="A server's certificate, for another node of this CA.")
@_name_option
@click.option("--days", type=_days, help=f"Days of validity [default: {CLIENT_DAYS}, of a server {SERVER_DAYS}].")
@_dev_option
@_file_option
@_directory_option
@_json_option
def issue_command(
    *,
    cn: str,
    roles: tuple[str, ...],
    scheme: str,
    names: tuple[str, ...],
    days: int | None,
    file: str,
    directory: Path,
    server: bool,
    dev: bool,
    as_json: bool,
) -> None:
    """Make a client certificate `CN.crt` and its key `CN.key` beside the CA."""
    if server and (roles or scheme != Scheme.ORGANIZATION):
        raise click.UsageError("A server has no role: leave out --role and --role-in.")
    if not server and not roles:
        raise click.UsageError("Give --role at least once, or --server.")
    if not server and names:
        raise click.UsageError("--name is for servers: give --server, too.")
    wanted = DEV_DAYS if dev and days is None else days
    if server:
        stored = issue_server(directory, cn=cn, names=names, days=wanted or SERVER_DAYS, file=file)
    else:
        stored = issue(directory, cn=cn, roles=roles, scheme=Scheme(scheme), days=wanted or CLIENT_DAYS, file=file)
    _tell((stored,), as_json=as_json)


@certs.command("renew", epilog="Example: joblet certs renew default")
@click.argument("name", shell_complete=_complete_name)
@_name_option
@click.option("--days", type=_days, help=f"Days of validity [default: {CLIENT_DAYS}, of a server {SERVER_DAYS}].")
@_dev_option
@_directory_option
@_json_option
def renew_command(
    *, name: str, names: tuple[str, ...], days: int | None, directory: Path, dev: bool, as_json: bool
) -> None:
    """Replace certificate NAME by one that says the same, with a new key. `server` is the server's.

    User, roles and where they stand, and a server's names are kept; each --name adds one. A running node takes a
    server's new certificate up by itself. The old certificate remains valid until its end, unless it is revoked.
    """
    wanted = DEV_DAYS if dev and days is None else days
    stored = renew(directory, name, days=wanted, names=names)
    _tell((stored,), as_json=as_json)


@certs.command("revoke", epilog="Example: joblet certs revoke alice --reason keyCompromise")
@click.argument("certificate", required=False, metavar="[FILE|NAME]", shell_complete=_complete_name)
@click.option("--serial", metavar="HEX", help="The serial number, where the certificate is not at hand.")
@click.option(
    "--reason", type=click.Choice(list(REASONS), case_sensitive=False), default="unspecified", show_default=True
)
@click.option("--days", type=_days, default=CRL_DAYS, show_default=True, help="Days until the next list is due.")
@click.option("--list", "listing", is_flag=True, help="Only print what is revoked.")
@click.option("--refresh", "anew", is_flag=True, help="Only make the list anew, so that it is not overdue.")
@_directory_option
@_json_option
def revoke_command(
    *,
    certificate: str | None,
    serial: str | None,
    reason: str,
    days: int,
    directory: Path,
    listing: bool,
    anew: bool,
    as_json: bool,
) -> None:
    """Put a certificate on the CA's revocation list, ca.crl. A running node takes the list up by itself.

    What is revoked already stays revoked since then. A revoked certificate cannot be made valid again.
    """
    if sum((certificate is not None, serial is not None, listing, anew)) != 1:
        raise click.UsageError("Give one of: FILE or NAME, --serial, --list, --refresh.")
    if listing:
        _show(directory / CRL_FILE, directory / CRL_FILE, as_json=as_json)
        return
    if anew:
        done = refresh(directory, days=days)
    elif certificate is not None:
        done = revoke_certificate(directory, certificate, reason=REASONS[reason], days=days)
    else:
        done = revoke_serial(directory, parse_serial(serial or ""), reason=REASONS[reason], days=days)
    _tell_revoked(done, as_json=as_json)


@certs.command("show", epilog="Example: joblet certs show /opt/joblet/certs/server.crt")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--crl",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Revocation list to look it up in [default: ca.crl beside FILE, if it is there].",
)
@_json_option
def show_command(file: Path, crl: Path | None, *, as_json: bool) -> None:
    """Print what FILE holds: certificates with user, roles, validity and purpose, and revocation lists."""
    if crl is not None and not crl.exists():
        raise click.UsageError(f"There is no {crl}.")
    _show(file, crl or file.with_name(CRL_FILE), as_json=as_json)


def _show(file: Path, crl: Path, *, as_json: bool) -> None:
    pem = read_pem(str(file), "certificate or revocation list")
    now_ns = time.time_ns()
    held = read_crls(pem, str(file)) if _CRL_MARK in pem else []
    if _CERTIFICATE_MARK in pem:
        found = load_certificates(pem, str(file))
    elif held:
        found = []
    else:
        raise invalid(f"{file} is no certificate", "expected PEM blocks CERTIFICATE or X509 CRL")
    lists = lists_of(crl) if found else []
    view = FileView(
        str(file),
        tuple(certificate_view(each, now_ns=now_ns, lists=lists) for each in found),
        tuple(list_view(each, now_ns=now_ns) for each in held),
    )
    click.echo(json_of(view) if as_json else text_of(view))


def _tell(stored: tuple[Stored, ...], *, as_json: bool) -> None:
    """The files that were written, and which of the certificates end earlier than was asked for."""
    if as_json:
        click.echo(json_of(written_view(stored)))
    else:
        for each in stored:
            click.echo(each.certificate_file)
            click.echo(each.key_file)
    for each in stored:
        if each.shortened:
            end = time_text(each.certificate.not_valid_after_utc)
            click.echo(f"joblet: {each.certificate_file} ends with its CA, at {end}: roll the CA over", err=True)


def _tell_revoked(done: Revoked, *, as_json: bool) -> None:
    if as_json:
        click.echo(json_of(revoked_view(done)))
        return
    for serial in done.serials:
        click.echo(f"{serial:x} {'revoked' if serial in done.added else 'was revoked already'}")
    click.echo(f"{done.file} number {done.number}")
