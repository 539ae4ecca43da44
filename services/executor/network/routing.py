"""Where the host's own packets go, and whether it passes on those of others. ip-sysctl.rst of the kernel, proc_net(5).

Here: the host's routes and its forwarding. Not here: the routes of jobs (`links.py`).
"""

import ipaddress
import os
import struct
from pathlib import Path
from typing import Final, NamedTuple

ROUTES: Final = "/proc/net/route"
SYSCTL: Final = "/proc/sys/net"


class Route(NamedTuple):
    """Where packets to a network leave."""

    interface: str
    network: ipaddress.IPv4Network


def parse_routes(text: str) -> tuple[Route, ...]:
    """The routes in /proc/net/route: numbers are hexadecimal, in the byte order of the machine. Pure."""
    routes = []
    for line in text.splitlines()[1:]:
        interface, destination, _, _, _, _, _, mask = line.split()[:8]
        packed = (struct.pack("=I", int(number, 16)) for number in (destination, mask))
        address, netmask = (str(ipaddress.IPv4Address(each)) for each in packed)
        routes.append(Route(interface, ipaddress.IPv4Network((address, netmask))))
    return tuple(routes)


def uplinks(routes: tuple[Route, ...]) -> tuple[str, ...]:
    """Interfaces with a default route. Pure."""
    return tuple(dict.fromkeys(route.interface for route in routes if route.network.prefixlen == 0))


def overlap(routes: tuple[Route, ...], subnet: ipaddress.IPv4Network, *, own: str) -> Route | None:
    """A route of the host that shares addresses with `subnet`, but for those of the interface `own`. Pure."""
    others = (route for route in routes if route.interface != own and route.network.prefixlen > 0)
    return next((route for route in others if route.network.overlaps(subnet)), None)


def read_routes() -> tuple[Route, ...]:
    """The host's routes now."""
    return parse_routes(Path(ROUTES).read_text())


def forwards(interface: str) -> bool:
    """Whether packets that come by `interface` for somebody else are passed on."""
    return Path(f"{SYSCTL}/ipv4/conf/{interface}/forwarding").read_text().strip() == "1"


def set_forwarding(interface: str, *, on: bool) -> None:
    """Pass them on, or not. Nothing when the interface is gone."""
    put(f"ipv4/conf/{interface}/forwarding", "1" if on else "0")


def disable_ipv6(interface: str) -> None:
    """No IPv6 address on this interface ("default": on those to come). Nothing where the kernel has no IPv6."""
    put(f"ipv6/conf/{interface}/disable_ipv6", "1")


def put(key: str, value: str) -> None:
    """Write a setting of this thread's network namespace. Nothing when there is no such setting."""
    try:
        descriptor = os.open(f"{SYSCTL}/{key}", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)
