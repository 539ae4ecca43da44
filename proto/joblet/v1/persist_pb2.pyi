from proto.joblet.v1 import node_pb2 as _node_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StreamType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STREAM_TYPE_UNSPECIFIED: _ClassVar[StreamType]
    STDOUT: _ClassVar[StreamType]
    STDERR: _ClassVar[StreamType]
STREAM_TYPE_UNSPECIFIED: StreamType
STDOUT: StreamType
STDERR: StreamType

class LogLine(_message.Message):
    __slots__ = ("job_id", "stream", "content", "timestamp", "sequence")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    stream: StreamType
    content: bytes
    timestamp: int
    sequence: int
    def __init__(self, job_id: _Optional[str] = ..., stream: _Optional[_Union[StreamType, str]] = ..., content: _Optional[bytes] = ..., timestamp: _Optional[int] = ..., sequence: _Optional[int] = ...) -> None: ...

class Metric(_message.Message):
    __slots__ = ("job_id", "timestamp", "cpu_percent", "memory_bytes", "io_read_bytes", "io_write_bytes", "io_read_ops", "io_write_ops", "pids", "network_rx_bytes", "network_tx_bytes", "cpu_pressure", "memory_pressure", "io_pressure")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    CPU_PERCENT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    IO_READ_BYTES_FIELD_NUMBER: _ClassVar[int]
    IO_WRITE_BYTES_FIELD_NUMBER: _ClassVar[int]
    IO_READ_OPS_FIELD_NUMBER: _ClassVar[int]
    IO_WRITE_OPS_FIELD_NUMBER: _ClassVar[int]
    PIDS_FIELD_NUMBER: _ClassVar[int]
    NETWORK_RX_BYTES_FIELD_NUMBER: _ClassVar[int]
    NETWORK_TX_BYTES_FIELD_NUMBER: _ClassVar[int]
    CPU_PRESSURE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_PRESSURE_FIELD_NUMBER: _ClassVar[int]
    IO_PRESSURE_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    timestamp: int
    cpu_percent: float
    memory_bytes: int
    io_read_bytes: int
    io_write_bytes: int
    io_read_ops: int
    io_write_ops: int
    pids: int
    network_rx_bytes: int
    network_tx_bytes: int
    cpu_pressure: float
    memory_pressure: float
    io_pressure: float
    def __init__(self, job_id: _Optional[str] = ..., timestamp: _Optional[int] = ..., cpu_percent: _Optional[float] = ..., memory_bytes: _Optional[int] = ..., io_read_bytes: _Optional[int] = ..., io_write_bytes: _Optional[int] = ..., io_read_ops: _Optional[int] = ..., io_write_ops: _Optional[int] = ..., pids: _Optional[int] = ..., network_rx_bytes: _Optional[int] = ..., network_tx_bytes: _Optional[int] = ..., cpu_pressure: _Optional[float] = ..., memory_pressure: _Optional[float] = ..., io_pressure: _Optional[float] = ...) -> None: ...

class LogQueryRequest(_message.Message):
    __slots__ = ("job_id", "stream", "start_time", "end_time", "limit", "offset", "filter", "regex")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    REGEX_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    stream: StreamType
    start_time: int
    end_time: int
    limit: int
    offset: int
    filter: str
    regex: str
    def __init__(self, job_id: _Optional[str] = ..., stream: _Optional[_Union[StreamType, str]] = ..., start_time: _Optional[int] = ..., end_time: _Optional[int] = ..., limit: _Optional[int] = ..., offset: _Optional[int] = ..., filter: _Optional[str] = ..., regex: _Optional[str] = ...) -> None: ...

