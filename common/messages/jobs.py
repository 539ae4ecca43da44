"""Commands about jobs, their answers, and the record of a job as it crosses process boundaries.

Times are Unix nanoseconds (0: not yet), sizes bytes, durations milliseconds. None is "not set".
"""

from enum import StrEnum
from typing import Final

import msgspec

from common.identifiers import JobId
from common.messages.envelope import Body


class State(StrEnum):
    """Where a job is in its life. docs/protocol.md draws the transitions."""

    SCHEDULED = "scheduled"
    PENDING = "pending"
    STARTING = "starting"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED = "stopped"
    TIMED_OUT = "timed_out"
    LOST = "lost"
    CANCELED = "canceled"


TERMINAL: Final = frozenset({State.COMPLETED, State.FAILED, State.STOPPED, State.TIMED_OUT, State.LOST, State.CANCELED})


class Network(StrEnum):
    """What of the network a job sees."""

    NONE = "none"
    ISOLATED = "isolated"
    BRIDGE = "bridge"
    HOST = "host"


class OnFull(StrEnum):
    """What happens to output for which there is no room."""

    BLOCK = "block"
    DROP = "drop"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of a job; None is "not set"."""

    cpu_percent: int | None = None  # of one core
    cpu_weight: int | None = None
    cpu_cores: str | None = None
    memory_bytes: int | None = None
    pids: int | None = None
    io_weight: int | None = None
    read_bytes_per_s: int | None = None
    write_bytes_per_s: int | None = None
    read_ops_per_s: int | None = None
    write_ops_per_s: int | None = None
    open_files: int | None = None
    file_bytes: int | None = None  # of one file
    timeout_ms: int | None = None


class VolumeMount(msgspec.Struct, frozen=True, kw_only=True):
    """A volume that a job asks for."""

    name: str
    path: str
    read_only: bool = False


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """A tar archive that api staged for a job at `{base}/uploads/<id>.tar`."""

    id: str
    bytes: int
    entries: int


class JobSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What to run and how, validated by api (shape) and executor (what this host can do)."""

    command: str
    args: tuple[str, ...] = ()
    name: str = ""
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    environment: dict[str, str] = msgspec.field(default_factory=dict)
    workdir: str = "/work"
    work_bytes: int | None = None
    limits: Limits = Limits()
    volumes: tuple[VolumeMount, ...] = ()
    network: Network = Network.NONE
    uploads: tuple[Upload, ...] = ()
    grace_ms: int = 10_000
    stop_signal: int = 15
    on_full: OnFull | None = None
    priority: int = 0  # while it waits; a higher one goes first among its owner's jobs
    start_at_ns: int = 0  # not before then; 0: at once
    secret_names: tuple[str, ...] = ()  # of secret variables; their values travel beside the spec, never in it


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a job used over its whole life, from its cgroup and its network interface."""

    cpu_time_us: int = 0
    memory_peak_bytes: int = 0
    oom_kills: int = 0
    io_read_bytes: int = 0
    io_write_bytes: int = 0
    io_read_ops: int = 0
    io_write_ops: int = 0
    network_rx_bytes: int = 0
    network_tx_bytes: int = 0


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of a job. The executor owns it; everyone else has copies."""

    id: JobId
    owner: str
    node_id: str
    state: State
    spec: JobSpec
    created_at_ns: int
    started_at_ns: int = 0
    ended_at_ns: int = 0
    pid: int = 0
    exit_code: int | None = None
    signal: int | None = None
    oom_killed: bool = False
    reason: str = ""
    usage: Usage | None = None
    last_sequence: int = 0
    stop_requested_at_ns: int = 0
    lost_entries: int = 0  # of its output, for good: the journal has gap records in their place
    lost_bytes: int = 0  # likewise, as far as known
    queue_position: int = 0  # while PENDING: 1 starts next; filled in when the record is shown, not stored


# Commands to the executor. `visible_owner`: the caller sees this owner's jobs only; None: all jobs.


