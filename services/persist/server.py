"""PersistService on its unix socket: queries and deletion. Reading happens in worker threads, a step at a time.

Whoever leaves is noticed between two steps; whoever does not read is held by HTTP/2 flow control with one step of
output in memory. Who may ask at all is said by the mode of the socket: api, and operators of the group.
"""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import structlog

from common.errors import JobletError, Reason, not_found
from common.identifiers import parse_job_id
from proto.joblet.v1 import persist_pb2 as pb
from proto.joblet.v1.persist_pb2_grpc import PersistServiceServicer
from services.persist import metrics, selection
from services.persist.changes import Changes
from services.persist.ingest import Ingest
from services.persist.reader import LogReader
from services.persist.runs import Run
from services.persist.samples import Samples
from services.persist.selection import LogSelection
from services.persist.status import refuse
from services.persist.store import Store

log = structlog.get_logger(__name__)

REQUEST_BYTES_MAX: Final = 64 * 1024

T = TypeVar("T")
Context = Any  # grpc.aio.ServicerContext[request, response]; the generated stubs ask for more than aio gives


class PersistServer(PersistServiceServicer):
    """Answers from the store."""

    def __init__(
        self, *, store: Store, samples: Samples, changes: Changes, ingest: Ingest, pool: ThreadPoolExecutor
    ) -> None:
        self._store = store
        self._samples = samples
        self._changes = changes
        self._ingest = ingest
        self._pool = pool

    async def QueryLogs(self, request: pb.LogQueryRequest, context: Context) -> AsyncIterator[pb.LogLine]:  # noqa: N802
        """See persist.proto."""
        try:
            wanted = selection.of_lines(request)
            async for messages in self._logs(wanted, functools.partial(_lines, wanted.job)):
                for message in messages:
                    yield message
        except (JobletError, OSError) as cause:
            await refuse(context, _as_error(cause))

    async def QueryLogBatches(  # noqa: N802
        self, request: pb.LogBatchQueryRequest, context: Context
    ) -> AsyncIterator[pb.LogBatches]:
        """See persist.proto."""
        try:
            async for message in self._logs(selection.of_batches(request), _batches):
                if message.batches:
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

    async def _logs(self, wanted: LogSelection, convert: Callable[[list[Run]], T]) -> AsyncIterator[T]:
        reader = LogReader(self._store, wanted)
        with self._changes.watch(wanted.job) as watch:
            while True:
                watch.reset()
                view = await self._in_pool(self._store.view, wanted.job)
                steps = reader.steps(view)
                while (converted := await self._in_pool(_converted, steps, convert)) is not None:
                    yield converted
                if reader.is_finished(view):
                    return
                if watch.deleted:
                    raise not_found(f"the data of job {wanted.job} was deleted meanwhile")
                await watch.wait()

    async def _in_pool(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)


def _converted(steps: Iterator[list[Run]], convert: Callable[[list[Run]], T]) -> T | None:
    step = next(steps, None)
    return None if step is None else convert(step)


def _batches(step: list[Run]) -> pb.LogBatches:
    batches = [
        pb.LogBatch(
            stream=run.stream,  # type: ignore[arg-type]  # the numbers are the same
            first_sequence=run.first,
            lines=min(run.lines, 2**32 - 1),
            timestamp=run.time_ns,
            data=run.data,
            partial=run.partial,
            gap_reason=run.gap_reason,
            gap_bytes=run.gap_bytes,
        )
        for run in step
    ]
    return pb.LogBatches(batches=batches)


def _lines(job: str, step: list[Run]) -> list[pb.LogLine]:
    """Gaps have no line: this query cannot tell of them, QueryLogBatches does."""
    return [
        pb.LogLine(job_id=job, stream=run.stream, content=content, timestamp=run.time_ns, sequence=sequence)  # type: ignore[arg-type]
        for run in step
        for sequence, content in enumerate(run.contents(), run.first)
    ]


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
