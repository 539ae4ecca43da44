import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from proto.joblet.v1 import persist_pb2 as _persist_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    SCHEDULED: _ClassVar[JobState]
    PENDING: _ClassVar[JobState]
    STARTING: _ClassVar[JobState]
    RUNNING: _ClassVar[JobState]
    COMPLETED: _ClassVar[JobState]
    FAILED: _ClassVar[JobState]
    STOPPED: _ClassVar[JobState]
    TIMED_OUT: _ClassVar[JobState]
    LOST: _ClassVar[JobState]
    CANCELED: _ClassVar[JobState]

class NetworkMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NETWORK_MODE_UNSPECIFIED: _ClassVar[NetworkMode]
    NONE: _ClassVar[NetworkMode]
    ISOLATED: _ClassVar[NetworkMode]
    BRIDGE: _ClassVar[NetworkMode]
    HOST: _ClassVar[NetworkMode]

class OnFull(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ON_FULL_UNSPECIFIED: _ClassVar[OnFull]
    BLOCK: _ClassVar[OnFull]
    DROP: _ClassVar[OnFull]
JOB_STATE_UNSPECIFIED: JobState
SCHEDULED: JobState
PENDING: JobState
STARTING: JobState
RUNNING: JobState
COMPLETED: JobState
FAILED: JobState
STOPPED: JobState
TIMED_OUT: JobState
LOST: JobState
CANCELED: JobState
NETWORK_MODE_UNSPECIFIED: NetworkMode
NONE: NetworkMode
ISOLATED: NetworkMode
BRIDGE: NetworkMode
HOST: NetworkMode
ON_FULL_UNSPECIFIED: OnFull
BLOCK: OnFull
DROP: OnFull

class Limits(_message.Message):
    __slots__ = ("cpu_percent", "cpu_weight", "cpu_cores", "memory_bytes", "pids", "io_weight", "read_bytes_per_s", "write_bytes_per_s", "read_ops_per_s", "write_ops_per_s", "timeout_ms", "open_files", "file_bytes")
    CPU_PERCENT_FIELD_NUMBER: _ClassVar[int]
    CPU_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    CPU_CORES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    PIDS_FIELD_NUMBER: _ClassVar[int]
    IO_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    READ_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    WRITE_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    READ_OPS_PER_S_FIELD_NUMBER: _ClassVar[int]
    WRITE_OPS_PER_S_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    OPEN_FILES_FIELD_NUMBER: _ClassVar[int]
    FILE_BYTES_FIELD_NUMBER: _ClassVar[int]
    cpu_percent: int
    cpu_weight: int
    cpu_cores: str
    memory_bytes: int
    pids: int
    io_weight: int
    read_bytes_per_s: int
    write_bytes_per_s: int
    read_ops_per_s: int
    write_ops_per_s: int
    timeout_ms: int
    open_files: int
    file_bytes: int
    def __init__(self, cpu_percent: _Optional[int] = ..., cpu_weight: _Optional[int] = ..., cpu_cores: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., pids: _Optional[int] = ..., io_weight: _Optional[int] = ..., read_bytes_per_s: _Optional[int] = ..., write_bytes_per_s: _Optional[int] = ..., read_ops_per_s: _Optional[int] = ..., write_ops_per_s: _Optional[int] = ..., timeout_ms: _Optional[int] = ..., open_files: _Optional[int] = ..., file_bytes: _Optional[int] = ...) -> None: ...

class VolumeMount(_message.Message):
    __slots__ = ("name", "path", "read_only")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    READ_ONLY_FIELD_NUMBER: _ClassVar[int]
    name: str
    path: str
    read_only: bool
    def __init__(self, name: _Optional[str] = ..., path: _Optional[str] = ..., read_only: _Optional[bool] = ...) -> None: ...

class JobSpec(_message.Message):
    __slots__ = ("command", "args", "name", "labels", "environment", "secret_environment", "workdir", "work_bytes", "limits", "volumes", "network", "upload_ids", "grace_ms", "stop_signal", "start_at", "on_full", "priority")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class EnvironmentEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class SecretEnvironmentEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    ARGS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    SECRET_ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    WORKDIR_FIELD_NUMBER: _ClassVar[int]
    WORK_BYTES_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    VOLUMES_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_IDS_FIELD_NUMBER: _ClassVar[int]
    GRACE_MS_FIELD_NUMBER: _ClassVar[int]
    STOP_SIGNAL_FIELD_NUMBER: _ClassVar[int]
    START_AT_FIELD_NUMBER: _ClassVar[int]
    ON_FULL_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    command: str
    args: _containers.RepeatedScalarFieldContainer[str]
    name: str
    labels: _containers.ScalarMap[str, str]
    environment: _containers.ScalarMap[str, str]
    secret_environment: _containers.ScalarMap[str, str]
    workdir: str
    work_bytes: int
    limits: Limits
    volumes: _containers.RepeatedCompositeFieldContainer[VolumeMount]
    network: NetworkMode
    upload_ids: _containers.RepeatedScalarFieldContainer[str]
    grace_ms: int
    stop_signal: str
    start_at: _timestamp_pb2.Timestamp
    on_full: OnFull
    priority: int
    def __init__(self, command: _Optional[str] = ..., args: _Optional[_Iterable[str]] = ..., name: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., environment: _Optional[_Mapping[str, str]] = ..., secret_environment: _Optional[_Mapping[str, str]] = ..., workdir: _Optional[str] = ..., work_bytes: _Optional[int] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., volumes: _Optional[_Iterable[_Union[VolumeMount, _Mapping]]] = ..., network: _Optional[_Union[NetworkMode, str]] = ..., upload_ids: _Optional[_Iterable[str]] = ..., grace_ms: _Optional[int] = ..., stop_signal: _Optional[str] = ..., start_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., on_full: _Optional[_Union[OnFull, str]] = ..., priority: _Optional[int] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("cpu_time_us", "memory_peak_bytes", "oom_kills", "io_read_bytes", "io_write_bytes", "io_read_ops", "io_write_ops", "network_rx_bytes", "network_tx_bytes")
    CPU_TIME_US_FIELD_NUMBER: _ClassVar[int]
    MEMORY_PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    OOM_KILLS_FIELD_NUMBER: _ClassVar[int]
    IO_READ_BYTES_FIELD_NUMBER: _ClassVar[int]
    IO_WRITE_BYTES_FIELD_NUMBER: _ClassVar[int]
    IO_READ_OPS_FIELD_NUMBER: _ClassVar[int]
    IO_WRITE_OPS_FIELD_NUMBER: _ClassVar[int]
    NETWORK_RX_BYTES_FIELD_NUMBER: _ClassVar[int]
    NETWORK_TX_BYTES_FIELD_NUMBER: _ClassVar[int]
    cpu_time_us: int
    memory_peak_bytes: int
    oom_kills: int
    io_read_bytes: int
    io_write_bytes: int
    io_read_ops: int
    io_write_ops: int
    network_rx_bytes: int
    network_tx_bytes: int
    def __init__(self, cpu_time_us: _Optional[int] = ..., memory_peak_bytes: _Optional[int] = ..., oom_kills: _Optional[int] = ..., io_read_bytes: _Optional[int] = ..., io_write_bytes: _Optional[int] = ..., io_read_ops: _Optional[int] = ..., io_write_ops: _Optional[int] = ..., network_rx_bytes: _Optional[int] = ..., network_tx_bytes: _Optional[int] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("id", "name", "owner", "node_id", "state", "spec", "pid", "exit_code", "signal", "oom_killed", "reason", "created_at", "started_at", "ended_at", "usage", "last_sequence", "lost_entries", "lost_bytes", "queue_position")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    OOM_KILLED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LOST_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    LOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    QUEUE_POSITION_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    owner: str
    node_id: str
    state: JobState
    spec: JobSpec
    pid: int
    exit_code: int
    signal: int
    oom_killed: bool
    reason: str
    created_at: _timestamp_pb2.Timestamp
    started_at: _timestamp_pb2.Timestamp
    ended_at: _timestamp_pb2.Timestamp
    usage: Usage
    last_sequence: int
    lost_entries: int
    lost_bytes: int
    queue_position: int
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., owner: _Optional[str] = ..., node_id: _Optional[str] = ..., state: _Optional[_Union[JobState, str]] = ..., spec: _Optional[_Union[JobSpec, _Mapping]] = ..., pid: _Optional[int] = ..., exit_code: _Optional[int] = ..., signal: _Optional[int] = ..., oom_killed: _Optional[bool] = ..., reason: _Optional[str] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., ended_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., last_sequence: _Optional[int] = ..., lost_entries: _Optional[int] = ..., lost_bytes: _Optional[int] = ..., queue_position: _Optional[int] = ...) -> None: ...

class RunJobRequest(_message.Message):
    __slots__ = ("spec", "idempotency_key")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    spec: JobSpec
    idempotency_key: str
    def __init__(self, spec: _Optional[_Union[JobSpec, _Mapping]] = ..., idempotency_key: _Optional[str] = ...) -> None: ...

class RunJobResponse(_message.Message):
    __slots__ = ("job", "existing")
    JOB_FIELD_NUMBER: _ClassVar[int]
    EXISTING_FIELD_NUMBER: _ClassVar[int]
    job: Job
    existing: bool
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ..., existing: _Optional[bool] = ...) -> None: ...

class PlanJobRequest(_message.Message):
    __slots__ = ("spec",)
    SPEC_FIELD_NUMBER: _ClassVar[int]
    spec: JobSpec
    def __init__(self, spec: _Optional[_Union[JobSpec, _Mapping]] = ...) -> None: ...

class PlanJobResponse(_message.Message):
    __slots__ = ("steps",)
    STEPS_FIELD_NUMBER: _ClassVar[int]
    steps: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, steps: _Optional[_Iterable[str]] = ...) -> None: ...

