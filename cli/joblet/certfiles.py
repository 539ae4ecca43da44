"""Certificates on disk: `ca.crt ca.key server.crt server.key` and `NAME.crt NAME.key` for each client.

Keys are 0600 and appear whole or not at all. A CA that exists is never overwritten: every certificate it signed
would be worthless. What is in a certificate: `certificates.py`; the list of the revoked: `crlfiles.py`.
"""

import fcntl
import os
import socket
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509

from cli.joblet.certificates import (
    CA_DAYS,
    CLIENT_DAYS,
    DEV_DAYS,
    SERVER_DAYS,
    Issued,
    for_servers,
    load_certificates,
    make_again,
    make_ca,
    make_client,
    make_server,
    was_signed_by,
)
from cli.joblet.certnames import alternatives_of, usable_names
from cli.joblet.certroles import Scheme
from common.errors import JobletError, Reason, invalid, precondition
from common.identifiers import parse_name
from common.tls import read_pem

SERVER_NAMES: Final = ("localhost", "127.0.0.1", "::1")
CA_NAME: Final = "ca"
SERVER_NAME: Final = "server"


class Client(NamedTuple):
    """A client certificate to make: its file's name, its user and its role."""

    file: str
    cn: str
    role: str


FIRST_CLIENTS: Final = (
    Client("default", "admin", "admin"),
    Client("writer", "writer", "writer"),
    Client("user", "user", "user"),
    Client("reader", "reader", "reader"),
)


class Validity(NamedTuple):
    """Days of validity by kind of certificate."""

    ca: int = CA_DAYS
    server: int = SERVER_DAYS
    client: int = CLIENT_DAYS


DEFAULT_VALIDITY: Final = Validity()
DEV_VALIDITY: Final = Validity(DEV_DAYS, DEV_DAYS, DEV_DAYS)


class Stored(NamedTuple):
    """A certificate and its key on disk. `shortened`: it ends before the time that was asked for, with its CA."""

    name: str
    certificate_file: Path
    key_file: Path
    certificate: x509.Certificate
    shortened: bool = False


class _File(NamedTuple):
    """A file to be."""

    path: Path
    content: bytes
    mode: int


def init(
    directory: Path,
    clients: tuple[Client, ...] = FIRST_CLIENTS,
    *,
    names: tuple[str, ...] = (),
    validity: Validity = DEFAULT_VALIDITY,
) -> tuple[Stored, ...]:
    """A CA, a server certificate for this host and `names`, and a certificate for each client. What was written.

    Raises JobletError(EXISTS) when the directory has a CA already.
    """
    for existing in (directory / "ca.crt", directory / "ca.key"):
        if existing.exists():
            raise JobletError(
                Reason.EXISTS,
                f"{existing} exists",
                detail="issue from it with `joblet certs issue`, or use another DIR",
            )
    server_names = (*SERVER_NAMES, *usable_names([socket.gethostname()]), *names)
    alternatives_of(server_names)  # a name that is malformed is told before seconds are spent on keys
    _make_directory(directory)
    now = datetime.now(UTC)
    ca = make_ca(now=now, days=validity.ca)
    # Searching primes takes seconds each and releases the interpreter lock: two at a time on two cores.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        server = pool.submit(make_server, ca, names=server_names, now=now, days=validity.server)
        issued = [
            (client, pool.submit(make_client, ca, cn=client.cn, roles=(client.role,), now=now, days=validity.client))
            for client in clients
        ]
        written = [_store(directory, SERVER_NAME, server.result())]
        written += [_store(directory, client.file, made.result()) for client, made in issued]
    # The CA last: a start that was cut short before this point is simply done again.
    return (_store(directory, CA_NAME, ca), *written)


def issue(
    directory: Path,
    *,
    cn: str,
    roles: tuple[str, ...],
    scheme: Scheme = Scheme.ORGANIZATION,
    days: int = CLIENT_DAYS,
    file: str = "",
) -> Stored:
    """A client certificate signed by the CA of `directory`, with its key, as new files. Raises JobletError."""
    name = _file_name(file or cn)
    if name in {CA_NAME, SERVER_NAME}:
        raise invalid(f"{name!r} is not a client's name", "choose another --cn, or a file's name with --file")
    with locked(directory):
        ca = _before_new(directory, name)
        made = make_client(ca, cn=cn, roles=roles, scheme=scheme, now=datetime.now(UTC), days=days)
        return _store(directory, name, made, days=days)


def issue_server(
    directory: Path, *, cn: str, names: tuple[str, ...], days: int = SERVER_DAYS, file: str = ""
) -> Stored:
    """A server certificate for `names`, or for `cn` when there are none, as new files. Raises JobletError."""
    name = _file_name(file or cn)
    if name == CA_NAME:
        raise invalid(f"{name!r} is not a server's name", "choose another --cn, or a file's name with --file")
    with locked(directory):
        ca = _before_new(directory, name)
        made = make_server(ca, cn=cn, names=names or (cn,), now=datetime.now(UTC), days=days)
        return _store(directory, name, made, days=days)


