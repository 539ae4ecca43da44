"""WorkerService: the short contract of proto/joblet/v1/worker.proto, over the same jobs and rules as JobService.

Belongs here: its messages made of what the other parts of api give. Does not belong here: anything about starting
(`submission.py`), access (`access.py`), following (`followers/`) or decoding (`transcript.py`) that is not the same for
both services.
"""
# ruff: noqa: N802, ARG002  # names and arguments of the methods are those of the generated classes

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from common.bus.requests import Requester
from common.config.limits import LIMIT_RANGES
from common.messages import jobs
from proto.joblet.v1 import job_pb2, worker_pb2, worker_pb2_grpc
from services.api import requests
from services.api.access import Access
from services.api.calls import Context
from services.api.followers.streams import LogStreams
from services.api.submission import Submission
from services.api.transcript import Transcript

NO_EXIT_CODE: Final = -1
RESOURCES: Final = tuple(field.name for field in worker_pb2.Resources.DESCRIPTOR.fields)


class WorkerService(worker_pb2_grpc.WorkerServiceServicer):
    """The methods of proto/joblet/v1/worker.proto (requirement S4.12)."""

    def __init__(self, *, executor: Requester, access: Access, submission: Submission, log_streams: LogStreams) -> None:
        self._executor = executor
        self._access = access
        self._submission = submission
        self._log_streams = log_streams

    async def Start(self, request: worker_pb2.StartRequest, context: Context) -> worker_pb2.StartResponse:
        """Start a job of the caller's own. Asked twice, it starts two: the contract has no room for a key."""
        accepted = await self._submission.run(spec_of(request))
        return worker_pb2.StartResponse(jobID=accepted.job.id)

    async def Stop(self, request: worker_pb2.StopRequest, context: Context) -> worker_pb2.StopResponse:
        """Begin to stop a job, by its own signal and grace."""
        record = await self._access.job(request.jobID)
        await self._executor.request(jobs.StopJob(job=record.id), jobs.JobFound)
        return worker_pb2.StopResponse()

    async def Query(self, request: worker_pb2.QueryRequest, context: Context) -> worker_pb2.QueryResponse:
        """How a job is now."""
        return status_of(await self._access.job(request.jobID))

    async def Stream(  # type: ignore[override]  # a generator, after the access check: see gate.py
        self,
        request: worker_pb2.StreamRequest,
        context: Context,
    ) -> AsyncGenerator[worker_pb2.StreamResponse, None]:
        """All output as text, from the first byte until the job has ended."""
        found = await self._access.found(request.jobID)
        return _text_of(self._log_streams.open(found, job_pb2.StreamLogsRequest(job_id=found.job.id, follow=True)))


def spec_of(request: worker_pb2.StartRequest) -> job_pb2.JobSpec:
    """What JobService would be asked. Raises INVALID with the names that the fields have here."""
    requests.command("name", request.name)
    limits = job_pb2.Limits()
    for field in RESOURCES:
        if request.resources.HasField(field):
            low, high = LIMIT_RANGES[field]
            setattr(limits, field, requests.within(f"resources.{field}", getattr(request.resources, field), low, high))
    return job_pb2.JobSpec(command=request.name, args=request.args, limits=limits)


def status_of(record: jobs.JobRecord) -> worker_pb2.QueryResponse:
    """Requirement S4.8: an exit code only when the job exited by itself, and ended is ended, however."""
    return worker_pb2.QueryResponse(
        pid=record.pid,
        exitCode=NO_EXIT_CODE if record.exit_code is None else record.exit_code,
        exited=record.state in jobs.TERMINAL,
    )


async def _text_of(messages: AsyncGenerator[bytes, None]) -> AsyncGenerator[worker_pb2.StreamResponse, None]:
    transcript = Transcript()
    async with aclosing(messages):
        async for message in messages:
            for piece in transcript.of(job_pb2.StreamLogsResponse.FromString(message).chunks):
                yield worker_pb2.StreamResponse(output=piece)
    for piece in transcript.end():
        yield worker_pb2.StreamResponse(output=piece)
