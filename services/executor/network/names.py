"""Names and numbers that mark what is ours on the host. Pure.

Two nodes may share a host (two base directories) and neither may touch what is the other's, so all of them come from a
hash of the base directory. Interfaces are told apart by their group (`ip link show group N`): rules match it in every
family, whatever a bridge or port is called. Names of interfaces have at most 15 characters (IFNAMSIZ, linux/if.h).
"""

import hashlib
import ipaddress
import re
from pathlib import Path
from typing import Final, NamedTuple

from common.errors import JobletError
from common.identifiers import JobId, parse_job_id

PORT_PREFIX: Final = "jv"
NODE_BRIDGE_PREFIX: Final = "jb"
OWNER_BRIDGE_PREFIX: Final = "ji"

_ALIAS: Final = re.compile(r"joblet (\S{36}) ([0-9.]{7,15})")
_LOCALLY_ADMINISTERED: Final = b"\x06j"
"""First bytes of our link-layer addresses; the IPv4 address follows, so that an address never changes its partner."""


class Names(NamedTuple):
    """What one node uses on its host."""

    base: str  # the base directory, resolved
    table: str  # of nftables, in the families inet and bridge
    bridge: str  # shared by all jobs of mode bridge
    port_group: int  # of every job's interface
    bridge_group: int  # of `bridge`
    owner_group: int  # of every owner's bridge

    def owner_bridge(self, owner: str) -> str:
        """The bridge of the jobs of `owner` in mode isolated."""
        return OWNER_BRIDGE_PREFIX + hashlib.sha256(f"{self.base}\0{owner}".encode()).hexdigest()[:12]


def names_of(base_dir: str) -> Names:
    """The names of the node with this base directory."""
    base = str(Path(base_dir).resolve())
    digest = hashlib.sha256(base.encode(errors="surrogateescape")).hexdigest()
    group = int(digest[:7], 16) << 2  # at most 30 bits; 0 is the group of everything that has none
    return Names(
        base=base,
        table=f"joblet_{digest[:8]}",
        bridge=NODE_BRIDGE_PREFIX + digest[:8],
        port_group=group | 1,
        bridge_group=group | 2,
        owner_group=group | 3,
    )


def port_name(job: JobId) -> str:
    """The host's end of the pair whose other end is the job's eth0."""
    return PORT_PREFIX + job.replace("-", "")[:12]


def alias(job: JobId, address: str) -> str:
    """What a port carries, so that nothing else need remember it (ip-link(8), `alias`)."""
    return f"joblet {job} {address}"


def parse_alias(text: str) -> tuple[JobId, str] | None:
    """Job and address out of what `alias` made. None: it is not ours."""
    match = _ALIAS.fullmatch(text)
    if match is None:
        return None
    try:
        return parse_job_id(match[1]), str(ipaddress.IPv4Address(match[2]))
    except (JobletError, ipaddress.AddressValueError):
        return None


def link_address(address: str) -> bytes:
    """The link-layer address that goes with an IPv4 address, 6 bytes.

    A neighbour that remembers the last holder of the address is right about the next one, too.
    """
    return _LOCALLY_ADMINISTERED + ipaddress.IPv4Address(address).packed
