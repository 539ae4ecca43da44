"""PersistService on the public port: the caller may see the job, so persist is asked for him.

Belongs here: checking access and naming the job in full; answers pass through as bytes. What the queries mean is
persist's.
"""
# ruff: noqa: N802, ARG002  # names and arguments of the methods are those of the generated classes

from collections.abc import AsyncGenerator

from common.errors import invalid
from common.quantities import request_time_ns
from proto.joblet.v1 import node_pb2, persist_pb2, persist_pb2_grpc
from services.api.access import Access
from services.api.calls import Context
from services.api.history import UNTAKEN_S_MAX, History
from services.api.job_service import require_ended


class PersistService(persist_pb2_grpc.PersistServiceServicer):
    """The methods of proto/joblet/v1/persist.proto (requirement S0.8)."""

    def __init__(self, *, access: Access, history: History) -> None:
        self._access = access
        self._history = history

    async def QueryLogs(  # type: ignore[override]  # a generator of serialized messages: see gate.py
        self,
        request: persist_pb2.LogQueryRequest,
        context: Context,
    ) -> AsyncGenerator[bytes, None]:
        """Stored lines."""
        _check(request)
        request.job_id = (await self._access.job(request.job_id)).id
        return self._history.raw("QueryLogs", request, untaken_s=UNTAKEN_S_MAX)

    async def QueryLogBatches(  # type: ignore[override]  # as above
        self,
        request: persist_pb2.LogBatchQueryRequest,
        context: Context,
    ) -> AsyncGenerator[bytes, None]:
        """Stored lines in bulk. Without `wait`, which is for this service's own reading: see `_check_batches`."""
        _check_batches(request)
        _check(request.query)
        request.query.job_id = (await self._access.job(request.query.job_id)).id
        return self._history.raw("QueryLogBatches", request, untaken_s=UNTAKEN_S_MAX)

    async def QueryMetrics(  # type: ignore[override]  # as above
        self,
        request: persist_pb2.MetricQueryRequest,
        context: Context,
    ) -> AsyncGenerator[bytes, None]:
        """Stored samples."""
        _check(request)
        request.job_id = (await self._access.job(request.job_id)).id
        return self._history.raw("QueryMetrics", request, untaken_s=UNTAKEN_S_MAX)

    async def DeleteJobData(
        self,
        request: persist_pb2.DeleteJobDataRequest,
        context: Context,
    ) -> persist_pb2.DeleteJobDataResponse:
        """Remove what is stored of an ended job; its record stays."""
        record = await self._access.job(request.job_id)
        require_ended(record)
        return await self._history.delete(record.id)

    async def ApplyRetention(  # type: ignore[override]  # as above
        self,
        request: persist_pb2.ApplyRetentionRequest,
        context: Context,
    ) -> AsyncGenerator[bytes, None]:
        """Retention, now."""
        return self._history.raw("ApplyRetention", request)

    async def QueryAudit(  # type: ignore[override]  # as above
        self,
        request: node_pb2.QueryAuditRequest,
        context: Context,
    ) -> AsyncGenerator[bytes, None]:
        """The audit log of persist."""
        return self._history.raw("QueryAudit", request, untaken_s=UNTAKEN_S_MAX)

    async def GetStore(self, request: persist_pb2.GetStoreRequest, context: Context) -> persist_pb2.StoreInfo:
        """How much is stored."""
        return await self._history.store()


def _check_batches(request: persist_pb2.LogBatchQueryRequest) -> None:
    # Persist has a bounded number of queries (`persist.server.max_connections`), and one that waits for a job's next
    # line holds its place for ever: a few connections of one caller would keep everybody from the store.
    if request.wait:
        raise invalid("wait: a query of clients ends with what is stored", "follow the job with StreamLogs")


def _check(query: persist_pb2.LogQueryRequest | persist_pb2.MetricQueryRequest) -> None:
    for field, value in (("limit", query.limit), ("offset", query.offset)):
        if value < 0:
            raise invalid(f"{field}: {value} is negative", "use 0 for none")
    request_time_ns(query.start_time)
    request_time_ns(query.end_time)
