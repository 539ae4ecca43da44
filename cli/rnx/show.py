"""Jobs as a person reads them: a row of a table, a list of fields.

Here: wording and units. Not here: how they are printed (`tables.py`), the keys of --json (`cli/client/views.py`).
"""

import shlex
from collections.abc import Iterator
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from cli.client.views import on_full_word, state_word, time_text
from common.quantities import format_duration_ms, format_size, format_time_ns
from proto.joblet.v1 import job_pb2, persist_pb2

QUEUE: Final = "QUEUE"
JOB_HEADINGS: Final = ("ID", "NAME", "OWNER", "STATE", QUEUE, "EXIT", "CREATED", "COMMAND")
_NS_PER_S: Final = 1_000_000_000
_US_PER_MS: Final = 1000
_COMMAND_CHARACTERS_MAX: Final = 200


def job_row(job: job_pb2.Job) -> tuple[str, ...]:
    """Under JOB_HEADINGS."""
    created_s = job.created_at.ToNanoseconds() // _NS_PER_S
    return (
        job.id,
        job.name or job.spec.name,
        job.owner,
        state_word(job.state),
        queue_text(job),
        exit_text(job),
        format_time_ns(created_s * _NS_PER_S),
        command_text(job)[:_COMMAND_CHARACTERS_MAX],
    )


def command_text(job: job_pb2.Job) -> str:
    """Command and arguments as a shell would take them."""
    return shlex.join([job.spec.command, *job.spec.args])


def exit_text(job: job_pb2.Job) -> str:
    """`0`, `signal 9`, or nothing."""
    if job.HasField("exit_code"):
        return str(job.exit_code)
    return f"signal {job.signal}" if job.HasField("signal") else ""


def queue_text(job: job_pb2.Job) -> str:
    """What a job waits for: its place, with its priority if it has one, or its time; nothing when it does not wait."""
    if job.state == job_pb2.SCHEDULED:
        return _time(job.spec.start_at)
    if job.state != job_pb2.PENDING:
        return ""
    place = str(job.queue_position or "")
    return f"{place} (priority {job.spec.priority})".strip() if job.spec.priority else place


def waiting_text(job: job_pb2.Job) -> str:
    """`waiting: position 3`, `waiting` when the place was not told, or `waiting until` a time; nothing: it does not."""
    if job.state == job_pb2.SCHEDULED:
        return f"waiting until {_time(job.spec.start_at)}"
    if job.state != job_pb2.PENDING:
        return ""
    return f"waiting: position {job.queue_position}" if job.queue_position else "waiting"


def job_fields(job: job_pb2.Job) -> Iterator[tuple[str, str]]:
    """Everything known, in words; what is not known has an empty value."""
    spec = job.spec
    yield "id", job.id
    yield "name", job.name or spec.name
    yield "owner", job.owner
    yield "node", job.node_id
    yield "state", state_word(job.state)
    yield "reason", job.reason
    yield "queue position", str(job.queue_position or "")
    yield "priority", str(spec.priority or "")
    yield "scheduled for", _time(spec.start_at)
    yield "command", command_text(job)
    yield "workdir", spec.workdir
    yield "pid", str(job.pid or "")
    yield "exit code", str(job.exit_code) if job.HasField("exit_code") else ""
    yield "signal", str(job.signal) if job.HasField("signal") else ""
    yield "out of memory", "yes" if job.oom_killed else ""
    yield "created", _time(job.created_at)
    yield "started", _time(job.started_at)
    yield "ended", _time(job.ended_at)
    yield "limits", ", ".join(_limits(spec.limits))
    yield "network", job_pb2.NetworkMode.Name(spec.network).lower() if spec.network else ""
    yield "volumes", ", ".join(f"{v.name}:{v.path}{':ro' if v.read_only else ''}" for v in spec.volumes)
    yield "labels", ", ".join(f"{key}={value}" for key, value in sorted(spec.labels.items()))
    yield "secret variables", " ".join(sorted(spec.secret_environment))
    yield "environment", shlex.join(f"{key}={value}" for key, value in sorted(spec.environment.items()))
    if job.HasField("usage"):
        yield from _usage(job.usage)
    yield "entries", str(job.last_sequence)
    yield "on full", on_full_word(spec.on_full)
    yield "lost", lost_text(job)


def lost_text(job: job_pb2.Job) -> str:
    """What is missing of the output for good; nothing when nothing is."""
    if not job.lost_entries and not job.lost_bytes:
        return ""
    size = f", {format_size(job.lost_bytes)}" if job.lost_bytes else ""
    return f"{job.lost_entries} {'entry' if job.lost_entries == 1 else 'entries'}{size}"


def _usage(usage: job_pb2.Usage) -> Iterator[tuple[str, str]]:
    yield "cpu time", format_duration_ms(usage.cpu_time_us // _US_PER_MS)
    yield "memory peak", format_size(usage.memory_peak_bytes)
    yield "oom kills", str(usage.oom_kills or "")
    yield "disk", ", ".join(_disk(usage))
    yield "traffic", traffic_text(usage.network_rx_bytes, usage.network_tx_bytes)


def _disk(usage: job_pb2.Usage) -> Iterator[str]:
    if usage.io_read_bytes or usage.io_read_ops:
        yield f"{format_size(usage.io_read_bytes)} read in {usage.io_read_ops} operations"
    if usage.io_write_bytes or usage.io_write_ops:
        yield f"{format_size(usage.io_write_bytes)} written in {usage.io_write_ops} operations"


def traffic_text(received_bytes: int, sent_bytes: int) -> str:
    """What went over a job's network interface; nothing when nothing did."""
    if not received_bytes and not sent_bytes:
        return ""
    return f"{format_size(received_bytes)} received, {format_size(sent_bytes)} sent"


def pressure_text(sample: persist_pb2.Metric) -> str:
    """What the job waited for, in percent of the time; nothing when it did not, or the node cannot tell."""
    waits = (("cpu", sample.cpu_pressure), ("memory", sample.memory_pressure), ("io", sample.io_pressure))
    return ", ".join(f"{what} {percent:.1f} %" for what, percent in waits if percent)


def _limits(limits: job_pb2.Limits) -> Iterator[str]:
    for field, value in limits.ListFields():
        if field.name == "memory_bytes":
            yield f"memory {format_size(value)}"
        elif field.name == "file_bytes":
            yield f"file size {format_size(value)}"
        elif field.name == "timeout_ms":
            yield f"timeout {format_duration_ms(value)}"
        elif field.name.endswith("_bytes_per_s"):
            yield f"{field.name.removesuffix('_bytes_per_s')} {format_size(value)}/s"
        elif field.name.endswith("_ops_per_s"):
            yield f"{field.name.removesuffix('_per_s').replace('_', ' ')} {value}/s"
        elif field.name == "cpu_percent":
            yield f"cpu {value} %"
        else:
            yield f"{field.name.replace('_', ' ')} {value}"


def _time(time: Timestamp) -> str:
    return time_text(time) if time.ByteSize() else ""
