"""Sockets of every family and kind, each made once."""

import socket

from tests.security.probes.prelude import HIGH, Attack, call, report

FAMILIES = {
    **{"packet": 17, "vsock": 40, "alg": 38, "rds": 21, "tipc": 30, "bluetooth": 31, "can": 29, "key": 15, "x25": 9},
    **{"ax25": 3, "ipx": 4, "appletalk": 5, "netrom": 6, "atm": 8, "decnet": 12, "econet": 19, "irda": 23, "pppox": 24},
    **{"llc": 26, "ib": 27, "mpls": 28, "rxrpc": 33, "isdn": 34, "phonet": 35, "ieee802154": 36, "caif": 37},
    **{"nfc": 39, "kcm": 41, "qipcrtr": 42, "smc": 43, "xdp": 44, "mctp": 45},
}
NETLINK = {
    **{"usersock": 2, "firewall": 3, "sock_diag": 4, "nflog": 5, "xfrm": 6, "selinux": 7, "iscsi": 8, "audit": 9},
    **{"fib": 10, "connector": 11, "netfilter": 12, "dnrt": 14, "uevent": 15, "generic": 16, "scsi": 18, "crypto": 21},
}
STREAM, DATAGRAM, RAW = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW


def made(family: int, kind: int, protocol: int = 0) -> Attack:
    return lambda: call("socket", family, kind, protocol)


report(
    {
        "unix": made(socket.AF_UNIX, STREAM),
        "unix datagram": made(socket.AF_UNIX, DATAGRAM),
        "unix pair": socket.socketpair,
        "inet": made(socket.AF_INET, STREAM),
        "inet datagram": made(socket.AF_INET, DATAGRAM),
        "inet6": made(socket.AF_INET6, STREAM),
        "inet raw": made(socket.AF_INET, RAW, 1),
        "inet6 raw": made(socket.AF_INET6, RAW, 58),
        "ping": made(socket.AF_INET, DATAGRAM, 1),
        "ping6": made(socket.AF_INET6, DATAGRAM, 58),
        "netlink route": made(16, RAW),
        **{f"netlink {name}": made(16, RAW, protocol) for name, protocol in NETLINK.items()},
        **{
            name: made(family, RAW if name in ("packet", "can", "bluetooth") else DATAGRAM)
            for name, family in FAMILIES.items()
        },
        "alg, high bits set": made(38 | HIGH, socket.SOCK_SEQPACKET),
        "packet, high bits set": made(17 | HIGH, RAW),
        "netlink audit, high bits set": made(16 | HIGH, RAW, 9 | HIGH),
    }
)
