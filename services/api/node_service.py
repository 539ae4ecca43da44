"""NodeService and VolumeService. The latter has its permissions already, and nothing behind them yet."""
# ruff: noqa: N802, ARG002  # names and arguments of the methods are those of the generated classes

from typing import Final, NoReturn

from common.bus.requests import Requester
from common.errors import JobletError, Reason
from common.messages import jobs
from proto.joblet.v1 import node_pb2, node_pb2_grpc, volume_pb2, volume_pb2_grpc
from services.api.calls import Context, current
from services.api.convert import node_to_proto
from services.api.requests import PAGE_SIZE_MAX


class NodeService(node_pb2_grpc.NodeServiceServicer):
    """What the node is and can do."""

    def __init__(self, executor: Requester) -> None:
        self._executor = executor

    async def GetInfo(self, request: node_pb2.GetInfoRequest, context: Context) -> node_pb2.NodeInfo:
        """The node. Who sees only his own jobs gets the number of his own: a total would tell of the others."""
        facts = await self._executor.request(jobs.GetNode(), jobs.NodeFacts)
        owner = current().visible_owner
        running = facts.running_jobs
        if owner is not None:
            page = await self._executor.request(
                jobs.ListJobs(visible_owner=owner, states=(jobs.State.RUNNING,), page_size=PAGE_SIZE_MAX), jobs.JobPage
            )
            running = len(page.jobs)
        return node_to_proto(facts, running_jobs=running)


DETAIL: Final = "jobs have /work and /tmp of their own"


def _not_yet() -> NoReturn:
    raise JobletError(Reason.UNIMPLEMENTED, "volumes are not available in this release", detail=DETAIL)


class VolumeService(volume_pb2_grpc.VolumeServiceServicer):
    """Refuses everything, to those who would be allowed."""

    async def CreateVolume(self, request: volume_pb2.CreateVolumeRequest, context: Context) -> volume_pb2.Volume:
        """Refused."""
        _not_yet()

    async def ListVolumes(
        self,
        request: volume_pb2.ListVolumesRequest,
        context: Context,
    ) -> volume_pb2.ListVolumesResponse:
        """Refused."""
        _not_yet()

    async def GetVolume(self, request: volume_pb2.GetVolumeRequest, context: Context) -> volume_pb2.Volume:
        """Refused."""
        _not_yet()

    async def DeleteVolume(
        self,
        request: volume_pb2.DeleteVolumeRequest,
        context: Context,
    ) -> volume_pb2.DeleteVolumeResponse:
        """Refused."""
        _not_yet()

    async def AttachVolume(self, request: volume_pb2.AttachVolumeRequest, context: Context) -> volume_pb2.Volume:
        """Refused."""
        _not_yet()

    async def DetachVolume(self, request: volume_pb2.DetachVolumeRequest, context: Context) -> volume_pb2.Volume:
        """Refused."""
        _not_yet()
