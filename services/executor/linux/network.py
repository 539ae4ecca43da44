"""A new network namespace, from inside: netdevice(7), ip(7). Headers: linux/sockios.h, linux/if.h."""

import fcntl
import socket
import struct
from typing import Final

from common.linux.files import write_once

_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 0x1
_IFREQ: Final = struct.Struct("16sh22x")


def open_all_ports() -> None:
    """Let everybody bind ports below 1024 in this network namespace: nobody else's are in it."""
    write_once("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")


def loopback_up() -> None:
    """Bring `lo` of this network namespace up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        _, flags = _IFREQ.unpack(fcntl.ioctl(control, _SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0)))
        fcntl.ioctl(control, _SIOCSIFFLAGS, _IFREQ.pack(b"lo", flags | _IFF_UP))
