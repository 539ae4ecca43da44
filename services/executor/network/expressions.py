"""The parts of a rule of nftables, as data: what nft(8) prints of it, and what the kernel is told. Pure.

Belongs here: the words that `rules.py` uses. Does not belong here: which rules there are, and how data become bytes
(`nftables.py`). Kernel reference: include/uapi/linux/netfilter/nf_tables.h; each condition loads into register 1 and
compares it there. Values are in network byte order but those of `meta` and `ct`, which are the machine's.
"""

import ipaddress
import struct
from typing import Final, NamedTuple

Address = ipaddress.IPv4Network | ipaddress.IPv6Network

# nf_tables.h: registers, comparisons, keys; netfilter.h: families and verdicts.
_REGISTER: Final = 1
_REGISTER_LINK: Final = 12  # NFT_REG32_04: behind the 16 bytes of a name
_REGISTER_ADDRESS: Final = 14  # NFT_REG32_06: behind those and the 8 of a link-layer address
_VERDICT: Final = 0
_EQ: Final = 0
_NEQ: Final = 1
_GTE: Final = 5
_META: Final = {"protocol": 1, "iifname": 6, "skuid": 10, "nfproto": 15, "iifgroup": 21, "oifgroup": 22}
_LINK_HEADER: Final = 0
_NETWORK_HEADER: Final = 1
_CT_STATE: Final = 0
_CT_ESTABLISHED: Final = 1 << 1  # NF_CT_STATE_BIT of nf_conntrack_common.h
_CT_RELATED: Final = 1 << 2
_CT_NEW: Final = 1 << 3
_CT_STATUS: Final = 2
_CT_REDIRECTED: Final = 1 << 5  # IPS_DST_NAT
_NFPROTO: Final = {4: b"\x02", 6: b"\x0a"}
_IP_SOURCE: Final = 12
_IP_DESTINATION: Final = {4: 16, 6: 24}
_ARP_SENDER: Final = 14
_ARP_OF_IPV4: Final = bytes.fromhex("000108000604")  # ethernet, IPv4, and the lengths of both
ETHER_IP: Final = 0x0800
ETHER_ARP: Final = 0x0806


class Verdict(NamedTuple):
    """A value of a register that ends a rule."""

    code: int


class Expression(NamedTuple):
    """One step of the kernel's: its name and its attributes. Bytes are a value, a Verdict is a verdict."""

    name: str
    attributes: tuple[tuple[str, int | str | bytes | Verdict], ...] = ()


class Part(NamedTuple):
    """A word of a rule."""

    text: str
    expressions: tuple[Expression, ...]


def in_from(group: int) -> Part:
    """The packet came by an interface of this group."""
    return Part(f"iifgroup {group}", (_meta("iifgroup"), _compare(_EQ, _native(group))))


def in_not_from(group: int) -> Part:
    """The packet came by another interface."""
    return Part(f"iifgroup != {group}", (_meta("iifgroup"), _compare(_NEQ, _native(group))))


def out_to(group: int) -> Part:
    """The packet leaves by an interface of this group."""
    return Part(f"oifgroup {group}", (_meta("oifgroup"), _compare(_EQ, _native(group))))


def out_not_to(group: int) -> Part:
    """The packet leaves by another interface."""
    return Part(f"oifgroup != {group}", (_meta("oifgroup"), _compare(_NEQ, _native(group))))


def in_by_name_of(name: str) -> Part:
    """The packet came by an interface in the set of names."""
    return Part(f"iifname @{name}", (_meta("iifname"), _lookup(name)))


def destination(network: Address) -> Part:
    """The packet goes to this network."""
    family = "ip" if network.version == 4 else "ip6"
    return Part(f"{family} daddr {network}", _address(network, _IP_DESTINATION[network.version]))


def source(network: ipaddress.IPv4Network) -> Part:
    """The packet comes from this network."""
    return Part(f"ip saddr {network}", _address(network, _IP_SOURCE))


def family_6() -> Part:
    """The packet is IPv6."""
    return Part("meta nfproto ipv6", (_meta("nfproto"), _compare(_EQ, _NFPROTO[6])))


def of_known_connection() -> Part:
    """The packet answers something, or belongs to something, that was let through before."""
    mask = _native(_CT_ESTABLISHED | _CT_RELATED)
    return Part("ct state established,related", (_connection(_CT_STATE), _and(mask), _compare(_NEQ, bytes(4))))


def of_new_connection() -> Part:
    """The packet begins something that this host was not asked to pass on by a redirection of its own."""
    new, redirected = _native(_CT_NEW), _native(_CT_REDIRECTED)
    return Part(
        "ct state new ct status ! dnat",
        (
            *(_connection(_CT_STATE), _and(new), _compare(_NEQ, bytes(4))),
            *(_connection(_CT_STATUS), _and(redirected), _compare(_EQ, bytes(4))),
        ),
    )


