"""Jobs, volumes and nodes as plain values with stable keys: what --json prints and what tables are made of.

Here: names and types of the keys; scripts rely on them (docs/user-guide.md). Not here: how a table looks
(`cli/rnx/tables.py`). Times are RFC 3339 text in UTC, or None.
"""

from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from common.quantities import format_time_ns
from proto.joblet.v1 import job_pb2, node_pb2, persist_pb2, volume_pb2

Value = None | bool | int | float | str | list["Value"] | dict[str, "Value"]
Object = dict[str, Value]

_LIMITS: Final = tuple(field.name for field in job_pb2.Limits.DESCRIPTOR.fields)
_USAGE: Final = tuple(field.name for field in job_pb2.Usage.DESCRIPTOR.fields)
_VOLUME_METRICS: Final = tuple(field.name for field in volume_pb2.VolumeMetrics.DESCRIPTOR.fields)
_METRIC: Final = tuple(field.name for field in persist_pb2.Metric.DESCRIPTOR.fields if field.name != "job_id")


def state_word(state: job_pb2.JobState) -> str:
    """`completed` of COMPLETED; a state that this program does not know keeps its number."""
    try:
        return job_pb2.JobState.Name(state).lower()
    except ValueError:
        return f"state_{int(state)}"


def state_of_word(word: str) -> job_pb2.JobState:
    """The state that `state_word` calls `word`."""
    return getattr(job_pb2, word.upper())  # type: ignore[no-any-return]  # enum wrappers give the number untyped


def state_words() -> tuple[str, ...]:
    """Every state there is, as a word."""
    return tuple(name.lower() for name, number in job_pb2.JobState.items() if number)


def on_full_word(on_full: job_pb2.OnFull) -> str:
    """`block` or `drop`; empty when the job's record does not say."""
    return job_pb2.OnFull.Name(on_full).lower() if on_full else ""


def time_text(time: Timestamp) -> str:
    """RFC 3339."""
    return format_time_ns(time.ToNanoseconds())


def job_object(job: job_pb2.Job) -> Object:
    """All of a job. The keys are a contract."""
    spec = job.spec
    return {
        "id": job.id,
        "name": spec.name or job.name,
        "owner": job.owner,
        "node_id": job.node_id,
        "state": state_word(job.state),
        "command": spec.command,
        "args": list(spec.args),
        "pid": job.pid or None,
        "exit_code": job.exit_code if job.HasField("exit_code") else None,
        "signal": job.signal if job.HasField("signal") else None,
        "oom_killed": job.oom_killed,
        "reason": job.reason,
        "limits": {name: getattr(spec.limits, name) if spec.limits.HasField(name) else None for name in _LIMITS},
        "volumes": [
            {"name": volume.name, "path": volume.path, "read_only": volume.read_only} for volume in spec.volumes
        ],
        "network": job_pb2.NetworkMode.Name(spec.network).lower() if spec.network else "default",
        "labels": dict(sorted(spec.labels.items())),
        "created_at": time_text(job.created_at) if job.HasField("created_at") else None,
        "started_at": time_text(job.started_at) if job.HasField("started_at") else None,
        "ended_at": time_text(job.ended_at) if job.HasField("ended_at") else None,
        "usage": usage_object(job.usage) if job.HasField("usage") else None,
        "on_full": on_full_word(spec.on_full) or "default",
        "lost_entries": job.lost_entries,
        "lost_bytes": job.lost_bytes,
        "priority": spec.priority,
        "start_at": time_text(spec.start_at) if spec.HasField("start_at") else None,
        "queue_position": job.queue_position or None,
    }


def usage_object(usage: job_pb2.Usage) -> Object:
    """What a job used over its life."""
    return {name: getattr(usage, name) for name in _USAGE}


def metric_object(metric: persist_pb2.Metric) -> Object:
    """One sample."""
    return {name: getattr(metric, name) for name in _METRIC}


def volume_object(volume: volume_pb2.Volume) -> Object:
    """All of a volume. The keys are a contract."""
    return {
        "id": volume.id,
        "name": volume.name,
        "type": volume_type_word(volume.type),
        "size_bytes": volume.size_bytes,
        "status": volume.status,
        "created_at": time_text(volume.created_at) if volume.HasField("created_at") else None,
        "last_used": time_text(volume.last_used) if volume.HasField("last_used") else None,
        "current_job_id": volume.current_job_id or None,
        "owner": volume.owner,
        "labels": dict(sorted(volume.labels.items())),
        "enforcement": volume.enforcement,
        "shared": volume.shared,
        "encryption": volume.encryption or None,
        "used_bytes": volume.used_bytes,
        "used_inodes": volume.used_inodes,
        "inodes": volume.inodes or None,
        "uses": [
            {
                "job_id": use.job_id,
                "path": use.path,
                "read_only": use.read_only,
                "since": time_text(use.since) if use.HasField("since") else None,
            }
            for use in volume.uses
        ],
        "last_used_by": volume.last_used_by or None,
        "reason": volume.reason,
        "origin": volume.origin or None,
        "snapshots": volume.snapshots,
        "metrics": {name: getattr(volume.metrics, name) for name in _VOLUME_METRICS},
    }


def volume_type_word(kind: volume_pb2.VolumeType) -> str:
    """`filesystem` of FILESYSTEM; a type that this program does not know keeps its number."""
    try:
        return volume_pb2.VolumeType.Name(kind).lower()
    except ValueError:
        return f"type_{int(kind)}"


def snapshot_object(snapshot: volume_pb2.Snapshot) -> Object:
    """One snapshot."""
    return {
        "id": snapshot.id,
        "name": snapshot.name,
        "volume": snapshot.volume,
        "created_at": time_text(snapshot.created_at) if snapshot.HasField("created_at") else None,
        "size_bytes": snapshot.size_bytes,
        "method": snapshot.method,
    }


def audit_object(entry: node_pb2.AuditEntry) -> Object:
    """One line of the audit log."""
    return {
        "number": entry.number,
        "time": format_time_ns(entry.timestamp),
        "source": entry.source,
        "who": entry.who,
        "serial": entry.serial,
        "roles": list(entry.roles),
        "scheme": entry.scheme,
        "method": entry.method,
        "object": entry.object,
        "peer": entry.peer,
        "outcome": entry.outcome,
        "why": entry.why,
    }


def node_object(node: node_pb2.NodeInfo) -> Object:
    """The node and what it can enforce."""
    return {
        "node_id": node.node_id,
        "version": node.version,
        "kernel": node.kernel,
        "cgroup_version": node.cgroup_version,
        "cpus": node.cpus,
        "memory_bytes": node.memory_bytes,
        "running_jobs": node.running_jobs,
        "queued_jobs": node.queued_jobs,
        "running_max": node.running_max,
        "capabilities": [
            {
                "name": capability.name,
                "level": node_pb2.Capability.Level.Name(capability.level).lower(),
                "detail": capability.detail,
            }
            for capability in node.capabilities
        ],
        "counters": dict(sorted(node.counters.items())),
        "certificates": [
            {"name": each.name, "subject": each.subject, "not_after": time_text(each.not_after), "soon": each.soon}
            for each in node.certificates
        ],
    }
