"""The public contract as stated by the sources: field numbers and types that clients rely on."""

import pytest
from google.protobuf.descriptor import FieldDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from proto.joblet.v1 import job_pb2, node_pb2, persist_pb2, volume_pb2, worker_pb2

TYPE_NAMES = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_BOOL: "bool",
}


def fields(message: type[Message]) -> dict[int, tuple[str, str]]:
    """Number → name and type; of messages and enums the name of the type."""
    found = {}
    for field in message.DESCRIPTOR.fields:
        named = field.message_type or field.enum_type
        kind = named.name if named is not None else TYPE_NAMES.get(field.type, str(field.type))
        found[field.number] = (field.name, kind)
    return found


def methods(service: ServiceDescriptor) -> dict[str, tuple[str, bool, str, bool]]:
    """Name → request, whether it is streamed, answer, whether it is streamed."""
    return {
        method.name: (
            method.input_type.name,
            bool(method.client_streaming),
            method.output_type.name,
            bool(method.server_streaming),
        )
        for method in service.methods
    }


PERSIST = persist_pb2.DESCRIPTOR.services_by_name["PersistService"]
VOLUMES = volume_pb2.DESCRIPTOR.services_by_name["VolumeService"]
JOBS = job_pb2.DESCRIPTOR.services_by_name["JobService"]


@pytest.mark.requirement("S0.40")
def test_log_line() -> None:
    """LogLine as stated."""
    assert fields(persist_pb2.LogLine) == {
        1: ("job_id", "string"),
        2: ("stream", "StreamType"),
        3: ("content", "bytes"),
        4: ("timestamp", "int64"),
        5: ("sequence", "int64"),
    }
    assert (persist_pb2.STDOUT, persist_pb2.STDERR) == (1, 2)


@pytest.mark.requirement("S0.41")
def test_metric() -> None:
    """Metric as stated, with additional fields behind."""
    stated = {
        1: ("job_id", "string"),
        2: ("timestamp", "int64"),
        3: ("cpu_percent", "double"),
        4: ("memory_bytes", "int64"),
        5: ("io_read_bytes", "int64"),
        6: ("io_write_bytes", "int64"),
    }
    assert stated.items() <= fields(persist_pb2.Metric).items()


@pytest.mark.requirement("S0.42")
@pytest.mark.requirement("S0.43")
@pytest.mark.requirement("S0.44")
def test_persist_service() -> None:
    """The three stated calls, the one for bulk, and three for operators."""
    assert methods(PERSIST) == {
        "QueryLogs": ("LogQueryRequest", False, "LogLine", True),
        "QueryLogBatches": ("LogBatchQueryRequest", False, "LogBatches", True),
        "QueryMetrics": ("MetricQueryRequest", False, "Metric", True),
        "DeleteJobData": ("DeleteJobDataRequest", False, "DeleteJobDataResponse", False),
        "ApplyRetention": ("ApplyRetentionRequest", False, "Removal", True),
        "GetStore": ("GetStoreRequest", False, "StoreInfo", False),
        "QueryAudit": ("QueryAuditRequest", False, "QueryAuditResponse", True),
    }


@pytest.mark.requirement("S0.45")
def test_log_query() -> None:
    """LogQueryRequest as stated, and a regular expression; the stream is a filter that can be left out."""
    assert fields(persist_pb2.LogQueryRequest) == {
        1: ("job_id", "string"),
        2: ("stream", "StreamType"),
        3: ("start_time", "int64"),
        4: ("end_time", "int64"),
        5: ("limit", "int32"),
        6: ("offset", "int32"),
        7: ("filter", "string"),
        8: ("regex", "string"),
    }
    assert not persist_pb2.LogQueryRequest().HasField("stream")


@pytest.mark.requirement("S0.46")
def test_metric_query() -> None:
    """MetricQueryRequest as stated."""
    assert fields(persist_pb2.MetricQueryRequest) == {
        1: ("job_id", "string"),
        2: ("start_time", "int64"),
        3: ("end_time", "int64"),
        4: ("aggregation", "string"),
        5: ("limit", "int32"),
        6: ("offset", "int32"),
    }


