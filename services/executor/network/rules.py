"""The rules that jobs' packets meet on the host, as data. Pure.

Here: which packets pass. Not here: how the kernel is told (`nftables.py`). A node has two tables of one name:

    bridge   senders     what comes from a job bears the job's own addresses, or falls
    inet     input       nothing from a job's bridge reaches the host itself
             forward     out of mode bridge, but not to blocked networks, nor to jobs; in, only what answers
             output      jobs of mode host: not to blocked networks
             nat         what leaves mode bridge bears the host's address

A packet that a table accepts may still fall in another one, such as the host's own firewall.
"""

import ipaddress
from typing import Final, NamedTuple

from services.executor.network import expressions as say
from services.executor.network.expressions import Address, Part
from services.executor.network.names import Names

SENDERS: Final = "senders"
UPLINKS: Final = "uplinks"
INET: Final = "inet"
BRIDGE: Final = "bridge"
_INTERFACE_BYTES: Final = 16
_SENDER_BYTES: Final = 28


class Rule(NamedTuple):
    """Conditions, and a verdict."""

    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """As nft(8) prints it."""
        return " ".join(part.text for part in self.parts)


class Chain(NamedTuple):
    """Where rules are met, in order."""

    name: str
    kind: str  # "filter" or "nat"
    hook: str
    priority: int
    rules: tuple[Rule, ...]


class Set(NamedTuple):
    """Keys that rules look up."""

    name: str
    key_bytes: int
    keys: tuple[bytes, ...]


class Table(NamedTuple):
    """All of one family."""

    family: str
    name: str
    sets: tuple[Set, ...]
    chains: tuple[Chain, ...]


class Policy(NamedTuple):
    """What the rules are made from."""

    names: Names
    bridge_subnet: ipaddress.IPv4Network
    blocked: tuple[Address, ...]
    uid_first: int


def tables(policy: Policy, *, senders: tuple[bytes, ...], uplinks: tuple[str, ...]) -> tuple[Table, ...]:
    """Both tables. `senders`: a key for each port; `uplinks`: interfaces that forward only because we made them."""
    names = policy.names
    inet = (
        Chain("input", "filter", "input", 0, _input(names)),
        Chain("forward", "filter", "forward", 0, _forward(policy)),
        Chain("output", "filter", "output", 0, _output(policy)),
        Chain("nat", "nat", "postrouting", 100, _nat(policy)),
    )
    bridge = (Chain(SENDERS, "filter", "prerouting", -300, _senders(names)),)
    return (
        Table(INET, names.table, (Set(UPLINKS, _INTERFACE_BYTES, tuple(map(say.interface_key, uplinks))),), inet),
        Table(BRIDGE, names.table, (Set(SENDERS, _SENDER_BYTES, senders),), bridge),
    )


def _senders(names: Names) -> tuple[Rule, ...]:
    return (
        _rule(say.in_not_from(names.port_group), say.accept()),
        _rule(say.ip_sender_in(SENDERS), say.accept()),
        _rule(say.arp_sender_in(SENDERS), say.accept()),
        _rule(say.drop()),  # a forged sender, IPv6, and everything else
    )


def _input(names: Names) -> tuple[Rule, ...]:
    return (
        _rule(say.in_from(names.bridge_group), say.drop()),
        _rule(say.in_from(names.owner_group), say.drop()),
    )


def _forward(policy: Policy) -> tuple[Rule, ...]:
    names = policy.names
    bridge, owner = names.bridge_group, names.owner_group
    return (
        # With net.bridge.bridge-nf-call-iptables set, frames between the ports of a bridge come by here, too. The host
        # has no route to an owner's bridge, so that nothing else goes from one to one.
        _rule(say.in_from(owner), say.out_to(owner), say.accept()),
        _rule(say.in_from(owner), say.drop()),
        _rule(say.out_to(owner), say.drop()),
        *(_rule(say.in_from(bridge), say.destination(network), say.drop()) for network in policy.blocked),
        _rule(say.in_from(bridge), say.family_6(), say.drop()),
        _rule(say.in_from(bridge), say.out_to(bridge), say.drop()),
        _rule(say.in_from(bridge), say.accept()),
        _rule(say.out_to(bridge), say.of_known_connection(), say.accept()),
        _rule(say.out_to(bridge), say.drop()),
        _rule(say.in_by_name_of(UPLINKS), say.of_new_connection(), say.drop()),
    )


def _output(policy: Policy) -> tuple[Rule, ...]:
    jobs = say.by_user_from(policy.uid_first)
    return tuple(_rule(jobs, say.destination(network), say.drop()) for network in policy.blocked)


def _nat(policy: Policy) -> tuple[Rule, ...]:
    outwards = say.out_not_to(policy.names.bridge_group)
    return (_rule(say.source(policy.bridge_subnet), outwards, say.masquerade()),)


def _rule(*parts: Part) -> Rule:
    return Rule(parts)
