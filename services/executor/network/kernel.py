"""The networks of this host: `Networks` by netlink, nftables and namespaces.

    job: eth0 ── pair ── jv… at a bridge of the host:   bridge    jb…  one a node, gateway, way out
                                                        isolated  ji…  one an owner, no address, no way out

Here: which job has what, and the order of things. Not here: what jobs share (`fabric.py`), the job's end
(`namespace.py`), the rules (`rules.py`). What exists is written on the interface itself (its alias), so that an
executor finds it after a restart, or a kill at any moment; and an interface goes with its namespace, whoever lives.
"""

import contextlib
import os
from functools import partial
from typing import Final, NamedTuple, Self

from common.config.settings import Settings
from common.errors import precondition
from common.identifiers import JobId
from common.messages.jobs import Capability, Network
from services.executor.network import links, names, presence, resolver, routing
from services.executor.network.addresses import AddressPool, parse_networks, parse_subnet
from services.executor.network.fabric import Fabric, overlapping
from services.executor.network.names import Names, names_of
from services.executor.network.namespace import configure, enter_new
from services.executor.network.netlink import ROUTE, Netlink, Request
from services.executor.network.networks import NO_NETWORK, Grant
from services.executor.network.probe import Findings, probe
from services.executor.network.rules import Policy
from services.executor.network.threads import in_new_thread

WITH_INTERFACE: Final = (Network.ISOLATED, Network.BRIDGE)
NO_SERVER: Final = "jobs can reach none of the host's name servers; set joblet.networks.dns"


class Holding(NamedTuple):
    """What a job has. `grant` is None for one that an earlier executor made, until it is asked for again."""

    mode: Network
    bridge: str
    interface: str
    grant: Grant | None


