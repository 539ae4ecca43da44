"""Which addresses jobs have, and which one is next. Pure.

Addresses are given in turn, not lowest first: a new job should not receive what was meant for one that has just ended.
"""

import ipaddress
from typing import Final

from common.errors import exhausted, invalid
from common.identifiers import JobId

PREFIX_MAX: Final = 30
"""A network smaller than this has no room for a gateway and a job."""


class AddressPool:
    """The host addresses of `subnet` but the first, which is the gateway's."""

    def __init__(self, subnet: ipaddress.IPv4Network) -> None:
        self._subnet = subnet
        self._first = int(subnet.network_address) + 2
        self._last = int(subnet.broadcast_address) - 1
        self._next = self._first
        self._taken: dict[JobId, int] = {}
        self._used: set[int] = set()

    @property
    def prefix(self) -> int:
        """Bits of the subnet."""
        return self._subnet.prefixlen

    @property
    def gateway(self) -> str:
        """The first address."""
        return str(self._subnet.network_address + 1)

    def take(self, job: JobId) -> str:
        """The address of `job`, from now on or since it was first taken. JobletError EXHAUSTED: none is free."""
        number = self._find(job)
        self._keep(job, number)
        self._next = number + 1
        return str(ipaddress.IPv4Address(number))

    def peek(self, job: JobId) -> str:
        """What `take` would answer, without taking it."""
        return str(ipaddress.IPv4Address(self._find(job)))

    def restore(self, job: JobId, address: str) -> None:
        """`job` has this address already. Ignored when it is none of this pool's, as after a change of the settings."""
        number = int(ipaddress.IPv4Address(address))
        if self._first <= number <= self._last and number not in self._used:
            self._keep(job, number)
            self._next = max(self._next, number + 1)

    def give_back(self, job: JobId) -> None:
        """The address of `job` is free. Nothing when it has none."""
        self._used.discard(self._taken.pop(job, 0))

    def _keep(self, job: JobId, number: int) -> None:
        self._taken[job] = number
        self._used.add(number)

    def _find(self, job: JobId) -> int:
        if job in self._taken:
            return self._taken[job]
        size = self._last - self._first + 1
        if len(self._used) >= size:
            raise exhausted(
                f"all {size} addresses of the network {self._subnet} are in use",
                "wait until a job has ended, or give the network a larger subnet in joblet.networks",
            )
        start = self._next - self._first
        candidates = (self._first + (start + step) % size for step in range(len(self._used) + 1))
        return next(number for number in candidates if number not in self._used)


def parse_subnet(text: str, setting: str) -> ipaddress.IPv4Network:
    """The network that a setting names. JobletError INVALID, naming the setting."""
    try:
        subnet = ipaddress.IPv4Network(text)
    except ValueError as cause:
        raise invalid(f"joblet.networks.{setting}: {cause}", "use an IPv4 network such as 10.88.0.0/16") from cause
    if subnet.prefixlen > PREFIX_MAX:
        raise invalid(f"joblet.networks.{setting}: {text} has no room for a job", f"use /{PREFIX_MAX} or larger")
    return subnet


def parse_networks(texts: tuple[str, ...], setting: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    """The networks that a setting lists, of both families. JobletError INVALID, naming the setting."""
    try:
        return tuple(ipaddress.ip_network(text) for text in texts)
    except ValueError as cause:
        raise invalid(f"joblet.networks.{setting}: {cause}", "use networks such as 169.254.0.0/16") from cause
