"""Which name servers a job is told: the content of its /etc/resolv.conf. resolv.conf(5).

Here: choosing among the host's. `conf_of_bridge` is pure; the two readers at the end are not.
"""

import ipaddress
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from common.errors import invalid

Server = ipaddress.IPv4Address

HOST_FILE: Final = "/etc/resolv.conf"
SYSTEMD_FILE: Final = "/run/systemd/resolve/resolv.conf"
"""The servers behind the stub at 127.0.0.53, see systemd-resolved.service(8)."""
READ_BYTES_MAX: Final = 64 * 1024
SERVERS_MAX: Final = 3  # MAXNS of resolv.h: the C library reads no more
KEPT: Final = ("search", "domain", "options")


def conf_of_bridge(host: str, dns: tuple[str, ...], reachable: Callable[[Server], bool]) -> str:
    """What a job of mode bridge gets: `dns`, or of the host's file `host` what is reachable from the job.

    Search domains and options are the host's. Without a usable server the file holds none, and names do not resolve.
    """
    servers = [*dns] or [str(server) for server in _addresses(servers_of(host)) if reachable(server)]
    lines = [line.strip() for line in host.splitlines() if line.split()[:1] and line.split()[0] in KEPT]
    lines += [f"nameserver {server}" for server in servers[:SERVERS_MAX]]
    return "".join(f"{line}\n" for line in lines)


def servers_of(text: str) -> list[str]:
    """The name servers of a resolv.conf, as they stand there."""
    words = (line.split() for line in text.splitlines())
    return [each[1] for each in words if len(each) > 1 and each[0] == "nameserver"]


def _addresses(texts: Iterable[str]) -> Iterable[Server]:
    """The IPv4 ones of `texts`: a job has no IPv6."""
    for text in texts:
        try:
            yield Server(text)
        except ipaddress.AddressValueError:
            continue


def parse_servers(texts: tuple[str, ...]) -> tuple[str, ...]:
    """The name servers of the setting `dns`. JobletError INVALID: one is no IPv4 address."""
    for text in texts:
        if not list(_addresses([text])):
            raise invalid(
                f"joblet.networks.dns: {text[:64]!r} is no IPv4 address", "jobs have no IPv6; use such as 9.9.9.9"
            )
    return texts


def read_host(path: str = HOST_FILE) -> str:
    """The host's resolv.conf, at most READ_BYTES_MAX of it; "" when there is none."""
    try:
        with Path(path).open("rb") as file:
            return file.read(READ_BYTES_MAX).decode(errors="replace")
    except OSError:
        return ""


def read_upstream(host_file: str = HOST_FILE, systemd_file: str = SYSTEMD_FILE) -> str:
    """The same; where it names only servers of the host itself, the file with those behind them, if there is one."""
    text = read_host(host_file)
    servers = list(_addresses(servers_of(text)))
    if servers and all(server.is_loopback for server in servers):
        return read_host(systemd_file) or text
    return text


def is_own_address(address: Server) -> bool:
    """Whether the address is one of this host: only to those can a socket be bound, ip(7)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
    return True
