"""What this kernel can do for networks, found by doing it in a network namespace that goes with the thread."""

import errno
import os
from collections.abc import Callable
from typing import Final, NamedTuple

from services.executor.linux import namespaces
from services.executor.network import links, nftables, rules
from services.executor.network.netlink import NETFILTER, ROUTE, Netlink
from services.executor.network.rules import Policy
from services.executor.network.threads import in_own_thread

_FIRST_INDEX: Final = 2  # behind loopback
_PERMISSION: Final = frozenset({errno.EPERM, errno.EACCES})


class Findings(NamedTuple):
    """For each part, what fails and the repair; None where nothing does."""

    namespace: tuple[str, str] | None
    links: tuple[str, str] | None
    tables: tuple[str, str] | None


def probe(policy: Policy) -> Findings:
    """Try everything. Nothing of it is left, and nothing of it is on the host's own network."""
    return in_own_thread(lambda: _try_all(policy))


def _try_all(policy: Policy) -> Findings:
    lacking = _failure("network namespaces", "CONFIG_NET_NS", _new_namespace)
    if lacking:
        return Findings(lacking, lacking, lacking)
    return Findings(
        namespace=None,
        links=_failure("bridges and pairs of interfaces", "bridge and veth", lambda: _try_links(policy)),
        tables=_failure("nftables", "nf_tables, nft_masq, nft_ct and nf_tables_bridge", lambda: _try_tables(policy)),
    )


def _new_namespace() -> None:
    namespaces.unshare(namespaces.CLONE_NEWNET)


def _try_links(policy: Policy) -> None:
    """A pair between two namespaces, one end at a bridge, as a job's."""
    names = policy.names
    job = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _new_namespace()
        with Netlink(ROUTE) as interfaces:
            address = bytes.fromhex("060000000001")
            interfaces.apply([links.make_bridge(names.bridge, group=names.bridge_group, link_address=address)])
            interfaces.apply(
                [
                    links.make_pair(
                        "jv", group=names.port_group, bridge_index=_FIRST_INDEX, namespace=job, link_address=address
                    ),
                    links.describe_port("jv", alias="probe", isolated=True),
                ]
            )
    finally:
        os.close(job)


def _try_tables(policy: Policy) -> None:
    with Netlink(NETFILTER) as tables:
        tables.apply(nftables.install(rules.tables(policy, senders=(), uplinks=())))


def _failure(what: str, parts: str, attempt: Callable[[], None]) -> tuple[str, str] | None:
    try:
        attempt()
    except OSError as cause:
        text = f"{what} do not work here: {cause.strerror or cause}"
        if cause.errno in _PERMISSION:
            return text, "run the executor as root, with CAP_NET_ADMIN and CAP_SYS_ADMIN"
        return text, f"use a kernel with {parts}"
    return None
