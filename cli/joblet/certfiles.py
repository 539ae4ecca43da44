"""Certificates on disk: `ca.crt ca.key server.crt server.key` and `NAME.crt NAME.key` for each client.

Keys are 0600 and appear whole or not at all. A CA that exists is never overwritten: every certificate it signed
would be worthless. What is in a certificate: `certificates.py`.
"""

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from cli.joblet.certificates import (
    CA_DAYS,
    CLIENT_DAYS,
    DEV_DAYS,
    SERVER_DAYS,
    Issued,
    make_ca,
    make_client,
    make_server,
)
from common.errors import JobletError, Reason, invalid
from common.identifiers import parse_name
from common.tls import read_pem

SERVER_NAMES: Final = ("localhost", "127.0.0.1", "::1")
RESERVED: Final = frozenset({"ca", "server"})


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


def init(
    directory: Path, clients: tuple[Client, ...] = FIRST_CLIENTS, *, validity: Validity = DEFAULT_VALIDITY
) -> tuple[Path, ...]:
    """A CA, a server certificate for this host and a certificate for each client. Returns what was written.

    Raises JobletError(EXISTS) when the directory has a CA already.
    """
    for existing in (directory / "ca.crt", directory / "ca.key"):
        if existing.exists():
            raise JobletError(
                Reason.EXISTS,
                f"{existing} exists",
                detail="issue from it with `joblet certs issue`, or use another DIR",
            )
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    now = datetime.now(UTC)
    names = (*SERVER_NAMES, socket.gethostname())
    ca = make_ca(now=now, days=validity.ca)
    # Searching primes takes seconds each and releases the interpreter lock: two at a time on two cores.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        server = pool.submit(make_server, ca, names=tuple(dict.fromkeys(names)), now=now, days=validity.server)
        issued = [
            (client, pool.submit(make_client, ca, cn=client.cn, roles=(client.role,), now=now, days=validity.client))
            for client in clients
        ]
        written = [_store(directory, "server", server.result())]
        written += [_store(directory, client.file, made.result()) for client, made in issued]
    # The CA last: a start that was cut short before this point is simply done again.
    written.insert(0, _store(directory, "ca", ca))
    return tuple(path for pair in written for path in pair)


def issue(
    directory: Path, *, cn: str, role: str, days: int = CLIENT_DAYS, file: str = "", replace: bool = False
) -> tuple[Path, Path]:
    """A client certificate signed by the CA of `directory`; certificate and key files. Raises JobletError."""
    name = parse_name(file or cn, "certificate file")
    if name in RESERVED:
        raise invalid(f"{name!r} is not a client's name", "choose another --cn")
    if not replace and (directory / f"{name}.crt").exists():
        raise JobletError(
            Reason.EXISTS,
            f"{directory / name}.crt exists",
            detail="use `joblet certs renew`, or remove the file and its key",
        )
    ca = load_ca(directory)
    return _store(directory, name, make_client(ca, cn=cn, roles=(role,), now=datetime.now(UTC), days=days))


def load_ca(directory: Path) -> Issued:
    """The CA of `directory`. Raises JobletError when there is none or others can read its key."""
    return Issued(read_pem(str(directory / "ca.crt"), "CA certificate"), read_pem(str(directory / "ca.key"), "CA key"))


def _store(directory: Path, name: str, issued: Issued) -> tuple[Path, Path]:
    certificate, key = directory / f"{name}.crt", directory / f"{name}.key"
    write_whole(key, issued.key, mode=0o600)
    write_whole(certificate, issued.certificate, mode=0o644)
    return certificate, key


def write_whole(path: Path, content: bytes, *, mode: int) -> None:
    """Replace `path` by `content`: a reader, or a crash, sees the old file or the new one, nothing between."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as stream:
        os.fchmod(descriptor, mode)
        stream.write(content)
        stream.flush()
        os.fsync(descriptor)
    temporary.replace(path)
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