class UploadFilesRequest(_message.Message):
    __slots__ = ("entry", "data")
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    entry: UploadEntry
    data: bytes
    def __init__(self, entry: _Optional[_Union[UploadEntry, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class UploadEntry(_message.Message):
    __slots__ = ("path", "kind", "mode", "size_bytes", "target")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[UploadEntry.Kind]
        FILE: _ClassVar[UploadEntry.Kind]
        DIRECTORY: _ClassVar[UploadEntry.Kind]
        SYMLINK: _ClassVar[UploadEntry.Kind]
    KIND_UNSPECIFIED: UploadEntry.Kind
    FILE: UploadEntry.Kind
    DIRECTORY: UploadEntry.Kind
    SYMLINK: UploadEntry.Kind
    PATH_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    path: str
    kind: UploadEntry.Kind
    mode: int
    size_bytes: int
    target: str
    def __init__(self, path: _Optional[str] = ..., kind: _Optional[_Union[UploadEntry.Kind, str]] = ..., mode: _Optional[int] = ..., size_bytes: _Optional[int] = ..., target: _Optional[str] = ...) -> None: ...

class UploadFilesResponse(_message.Message):
    __slots__ = ("upload_id", "bytes", "entries")
    UPLOAD_ID_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    upload_id: str
    bytes: int
    entries: int
    def __init__(self, upload_id: _Optional[str] = ..., bytes: _Optional[int] = ..., entries: _Optional[int] = ...) -> None: ...

class GetJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class StopJobRequest(_message.Message):
    __slots__ = ("job_id", "signal", "grace_ms")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    GRACE_MS_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    signal: str
    grace_ms: int
    def __init__(self, job_id: _Optional[str] = ..., signal: _Optional[str] = ..., grace_ms: _Optional[int] = ...) -> None: ...

class CancelJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class WaitJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class DeleteJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class DeleteJobResponse(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class JobFilter(_message.Message):
    __slots__ = ("states", "owner", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    STATES_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    states: _containers.RepeatedScalarFieldContainer[JobState]
    owner: str
    labels: _containers.ScalarMap[str, str]
    def __init__(self, states: _Optional[_Iterable[_Union[JobState, str]]] = ..., owner: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ("filter", "page_size", "page_token")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    filter: JobFilter
    page_size: int
    page_token: str
    def __init__(self, filter: _Optional[_Union[JobFilter, _Mapping]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListJobsResponse(_message.Message):
    __slots__ = ("jobs", "next_page_token")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    next_page_token: str
    def __init__(self, jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class StreamLogsRequest(_message.Message):
    __slots__ = ("job_id", "stream", "from_sequence", "tail", "start_time", "end_time", "filter", "limit", "follow", "regex", "offset")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    FROM_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TAIL_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    REGEX_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    stream: _persist_pb2.StreamType
    from_sequence: int
    tail: int
    start_time: int
    end_time: int
    filter: str
    limit: int
    follow: bool
    regex: str
    offset: int
    def __init__(self, job_id: _Optional[str] = ..., stream: _Optional[_Union[_persist_pb2.StreamType, str]] = ..., from_sequence: _Optional[int] = ..., tail: _Optional[int] = ..., start_time: _Optional[int] = ..., end_time: _Optional[int] = ..., filter: _Optional[str] = ..., limit: _Optional[int] = ..., follow: _Optional[bool] = ..., regex: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class LogChunk(_message.Message):
    __slots__ = ("stream", "first_sequence", "lines", "timestamp", "data", "partial", "gap")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    GAP_FIELD_NUMBER: _ClassVar[int]
    stream: _persist_pb2.StreamType
    first_sequence: int
    lines: int
    timestamp: int
    data: bytes
    partial: bool
    gap: Gap
    def __init__(self, stream: _Optional[_Union[_persist_pb2.StreamType, str]] = ..., first_sequence: _Optional[int] = ..., lines: _Optional[int] = ..., timestamp: _Optional[int] = ..., data: _Optional[bytes] = ..., partial: _Optional[bool] = ..., gap: _Optional[_Union[Gap, _Mapping]] = ...) -> None: ...

class Gap(_message.Message):
    __slots__ = ("reason", "bytes")
    REASON_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    reason: str
    bytes: int
    def __init__(self, reason: _Optional[str] = ..., bytes: _Optional[int] = ...) -> None: ...

class StreamLogsResponse(_message.Message):
    __slots__ = ("chunks", "ended")
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    chunks: _containers.RepeatedCompositeFieldContainer[LogChunk]
    ended: Job
    def __init__(self, chunks: _Optional[_Iterable[_Union[LogChunk, _Mapping]]] = ..., ended: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class WatchJobsRequest(_message.Message):
    __slots__ = ("filter",)
    FILTER_FIELD_NUMBER: _ClassVar[int]
    filter: JobFilter
    def __init__(self, filter: _Optional[_Union[JobFilter, _Mapping]] = ...) -> None: ...

class WatchJobsResponse(_message.Message):
    __slots__ = ("job", "initial", "deleted")
    JOB_FIELD_NUMBER: _ClassVar[int]
    INITIAL_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    job: Job
    initial: bool
    deleted: bool
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ..., initial: _Optional[bool] = ..., deleted: _Optional[bool] = ...) -> None: ...

class StreamMetricsRequest(_message.Message):
    __slots__ = ("job_id", "start_time", "end_time", "aggregation", "follow")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    AGGREGATION_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    start_time: int
    end_time: int
    aggregation: str
    follow: bool
    def __init__(self, job_id: _Optional[str] = ..., start_time: _Optional[int] = ..., end_time: _Optional[int] = ..., aggregation: _Optional[str] = ..., follow: _Optional[bool] = ...) -> None: ...
