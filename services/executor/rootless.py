"""What an executor without root has in place of owners' ranges and networks: its user's own id, and no network.

docs/adr/0015-rootless.md gives the reasons, docs/rootless.md tells users. Not here: the launch, which is the same plan
(`plan.py`) with an identity that has no range; and control groups, which may be delegated (`cgroups/select.py`).
"""

import os
from typing import Final

from common.errors import precondition
from common.identifiers import JobId
from common.messages.jobs import Capability, Network
from services.executor.identity import JobIdentity
from services.executor.network.networks import NO_NETWORK, Grant

REPAIR: Final = "run the node as root; without root jobs have no network but their own loopback"


def own_identity(_owner: str) -> JobIdentity:
    """Whom the jobs of every owner are on the host: whoever runs this process."""
    return JobIdentity(os.geteuid(), os.getegid(), None)


class RootlessNetworks:
    """See network.networks.Networks: mode none, which the job's init makes for itself in its user namespace."""

    def unsupported(self, mode: Network) -> tuple[str, str] | None:
        """See Networks.unsupported."""
        return None if mode is Network.NONE else (f"network {mode} needs root", REPAIR)

    def reserve(self, job: JobId, owner: str, mode: Network) -> Grant:
        """See Networks.reserve."""
        return self.preview(job, owner, mode)

    def preview(self, job: JobId, owner: str, mode: Network) -> Grant:  # noqa: ARG002  # all have the same
        """See Networks.preview."""
        refused = self.unsupported(mode)
        if refused is not None:
            raise precondition(*refused)
        return NO_NETWORK

    async def connect(self, job: JobId, owner: str, grant: Grant) -> int | None:  # noqa: ARG002  # none is made from here
        """See Networks.connect."""
        return None

    async def release(self, job: JobId) -> None:
        """See Networks.release. The namespace goes with the job."""

    def counters(self, job: JobId) -> tuple[int, int] | None:  # noqa: ARG002  # there is none
        """See Networks.counters."""
        return None

    def present(self) -> frozenset[JobId]:
        """See Networks.present."""
        return frozenset()

    async def sweep(self, alive: frozenset[JobId]) -> None:
        """See Networks.sweep."""

    def capabilities(self) -> tuple[Capability, ...]:
        """See Networks.capabilities."""
        return tuple(self._capability(mode) for mode in Network)

    async def close(self) -> None:
        """See Networks.close."""

    def _capability(self, mode: Network) -> Capability:
        refused = self.unsupported(mode)
        if refused is None:
            return Capability(name=f"network.{mode}", level="enforced")
        return Capability(name=f"network.{mode}", level="missing", detail=": ".join(refused))