@pytest.mark.requirement("S1.18")
def test_volume_service() -> None:
    """The six stated calls, with additional ones beside."""
    stated = {"CreateVolume", "ListVolumes", "GetVolume", "DeleteVolume", "AttachVolume", "DetachVolume"}
    assert stated <= set(methods(VOLUMES))


@pytest.mark.requirement("S1.19")
def test_create_volume_request() -> None:
    """CreateVolumeRequest as stated, with additional fields behind."""
    stated = {
        1: ("name", "string"),
        2: ("type", "VolumeType"),
        3: ("size_bytes", "int64"),
        4: ("labels", "LabelsEntry"),
    }
    assert stated.items() <= fields(volume_pb2.CreateVolumeRequest).items()


@pytest.mark.requirement("S1.20")
def test_volume() -> None:
    """Volume as stated, with additional fields behind."""
    stated = {
        1: ("id", "string"),
        2: ("name", "string"),
        3: ("type", "VolumeType"),
        4: ("size_bytes", "int64"),
        5: ("status", "string"),
        6: ("created_at", "Timestamp"),
        7: ("last_used", "Timestamp"),
        8: ("current_job_id", "string"),
    }
    assert stated.items() <= fields(volume_pb2.Volume).items()


@pytest.mark.requirement("T.1")
@pytest.mark.requirement("S3.3")
def test_job_service() -> None:
    """Start, stop, query, stream, and what a list needs; only uploads stream towards the server."""
    calls = methods(JOBS)
    assert {"RunJob", "GetJob", "ListJobs", "StopJob", "WaitJob", "DeleteJob", "StreamLogs", "WatchJobs"} <= set(calls)
    assert {name for name, call in calls.items() if call[1]} == {"UploadFiles"}
    assert {name for name, call in calls.items() if call[3]} == {"StreamLogs", "WatchJobs", "StreamMetrics"}


@pytest.mark.requirement("S4.12", "X7")
def test_worker_service() -> None:
    """The four calls and their messages as stated, names in their spelling; resources are a message and optional."""
    assert methods(worker_pb2.DESCRIPTOR.services_by_name["WorkerService"]) == {
        "Start": ("StartRequest", False, "StartResponse", False),
        "Stop": ("StopRequest", False, "StopResponse", False),
        "Query": ("QueryRequest", False, "QueryResponse", False),
        "Stream": ("StreamRequest", False, "StreamResponse", True),
    }
    job = {1: ("jobID", "string")}
    assert fields(worker_pb2.StartRequest) == {
        1: ("name", "string"),
        2: ("args", "string"),
        3: ("resources", "Resources"),
    }
    assert worker_pb2.StartRequest.DESCRIPTOR.fields_by_name["args"].is_repeated
    assert not worker_pb2.StartRequest().HasField("resources")
    for message in (
        worker_pb2.StartResponse,
        worker_pb2.StopRequest,
        worker_pb2.QueryRequest,
        worker_pb2.StreamRequest,
    ):
        assert fields(message) == job, message
    assert fields(worker_pb2.StopResponse) == {}
    assert fields(worker_pb2.QueryResponse) == {1: ("pid", "int32"), 2: ("exitCode", "int32"), 3: ("exited", "bool")}
    assert fields(worker_pb2.StreamResponse) == {1: ("output", "string")}


@pytest.mark.requirement("T.3")
def test_output_is_bytes() -> None:
    """Nothing is assumed about output, so no text type carries it."""
    assert fields(job_pb2.LogChunk)[5] == ("data", "bytes")
    assert fields(persist_pb2.LogBatch)[5] == ("data", "bytes")


def test_every_enum_has_an_unspecified_zero() -> None:
    """Zero on the wire is "not said", so no value with a meaning is taken by accident."""
    for module in (job_pb2, node_pb2, persist_pb2, volume_pb2):
        for enum in module.DESCRIPTOR.enum_types_by_name.values():
            assert enum.values_by_number[0].name.endswith("UNSPECIFIED"), enum.full_name
