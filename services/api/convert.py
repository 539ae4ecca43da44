"""Records and specs to protobuf. Pure, and total: whatever the executor sends has a form for clients.

Belongs here: messages → proto. The other way, which can fail, is `requests.py`. Field meanings: proto/joblet/v1.
"""

import signal
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec
from google.protobuf import timestamp_pb2

from common.expiry import Expiry
from common.messages import jobs
from common.messages.logs import StoreMetric
from proto.joblet.v1 import job_pb2, node_pb2, persist_pb2

STATES: Final[dict[jobs.State, job_pb2.JobState]] = {
    jobs.State.SCHEDULED: job_pb2.SCHEDULED,
    jobs.State.PENDING: job_pb2.PENDING,
    jobs.State.STARTING: job_pb2.STARTING,
    jobs.State.RUNNING: job_pb2.RUNNING,
    jobs.State.COMPLETED: job_pb2.COMPLETED,
    jobs.State.FAILED: job_pb2.FAILED,
    jobs.State.STOPPED: job_pb2.STOPPED,
    jobs.State.TIMED_OUT: job_pb2.TIMED_OUT,
    jobs.State.LOST: job_pb2.LOST,
    jobs.State.CANCELED: job_pb2.CANCELED,
}
NETWORKS: Final[dict[jobs.Network, job_pb2.NetworkMode]] = {
    jobs.Network.NONE: job_pb2.NONE,
    jobs.Network.ISOLATED: job_pb2.ISOLATED,
    jobs.Network.BRIDGE: job_pb2.BRIDGE,
    jobs.Network.HOST: job_pb2.HOST,
}
ON_FULL: Final[dict[jobs.OnFull, job_pb2.OnFull]] = {
    jobs.OnFull.BLOCK: job_pb2.BLOCK,
    jobs.OnFull.DROP: job_pb2.DROP,
}
LEVELS: Final = {
    "enforced": node_pb2.Capability.ENFORCED,
    "degraded": node_pb2.Capability.DEGRADED,
    "missing": node_pb2.Capability.MISSING,
}
INT64_MAX: Final = 2**63 - 1
LIMIT_FIELDS: Final = jobs.Limits.__struct_fields__
"""Limits, usage and samples bear the same names on both sides; tests compare them."""


def timestamp(time_ns: int) -> timestamp_pb2.Timestamp | None:
    """A time for clients; None (field not set) for 0, which is "not yet"."""
    if time_ns == 0:
        return None
    return timestamp_pb2.Timestamp(seconds=time_ns // 10**9, nanos=time_ns % 10**9)


def signal_name(number: int) -> str:
    """`SIGTERM` for 15; the number itself where it has no name of its own (real-time signals)."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def limits_to_proto(limits: jobs.Limits) -> job_pb2.Limits:
    """The limits; one that is not set stays not set."""
    message = job_pb2.Limits()
    for field in LIMIT_FIELDS:
        value = getattr(limits, field)
        if value is not None:
            setattr(message, field, value)
    return message


def spec_to_proto(spec: jobs.JobSpec) -> job_pb2.JobSpec:
    """What was asked for, as it was understood: defaults are filled in."""
    return job_pb2.JobSpec(
        command=spec.command,
        args=spec.args,
        name=spec.name,
        labels=spec.labels,
        environment=spec.environment,
        workdir=spec.workdir,
        work_bytes=spec.work_bytes,
        limits=limits_to_proto(spec.limits),
        volumes=[
            job_pb2.VolumeMount(name=volume.name, path=volume.path, read_only=volume.read_only)
            for volume in spec.volumes
        ],
        network=NETWORKS[spec.network],
        upload_ids=[upload.id for upload in spec.uploads],
        grace_ms=spec.grace_ms,
        stop_signal=signal_name(spec.stop_signal),
        on_full=None if spec.on_full is None else ON_FULL[spec.on_full],
        secret_environment=dict.fromkeys(spec.secret_names, ""),
        priority=spec.priority,
        start_at=timestamp(spec.start_at_ns),
    )


def job_to_proto(record: jobs.JobRecord) -> job_pb2.Job:
    """The whole record of a job."""
    return job_pb2.Job(
        id=record.id,
        name=record.spec.name,
        owner=record.owner,
        node_id=record.node_id,
        state=STATES[record.state],
        spec=spec_to_proto(record.spec),
        pid=record.pid,
        exit_code=record.exit_code,
        signal=record.signal,
        oom_killed=record.oom_killed,
        reason=record.reason,
        created_at=timestamp(record.created_at_ns),
        started_at=timestamp(record.started_at_ns),
        ended_at=timestamp(record.ended_at_ns),
        usage=None if record.usage is None else job_pb2.Usage(**msgspec.structs.asdict(record.usage)),
        last_sequence=record.last_sequence,
        lost_entries=record.lost_entries,
        lost_bytes=record.lost_bytes,
        queue_position=record.queue_position,
    )


def metric_to_proto(sample: StoreMetric) -> persist_pb2.Metric:
    """One live sample, in the form in which persist gives the stored ones. What no counter can be is cut to int64."""
    fields = msgspec.structs.asdict(sample)
    for name, value in fields.items():
        if isinstance(value, int):
            fields[name] = min(max(value, -INT64_MAX), INT64_MAX)
    return persist_pb2.Metric(job_id=fields.pop("job"), timestamp=fields.pop("time_ns"), **fields)


def node_to_proto(
    facts: jobs.NodeFacts,
    *,
    running_jobs: int,
    queued_jobs: int,
    counters: Mapping[str, int],
    certificates: Iterable[Expiry],
) -> node_pb2.NodeInfo:
    """What the node is. What is not in `facts` comes from the caller: how much of it he may see."""
    return node_pb2.NodeInfo(
        node_id=facts.node_id,
        version=facts.version,
        kernel=facts.kernel,
        cgroup_version=facts.cgroup_version,
        cpus=facts.cpus,
        memory_bytes=facts.memory_bytes,
        running_jobs=running_jobs,
        queued_jobs=queued_jobs,
        running_max=facts.running_max,
        capabilities=[
            node_pb2.Capability(
                name=one.name,
                level=LEVELS.get(one.level, node_pb2.Capability.LEVEL_UNSPECIFIED),
                detail=one.detail,
            )
            for one in facts.capabilities
        ],
        counters=counters,
        certificates=[
            node_pb2.CertificateExpiry(
                name=one.name, subject=one.subject, not_after=timestamp(one.not_after_ns), soon=one.soon
            )
            for one in certificates
        ],
    )
