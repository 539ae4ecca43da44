"""Whether the section `joblet.networks` makes sense: addresses that are addresses, and pools that do not overlap.

Not here: which addresses jobs get, and whether the host can make networks (the executor).
"""

from ipaddress import IPv4Address, IPv4Network, ip_network
from typing import Final

from common.config.settings import Networks
from common.errors import invalid

SUBNET_PREFIX_MIN: Final = 8
SUBNET_PREFIX_MAX: Final = 29


def check_networks(networks: Networks) -> None:
    """Raises INVALID with the key."""
    bridge = _subnet("joblet.networks.bridge_subnet", networks.bridge_subnet)
    isolated = _subnet("joblet.networks.isolated_subnet", networks.isolated_subnet)
    if bridge.overlaps(isolated):
        raise invalid(f"joblet.networks.isolated_subnet is {isolated}", f"it overlaps bridge_subnet, {bridge}")
    for server in networks.dns:
        try:
            IPv4Address(server)
        except ValueError as cause:
            raise invalid(f"joblet.networks.dns has {server[:80]!r}", "expected: IPv4 addresses") from cause
    for blocked in networks.blocked:
        try:
            ip_network(blocked)
        except ValueError as cause:
            raise invalid(
                f"joblet.networks.blocked has {blocked[:80]!r}", "expected: such as 169.254.0.0/16"
            ) from cause


def _subnet(name: str, text: str) -> IPv4Network:
    try:
        subnet = IPv4Network(text)
    except ValueError as cause:
        raise invalid(f"{name} is {text[:80]!r}", "expected: an IPv4 network, such as 10.88.0.0/16") from cause
    if not SUBNET_PREFIX_MIN <= subnet.prefixlen <= SUBNET_PREFIX_MAX:
        raise invalid(f"{name} is {text}", f"expected: a prefix of {SUBNET_PREFIX_MIN} to {SUBNET_PREFIX_MAX} bits")
    return subnet
