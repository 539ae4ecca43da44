"""Every RPC of the front door, callable by its name: for tests that must leave none out.

Belongs here: the names (those of the permission table), a request for each, and calling them as bytes. Does not belong
here: what is expected of them (`test_matrix.py`, `test_fuzz_rpc.py`).
"""

from collections.abc import Callable
from typing import Final

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from grpc import aio
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from proto.joblet.v1 import job_pb2, node_pb2, persist_pb2, volume_pb2, worker_pb2
from tests.waiting import SLOWNESS

CALL_S: Final = 20.0
"""How long a call may take that has to be answered."""

JOBS: Final = "/joblet.v1.JobService/"
PERSIST: Final = "/joblet.v1.PersistService/"
NODE: Final = "/joblet.v1.NodeService/"
WORKER: Final = "/joblet.v1.WorkerService/"
VOLUMES: Final = "/joblet.v1.VolumeService/"
HEALTH: Final = "/grpc.health.v1.Health/"
REFLECTION: Final = "/grpc.reflection.v1alpha.ServerReflection/"

REQUESTS: Final[dict[str, Callable[[str], Message]]] = {
    JOBS + "RunJob": lambda _: job_pb2.RunJobRequest(spec=job_pb2.JobSpec(command="true")),
    JOBS + "PlanJob": lambda _: job_pb2.PlanJobRequest(spec=job_pb2.JobSpec(command="true")),
    JOBS + "UploadFiles": lambda _: job_pb2.UploadFilesRequest(
        entry=job_pb2.UploadEntry(path="d", kind=job_pb2.UploadEntry.DIRECTORY, mode=0o755)
    ),
    JOBS + "GetJob": lambda job: job_pb2.GetJobRequest(job_id=job),
    JOBS + "ListJobs": lambda _: job_pb2.ListJobsRequest(),
    JOBS + "StopJob": lambda job: job_pb2.StopJobRequest(job_id=job),
    JOBS + "CancelJob": lambda job: job_pb2.CancelJobRequest(job_id=job),
    JOBS + "WaitJob": lambda job: job_pb2.WaitJobRequest(job_id=job),
    JOBS + "DeleteJob": lambda job: job_pb2.DeleteJobRequest(job_id=job),
    JOBS + "StreamLogs": lambda job: job_pb2.StreamLogsRequest(job_id=job),
    JOBS + "WatchJobs": lambda _: job_pb2.WatchJobsRequest(),
    JOBS + "StreamMetrics": lambda job: job_pb2.StreamMetricsRequest(job_id=job),
    PERSIST + "QueryLogs": lambda job: persist_pb2.LogQueryRequest(job_id=job),
    PERSIST + "QueryLogBatches": lambda job: persist_pb2.LogBatchQueryRequest(
        query=persist_pb2.LogQueryRequest(job_id=job)
    ),
    PERSIST + "QueryMetrics": lambda job: persist_pb2.MetricQueryRequest(job_id=job),
    PERSIST + "DeleteJobData": lambda job: persist_pb2.DeleteJobDataRequest(job_id=job),
    PERSIST + "ApplyRetention": lambda _: persist_pb2.ApplyRetentionRequest(dry_run=True),
    PERSIST + "GetStore": lambda _: persist_pb2.GetStoreRequest(),
    PERSIST + "QueryAudit": lambda _: node_pb2.QueryAuditRequest(),
    NODE + "GetInfo": lambda _: node_pb2.GetInfoRequest(),
    NODE + "QueryAudit": lambda _: node_pb2.QueryAuditRequest(),
    WORKER + "Start": lambda _: worker_pb2.StartRequest(name="true"),
    WORKER + "Stop": lambda job: worker_pb2.StopRequest(jobID=job),
    WORKER + "Query": lambda job: worker_pb2.QueryRequest(jobID=job),
    WORKER + "Stream": lambda job: worker_pb2.StreamRequest(jobID=job),
    VOLUMES + "CreateVolume": lambda new: volume_pb2.CreateVolumeRequest(name=new, size_bytes=2**20),
    VOLUMES + "ListVolumes": lambda _: volume_pb2.ListVolumesRequest(),
    VOLUMES + "GetVolume": lambda volume: volume_pb2.GetVolumeRequest(name=volume),
    VOLUMES + "DeleteVolume": lambda volume: volume_pb2.DeleteVolumeRequest(name=volume),
    VOLUMES + "AttachVolume": lambda volume: volume_pb2.AttachVolumeRequest(name=volume, job_id=volume),
    VOLUMES + "DetachVolume": lambda volume: volume_pb2.DetachVolumeRequest(name=volume, job_id=volume),
    VOLUMES + "ResizeVolume": lambda volume: volume_pb2.ResizeVolumeRequest(name=volume, size_bytes=2**21),
    VOLUMES + "CreateSnapshot": lambda volume: volume_pb2.CreateSnapshotRequest(volume=volume, name="new"),
    VOLUMES + "ListSnapshots": lambda volume: volume_pb2.ListSnapshotsRequest(volume=volume),
    VOLUMES + "DeleteSnapshot": lambda volume: volume_pb2.DeleteSnapshotRequest(volume=volume, name="kept"),
    VOLUMES + "RestoreSnapshot": lambda volume: volume_pb2.RestoreSnapshotRequest(volume=volume, name="kept"),
    VOLUMES + "CloneVolume": lambda volume: volume_pb2.CloneVolumeRequest(volume=volume, name=f"of-{volume}"),
    VOLUMES + "ExportVolume": lambda volume: volume_pb2.ExportVolumeRequest(volume=volume),
    VOLUMES + "ImportVolume": lambda volume: volume_pb2.ImportVolumeRequest(volume=volume, data=b"x"),
    HEALTH + "Check": lambda _: health_pb2.HealthCheckRequest(),
    HEALTH + "List": lambda _: health_pb2.HealthListRequest(),
    HEALTH + "Watch": lambda _: health_pb2.HealthCheckRequest(),
    REFLECTION + "ServerReflectionInfo": lambda _: reflection_pb2.ServerReflectionRequest(list_services=""),
}
"""A good request of each method, about this job or volume where the method is about one, by its id."""


def described(method: str) -> MethodDescriptor:
    """The contract of `/package.Service/Method`."""
    return descriptor_pool.Default().FindMethodByName(method.removeprefix("/").replace("/", "."))


async def outcome(channel: aio.Channel, method: str, request: bytes) -> grpc.StatusCode:
    """The status of one call; OK as soon as there is an answer, and the call is left then.

    All four kinds of methods are alike on the wire, so each is called with one message and as many answers as come:
    grpc.aio tells a status of its own (INTERNAL) when a call is over before its stream of requests is written.
    """
    call = channel.unary_stream(method, None, None)(request, timeout=CALL_S * SLOWNESS)
    try:
        if await call.read() is not aio.EOF:  # type: ignore[attr-defined]  # missing in the stubs
            return grpc.StatusCode.OK
        return await call.code()
    except aio.AioRpcError as error:
        return error.code()
    finally:
        call.cancel()
