"""The health service (https://grpc.io/docs/guides/health-checking/): gRPC's own, and the one method that it lacks.

Not here: what is healthy. This process serves or it is not there; `process.py` says when it begins to stop.
"""
# ruff: noqa: N802, ARG002  # names and arguments of the methods are those of the generated classes

from typing import Final

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio  # type: ignore[attr-defined]  # missing in its stubs

from services.api.calls import Context

NODE: Final = ""
"""The name of the whole server in this protocol, the only one that is known here."""


class HealthService(health_aio.HealthServicer):  # type: ignore[misc]  # as above
    """Check and Watch as they are; List as the contract has it. grpcio-health-checking 1.85 raises there."""

    async def List(self, request: health_pb2.HealthListRequest, context: Context) -> health_pb2.HealthListResponse:
        """The health of everything there is to check."""
        status = await self.Check(health_pb2.HealthCheckRequest(service=NODE), context)
        return health_pb2.HealthListResponse(statuses={NODE: status})
