"""NodeService: what this node is and can do, and its audit log."""
# ruff: noqa: N802, ARG002  # names and arguments of the methods are those of the generated classes

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Final

from common.bus.requests import Requester
from common.errors import JobletError
from common.expiry import Expiry
from common.messages import jobs
from proto.joblet.v1 import node_pb2, node_pb2_grpc
from services.api.audit_reader import AuditQueries
from services.api.calls import Context, current
from services.api.convert import node_to_proto
from services.api.history import History
from services.api.requests import PAGE_SIZE_MAX

STORE_WAIT_S: Final = 1.0
"""How long persist may take to tell its counters; the node is told without them then."""


class NodeService(node_pb2_grpc.NodeServiceServicer):
    """What the node is and can do, and what its services counted.

    `counters`: those of this process; `certificates`: when those of the server and its authorities end.
    """

    def __init__(
        self,
        executor: Requester,
        history: History,
        *,
        counters: Callable[[], Mapping[str, int]],
        certificates: Callable[[], tuple[Expiry, ...]],
        audit: AuditQueries,
    ) -> None:
        self._audit = audit
        self._executor = executor
        self._history = history
        self._counters = counters
        self._certificates = certificates

    async def GetInfo(self, request: node_pb2.GetInfoRequest, context: Context) -> node_pb2.NodeInfo:
        """The node. Who sees only his own jobs gets the number of his own, and neither counters nor certificates."""
        owner = current().visible_owner
        counters: dict[str, int] = {}
        certificates: tuple[Expiry, ...] = ()
        if owner is None:
            facts, stored = await asyncio.gather(
                self._executor.request(jobs.GetNode(), jobs.NodeFacts), self._counted_by_persist()
            )
            running, queued = facts.running_jobs, facts.queued_jobs
            for service, counted in (("executor", facts.counters), ("persist", stored), ("api", self._counters())):
                counters |= {f"{service}.{name}": count for name, count in counted.items()}
            certificates = self._certificates()
        else:
            facts = await self._executor.request(jobs.GetNode(), jobs.NodeFacts)
            running = await self._count(owner, jobs.State.RUNNING)
            queued = await self._count(owner, jobs.State.PENDING)
        return node_to_proto(
            facts, running_jobs=running, queued_jobs=queued, counters=counters, certificates=certificates
        )

    async def _count(self, owner: str, state: jobs.State) -> int:
        """How many jobs of `owner` are in `state`, up to a page of them."""
        asked = jobs.ListJobs(visible_owner=owner, states=(state,), page_size=PAGE_SIZE_MAX)
        return len((await self._executor.request(asked, jobs.JobPage)).jobs)

    async def QueryAudit(  # type: ignore[override]  # a generator; those of persist pass as bytes: see gate.py
        self,
        request: node_pb2.QueryAuditRequest,
        context: Context,
    ) -> AsyncGenerator[bytes | node_pb2.QueryAuditResponse, None]:
        """Lines of the audit log."""
        return self._audit.open(request)

    async def _counted_by_persist(self) -> Mapping[str, int]:
        try:
            return (await self._history.store(timeout_s=STORE_WAIT_S)).counters
        except JobletError:
            return {}  # it is away, or an older one: the rest is told all the same