class LogBatchQueryRequest(_message.Message):
    __slots__ = ("query", "from_sequence", "tail", "until_sequence", "wait")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    FROM_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TAIL_FIELD_NUMBER: _ClassVar[int]
    UNTIL_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    query: LogQueryRequest
    from_sequence: int
    tail: int
    until_sequence: int
    wait: bool
    def __init__(self, query: _Optional[_Union[LogQueryRequest, _Mapping]] = ..., from_sequence: _Optional[int] = ..., tail: _Optional[int] = ..., until_sequence: _Optional[int] = ..., wait: _Optional[bool] = ...) -> None: ...

class LogBatches(_message.Message):
    __slots__ = ("batches",)
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    batches: _containers.RepeatedCompositeFieldContainer[LogBatch]
    def __init__(self, batches: _Optional[_Iterable[_Union[LogBatch, _Mapping]]] = ...) -> None: ...

class LogBatch(_message.Message):
    __slots__ = ("stream", "first_sequence", "lines", "timestamp", "data", "partial", "gap_reason", "gap_bytes")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    GAP_REASON_FIELD_NUMBER: _ClassVar[int]
    GAP_BYTES_FIELD_NUMBER: _ClassVar[int]
    stream: StreamType
    first_sequence: int
    lines: int
    timestamp: int
    data: bytes
    partial: bool
    gap_reason: str
    gap_bytes: int
    def __init__(self, stream: _Optional[_Union[StreamType, str]] = ..., first_sequence: _Optional[int] = ..., lines: _Optional[int] = ..., timestamp: _Optional[int] = ..., data: _Optional[bytes] = ..., partial: _Optional[bool] = ..., gap_reason: _Optional[str] = ..., gap_bytes: _Optional[int] = ...) -> None: ...

class MetricQueryRequest(_message.Message):
    __slots__ = ("job_id", "start_time", "end_time", "aggregation", "limit", "offset")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    AGGREGATION_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    start_time: int
    end_time: int
    aggregation: str
    limit: int
    offset: int
    def __init__(self, job_id: _Optional[str] = ..., start_time: _Optional[int] = ..., end_time: _Optional[int] = ..., aggregation: _Optional[str] = ..., limit: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class DeleteJobDataRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class DeleteJobDataResponse(_message.Message):
    __slots__ = ("log_bytes", "metric_bytes")
    LOG_BYTES_FIELD_NUMBER: _ClassVar[int]
    METRIC_BYTES_FIELD_NUMBER: _ClassVar[int]
    log_bytes: int
    metric_bytes: int
    def __init__(self, log_bytes: _Optional[int] = ..., metric_bytes: _Optional[int] = ...) -> None: ...

class ApplyRetentionRequest(_message.Message):
    __slots__ = ("dry_run",)
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    dry_run: bool
    def __init__(self, dry_run: _Optional[bool] = ...) -> None: ...

class Removal(_message.Message):
    __slots__ = ("job_id", "owner", "ended_at", "bytes", "why", "through_sequence")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    THROUGH_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    owner: str
    ended_at: int
    bytes: int
    why: str
    through_sequence: int
    def __init__(self, job_id: _Optional[str] = ..., owner: _Optional[str] = ..., ended_at: _Optional[int] = ..., bytes: _Optional[int] = ..., why: _Optional[str] = ..., through_sequence: _Optional[int] = ...) -> None: ...

class GetStoreRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StoreInfo(_message.Message):
    __slots__ = ("jobs", "log_bytes", "metric_bytes", "free_bytes", "measured_at", "counters")
    class CountersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    JOBS_FIELD_NUMBER: _ClassVar[int]
    LOG_BYTES_FIELD_NUMBER: _ClassVar[int]
    METRIC_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEASURED_AT_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    jobs: int
    log_bytes: int
    metric_bytes: int
    free_bytes: int
    measured_at: int
    counters: _containers.ScalarMap[str, int]
    def __init__(self, jobs: _Optional[int] = ..., log_bytes: _Optional[int] = ..., metric_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., measured_at: _Optional[int] = ..., counters: _Optional[_Mapping[str, int]] = ...) -> None: ...