class KernelNetworks:
    """Made by `open`. `findings`: what the kernel can do."""

    def __init__(self, policy: Policy, dns: tuple[str, ...], isolated: AddressPool, findings: Findings) -> None:
        self._policy = policy
        self._names: Names = policy.names
        self._dns = dns
        self._findings = findings
        self._pools = {Network.ISOLATED: isolated, Network.BRIDGE: AddressPool(policy.bridge_subnet)}
        self._fabric = Fabric(policy)
        self._held: dict[JobId, Holding] = {}

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Read the settings, try what the kernel can do, and find what is there.

        JobletError INVALID: a setting is wrong. Blocks for some 50 ms. Changes nothing on the host.
        """
        own = settings.joblet.networks
        policy = Policy(
            names=names_of(settings.joblet.base_dir),
            bridge_subnet=parse_subnet(own.bridge_subnet, "bridge_subnet"),
            blocked=parse_networks(own.blocked, "blocked"),
            uid_first=settings.joblet.jobs.uid_first,
        )
        isolated = AddressPool(parse_subnet(own.isolated_subnet, "isolated_subnet"))
        networks = cls(policy, resolver.parse_servers(own.dns), isolated, probe(policy))
        networks._restore()
        return networks

    def unsupported(self, mode: Network) -> tuple[str, str] | None:
        """See Networks.unsupported."""
        found = self._findings
        match mode:
            case Network.NONE:
                return found.namespace
            case Network.HOST:  # without tables the blocked networks would be open to it
                return found.tables if self._policy.blocked else None
            case Network.ISOLATED:
                return found.namespace or found.links or found.tables
            case Network.BRIDGE:
                return found.namespace or found.links or found.tables or self._rival()

    def reserve(self, job: JobId, owner: str, mode: Network) -> Grant:
        """See Networks.reserve."""
        held = self._held.get(job)
        if held is not None and held.grant is not None:
            return held.grant
        address = self._pools[mode].take(job) if mode in WITH_INTERFACE else ""
        grant = self._grant(job, mode, address)
        self._held[job] = Holding(mode, self._bridge(owner, mode), grant.interface, grant)
        return grant

    def preview(self, job: JobId, owner: str, mode: Network) -> Grant:  # noqa: ARG002  # nothing shown depends on him
        """See Networks.preview."""
        return self._grant(job, mode, self._pools[mode].peek(job) if mode in WITH_INTERFACE else "")

    async def connect(self, job: JobId, owner: str, grant: Grant) -> int | None:
        """See Networks.connect."""
        try:
            if grant.mode is Network.HOST and self._policy.blocked:
                await in_new_thread(self._fabric.ensure_tables, name=f"network {job}", undo=_nothing)
            if grant.mode not in WITH_INTERFACE:
                return None
            bridge = self._bridge(owner, grant.mode)

            def undo(namespace: int) -> None:
                os.close(namespace)
                self._fabric.forget(grant.interface)

            return await in_new_thread(lambda: self._connect(job, grant, bridge), name=f"network {job}", undo=undo)
        except OSError as cause:
            raise precondition(
                f"cannot make network {grant.mode}: {cause.strerror or cause}", "see docs/networks.md, troubleshooting"
            ) from cause

    async def release(self, job: JobId) -> None:
        """See Networks.release."""
        held = self._held.pop(job, None)
        if held is None or held.mode not in WITH_INTERFACE:
            return
        try:
            await in_new_thread(lambda: self._disconnect(held), name=f"network {job}", undo=_nothing)
        finally:
            self._pools[held.mode].give_back(job)

    def counters(self, job: JobId) -> tuple[int, int] | None:
        """See Networks.counters."""
        return presence.counters(names.port_name(job))

    def present(self) -> frozenset[JobId]:
        """See Networks.present."""
        return frozenset(port.job for port in presence.ports(self._names) if port.job is not None)

    async def sweep(self, alive: frozenset[JobId]) -> None:
        """See Networks.sweep."""
        for job in self._held.keys() - alive:
            await self.release(job)
        if self._findings.links is None and self._findings.tables is None:
            await in_new_thread(lambda: self._sweep(alive), name="network sweep", undo=_nothing)

    def capabilities(self) -> tuple[Capability, ...]:
        """See Networks.capabilities."""
        return tuple(self._capability(mode) for mode in Network)

    async def close(self) -> None:
        """See Networks.close."""
        used = any(held.mode is not Network.NONE for held in self._held.values())
        if not used and self._findings.tables is None:
            await in_new_thread(self._fabric.dissolve, name="network close", undo=_nothing)

    def _restore(self) -> None:
        """Take over what an earlier executor made."""
        for port in presence.ports(self._names):
            if port.job is None:
                continue
            mode = Network.BRIDGE if port.bridge == self._names.bridge else Network.ISOLATED
            self._held[port.job] = Holding(mode, port.bridge, port.name, None)
            self._pools[mode].restore(port.job, port.address)
            self._fabric.expect(port.name, port.address)

    def _grant(self, job: JobId, mode: Network, address: str) -> Grant:
        match mode:
            case Network.NONE:
                return NO_NETWORK
            case Network.HOST:
                return Grant(mode, "", "", 0, "", resolver.read_host())
            case Network.ISOLATED:
                return Grant(mode, names.port_name(job), address, self._pools[mode].prefix, "", "")
            case Network.BRIDGE:
                pool = self._pools[mode]
                return Grant(mode, names.port_name(job), address, pool.prefix, pool.gateway, self._resolv_conf())

    def _resolv_conf(self) -> str:
        def reachable(server: resolver.Server) -> bool:
            blocked = any(server in network for network in self._policy.blocked)
            return not (server.is_loopback or blocked or resolver.is_own_address(server))

        return resolver.conf_of_bridge(resolver.read_upstream(), self._dns, reachable)

    def _bridge(self, owner: str, mode: Network) -> str:
        match mode:
            case Network.BRIDGE:
                return self._names.bridge
            case Network.ISOLATED:
                return self._names.owner_bridge(owner)
            case _:
                return ""

    def _rival(self) -> tuple[str, str] | None:
        rival = routing.overlap(routing.read_routes(), self._policy.bridge_subnet, own=self._names.bridge)
        return None if rival is None else overlapping(self._policy, rival)

    def _capability(self, mode: Network) -> Capability:
        name, refused = f"network.{mode}", self.unsupported(mode)
        if refused is not None:
            return Capability(name=name, level="missing", detail=": ".join(refused))
        if mode is Network.BRIDGE and not resolver.servers_of(self._resolv_conf()):
            return Capability(name=name, level="degraded", detail=NO_SERVER)
        return Capability(name=name, level="enforced")

    def _connect(self, job: JobId, grant: Grant, bridge: str) -> int:
        """In a thread of its own. The sockets are the host's, however far the thread goes."""
        with contextlib.ExitStack() as undo:
            undo.callback(self._fabric.forget, grant.interface)
            self._fabric.prepare(grant, bridge)
            index = presence.index_of(bridge)
            host = undo.enter_context(Netlink(ROUTE))
            namespace = enter_new()
            undo.callback(os.close, namespace)
            host.apply([self._pair(grant, index, namespace)])
            undo.callback(host.apply, [links.remove(grant.interface)])
            # Nothing can be sent before this: eth0 is down, and no process lives in the namespace.
            alias = names.alias(job, grant.address)
            host.apply([links.describe_port(grant.interface, alias=alias, isolated=grant.mode is Network.BRIDGE)])
            configure(grant)
            presence.wait_until_passing(grant.interface, bridge)
            undo.pop_all()
            host.close()
            return namespace

    def _pair(self, grant: Grant, bridge_index: int, namespace: int) -> Request:
        return links.make_pair(
            grant.interface,
            group=self._names.port_group,
            bridge_index=bridge_index,
            namespace=namespace,
            link_address=names.link_address(grant.address),
        )

    def _disconnect(self, held: Holding) -> None:
        with Netlink(ROUTE) as host:
            host.apply([links.remove(held.interface)])
        self._fabric.forget(held.interface)
        if held.mode is Network.ISOLATED:
            self._fabric.drop_owner_bridge(held.bridge, wanted=lambda: self._is_wanted(held.bridge))

    def _is_wanted(self, bridge: str) -> bool:
        return any(held.bridge == bridge for held in tuple(self._held.values()))

    def _sweep(self, alive: frozenset[JobId]) -> None:
        held = dict(self._held)
        known = {each.interface for each in held.values()}
        stale = [port.name for port in presence.ports(self._names) if port.name not in known]
        if stale:
            with Netlink(ROUTE) as host:
                host.apply([links.remove(name) for name in stale])
        for bridge in presence.owner_bridges(self._names):
            self._fabric.drop_owner_bridge(bridge, wanted=partial(self._is_wanted, bridge))
        if any(each.mode is not Network.NONE for each in held.values()):
            self._fabric.install()
        elif alive <= held.keys():  # nobody has told yet what the others have
            self._fabric.dissolve()


def _nothing(_answer: None) -> None:
    """What there is to undo of work that answers nothing."""
