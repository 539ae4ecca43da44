"""JobService: from a request to a command for the executor, and from its answer to the client's.

Belongs here: one short method for each RPC. Does not belong here: checking requests (`requests.py`), permissions
(`gate.py`, `access.py`), what every new job is subject to (`submission.py`), streams (`followers/`, `watch.py`,
`metrics.py`), staging (`uploads/`).
"""
# ruff: noqa: N802, ARG002  # names and arguments of the methods are those of the generated classes

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

import msgspec
import structlog

from common.bus.requests import Requester
from common.errors import JobletError, precondition
from common.messages import jobs, topics
from common.messages.envelope import Body
from proto.joblet.v1 import job_pb2, job_pb2_grpc, persist_pb2
from services.api import requests
from services.api.access import Access, no_such_job
from services.api.calls import Context, current
from services.api.convert import job_to_proto
from services.api.followers.hub import Hub
from services.api.followers.streams import LogStreams
from services.api.history import History
from services.api.metrics import MetricStreams
from services.api.quotas import Quota, Quotas
from services.api.submission import Submission
from services.api.uploads.staging import Staging
from services.api.watch import Watch

log = structlog.get_logger(__name__)

RECHECK_S: Final = 5.0
"""How long WaitJob trusts that no event was lost."""


class JobService(job_pb2_grpc.JobServiceServicer):
    """The methods of proto/joblet/v1/job.proto. Errors leave as JobletError; the gate makes statuses of them."""

    def __init__(
        self,
        *,
        executor: Requester,
        access: Access,
        hub: Hub,
        history: History,
        log_streams: LogStreams,
        metric_streams: MetricStreams,
        watch: Watch,
        submission: Submission,
        staging: Staging,
        quotas: Quotas,
        recheck_s: float = RECHECK_S,
    ) -> None:
        self._executor = executor
        self._access = access
        self._hub = hub
        self._history = history
        self._log_streams = log_streams
        self._metric_streams = metric_streams
        self._watch = watch
        self._submission = submission
        self._staging = staging
        self._quotas = quotas
        self._recheck_s = recheck_s

    async def RunJob(self, request: job_pb2.RunJobRequest, context: Context) -> job_pb2.RunJobResponse:
        """Start a job of the caller's own."""
        accepted = await self._submission.run(request.spec, idempotency_key=request.idempotency_key)
        return job_pb2.RunJobResponse(job=job_to_proto(accepted.job), existing=accepted.existing)

    async def PlanJob(self, request: job_pb2.PlanJobRequest, context: Context) -> job_pb2.PlanJobResponse:
        """Tell how a job would be launched."""
        return job_pb2.PlanJobResponse(steps=(await self._submission.plan(request.spec)).steps)

    async def UploadFiles(
        self,
        request_iterator: AsyncIterator[job_pb2.UploadFilesRequest],
        context: Context,
    ) -> job_pb2.UploadFilesResponse:
        """Stage files for one later RunJob of the caller."""
        call = current()
        bound = self._quotas.of(Quota.UPLOAD_BYTES, call.principal.roles)
        upload = await self._staging.receive(call.principal.name, request_iterator, bound)
        return job_pb2.UploadFilesResponse(upload_id=upload.id, bytes=upload.bytes, entries=upload.entries)

    async def GetJob(self, request: job_pb2.GetJobRequest, context: Context) -> job_pb2.Job:
        """One job as it is now."""
        return job_to_proto(await self._access.job(request.job_id))

    async def ListJobs(self, request: job_pb2.ListJobsRequest, context: Context) -> job_pb2.ListJobsResponse:
        """One page of the jobs that the caller may see."""
        query = msgspec.structs.replace(
            requests.job_filter(request.filter),
            visible_owner=current().visible_owner,
            page_size=requests.page_size(request.page_size),
            page_token=requests.page_token(request.page_token),
        )
        page = await self._executor.request(query, jobs.JobPage)
        return job_pb2.ListJobsResponse(
            jobs=[job_to_proto(record) for record in page.jobs], next_page_token=page.next_page_token
        )

    async def StopJob(self, request: job_pb2.StopJobRequest, context: Context) -> job_pb2.Job:
        """Begin to stop a job."""
        number = requests.signal_number("signal", request.signal)
        grace_ms = requests.stop_grace_ms(request)
        record = await self._access.job(request.job_id)
        stopped = await self._executor.request(
            jobs.StopJob(job=record.id, signal=number, grace_ms=grace_ms), jobs.JobFound
        )
        return job_to_proto(stopped.job)

    async def CancelJob(self, request: job_pb2.CancelJobRequest, context: Context) -> job_pb2.Job:
        """Withdraw a job that has not started."""
        record = await self._access.job(request.job_id)
        canceled = await self._executor.request(jobs.CancelJob(job=record.id), jobs.JobFound)
        return job_to_proto(canceled.job)

    async def WaitJob(self, request: job_pb2.WaitJobRequest, context: Context) -> job_pb2.Job:
        """Answer when the job has ended. Listening begins before the look, so the end cannot fall between."""
        record = await self._access.job(request.job_id)
        ended: asyncio.Future[jobs.JobChanged] = asyncio.get_running_loop().create_future()

        def changed(body: Body) -> None:
            over = isinstance(body, jobs.JobChanged) and (body.deleted or body.job.state in jobs.TERMINAL)
            if over and not ended.done():
                assert isinstance(body, jobs.JobChanged)
                ended.set_result(body)

        with self._hub.listening(topics.job_topic(record.id), changed):
            while record.state not in jobs.TERMINAL:
                try:
                    record = (await self._access.look_up(record.id)).job
                except JobletError as error:
                    if not error.retryable:
                        raise
                if record.state in jobs.TERMINAL:
                    break
                await asyncio.wait({ended}, timeout=self._recheck_s)
                if ended.done():
                    change = ended.result()
                    if change.deleted and change.job.state not in jobs.TERMINAL:
                        raise no_such_job()
                    record = change.job
        return job_to_proto(record)

    async def DeleteJob(self, request: job_pb2.DeleteJobRequest, context: Context) -> job_pb2.DeleteJobResponse:
        """Remove an ended job. History goes first: while the record stands, whatever failed can be asked for again."""
        record = await self._access.job(request.job_id)
        require_ended(record)
        await self._history.delete(record.id)
        await self._executor.request(jobs.DeleteJob(job=record.id), jobs.JobDeleted)
        try:
            # What was still on its way to persist when the job was deleted has arrived behind the first removal.
            await self._history.delete(record.id)
        except JobletError as error:
            log.warning("a deleted job's last output may still be stored", job=record.id, why=str(error))
        return job_pb2.DeleteJobResponse(job_id=record.id)

    async def StreamLogs(  # type: ignore[override]  # a generator of serialized messages: see gate.py
        self,
        request: job_pb2.StreamLogsRequest,
        context: Context,
    ) -> AsyncGenerator[bytes, None]:
        """Output, stored and live."""
        return self._log_streams.open(await self._access.found(request.job_id), request)

    async def WatchJobs(  # type: ignore[override]  # a generator, after the access check
        self,
        request: job_pb2.WatchJobsRequest,
        context: Context,
    ) -> AsyncGenerator[job_pb2.WatchJobsResponse, None]:
        """Jobs as they are and as they change."""
        wanted = msgspec.structs.replace(
            requests.job_filter(request.filter), visible_owner=current().visible_owner, page_size=requests.PAGE_SIZE_MAX
        )
        return self._watch.changes(wanted)

    async def StreamMetrics(  # type: ignore[override]  # a generator; stored samples pass as bytes: see gate.py
        self,
        request: job_pb2.StreamMetricsRequest,
        context: Context,
    ) -> AsyncGenerator[bytes | persist_pb2.Metric, None]:
        """Resource usage, stored and live."""
        record = await self._access.job(request.job_id)
        return self._metric_streams.samples(record, request)


def require_ended(record: jobs.JobRecord) -> None:
    """Raise JobletError(PRECONDITION) while a job still lives."""
    if record.state not in jobs.TERMINAL:
        raise precondition(f"job {record.id} is {record.state}", f"stop it first: rnx job stop {record.id}")
