"""The host's routes, read from the kernel's text."""

import ipaddress

import pytest

from services.executor.network import routing

# Of a little-endian machine, as all are that joblet runs on.
ROUTES = """Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
eth0	00000000	010200C0	0003	0	0	0	00000000	0	0	0
wg0	00000000	00000000	0001	0	0	50	00000000	0	0	0
eth0	00000000	010200C0	0003	0	0	9	00000000	0	0	0
eth0	000200C0	00000000	0001	0	0	0	00FFFFFF	0	0	0
podman0	0000580A	00000000	0001	0	0	0	0000FFFF	0	0	0
"""


def test_routes_are_parsed() -> None:
    """Interfaces with a default route are told once each."""
    routes = routing.parse_routes(ROUTES)
    assert routes[3] == routing.Route("eth0", ipaddress.IPv4Network("192.0.2.0/24"))
    assert routing.uplinks(routes) == ("eth0", "wg0")
    assert routing.parse_routes(ROUTES.splitlines()[0]) == ()


@pytest.mark.parametrize(
    ("subnet", "rival"),
    [("10.88.0.0/16", "podman0"), ("10.88.7.0/24", "podman0"), ("10.0.0.0/8", "podman0"), ("10.90.0.0/16", None)],
)
def test_an_overlap_is_found(subnet: str, rival: str | None) -> None:
    """Whichever of the two is larger; the default route is none, nor is what the bridge itself has."""
    routes = routing.parse_routes(ROUTES)
    found = routing.overlap(routes, ipaddress.IPv4Network(subnet), own="jb0")
    assert (found and found.interface) == rival
    assert routing.overlap(routes, ipaddress.IPv4Network("10.88.0.0/16"), own="podman0") is None
