"""JobService and NodeService by script, for what rnx is tested against.

Belongs here: what the fake answers. Does not belong here: serving it and calling rnx (`rnx_fake_node.py`). What this
fake promises is proto/joblet/v1 and nothing else; the real api has its own suite.
"""

import threading
from collections.abc import Iterator
from typing import Any, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]  # ships no types
from grpc_status import rpc_status

from proto.joblet.v1 import job_pb2, job_pb2_grpc, node_pb2, node_pb2_grpc, persist_pb2

STARTED_NS = 1_700_000_000_250_000_000


def chunk(
    first: int, data: bytes, *, stream: persist_pb2.StreamType = persist_pb2.STDOUT, partial: bool = False
) -> job_pb2.LogChunk:
    """A chunk of whole lines, or of one partial entry."""
    lines = data.count(b"\n") + (1 if partial else 0)
    return job_pb2.LogChunk(
        stream=stream, first_sequence=first, lines=lines, timestamp=STARTED_NS, data=data, partial=partial
    )


def refuse(context: grpc.ServicerContext, code: grpc.StatusCode, text: str, detail: str = "") -> NoReturn:
    """Abort as the contract says: with an ErrorInfo."""
    info = AnyMessage()
    info.Pack(error_details_pb2.ErrorInfo(reason=code.name, domain="joblet", metadata={"detail": detail}))
    status = status_pb2.Status(code=code_pb2.Code.Value(code.name), message=text, details=[info])
    context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError


class FakeJobs(job_pb2_grpc.JobServiceServicer):
    """JobService by script: `chunks` is the output of every job, `end` how every job ends."""

    def __init__(self) -> None:
        self.requests: list[Message] = []
        self.jobs: dict[str, job_pb2.Job] = {}
        self.keys: dict[str, str] = {}
        self.chunks: list[job_pb2.LogChunk] = []
        self.end = job_pb2.Job(state=job_pb2.COMPLETED, exit_code=0)
        self.run_failures: list[grpc.StatusCode] = []
        self.accept_before_failure = False
        self.stream_breaks: list[int] = []  # of each StreamLogs call: chunks sent before it breaks
        self.end_gate = threading.Event()  # followed streams end when it is set
        self.end_gate.set()
        self.streaming = threading.Event()
        self.has_ended = False  # a stop comes too late
        self.samples: list[persist_pb2.Metric] = []
        self.uploaded: list[job_pb2.UploadFilesRequest] = []
        self.page_size_max = 2
        self.not_found_text = "no such job"
        self.upload_gate = threading.Event()  # uploads are read when it is set
        self.upload_gate.set()
        self.upload_begun = threading.Event()
        self.upload_gone = threading.Event()

    def add(self, number: int, **fields: Any) -> job_pb2.Job:
        """A job with a recognizable id."""
        job = job_pb2.Job(id=f"{number:08d}-0000-4000-8000-000000000000", owner="alice", node_id="node-1", **fields)
        self.jobs[job.id] = job
        return job

    def of(self, kind: type[Message]) -> list[Any]:
        """The requests of one kind that came."""
        return [request for request in self.requests if isinstance(request, kind)]

    def _find(self, reference: str, context: grpc.ServicerContext) -> job_pb2.Job:
        found = [job for job in self.jobs.values() if job.id.startswith(reference)]
        if len(found) != 1:
            refuse(context, grpc.StatusCode.NOT_FOUND, self.not_found_text, "see rnx job list")
        return found[0]

    def RunJob(self, request: job_pb2.RunJobRequest, context: Any) -> job_pb2.RunJobResponse:  # noqa: N802
        """One job for each key; fails as `run_failures` says."""
        self.requests.append(request)
        failure = self.run_failures.pop(0) if self.run_failures else None
        if failure is not None and not self.accept_before_failure:
            refuse(context, failure, "not now", "later")
        existing = request.idempotency_key in self.keys
        if not existing:
            job = self.add(len(self.jobs) + 1, spec=request.spec, state=job_pb2.PENDING)
            self.keys[request.idempotency_key] = job.id
        if failure is not None:
            context.abort(failure, "Socket closed")
        return job_pb2.RunJobResponse(job=self.jobs[self.keys[request.idempotency_key]], existing=existing)

    def PlanJob(self, request: job_pb2.PlanJobRequest, context: Any) -> job_pb2.PlanJobResponse:  # noqa: N802
        """Two steps."""
        del context
        self.requests.append(request)
        return job_pb2.PlanJobResponse(steps=["make a mount namespace", f"exec {request.spec.command}"])

    def UploadFiles(  # noqa: N802
        self, request_iterator: Iterator[job_pb2.UploadFilesRequest], context: Any
    ) -> job_pb2.UploadFilesResponse:
        """Keeps what came."""
        self.upload_begun.set()
        while not self.upload_gate.wait(0.05):
            if not context.is_active():
                self.upload_gone.set()
                return job_pb2.UploadFilesResponse()
        self.uploaded = list(request_iterator)
        return job_pb2.UploadFilesResponse(upload_id="upload-1")

    def GetJob(self, request: job_pb2.GetJobRequest, context: Any) -> job_pb2.Job:  # noqa: N802
        """By prefix."""
        self.requests.append(request)
        return self._find(request.job_id, context)

    def ListJobs(self, request: job_pb2.ListJobsRequest, context: Any) -> job_pb2.ListJobsResponse:  # noqa: N802
        """In small pages."""
        del context
        self.requests.append(request)
        matching = [
            job for job in self.jobs.values() if not request.filter.states or job.state in request.filter.states
        ]
        start = int(request.page_token or 0)
        end = start + min(request.page_size, self.page_size_max)
        token = str(end) if end < len(matching) else ""
        return job_pb2.ListJobsResponse(jobs=matching[start:end], next_page_token=token)

    def StopJob(self, request: job_pb2.StopJobRequest, context: Any) -> job_pb2.Job:  # noqa: N802
        """The job ends at once, unless it has already."""
        self.requests.append(request)
        job = self._find(request.job_id, context)
        if self.has_ended:
            refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "only running jobs can be stopped", "it needs no stop")
        self.end = job_pb2.Job(state=job_pb2.STOPPED, signal=15)
        self.end_gate.set()
        return job

    def CancelJob(self, request: job_pb2.CancelJobRequest, context: Any) -> job_pb2.Job:  # noqa: N802
        """Too late, always."""
        self.requests.append(request)
        refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "job runs already", "stop it instead")

    def WaitJob(self, request: job_pb2.WaitJobRequest, context: Any) -> job_pb2.Job:  # noqa: N802
        """The end, at once."""
        self.requests.append(request)
        if self.stream_breaks:
            self.stream_breaks.pop()
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        return self._ended(request.job_id)

    def DeleteJob(self, request: job_pb2.DeleteJobRequest, context: Any) -> job_pb2.DeleteJobResponse:  # noqa: N802
        """Only alice's."""
        self.requests.append(request)
        job = self._find(request.job_id, context)
        if job.owner != "alice":
            refuse(context, grpc.StatusCode.PERMISSION_DENIED, "not yours", "ask its owner")
        del self.jobs[job.id]
        return job_pb2.DeleteJobResponse(job_id=job.id)

    def StreamLogs(self, request: job_pb2.StreamLogsRequest, context: Any) -> Iterator[job_pb2.StreamLogsResponse]:  # noqa: N802
        """`chunks` from the sequence asked for; breaks as `stream_breaks` says."""
        self.requests.append(request)
        chunks = [c for c in self.chunks if c.first_sequence + c.lines > request.from_sequence]
        breaks_at = self.stream_breaks.pop(0) if self.stream_breaks else None
        for one in chunks[:breaks_at]:
            yield job_pb2.StreamLogsResponse(chunks=[one])
        self.streaming.set()
        if breaks_at is not None:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        while request.follow and context.is_active() and not self.end_gate.wait(0.05):
            pass
        if request.follow:
            yield job_pb2.StreamLogsResponse(ended=self._ended(request.job_id))

    def _ended(self, job_id: str) -> job_pb2.Job:
        job = job_pb2.Job()
        job.CopyFrom(self.jobs[job_id])
        job.MergeFrom(self.end)
        return job

    def WatchJobs(self, request: job_pb2.WatchJobsRequest, context: Any) -> Iterator[job_pb2.WatchJobsResponse]:  # noqa: N802
        """The jobs there are, then nothing; breaks as `stream_breaks` says."""
        self.requests.append(request)
        for job in list(self.jobs.values()):
            yield job_pb2.WatchJobsResponse(job=job, initial=True)
        self.streaming.set()
        if self.stream_breaks:
            self.stream_breaks.pop(0)
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        gone = threading.Event()
        context.add_callback(gone.set)
        gone.wait()

    def StreamMetrics(self, request: job_pb2.StreamMetricsRequest, context: Any) -> Iterator[persist_pb2.Metric]:  # noqa: N802
        """`samples` from the time asked for; breaks as `stream_breaks` says."""
        self.requests.append(request)
        breaks_at = self.stream_breaks.pop(0) if self.stream_breaks else None
        yield from [one for one in self.samples if one.timestamp >= request.start_time][:breaks_at]
        if breaks_at is not None:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")


