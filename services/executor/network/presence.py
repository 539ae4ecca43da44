"""What of ours is on the host, read from the kernel's own files: /sys/class/net (sysfs-class-net of the kernel's ABI).

Here: reading. Nothing else remembers which job has which interface, so a restarted executor asks here.
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from common.identifiers import JobId
from common.patience import looks
from services.executor.network.names import OWNER_BRIDGE_PREFIX, PORT_PREFIX, Names, parse_alias

INTERFACES: Final = "/sys/class/net"
PASSING_S_MAX: Final = 5.0
PASSING_POLL_S: Final = 0.001
_FORWARDING: Final = "3"  # BR_STATE_FORWARDING of linux/if_bridge.h


class Port(NamedTuple):
    """An interface of ours for a job."""

    name: str
    bridge: str  # "": it is at none
    job: JobId | None  # None: it carries no alias of ours; its making was cut short
    address: str


def ports(names: Names) -> tuple[Port, ...]:
    """All interfaces of jobs of this node."""
    found = []
    for name in _of_group(PORT_PREFIX, names.port_group):
        job, address = parse_alias(_read(name, "ifalias")) or (None, "")
        found.append(Port(name, _bridge_of(name), job, address))
    return tuple(found)


def owner_bridges(names: Names) -> tuple[str, ...]:
    """All bridges of owners of this node."""
    return tuple(_of_group(OWNER_BRIDGE_PREFIX, names.owner_group))


def exists(name: str) -> bool:
    """Whether there is an interface of this name, ours or not."""
    return Path(INTERFACES, name).exists()


def index_of(name: str) -> int:
    """The interface's number. OSError ENOENT: there is none."""
    return int(Path(INTERFACES, name, "ifindex").read_text())


def is_used(bridge: str) -> bool:
    """Whether a bridge has a port."""
    try:
        return bool(os.listdir(f"{INTERFACES}/{bridge}/brif"))  # noqa: PTH208
    except FileNotFoundError:
        return False


def wait_until_passing(port: str, bridge: str) -> None:
    """Wait until frames pass from `port` to `bridge` and on to the host. OSError ENODEV: the port has gone meanwhile.

    A carrier that appears becomes effective in a work queue of the kernel (net/core/link_watch.c): queues of the
    interfaces and the port of the bridge are opened there. What is sent before falls, and TCP tries again after 1 s.
    To read `carrier` makes newer kernels do that work at once (net/core/net-sysfs.c, carrier_show); others do it within
    milliseconds, unless they are busy. OSError ETIMEDOUT: not within PASSING_S_MAX.
    """
    number = errno.ETIMEDOUT
    for _ in looks(PASSING_S_MAX, pause_s=PASSING_POLL_S):
        if _is_up(port) and _is_up(bridge) and _read(port, "brport/state") == _FORWARDING:
            return
        if not exists(port):
            number = errno.ENODEV
            break
    raise OSError(number, f"wait for interface {port} to pass frames: {os.strerror(number)}")


def _is_up(name: str) -> bool:
    return _read(name, "carrier") == "1" and _read(name, "operstate") == "up"


def counters(name: str) -> tuple[int, int] | None:
    """Bytes that went to the job's end of the pair and came from it. None: there is no such interface."""
    try:
        return int(_statistic(name, "tx_bytes")), int(_statistic(name, "rx_bytes"))
    except OSError:  # gone: ENOENT, or EINVAL while it goes
        return None


def _statistic(name: str, which: str) -> str:
    return Path(INTERFACES, name, "statistics", which).read_text()


def _of_group(prefix: str, group: int) -> Iterator[str]:
    for name in os.listdir(INTERFACES):  # noqa: PTH208
        if name.startswith(prefix) and _read(name, "netdev_group") == str(group):
            yield name


def _bridge_of(name: str) -> str:
    try:
        return Path(INTERFACES, name, "master").readlink().name
    except OSError:
        return ""


def _read(name: str, file: str) -> str:
    """The text of a file of an interface; "" when the interface has gone."""
    try:
        return Path(INTERFACES, name, file).read_text().strip()
    except OSError:
        return ""
