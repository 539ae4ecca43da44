"""PersistService on its unix socket: one short method for each RPC.

Who may ask at all is said by the mode of the socket: api, and operators of the group. Not here: how logs are read
(queries.py), what is kept (the modules of retention).
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import structlog

from common.errors import JobletError, Reason
from common.identifiers import parse_job_id
from proto.joblet.v1 import node_pb2
from proto.joblet.v1 import persist_pb2 as pb
from proto.joblet.v1.persist_pb2_grpc import PersistServiceServicer
from services.persist import metrics, selection
from services.persist.audit_reader import AuditQueries
from services.persist.ingest import Ingest
from services.persist.keeping import Keeper, Told
from services.persist.queries import LogQueries
from services.persist.samples import Samples
from services.persist.status import refuse
from services.persist.store import Store

log = structlog.get_logger(__name__)

REQUEST_BYTES_MAX: Final = 64 * 1024
NOTE_TRAILER: Final = "joblet-note"
INGEST_COUNTERS: Final = (
    "entries_repeated",
    "entries_missing",
    "records_corrupt",
    "messages_refused",
    "flushes_failed",
    "resends_asked",
)
KEEPER_COUNTERS: Final = ("jobs_removed", "bytes_removed")
"""What is counted, told also while it is 0: docs/operations.md."""

T = TypeVar("T")
Context = Any  # grpc.aio.ServicerContext[request, response]; the generated stubs ask for more than aio gives


class PersistServer(PersistServiceServicer):
    """Answers from the store."""

    def __init__(
        self,
        *,
        store: Store,
        samples: Samples,
        queries: LogQueries,
        ingest: Ingest,
        keeper: Keeper,
        pool: ThreadPoolExecutor,
        audit: AuditQueries,
    ) -> None:
        self._audit = audit
        self._store = store
        self._samples = samples
        self._queries = queries
        self._ingest = ingest
        self._keeper = keeper
        self._pool = pool

    async def QueryLogs(self, request: pb.LogQueryRequest, context: Context) -> AsyncIterator[pb.LogLine]:  # noqa: N802
        """See persist.proto."""
        try:
            async for message in self._queries.lines(request):
                yield message
        except (JobletError, OSError) as cause:
            await refuse(context, _as_error(cause))

    async def QueryLogBatches(  # noqa: N802
        self, request: pb.LogBatchQueryRequest, context: Context
    ) -> AsyncIterator[pb.LogBatches]:
        """See persist.proto."""
        try:
            async for message in self._queries.batches(request):
                yield message
        except (JobletError, OSError) as cause:
            await refuse(context, _as_error(cause))

    async def QueryMetrics(self, request: pb.MetricQueryRequest, context: Context) -> AsyncIterator[pb.Metric]:  # noqa: N802
        """See persist.proto."""
        try:
            wanted = selection.of_metrics(request)
            await self._in_pool(self._samples.flush, wanted.job)
            steps = metrics.read(self._store, wanted)
            while (step := await self._in_pool(next, steps, None)) is not None:
                for message in step:
                    yield message
        except (JobletError, OSError) as cause:
            await refuse(context, _as_error(cause))

    async def DeleteJobData(self, request: pb.DeleteJobDataRequest, context: Context) -> pb.DeleteJobDataResponse:  # noqa: N802
        """See persist.proto."""
        try:
            job = parse_job_id(request.job_id)
            self._samples.forget(job)
            log_bytes, metric_bytes = await self._in_pool(self._store.delete, job)
        except (JobletError, OSError) as cause:
            await refuse(context, _as_error(cause))
        self._ingest.deleted(job)
        log.info("job data deleted", job=job, log_bytes=log_bytes, metric_bytes=metric_bytes)
        return pb.DeleteJobDataResponse(log_bytes=log_bytes, metric_bytes=metric_bytes)

    async def ApplyRetention(  # noqa: N802
        self, request: pb.ApplyRetentionRequest, context: Context
    ) -> AsyncIterator[pb.Removal]:
        """See persist.proto. What does not fit into a removal is told by the trailer NOTE_TRAILER."""
        try:
            async with contextlib.aclosing(self._keeper.apply(dry_run=request.dry_run)) as removals:
                async for told in removals:
                    yield _removal(told)
        except (JobletError, OSError) as cause:
            await refuse(context, _as_error(cause))
        if self._keeper.note:
            context.set_trailing_metadata(((NOTE_TRAILER, self._keeper.note),))

    async def QueryAudit(  # noqa: N802
        self, request: node_pb2.QueryAuditRequest, context: Context
    ) -> AsyncIterator[node_pb2.QueryAuditResponse]:
        """See persist.proto."""
        try:
            async with contextlib.aclosing(self._audit.messages(request)) as messages:
                async for message in messages:
                    yield message
        except (JobletError, OSError) as cause:
            await refuse(context, _as_error(cause))

    async def GetStore(self, request: pb.GetStoreRequest, context: Context) -> pb.StoreInfo:  # noqa: N802, ARG002
        """See persist.proto."""
        facts, kept = self._keeper.facts, self._keeper.counts
        counters = {name: self._ingest.counts[name] for name in INGEST_COUNTERS}
        return pb.StoreInfo(
            jobs=facts.jobs,
            log_bytes=facts.log_bytes,
            metric_bytes=facts.metric_bytes,
            free_bytes=facts.free_bytes,
            measured_at=facts.measured_at_ns,
            counters=counters
            | {"members_damaged": self._store.members_damaged}
            | {name: kept[name] for name in KEEPER_COUNTERS},
        )

    async def _in_pool(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)


def _removal(told: Told) -> pb.Removal:
    removal = told.removal
    return pb.Removal(
        job_id=removal.job,
        owner=removal.owner,
        ended_at=removal.ended_at_ns,
        bytes=removal.size_bytes,
        why=removal.why,
        through_sequence=told.through,
    )


def _as_error(cause: JobletError | OSError) -> JobletError:
    if isinstance(cause, JobletError):
        return cause
    log.error("the store failed", why=str(cause))
    return JobletError(
        Reason.UNAVAILABLE,
        "stored data cannot be read now",
        detail="see the log of the persist service",
        retryable=True,
    )
