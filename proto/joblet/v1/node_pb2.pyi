import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class NodeInfo(_message.Message):
    __slots__ = ("node_id", "version", "kernel", "cgroup_version", "cpus", "memory_bytes", "running_jobs", "capabilities", "counters", "queued_jobs", "running_max", "certificates")
    class CountersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    CGROUP_VERSION_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    RUNNING_JOBS_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_JOBS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_MAX_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATES_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    version: str
    kernel: str
    cgroup_version: str
    cpus: int
    memory_bytes: int
    running_jobs: int
    capabilities: _containers.RepeatedCompositeFieldContainer[Capability]
    counters: _containers.ScalarMap[str, int]
    queued_jobs: int
    running_max: int
    certificates: _containers.RepeatedCompositeFieldContainer[CertificateExpiry]
    def __init__(self, node_id: _Optional[str] = ..., version: _Optional[str] = ..., kernel: _Optional[str] = ..., cgroup_version: _Optional[str] = ..., cpus: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., running_jobs: _Optional[int] = ..., capabilities: _Optional[_Iterable[_Union[Capability, _Mapping]]] = ..., counters: _Optional[_Mapping[str, int]] = ..., queued_jobs: _Optional[int] = ..., running_max: _Optional[int] = ..., certificates: _Optional[_Iterable[_Union[CertificateExpiry, _Mapping]]] = ...) -> None: ...

class CertificateExpiry(_message.Message):
    __slots__ = ("name", "subject", "not_after", "soon")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_FIELD_NUMBER: _ClassVar[int]
    SOON_FIELD_NUMBER: _ClassVar[int]
    name: str
    subject: str
    not_after: _timestamp_pb2.Timestamp
    soon: bool
    def __init__(self, name: _Optional[str] = ..., subject: _Optional[str] = ..., not_after: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., soon: _Optional[bool] = ...) -> None: ...

class QueryAuditRequest(_message.Message):
    __slots__ = ("start_time", "end_time", "who", "method", "object", "outcome", "tail", "follow", "source")
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    OBJECT_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    TAIL_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    start_time: int
    end_time: int
    who: str
    method: str
    object: str
    outcome: str
    tail: int
    follow: bool
    source: str
    def __init__(self, start_time: _Optional[int] = ..., end_time: _Optional[int] = ..., who: _Optional[str] = ..., method: _Optional[str] = ..., object: _Optional[str] = ..., outcome: _Optional[str] = ..., tail: _Optional[int] = ..., follow: _Optional[bool] = ..., source: _Optional[str] = ...) -> None: ...

class QueryAuditResponse(_message.Message):
    __slots__ = ("entries", "unreadable")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    UNREADABLE_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[AuditEntry]
    unreadable: int
    def __init__(self, entries: _Optional[_Iterable[_Union[AuditEntry, _Mapping]]] = ..., unreadable: _Optional[int] = ...) -> None: ...

class AuditEntry(_message.Message):
    __slots__ = ("timestamp", "who", "serial", "roles", "scheme", "method", "object", "peer", "outcome", "why", "number", "source")
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    SCHEME_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    OBJECT_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    timestamp: int
    who: str
    serial: str
    roles: _containers.RepeatedScalarFieldContainer[str]
    scheme: str
    method: str
    object: str
    peer: str
    outcome: str
    why: str
    number: int
    source: str
    def __init__(self, timestamp: _Optional[int] = ..., who: _Optional[str] = ..., serial: _Optional[str] = ..., roles: _Optional[_Iterable[str]] = ..., scheme: _Optional[str] = ..., method: _Optional[str] = ..., object: _Optional[str] = ..., peer: _Optional[str] = ..., outcome: _Optional[str] = ..., why: _Optional[str] = ..., number: _Optional[int] = ..., source: _Optional[str] = ...) -> None: ...

class Capability(_message.Message):
    __slots__ = ("name", "level", "detail")
    class Level(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        LEVEL_UNSPECIFIED: _ClassVar[Capability.Level]
        ENFORCED: _ClassVar[Capability.Level]
        DEGRADED: _ClassVar[Capability.Level]
        MISSING: _ClassVar[Capability.Level]
    LEVEL_UNSPECIFIED: Capability.Level
    ENFORCED: Capability.Level
    DEGRADED: Capability.Level
    MISSING: Capability.Level
    NAME_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    name: str
    level: Capability.Level
    detail: str
    def __init__(self, name: _Optional[str] = ..., level: _Optional[_Union[Capability.Level, str]] = ..., detail: _Optional[str] = ...) -> None: ...
