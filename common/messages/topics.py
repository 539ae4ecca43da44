"""THE table of sockets and topics. Sockets are opened through it only (common/bus).

One row an endpoint: its file below `{base}/run`, who binds, who connects, which message types it may carry, how many
bytes a message and how many messages a queue may have.
"""

import re
from enum import StrEnum
from typing import Final

import msgspec

from common.identifiers import JobId
from common.messages import jobs, logs, volumes
from common.messages.envelope import Body, Failure


class Service(StrEnum):
    """The processes that meet on the bus."""

    API = "api"
    EXECUTOR = "executor"
    VOLUMES = "volumes"
    PERSIST = "persist"
    OPERATOR = "operator"


class Pattern(StrEnum):
    """How an endpoint is used. PUSH_PULL: the binder pulls. PUB_SUB: the binder publishes."""

    PUSH_PULL = "push-pull"
    PUB_SUB = "pub-sub"


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table."""

    file: str
    pattern: Pattern
    binder: Service
    connectors: frozenset[Service]
    messages: tuple[type[Body], ...]
    message_bytes_max: int
    queue_messages_max: int


JOB_COMMANDS: Final = (
    jobs.RunJob,
    jobs.PlanJob,
    jobs.GetJob,
    jobs.ListJobs,
    jobs.StopJob,
    jobs.CancelJob,
    jobs.DeleteJob,
    jobs.SyncLog,
    jobs.GetNode,
    jobs.AttachVolume,
    jobs.DetachVolume,
)
JOB_ANSWERS: Final = (
    Failure,
    jobs.JobAccepted,
    jobs.JobPlan,
    jobs.JobFound,
    jobs.JobPage,
    jobs.JobDeleted,
    jobs.LogSynced,
    jobs.NodeFacts,
)

VOLUME_COMMANDS: Final = (
    volumes.CreateVolume,
    volumes.GetVolume,
    volumes.ListVolumes,
    volumes.DeleteVolume,
    volumes.ResizeVolume,
    volumes.CreateSnapshot,
    volumes.ListSnapshots,
    volumes.DeleteSnapshot,
    volumes.RestoreSnapshot,
    volumes.CloneVolume,
    volumes.OpenVolumeStream,
    volumes.GetVolumesService,
    volumes.CheckVolumes,
    volumes.PrepareVolumes,
    volumes.ReleaseVolumes,
    volumes.SyncVolumes,
)
VOLUME_ANSWERS_TO_API: Final = (
    volumes.VolumeFound,
    volumes.VolumePage,
    volumes.VolumeDeleted,
    volumes.SnapshotFound,
    volumes.SnapshotList,
    volumes.SnapshotDeleted,
    volumes.VolumeStreamClosed,
    volumes.VolumesService,
)
VOLUME_ANSWERS_TO_EXECUTOR: Final = (
    Failure,
    volumes.VolumesChecked,
    volumes.VolumesPrepared,
    volumes.VolumesReleased,
)

MIB: Final = 1024 * 1024

EXECUTOR_COMMANDS: Final = Endpoint(
    file="executor-commands.sock",
    pattern=Pattern.PUSH_PULL,
    binder=Service.EXECUTOR,
    connectors=frozenset({Service.API, Service.VOLUMES}),
    messages=JOB_COMMANDS,
    message_bytes_max=4 * MIB,
    queue_messages_max=1000,
)
VOLUMES_COMMANDS: Final = Endpoint(
    file="volumes-commands.sock",
    pattern=Pattern.PUSH_PULL,
    binder=Service.VOLUMES,
    connectors=frozenset({Service.API, Service.EXECUTOR}),
    messages=VOLUME_COMMANDS,
    message_bytes_max=1 * MIB,
    queue_messages_max=1000,
)
API_REPLIES: Final = Endpoint(
    file="api-replies-{pid}.sock",
    pattern=Pattern.PUSH_PULL,
    binder=Service.API,
    connectors=frozenset({Service.EXECUTOR, Service.VOLUMES}),
    messages=JOB_ANSWERS + VOLUME_ANSWERS_TO_API,
    message_bytes_max=64 * MIB,
    queue_messages_max=1000,
)
EXECUTOR_REPLIES: Final = Endpoint(
    file="executor-replies.sock",
    pattern=Pattern.PUSH_PULL,
    binder=Service.EXECUTOR,
    connectors=frozenset({Service.VOLUMES}),
    messages=VOLUME_ANSWERS_TO_EXECUTOR,
    message_bytes_max=1 * MIB,
    queue_messages_max=1000,
)
PERSIST_IPC: Final = Endpoint(
    file="persist-ipc.sock",
    pattern=Pattern.PUSH_PULL,
    binder=Service.PERSIST,
    connectors=frozenset({Service.EXECUTOR}),
    messages=(logs.StoreRecords, logs.StoreMetric, logs.EndOfJob),
    message_bytes_max=128 * MIB,
    queue_messages_max=1000,
)
PERSIST_ACKS: Final = Endpoint(
    file="persist-acks.sock",
    pattern=Pattern.PUSH_PULL,
    binder=Service.EXECUTOR,
    connectors=frozenset({Service.PERSIST}),
    messages=(logs.Stored, logs.Resend, logs.PersistStarted),
    message_bytes_max=1 * MIB,
    queue_messages_max=10_000,
)
EVENTS: Final = Endpoint(
    file="events.sock",
    pattern=Pattern.PUB_SUB,
    binder=Service.EXECUTOR,
    connectors=frozenset({Service.API, Service.OPERATOR}),
    messages=(logs.LogRecords, logs.LogMarker, logs.StoreMetric, jobs.JobChanged),
    message_bytes_max=8 * MIB,
    queue_messages_max=1000,
)

ENDPOINTS: Final = (
    EXECUTOR_COMMANDS,
    VOLUMES_COMMANDS,
    API_REPLIES,
    EXECUTOR_REPLIES,
    PERSIST_IPC,
    PERSIST_ACKS,
    EVENTS,
)

PERSIST_GRPC_FILE: Final = "persist-grpc.sock"
"""gRPC, not ZeroMQ: PersistService on a unix socket."""

REPLY_FILE = re.compile(r"(?:api-replies-\d{1,10}|executor-replies)\.sock", re.ASCII)
"""What a request may name as its `reply_to`. Never a path."""


STREAM_FILE = re.compile(r"volume-stream-[0-9a-f]{32}\.sock", re.ASCII)
"""What OpenVolumeStream may name as its `file`: a plain stream socket of api's in `{base}/run/streams`, for one stream.

The directory is api's. Who connects as root first sees that what bears the name is a socket of the directory's owner,
and connects to that very inode: api, taken over, could put a link to anything else there.
"""


def log_topic(job: JobId) -> str:
    """Topic of LogRecords and LogMarker."""
    return f"log.{job}"


def metrics_topic(job: JobId) -> str:
    """Topic of StoreMetric."""
    return f"metrics.{job}"


def job_topic(job: JobId) -> str:
    """Topic of JobChanged."""
    return f"job.{job}"