def renew(directory: Path, name: str, *, days: int | None = None, names: tuple[str, ...] = ()) -> Stored:
    """Replace certificate and key `name` by new ones that say the same, and `names` more for a server.

    `days` None: as many as that kind has. Raises JobletError: PRECONDITION for the CA, or when no CA of `ca.crt`
    signed the old one.
    """
    if name == CA_NAME:
        raise precondition(
            "a CA is never replaced: all that it signed would be worthless at once",
            "make another one in another DIR, and trust both in ca.crt for a while: docs/certificates.md",
        )
    path = directory / f"{_file_name(name)}.crt"
    with locked(directory):
        old = load_certificates(read_pem(str(path), "certificate"), str(path))[0]
        ca = load_ca(directory)
        if not any(was_signed_by(old, each) for each in load_certificates(ca.certificate, "the CA certificate")):
            raise precondition(
                f"no CA in {directory / 'ca.crt'} signed {path}", "use --dir, or make it anew: joblet certs issue"
            )
        days = days or (SERVER_DAYS if for_servers(old) else CLIENT_DAYS)
        made = make_again(ca, old, now=datetime.now(UTC), days=days, names=names)
        return _store(directory, name, made, days=days)


def load_ca(directory: Path) -> Issued:
    """The CA of `directory`. Raises JobletError when there is none or others can read its key."""
    return Issued(read_pem(str(directory / "ca.crt"), "CA certificate"), read_pem(str(directory / "ca.key"), "CA key"))


def names_in(directory: Path) -> tuple[str, ...]:
    """Of which certificates there are files, but for the CA's; none when the directory is closed to us."""
    try:
        return tuple(sorted(path.stem for path in directory.glob("*.crt") if path.stem != CA_NAME))
    except OSError:
        return ()


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Alone with the files of a CA: of two commands at once, neither undoes what the other did.

    Raises JobletError(NOT_FOUND) when there is no such directory.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as cause:
        raise JobletError(
            Reason.NOT_FOUND, f"no CA at {directory}: {cause.strerror}", detail="give its directory with --dir"
        ) from cause
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes, *, mode: int) -> None:
    """Replace `path` by `content`: a reader, or a crash, sees the old file or the new one, nothing between."""
    _write_all([_File(path, content, mode)])


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as cause:
        raise precondition(f"cannot make {directory}: {cause.strerror}", "use another DIR") from cause


def _file_name(text: str) -> str:
    return parse_name(text, "certificate file")


def _before_new(directory: Path, name: str) -> Issued:
    for existing in (directory / f"{name}.crt", directory / f"{name}.key"):
        if existing.exists():
            raise JobletError(
                Reason.EXISTS,
                f"{existing} exists",
                detail="use `joblet certs renew`, or remove the file and its key",
            )
    return load_ca(directory)


def _store(directory: Path, name: str, issued: Issued, *, days: int = 0) -> Stored:
    certificate, key = directory / f"{name}.crt", directory / f"{name}.key"
    # The key first and the certificate directly behind it: who looks between sees a pair that does not fit, and looks
    # again; it lasts as long as a rename.
    _write_all([_File(key, issued.key, 0o600), _File(certificate, issued.certificate, 0o644)])
    made = x509.load_pem_x509_certificate(issued.certificate)
    shortened = made.not_valid_after_utc - made.not_valid_before_utc < timedelta(days=days)
    return Stored(name, certificate, key, made, shortened)


def _write_all(files: Iterable[_File]) -> None:
    """Write each beside its place, then put one after the other there. JobletError(PRECONDITION) when that fails."""
    beside: list[Path] = []
    files = tuple(files)
    try:
        for file in files:
            temporary = file.path.with_name(f".{file.path.name}.{os.getpid()}")
            temporary.unlink(missing_ok=True)  # of a process with our number that was killed
            beside.append(temporary)
            _write_new(temporary, file)
        for temporary, file in zip(beside, files, strict=True):
            temporary.replace(file.path)
        for directory in {file.path.parent for file in files}:
            _sync_directory(directory)
    except OSError as cause:
        for temporary in beside:
            temporary.unlink(missing_ok=True)
        raise precondition(
            f"cannot write {files[0].path}: {cause.strerror}", "see that the directory is there, writable, and not full"
        ) from cause


def _write_new(temporary: Path, file: _File) -> None:
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, file.mode)
    with os.fdopen(descriptor, "wb") as stream:
        os.fchmod(descriptor, file.mode)
        stream.write(file.content)
        stream.flush()
        os.fsync(descriptor)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