def by_user_from(uid: int) -> Part:
    """The packet is sent by a process of this uid or a higher one."""
    to_network = Expression(
        "byteorder",
        (
            ("NFTA_BYTEORDER_SREG", _REGISTER),
            ("NFTA_BYTEORDER_DREG", _REGISTER),
            ("NFTA_BYTEORDER_OP", 1),
            ("NFTA_BYTEORDER_LEN", 4),
            ("NFTA_BYTEORDER_SIZE", 4),
        ),
    )
    return Part(f"meta skuid >= {uid}", (_meta("skuid"), to_network, _compare(_GTE, struct.pack(">I", uid))))


def ip_sender_in(name: str) -> Part:
    """An IPv4 packet whose port, link-layer source and source address are in the set together."""
    kind = (_meta("protocol"), _compare(_EQ, struct.pack(">H", ETHER_IP)))
    return Part(f"iifname . ether saddr . ip saddr @{name}", (*kind, *_sender(_IP_SOURCE), _lookup(name)))


def arp_sender_in(name: str) -> Part:
    """The same of an ARP message, and the address is the one that it announces."""
    kind = (_meta("protocol"), _compare(_EQ, struct.pack(">H", ETHER_ARP)))
    form = (_load(_NETWORK_HEADER, 0, len(_ARP_OF_IPV4)), _compare(_EQ, _ARP_OF_IPV4))
    return Part(f"iifname . ether saddr . arp saddr ip @{name}", (*kind, *form, *_sender(_ARP_SENDER), _lookup(name)))


def accept() -> Part:
    """Let it through, as far as this table is concerned."""
    return Part("accept", (_verdict(1),))


def drop() -> Part:
    """Let it fall."""
    return Part("drop", (_verdict(0),))


def masquerade() -> Part:
    """Give it the address of the interface by which it leaves."""
    return Part("masquerade", (Expression("masq"),))


def interface_key(name: str) -> bytes:
    """An interface's name as a key of a set, 16 bytes."""
    return name.encode().ljust(16, b"\0")


def sender_key(interface: str, link_address: bytes, address: str) -> bytes:
    """Port, link-layer and IPv4 address as a key of a set, 28 bytes."""
    return interface_key(interface) + link_address.ljust(8, b"\0") + ipaddress.IPv4Address(address).packed


def _native(number: int) -> bytes:
    return struct.pack("=I", number)


def _connection(key: int) -> Expression:
    return Expression("ct", (("NFTA_CT_KEY", key), ("NFTA_CT_DREG", _REGISTER)))


def _meta(key: str) -> Expression:
    return Expression("meta", (("NFTA_META_KEY", _META[key]), ("NFTA_META_DREG", _REGISTER)))


def _compare(operator: int, value: bytes) -> Expression:
    return Expression("cmp", (("NFTA_CMP_SREG", _REGISTER), ("NFTA_CMP_OP", operator), ("NFTA_CMP_DATA", value)))


def _and(mask: bytes) -> Expression:
    return Expression(
        "bitwise",
        (
            ("NFTA_BITWISE_SREG", _REGISTER),
            ("NFTA_BITWISE_DREG", _REGISTER),
            ("NFTA_BITWISE_LEN", len(mask)),
            ("NFTA_BITWISE_MASK", mask),
            ("NFTA_BITWISE_XOR", bytes(len(mask))),
        ),
    )


def _load(header: int, offset: int, length: int, register: int = _REGISTER) -> Expression:
    return Expression(
        "payload",
        (
            ("NFTA_PAYLOAD_DREG", register),
            ("NFTA_PAYLOAD_BASE", header),
            ("NFTA_PAYLOAD_OFFSET", offset),
            ("NFTA_PAYLOAD_LEN", length),
        ),
    )


def _address(network: Address, offset: int) -> tuple[Expression, ...]:
    value, mask = network.network_address.packed, network.netmask.packed
    return (
        _meta("nfproto"),
        _compare(_EQ, _NFPROTO[network.version]),
        _load(_NETWORK_HEADER, offset, len(value)),
        _and(mask),
        _compare(_EQ, value),
    )


def _sender(offset: int) -> tuple[Expression, ...]:
    """Load what `sender_key` makes, with the address at this offset of the network header."""
    return (
        _meta("iifname"),
        _load(_LINK_HEADER, 6, 6, _REGISTER_LINK),
        _load(_NETWORK_HEADER, offset, 4, _REGISTER_ADDRESS),
    )


def _lookup(name: str) -> Expression:
    return Expression("lookup", (("NFTA_LOOKUP_SET", name), ("NFTA_LOOKUP_SREG", _REGISTER)))


def _verdict(code: int) -> Expression:
    return Expression("immediate", (("NFTA_IMMEDIATE_DREG", _VERDICT), ("NFTA_IMMEDIATE_DATA", Verdict(code))))
