"""A job's network namespace, before the job exists. network_namespaces(7).

Every function here is for a thread of its own (`threads.py`): the first one moves the thread for good.
"""

import os

from services.executor.linux import namespaces
from services.executor.linux.network import open_all_ports
from services.executor.network import links, routing
from services.executor.network.netlink import ROUTE, Netlink
from services.executor.network.networks import Grant


def enter_new() -> int:
    """Move this thread into a new network namespace; a descriptor of it, which alone keeps it when the thread ends."""
    namespaces.unshare(namespaces.CLONE_NEWNET)
    open_all_ports()
    routing.disable_ipv6("default")  # of eth0, which does not exist yet; lo keeps ::1
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def configure(grant: Grant) -> None:
    """Bring loopback and eth0 of this thread's namespace up, with the granted address and way out."""
    requests = [
        links.bring_up(links.LOOPBACK_INDEX),
        links.bring_up(links.JOB_INDEX),
        links.add_address(links.JOB_INDEX, grant.address, grant.prefix),
    ]
    if grant.gateway:
        requests.append(links.add_default_route(grant.gateway, links.JOB_INDEX))
    with Netlink(ROUTE) as inside:
        inside.apply(requests)
