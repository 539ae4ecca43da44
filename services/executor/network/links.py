"""Interfaces, addresses and routes, as requests to the kernel. Pure. rtnetlink(7), ip-link(8).

Here: one function for each thing that is done to an interface. Not here: in which order, and to which.
pyroute2 knows the numbers and the nesting of attributes.
"""

import errno
import socket
from typing import Any, Final

from pyroute2.netlink.rtnl import RTM_DELLINK, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from services.executor.network.netlink import Request

LOOPBACK_INDEX: Final = 1
"""Of `lo` in every network namespace (net/core/dev.c: the first device, LOOPBACK_IFINDEX)."""
JOB_INTERFACE: Final = "eth0"
JOB_INDEX: Final = 2
"""Asked for when the pair is made, so that nothing need look it up."""

_REQUEST_ACK: Final = 0x1 | 0x4  # NLM_F_REQUEST | NLM_F_ACK of linux/netlink.h
_CREATE: Final = 0x400 | 0x200  # NLM_F_CREATE | NLM_F_EXCL
_IFF_UP: Final = 0x1
# linux/rtnetlink.h
_TABLE_MAIN: Final = 254
_PROTOCOL_STATIC: Final = 4
_SCOPE_UNIVERSE: Final = 0
_TYPE_UNICAST: Final = 1


def make_bridge(name: str, *, group: int, link_address: bytes) -> Request:
    """A bridge that is up. Its own link-layer address, or it would take that of a port, and another with the next."""
    data = [("IFLA_BR_MCAST_SNOOPING", 0)]
    attributes = [
        ("IFLA_IFNAME", name),
        ("IFLA_GROUP", group),
        ("IFLA_ADDRESS", _colons(link_address)),
        ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "bridge"), ("IFLA_INFO_DATA", {"attrs": data})]}),
    ]
    return _link(f"make bridge {name}", RTM_NEWLINK, attributes, create=True, up=True, tolerated=errno.EEXIST)


def make_pair(name: str, *, group: int, bridge_index: int, namespace: int, link_address: bytes) -> Request:
    """A pair of interfaces: `name`, up, at the bridge; and eth0 in the namespace of this descriptor, down.

    eth0 cannot be made up: it is configured before it knows its peer (veth_newlink of drivers/net/veth.c).
    """
    peer = {
        "index": JOB_INDEX,
        "attrs": [
            ("IFLA_IFNAME", JOB_INTERFACE),
            ("IFLA_ADDRESS", _colons(link_address)),
            ("IFLA_NET_NS_FD", namespace),
        ],
    }
    pair = {"attrs": [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", peer)]})]}
    attributes = [
        ("IFLA_IFNAME", name),
        ("IFLA_GROUP", group),
        ("IFLA_MASTER", bridge_index),
        ("IFLA_LINKINFO", pair),
    ]
    return _link(f"make interface {name}", RTM_NEWLINK, attributes, create=True, up=True)


def describe_port(name: str, *, alias: str, isolated: bool) -> Request:
    """Give a bridge's port its alias, and whether it reaches only ports that are not isolated (ip-link(8))."""
    port = {
        "attrs": [
            ("IFLA_INFO_SLAVE_KIND", "bridge"),
            ("IFLA_INFO_SLAVE_DATA", {"attrs": [("IFLA_BRPORT_ISOLATED", int(isolated))]}),
        ]
    }
    attributes = [("IFLA_IFNAME", name), ("IFLA_IFALIAS", alias), ("IFLA_LINKINFO", port)]
    return _link(f"set alias and isolation of {name}", RTM_NEWLINK, attributes)


def bring_up(index: int) -> Request:
    """Bring an interface up."""
    return _link(f"bring interface {index} up", RTM_NEWLINK, [], index=index, up=True)


def remove(name: str) -> Request:
    """Remove an interface, and its peer with it. Nothing when it is gone."""
    return _link(f"remove interface {name}", RTM_DELLINK, [("IFLA_IFNAME", name)], tolerated=errno.ENODEV)


def add_address(index: int, address: str, prefix: int) -> Request:
    """Give an interface an IPv4 address, and with it the route to its network."""
    message = ifaddrmsg()
    message["family"], message["prefixlen"], message["index"] = socket.AF_INET, prefix, index
    attributes = [("IFA_LOCAL", address), ("IFA_ADDRESS", address)]
    what = f"add address {address}/{prefix}"
    return _encode(what, message, RTM_NEWADDR, attributes, create=True, tolerated=errno.EEXIST)


def add_default_route(gateway: str, index: int) -> Request:
    """The way to everywhere else."""
    message = rtmsg()
    message["family"], message["table"], message["proto"] = socket.AF_INET, _TABLE_MAIN, _PROTOCOL_STATIC
    message["scope"], message["type"] = _SCOPE_UNIVERSE, _TYPE_UNICAST
    attributes = [("RTA_GATEWAY", gateway), ("RTA_OIF", index)]
    return _encode(f"add the default route by {gateway}", message, RTM_NEWROUTE, attributes, create=True)


def _link(
    what: str,
    kind: int,
    attributes: list[tuple[str, Any]],
    *,
    index: int = 0,
    up: bool = False,
    create: bool = False,
    tolerated: int = 0,
) -> Request:
    message = ifinfmsg()
    message["index"] = index
    message["flags"] = message["change"] = _IFF_UP if up else 0
    return _encode(what, message, kind, attributes, create=create, tolerated=tolerated)


def _encode(
    what: str, message: Any, kind: int, attributes: list[tuple[str, Any]], *, create: bool = False, tolerated: int = 0
) -> Request:
    message["attrs"] = attributes
    message["header"]["type"] = kind
    message["header"]["flags"] = _REQUEST_ACK | (_CREATE if create else 0)
    message.encode()
    return Request(what, bytes(message.data), frozenset({tolerated} - {0}))


def _colons(link_address: bytes) -> str:
    return link_address.hex(":")