class RunJob(Body, frozen=True, kw_only=True):
    """Start a job for `owner`. Answer: JobAccepted."""

    owner: str
    spec: JobSpec
    idempotency_key: str = ""
    secrets: dict[str, str] = msgspec.field(default_factory=dict)  # values of spec.secret_names, for the job only
    running_max: int | None = None  # of this owner at once; more wait
    queued_max: int | None = None  # of this owner waiting; more are refused

    def __repr__(self) -> str:
        return f"RunJob(owner={self.owner!r}, spec={self.spec!r}, secrets of {sorted(self.secrets)})"


class JobAccepted(Body, frozen=True, kw_only=True):
    """The record is durable. `existing`: the idempotency key was known and nothing was started."""

    job: JobRecord
    existing: bool = False


class PlanJob(Body, frozen=True, kw_only=True):
    """How would this be launched? Answer: JobPlan."""

    owner: str
    spec: JobSpec


class JobPlan(Body, frozen=True, kw_only=True):
    """The launch plan, one line a step."""

    steps: tuple[str, ...]


class GetJob(Body, frozen=True, kw_only=True):
    """One job by its id or a unique prefix among the visible ones. Answer: JobFound."""

    job: str
    visible_owner: str | None


class JobFound(Body, frozen=True, kw_only=True):
    """The answer to GetJob, StopJob and CancelJob. `delivered`: persist has had all output of the ended job."""

    job: JobRecord
    delivered: bool = False


class ListJobs(Body, frozen=True, kw_only=True):
    """Jobs, newest first. Answer: JobPage."""

    visible_owner: str | None
    states: tuple[State, ...] = ()
    owner: str = ""
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    page_size: int = 100
    page_token: str = ""


class JobPage(Body, frozen=True, kw_only=True):
    """One page. `next_page_token` is empty on the last one."""

    jobs: tuple[JobRecord, ...]
    next_page_token: str = ""


class StopJob(Body, frozen=True, kw_only=True):
    """Signal, grace, then SIGKILL to all of the job. Answer: JobFound. None: as the job's spec says."""

    job: JobId
    signal: int | None = None
    grace_ms: int | None = None


class CancelJob(Body, frozen=True, kw_only=True):
    """Withdraw a job that has not started. Answer: JobFound."""

    job: JobId


class DeleteJob(Body, frozen=True, kw_only=True):
    """Remove an ended job's record and what is left of its journal. Answer: JobDeleted."""

    job: JobId


class JobDeleted(Body, frozen=True, kw_only=True):
    """The record is gone."""

    job: JobId


class AttachVolume(Body, frozen=True, kw_only=True):
    """Let a volume of the job's owner appear in the running job. Answer: JobFound. It has one by that name: refused."""

    job: JobId
    mount: VolumeMount


class DetachVolume(Body, frozen=True, kw_only=True):
    """Take a volume from a running job. Answer: JobFound. PRECONDITION while the job has something open in it.

    `force`: also then; what is open stays open to the job, and the volume's space is free when it is closed.
    """

    job: JobId
    volume: str  # its name
    force: bool = False


class SyncLog(Body, frozen=True, kw_only=True):
    """Publish a LogMarker on `log.<job>`, behind all that was published before. Answer: LogSynced.

    With it a subscriber learns from inside the topic where it came in: what is above the marker's sequence will
    reach it, what is not it must read from persist.
    """

    job: JobId
    marker: str


class LogSynced(Body, frozen=True, kw_only=True):
    """The marker was published."""

    job: JobId


class GetNode(Body, frozen=True, kw_only=True):
    """What is this node? Answer: NodeFacts."""


class Capability(msgspec.Struct, frozen=True, kw_only=True):
    """One feature of the host: `level` is "enforced", "degraded" or "missing"."""

    name: str
    level: str
    detail: str = ""


class NodeFacts(Body, frozen=True, kw_only=True):
    """The node as the executor probed it."""

    node_id: str
    version: str
    kernel: str
    cgroup_version: str
    cpus: int
    memory_bytes: int
    running_jobs: int
    capabilities: tuple[Capability, ...] = ()
    counters: dict[str, int] = msgspec.field(default_factory=dict)  # since the executor began
    queued_jobs: int = 0  # PENDING
    running_max: int = 0


# Published on `job.<id>`.


class JobChanged(Body, frozen=True, kw_only=True):
    """A job changed its state (or was deleted); the whole record as it is now."""

    job: JobRecord
    deleted: bool = False
