"""The gRPC server: its limits, its credentials, and which services it offers.

Belongs here: from settings to a bound, not yet started server. Does not belong here: what the services do.
Argument names: grpc/impl/channel_arg_names.h of grpc 1.85.
"""

from typing import Final

from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio  # type: ignore[attr-defined]  # missing in its stubs
from grpc_reflection.v1alpha import reflection

from common.config.settings import Grpc
from common.errors import JobletError, Reason
from proto.joblet.v1 import (
    job_pb2,
    job_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
    persist_pb2,
    persist_pb2_grpc,
    volume_pb2,
    volume_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)
from services.api.gate import Gate
from services.api.job_service import JobService
from services.api.node_service import NodeService
from services.api.persist_service import PersistService
from services.api.rotation import Credentials
from services.api.volume_service import VolumeService
from services.api.worker_service import WorkerService

UNARY_CALLS_MAX: Final = 2000
"""At once, beside the streams; beyond, gRPC itself answers RESOURCE_EXHAUSTED."""

PING_STRIKES_MAX: Final = 2

SERVICES: Final = tuple(
    file.services_by_name[name].full_name
    for file, name in (
        (job_pb2.DESCRIPTOR, "JobService"),
        (node_pb2.DESCRIPTOR, "NodeService"),
        (volume_pb2.DESCRIPTOR, "VolumeService"),
        (persist_pb2.DESCRIPTOR, "PersistService"),
        (worker_pb2.DESCRIPTOR, "WorkerService"),
        (health_pb2.DESCRIPTOR, "Health"),
    )
)


def options_of(limits: Grpc) -> list[tuple[str, int]]:
    """Every limit of the front door, as gRPC arguments (requirements S2.9 and S2.14).

    Each has an effect that tests/contract/test_api_connections.py shows on the wire. What grpcio 1.85 takes and does
    not obey stands in docs/security.md.
    """
    return [
        # A second process on the same port would take half of the callers (SO_REUSEPORT is gRPC's default).
        ("grpc.so_reuseport", 0),
        ("grpc.server_handshake_timeout_ms", limits.handshake_timeout_ms),
        ("grpc.max_concurrent_streams", limits.concurrent_streams_max),
        ("grpc.max_metadata_size", limits.metadata_bytes_max),
        ("grpc.absolute_max_metadata_size", limits.metadata_bytes_max),
        ("grpc.max_receive_message_length", limits.receive_message_bytes_max),
        ("grpc.max_send_message_length", limits.send_message_bytes_max),
        # Measuring the line, gRPC gives each stream and connection 4 MiB and more, whatever is asked for.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", limits.stream_window_bytes),
        ("grpc.keepalive_time_ms", limits.keepalive_time_ms),
        # The first is for a network that swallows bytes (TCP_USER_TIMEOUT), the second for a client that reads none;
        # by default that one has a minute.
        ("grpc.keepalive_timeout_ms", limits.keepalive_timeout_ms),
        ("grpc.http2.ping_timeout_ms", limits.keepalive_timeout_ms),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", limits.ping_interval_ms_min),
        ("grpc.http2.max_ping_strikes", PING_STRIKES_MAX),
        ("grpc.max_connection_idle_ms", limits.connection_idle_ms),
        ("grpc.max_connection_age_ms", limits.connection_age_ms),
        ("grpc.max_connection_age_grace_ms", limits.connection_age_grace_ms),
    ]


def build_server(
    gate: Gate,
    limits: Grpc,
    *,
    job_service: JobService,
    node_service: NodeService,
    volume_service: VolumeService,
    persist_service: PersistService,
    worker_service: WorkerService,
    health: health_aio.HealthServicer,
) -> aio.Server:
    """The server with all its services behind the gate."""
    server = aio.server(
        interceptors=[gate],
        options=options_of(limits),
        maximum_concurrent_rpcs=limits.active_streams_max + UNARY_CALLS_MAX,
    )
    job_pb2_grpc.add_JobServiceServicer_to_server(job_service, server)
    node_pb2_grpc.add_NodeServiceServicer_to_server(node_service, server)
    volume_pb2_grpc.add_VolumeServiceServicer_to_server(volume_service, server)
    persist_pb2_grpc.add_PersistServiceServicer_to_server(persist_service, server)
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(worker_service, server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    reflection.enable_server_reflection([*SERVICES, reflection.SERVICE_NAME], server)
    return server


def bind(server: aio.Server, address: str, port: int, credentials: Credentials) -> int:
    """Listen with client certificates required; the port that was bound. JobletError(EXISTS) when it is taken."""
    where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    try:
        bound: int = server.add_secure_port(where, credentials.grpc_credentials())
    except RuntimeError as cause:
        raise JobletError(
            Reason.EXISTS,
            f"cannot listen on {where}",
            detail="is another process using the port, or is a certificate not PEM? choose one with --port",
        ) from cause
    return bound