class FakeNodeInfo(node_pb2_grpc.NodeServiceServicer):
    """NodeService with one node, `info`."""

    def __init__(self) -> None:
        memory = node_pb2.Capability(name="limit.memory", level=node_pb2.Capability.ENFORCED)
        self.audit: list[node_pb2.QueryAuditResponse] = []
        self.audit_requests: list[node_pb2.QueryAuditRequest] = []
        self.audit_breaks: list[int] = []  # after so many messages of a call the connection breaks
        self.audit_gate = threading.Event()  # followers end when it is set
        self.info = node_pb2.NodeInfo(node_id="node-1", version="0.1.0", kernel="6.18.0", cpus=2, capabilities=[memory])

    def GetInfo(self, request: node_pb2.GetInfoRequest, context: Any) -> node_pb2.NodeInfo:  # noqa: N802
        """The same always."""
        del request, context
        return self.info

    def QueryAudit(  # noqa: N802
        self, request: node_pb2.QueryAuditRequest, context: Any
    ) -> Iterator[node_pb2.QueryAuditResponse]:
        """All that `audit` has, whatever is asked for; breaks as `audit_breaks` says."""
        self.audit_requests.append(request)
        breaks_at = self.audit_breaks.pop(0) if self.audit_breaks else None
        yield from self.audit[:breaks_at]
        if breaks_at is not None:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        while request.follow and context.is_active() and not self.audit_gate.wait(0.05):
            pass
        if request.follow:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "no more")
