"""StreamMetrics: the stored samples of a job, then the live ones until it ends.

Belongs here: joining both. Live samples are not acknowledged by anybody and a slow client may lose some: what is
stored can be asked for again.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from typing import Final

from common.bus.requests import Requester
from common.errors import JobletError, invalid
from common.messages import jobs, topics
from common.messages.envelope import Body
from common.messages.logs import StoreMetric
from common.quantities import as_request_time, request_time_ns
from proto.joblet.v1 import job_pb2, persist_pb2
from services.api.access import no_such_job
from services.api.convert import metric_to_proto
from services.api.followers.hub import Hub
from services.api.history import UNTAKEN_S_MAX, History

SAMPLES_QUEUED_MAX: Final = 1000
AGGREGATIONS: Final = frozenset({"", "avg", "min", "max", "sum"})
RECHECK_S: Final = 5.0


class MetricStreams:
    """Opens streams of samples."""

    def __init__(self, *, hub: Hub, executor: Requester, history: History, recheck_s: float = RECHECK_S) -> None:
        self._hub = hub
        self._executor = executor
        self._history = history
        self._recheck_s = recheck_s

    async def samples(
        self, record: jobs.JobRecord, request: job_pb2.StreamMetricsRequest
    ) -> AsyncGenerator[bytes | persist_pb2.Metric, None]:
        """Samples in the order of their time, each once. Raises JobletError."""
        if request.aggregation not in AGGREGATIONS:
            raise invalid(f"aggregation: no such one {request.aggregation[:40]!r}", "use avg, min, max or sum")
        if request.aggregation and request.follow:
            raise invalid("an aggregation cannot be followed", "leave out aggregation or follow")
        start_ns, end_ns = request_time_ns(request.start_time), request_time_ns(request.end_time)
        query = persist_pb2.MetricQueryRequest(
            job_id=record.id,
            start_time=as_request_time(start_ns),
            end_time=as_request_time(end_ns),
            aggregation=request.aggregation,
        )
        follow = request.follow and record.state not in jobs.TERMINAL
        queue: deque[StoreMetric] = deque(maxlen=SAMPLES_QUEUED_MAX)
        wake = asyncio.Event()
        over = False

        def sampled(body: Body) -> None:
            if isinstance(body, StoreMetric):
                queue.append(body)
                wake.set()

        def changed(body: Body) -> None:
            nonlocal over
            if isinstance(body, jobs.JobChanged) and (body.deleted or body.job.state in jobs.TERMINAL):
                over = True
                wake.set()

        with ExitStack() as listening:
            if follow:
                listening.enter_context(self._hub.listening(topics.job_topic(record.id), changed))
                listening.enter_context(self._hub.listening(topics.metrics_topic(record.id), sampled))
            last_ns = start_ns - 1
            async with aclosing(self._history.raw("QueryMetrics", query, untaken_s=UNTAKEN_S_MAX)) as stored:
                async for message in stored:
                    last_ns = persist_pb2.Metric.FromString(message).timestamp
                    yield message
            while follow:
                while queue:
                    sample = queue.popleft()
                    if end_ns and sample.time_ns >= end_ns:
                        return
                    if sample.time_ns > last_ns:
                        last_ns = sample.time_ns
                        yield metric_to_proto(sample)
                if over:
                    return
                wake.clear()
                try:
                    async with asyncio.timeout(self._recheck_s):
                        await wake.wait()
                except TimeoutError:
                    over = await self._has_ended(record)

    async def _has_ended(self, record: jobs.JobRecord) -> bool:
        try:
            found = await self._executor.request(jobs.GetJob(job=record.id, visible_owner=None), jobs.JobFound)
        except JobletError as error:
            if error.retryable:
                return False
            raise no_such_job() from error
        return found.job.state in jobs.TERMINAL
