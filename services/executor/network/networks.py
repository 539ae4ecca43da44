"""What the executor wants of networks: decide one for a job, connect it, count it, take it away.

Here: the values and the interface. Not here: the kernel's side of it (`kernel.py`), the one of tests (`memory.py`), who
may ask for which mode, or how a job's init joins its network (the launcher). docs/networks.md tells users what each
mode gives, docs/adr/0014-networks.md why it is done so.
"""

from typing import NamedTuple, Protocol, assert_never

from common.identifiers import JobId
from common.messages.jobs import Capability, Network


class Grant(NamedTuple):
    """A decided network of a job. Values only; nothing of it exists yet."""

    mode: Network
    interface: str  # on the host, of the pair whose other end is the job's eth0; "" for none and host
    address: str  # of the job, IPv4; "" for none and host
    prefix: int  # bits of the network that the address is in; 0 for none and host
    gateway: str  # "" where there is no way out
    resolv_conf: str  # content of the job's /etc/resolv.conf

    def describe(self) -> tuple[str, ...]:
        """What will be done, one line a step."""
        match self.mode:
            case Network.NONE:
                return ("make a network namespace with loopback only",)
            case Network.HOST:
                return ("keep the network namespace of the host",)
            case Network.ISOLATED:
                return (*self._pair(), "connect it to the bridge of the owner's jobs, which has no way out")
            case Network.BRIDGE:
                return (*self._pair(), f"connect it to the bridge of the node, with {self.gateway} as the way out")
            case _:
                assert_never(self.mode)

    def _pair(self) -> tuple[str, ...]:
        return (f"make a network namespace with eth0 {self.address}/{self.prefix}, on the host {self.interface}",)


NO_NETWORK = Grant(Network.NONE, "", "", 0, "", "")


class Networks(Protocol):
    """The networks of all jobs on this host that belong to one base directory."""

    def unsupported(self, mode: Network) -> tuple[str, str] | None:
        """What this host cannot do for `mode`, and the repair. None: it can."""

    def reserve(self, job: JobId, owner: str, mode: Network) -> Grant:
        """The network that `job` gets; the same one however often it is asked for, until it is released.

        To be called for every living job when the executor starts, before `sweep`. JobletError EXHAUSTED: every
        address is in use.
        """

    def preview(self, job: JobId, owner: str, mode: Network) -> Grant:
        """What `reserve` would answer now, without taking an address."""

    async def connect(self, job: JobId, owner: str, grant: Grant) -> int | None:
        """Make what was granted. A descriptor of the job's network namespace, which the caller closes.

        None for the modes none and host, which need no namespace from here. When the last descriptor and the last
        process of the namespace are gone, the kernel removes it and its interface. JobletError PRECONDITION: the
        kernel refused, and nothing is left of the attempt but the reservation.
        """

    async def release(self, job: JobId) -> None:
        """Give the address back and remove what is left of the job's network. Nothing when there is none.

        OSError: the kernel refused; `sweep` finds what is left.
        """

    def counters(self, job: JobId) -> tuple[int, int] | None:
        """Bytes that the job received and sent. None: it has no interface on this host (any more)."""

    def present(self) -> frozenset[JobId]:
        """Jobs that have an interface on this host."""

    async def sweep(self, alive: frozenset[JobId]) -> None:
        """Release all jobs but those `alive`, and remove what belongs to no job."""

    def capabilities(self) -> tuple[Capability, ...]:
        """What this host can do, one capability a mode."""

    async def close(self) -> None:
        """Undo what was set on the host, unless a living job still needs it. Nothing may be called afterwards."""
