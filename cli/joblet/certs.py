"""`joblet certs`: make a CA, issue client certificates, renew them, show any certificate.

Here: the commands. Not here: what is in a certificate (`certificates.py`) and how files are written (`certfiles.py`).
"""

from pathlib import Path

import click
from cryptography import x509
from cryptography.x509.oid import NameOID

from cli.client.escape import escape_line
from cli.joblet.certfiles import DEFAULT_VALIDITY, DEV_VALIDITY, init, issue
from cli.joblet.certificates import CLIENT_DAYS, DAYS_MAX, DEV_DAYS, ROLES, describe
from common.config.settings import DEFAULT_BASE_DIR
from common.errors import invalid
from common.tls import read_pem

_DEFAULT_DIR = Path(DEFAULT_BASE_DIR) / "certs"

_directory_option = click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=_DEFAULT_DIR,
    show_default=True,
    help="Directory of the CA.",
)
_days_option = click.option(
    "--days", type=click.IntRange(1, DAYS_MAX), help=f"Days of validity [default: {CLIENT_DAYS}]."
)
_dev_option = click.option("--dev", is_flag=True, help=f"Valid for {DEV_DAYS} days: for development only.")


@click.group(epilog="Example: joblet certs issue --cn alice --role writer --dir /opt/joblet/certs")
def certs() -> None:
    """Make and show certificates: RSA 4096, SHA-256, user in CN, role in O."""


@certs.command("init", epilog="Example: joblet certs init /opt/joblet/certs")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@_dev_option
def init_command(directory: Path, *, dev: bool) -> None:
    """Make a CA, a server certificate and clients admin, writer, user, reader. An existing CA is never replaced."""
    for path in init(directory, validity=DEV_VALIDITY if dev else DEFAULT_VALIDITY):
        click.echo(path)


@certs.command("issue", epilog="Example: joblet certs issue --cn alice --role writer")
@click.option("--cn", required=True, help="User name.")
@click.option("--role", type=click.Choice(ROLES), required=True, help="What the user may do.")
@_days_option
@_dev_option
@_directory_option
def issue_command(cn: str, role: str, days: int | None, directory: Path, *, dev: bool) -> None:
    """Make a client certificate `CN.crt` and its key `CN.key` beside the CA."""
    for path in issue(directory, cn=cn, role=role, days=_days(days, dev=dev)):
        click.echo(path)


@certs.command("renew", epilog="Example: joblet certs renew default")
@click.argument("name")
@_days_option
@_dev_option
@_directory_option
def renew_command(name: str, days: int | None, directory: Path, *, dev: bool) -> None:
    """Replace client certificate NAME by a new one with the same user and role, and a new key."""
    old = _load(directory / f"{name}.crt")
    cns = [str(each.value) for each in old.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    roles = [str(each.value) for each in old.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    if len(cns) != 1 or len(roles) != 1:
        raise invalid(f"{name}.crt was not issued here: it has {len(cns)} CN and {len(roles)} O", "use certs issue")
    days = _days(days, dev=dev)
    for path in issue(directory, cn=cns[0], role=roles[0], days=days, file=name, replace=True):
        click.echo(path)


@certs.command("show", epilog="Example: joblet certs show /opt/joblet/certs/server.crt")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def show_command(file: Path) -> None:
    """Print subject, roles, validity and purpose of a certificate."""
    described = describe(_load(file))
    width = max(len(key) for key in described)
    for key, value in described.items():
        click.echo(f"{key:{width}}  {escape_line(value)}")


def _days(days: int | None, *, dev: bool) -> int:
    return days if days is not None else DEV_DAYS if dev else CLIENT_DAYS


def _load(file: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(read_pem(str(file), "certificate"))
    except ValueError as cause:
        raise invalid(f"{file} is no certificate: {cause}", "expected one PEM block CERTIFICATE") from cause
