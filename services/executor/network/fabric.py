"""What the jobs of a node share on the host: tables, bridges, forwarding. Blocking; safe from any thread.

    first job with a network       both tables
    first job of mode bridge       + the node's bridge with the gateway's address, forwarding of it and of the uplinks
    first job of an owner's        + the owner's bridge, which goes with the owner's last job
    mode isolated
    dissolve                       all of it is undone

Here: making these once, and again when somebody removed them (a firewall that is reloaded flushes all tables). Not
here: what belongs to one job (`kernel.py`).
"""

import threading
from collections.abc import Callable

from common.errors import precondition
from common.messages.jobs import Network
from services.executor.network import expressions, links, nftables, presence, routing, rules
from services.executor.network.names import link_address
from services.executor.network.netlink import NETFILTER, ROUTE, Netlink
from services.executor.network.networks import Grant
from services.executor.network.rules import Policy


class Fabric:
    """`policy`: what the rules are made from. Nothing is done to the host before the first call."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._names = policy.names
        self._senders_set = nftables.Place(rules.BRIDGE, policy.names.table, rules.SENDERS)
        self._uplinks_set = nftables.Place(rules.INET, policy.names.table, rules.UPLINKS)
        self._lock = threading.Lock()
        self._senders: dict[str, bytes] = {}
        self._uplinks: set[str] = set()
        self._installed = False
        self._bridge_ready = False

    def expect(self, port: str, address: str) -> None:
        """A port that is there already: the tables will know it when they are made anew."""
        self._senders[port] = expressions.sender_key(port, link_address(address), address)

    def prepare(self, grant: Grant, bridge: str) -> None:
        """Everything that the port of `grant` at `bridge` needs on the host. JobletError or OSError: it cannot be."""
        with self._lock, Netlink(NETFILTER) as tables, Netlink(ROUTE) as interfaces:
            self.expect(grant.interface, grant.address)
            self._admit(tables, grant.interface)
            if grant.mode is Network.BRIDGE:
                self._make_node_bridge(interfaces)
                self._open_uplinks(tables)
            elif not presence.exists(bridge):
                self._make_bridge(interfaces, bridge, self._names.owner_group)

    def install(self) -> None:
        """The tables, made anew with all ports that are expected. OSError: the kernel refuses."""
        with self._lock, Netlink(NETFILTER) as tables:
            self._install(tables)

    def ensure_tables(self) -> None:
        """The tables, for a job that has no port."""
        with self._lock, Netlink(NETFILTER) as tables:
            if not self._installed or self._inherited_uplinks(tables) is None:
                self._install(tables)

    def forget(self, port: str) -> None:
        """The tables know `port` no longer."""
        with self._lock:
            key = self._senders.pop(port, None)
            if key is None or not self._installed:
                return
            with Netlink(NETFILTER) as tables:
                tables.apply(nftables.remove_key(self._senders_set, key))

    def drop_owner_bridge(self, bridge: str, *, wanted: Callable[[], bool]) -> None:
        """Remove an owner's bridge that has no port, unless it is `wanted` for one that is to come."""
        with self._lock:
            if not wanted() and presence.exists(bridge) and not presence.is_used(bridge):
                with Netlink(ROUTE) as interfaces:
                    interfaces.apply([links.remove(bridge)])

    def dissolve(self) -> None:
        """Undo everything. For when no job uses any of it."""
        with self._lock:
            with Netlink(NETFILTER) as tables:
                uplinks = self._inherited_uplinks(tables)
                for uplink in self._uplinks | (uplinks or set()):
                    routing.set_forwarding(uplink, on=False)
                if uplinks is not None:
                    tables.apply(nftables.remove(self._tables()))
            bridges = [
                name for name in (self._names.bridge, *presence.owner_bridges(self._names)) if presence.exists(name)
            ]
            if bridges:
                with Netlink(ROUTE) as interfaces:
                    interfaces.apply([links.remove(bridge) for bridge in bridges])
            self._uplinks.clear()
            self._senders.clear()
            self._installed = self._bridge_ready = False

    def _admit(self, tables: Netlink, port: str) -> None:
        if self._installed:
            try:
                tables.apply(nftables.add_key(self._senders_set, self._senders[port]))
            except FileNotFoundError:  # flushed by somebody
                self._installed = False
            else:
                return
        self._install(tables)

    def _install(self, tables: Netlink) -> None:
        self._uplinks |= self._inherited_uplinks(tables) or set()
        tables.apply(nftables.install(self._tables()))
        self._installed = True

    def _tables(self) -> tuple[rules.Table, ...]:
        senders, uplinks = tuple(self._senders.values()), tuple(sorted(self._uplinks))
        return rules.tables(self._policy, senders=senders, uplinks=uplinks)

    def _inherited_uplinks(self, tables: Netlink) -> set[str] | None:
        """Interfaces that an earlier executor made forward, out of its table. None: there is no table."""
        try:
            answer = tables.dump(nftables.list_keys(self._uplinks_set))
        except FileNotFoundError:
            return None
        return {key.rstrip(b"\0").decode() for message in answer for key in nftables.parse_keys(message)}

    def _make_node_bridge(self, interfaces: Netlink) -> None:
        name, subnet = self._names.bridge, self._policy.bridge_subnet
        if self._bridge_ready and presence.exists(name):
            return
        rival = routing.overlap(routing.read_routes(), subnet, own=name)
        if rival is not None:
            raise precondition(*overlapping(self._policy, rival))
        self._make_bridge(interfaces, name, self._names.bridge_group)
        gateway = str(subnet.network_address + 1)
        interfaces.apply([links.add_address(presence.index_of(name), gateway, subnet.prefixlen)])
        routing.set_forwarding(name, on=True)
        self._bridge_ready = True

    def _make_bridge(self, interfaces: Netlink, name: str, group: int) -> None:
        address = b"\x06J" + int.to_bytes(group, 4, "big")
        interfaces.apply([links.make_bridge(name, group=group, link_address=address)])
        routing.disable_ipv6(name)

    def _open_uplinks(self, tables: Netlink) -> None:
        """Let the interfaces to the outside pass packets on, for our bridge only (chain forward, the last rule).

        On a host that forwards anyway nothing is set, and nothing held back that it would pass on.
        """
        if routing.forwards("all"):
            for uplink in self._uplinks:
                tables.apply(nftables.remove_key(self._uplinks_set, expressions.interface_key(uplink)))
            self._uplinks.clear()
            return
        for uplink in routing.uplinks(routing.read_routes()):
            if uplink not in self._uplinks and not routing.forwards(uplink):
                key = expressions.interface_key(uplink)
                tables.apply(nftables.add_key(self._uplinks_set, key))
                self._uplinks.add(uplink)
                routing.set_forwarding(uplink, on=True)


def overlapping(policy: Policy, rival: routing.Route) -> tuple[str, str]:
    """What is wrong when the host itself uses addresses of the subnet, and the repair."""
    return (
        f"the network {policy.bridge_subnet} of mode bridge overlaps with {rival.network} at {rival.interface}",
        "set joblet.networks.bridge_subnet to a network that this host does not use",
    )
