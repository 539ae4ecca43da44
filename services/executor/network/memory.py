"""The networks of tests: the same decisions as `kernel.py`, and nothing done. The contract suite runs over both."""

import ipaddress
import os
from typing import Final

from common.errors import precondition
from common.identifiers import JobId
from common.messages.jobs import Capability, Network
from services.executor.network.addresses import AddressPool
from services.executor.network.names import port_name
from services.executor.network.networks import NO_NETWORK, Grant

SUBNET: Final = ipaddress.IPv4Network("10.99.0.0/16")
RESOLV_CONF: Final = "nameserver 192.0.2.53\n"


class MemoryNetworks:
    """Networks that exist in this object only. A descriptor that it hands out is of the network of this process."""

    def __init__(self, *, subnet: ipaddress.IPv4Network = SUBNET) -> None:
        self.refused: dict[Network, tuple[str, str]] = {}
        self.broken: set[JobId] = set()
        self._pool = AddressPool(subnet)
        self._granted: dict[JobId, Grant] = {}
        self._moved: dict[JobId, tuple[int, int]] = {}

    def unsupported(self, mode: Network) -> tuple[str, str] | None:
        """See Networks.unsupported: what `refused` says."""
        return self.refused.get(mode)

    def reserve(self, job: JobId, owner: str, mode: Network) -> Grant:
        """See Networks.reserve."""
        if job not in self._granted:
            self._granted[job] = self.preview(job, owner, mode)
            if self._granted[job].address:
                self._pool.take(job)
        return self._granted[job]

    def preview(self, job: JobId, owner: str, mode: Network) -> Grant:  # noqa: ARG002  # nothing depends on him
        """See Networks.preview."""
        match mode:
            case Network.NONE:
                return NO_NETWORK
            case Network.HOST:
                return Grant(mode, "", "", 0, "", RESOLV_CONF)
            case Network.ISOLATED:
                return Grant(mode, port_name(job), self._pool.peek(job), self._pool.prefix, "", "")
            case Network.BRIDGE:
                pool = self._pool
                return Grant(mode, port_name(job), pool.peek(job), pool.prefix, pool.gateway, RESOLV_CONF)

    async def connect(self, job: JobId, owner: str, grant: Grant) -> int | None:  # noqa: ARG002  # the same for all
        """See Networks.connect. JobletError PRECONDITION for a job in `broken`."""
        if job in self.broken:
            raise precondition(f"cannot make network {grant.mode}: make interface {grant.interface}: File exists")
        if not grant.interface:
            return None
        self._moved[job] = (0, 0)
        return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    async def release(self, job: JobId) -> None:
        """See Networks.release."""
        self._granted.pop(job, None)
        self._moved.pop(job, None)
        self._pool.give_back(job)

    def counters(self, job: JobId) -> tuple[int, int] | None:
        """See Networks.counters: what `move` was told."""
        return self._moved.get(job)

    def present(self) -> frozenset[JobId]:
        """See Networks.present."""
        return frozenset(self._moved)

    async def sweep(self, alive: frozenset[JobId]) -> None:
        """See Networks.sweep."""
        for job in (self._granted.keys() | self._moved.keys()) - alive:
            await self.release(job)

    def capabilities(self) -> tuple[Capability, ...]:
        """See Networks.capabilities."""
        return tuple(
            Capability(name=f"network.{mode}", level="missing", detail=": ".join(self.refused[mode]))
            if mode in self.refused
            else Capability(name=f"network.{mode}", level="enforced")
            for mode in Network
        )

    async def close(self) -> None:
        """See Networks.close."""

    def move(self, job: JobId, received: int, sent: int) -> None:
        """A connected job has received and sent this many bytes in all."""
        self._moved[job] = (received, sent)
