"""The table of endpoints: a wrong row is found here and not at run time."""

import re
import typing
from pathlib import Path

import msgspec
import pytest

from common.bus.zeromq import IPC_PATH_BYTES_MAX, SocketOwners
from common.config.settings import DEFAULT_BASE_DIR
from common.identifiers import JobId
from common.messages import topics
from common.messages.envelope import Body, Failure, kind_of
from common.messages.topics import ENDPOINTS, REPLY_FILE, Endpoint, Pattern, Service

JOB = JobId("6fa459ea-ee8a-4ca4-894e-db77e160355e")
each_endpoint = pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.file)


@each_endpoint
def test_nobody_connects_to_himself(endpoint: Endpoint) -> None:
    """The binder is not among the connectors, and there is at least one of those."""
    assert endpoint.connectors
    assert endpoint.binder not in endpoint.connectors


@each_endpoint
def test_file_names(endpoint: Endpoint) -> None:
    """A plain file name below the run directory, short enough for sockaddr_un in the default base and in a test's."""
    assert re.fullmatch(r"[a-z][a-z-]*(\{pid\})?\.sock", endpoint.file)
    longest = endpoint.file.format(pid=2**22)
    assert len(str(Path(DEFAULT_BASE_DIR) / "run" / longest)) <= IPC_PATH_BYTES_MAX
    assert len(longest) <= 40


def test_file_names_are_unique() -> None:
    """No two endpoints share a file, or one with the gRPC socket of persist."""
    files = [endpoint.file for endpoint in ENDPOINTS] + [topics.PERSIST_GRPC_FILE]
    assert len(set(files)) == len(files)


@each_endpoint
def test_limits_are_set(endpoint: Endpoint) -> None:
    """Every endpoint bounds its messages and its queue, and neither with a number that means nothing."""
    assert 2**20 <= endpoint.message_bytes_max <= 128 * 2**20
    assert 1000 <= endpoint.queue_messages_max <= 10_000


def test_every_endpoint_is_in_the_table() -> None:
    """A row that is defined but not listed would escape the other tests."""
    defined = {value.file for value in vars(topics).values() if isinstance(value, Endpoint)}
    assert defined == {endpoint.file for endpoint in ENDPOINTS}


def test_kinds_are_unique() -> None:
    """A word on the wire means one type."""
    types = {message for endpoint in ENDPOINTS for message in endpoint.messages}
    kinds = {kind_of(message) for message in types}
    assert len(kinds) == len(types)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", kind) for kind in kinds)


@each_endpoint
def test_messages_are_frozen_bodies(endpoint: Endpoint) -> None:
    """Only frozen structs with typed fields travel."""
    for message in endpoint.messages:
        assert issubclass(message, Body)
        assert message.__struct_config__.frozen
        for field in msgspec.structs.fields(message):
            assert field.type is not typing.Any, f"{message.__name__}.{field.name}"


def test_commands_are_answered_where_failures_can_go() -> None:
    """Every endpoint for answers can carry a Failure."""
    for endpoint in (topics.API_REPLIES, topics.EXECUTOR_REPLIES):
        assert Failure in endpoint.messages
        assert REPLY_FILE.fullmatch(endpoint.file.format(pid=4711))


def test_no_endpoint_of_another_purpose_looks_like_a_reply_file() -> None:
    """A request cannot name a command endpoint as the place for its answer."""
    replies = {topics.API_REPLIES.file, topics.EXECUTOR_REPLIES.file}
    for endpoint in ENDPOINTS:
        if endpoint.file not in replies:
            assert not REPLY_FILE.fullmatch(endpoint.file)


@pytest.mark.requirement("S0.34")
def test_persist_takes_128_megabytes() -> None:
    """The default of persist.ipc.max_message_size is the table's."""
    assert topics.PERSIST_IPC.message_bytes_max == 134_217_728


def test_who_binds_what() -> None:
    """The table of architecture.md §3, row by row."""
    rows = {endpoint.file: (endpoint.pattern, endpoint.binder, set(endpoint.connectors)) for endpoint in ENDPOINTS}
    api, executor, volumes, persist = Service.API, Service.EXECUTOR, Service.VOLUMES, Service.PERSIST
    push = Pattern.PUSH_PULL
    assert rows == {
        "executor-commands.sock": (push, executor, {api, volumes}),
        "volumes-commands.sock": (push, volumes, {api, executor}),
        "api-replies-{pid}.sock": (push, api, {executor, volumes}),
        "executor-replies.sock": (push, executor, {volumes}),
        "persist-ipc.sock": (push, persist, {executor}),
        "persist-acks.sock": (push, executor, {persist}),
        "events.sock": (Pattern.PUB_SUB, executor, {api, Service.OPERATOR}),
    }


@pytest.mark.threat("E01")
def test_each_socket_belongs_to_the_one_who_connects() -> None:
    """An unprivileged service owns the sockets that it connects to and no others; operators come by group."""
    owners = SocketOwners(api_uid=901, persist_uid=902, gid=903)
    assert {endpoint.file: owners.of(endpoint) for endpoint in ENDPOINTS} == {
        "executor-commands.sock": (901, 0),
        "volumes-commands.sock": (901, 0),
        "api-replies-{pid}.sock": (0, 0),
        "executor-replies.sock": (0, 0),
        "persist-ipc.sock": (0, 0),
        "persist-acks.sock": (902, 0),
        "events.sock": (0, 903),
    }


def test_topics_of_a_job() -> None:
    """One topic a kind of news; none is a prefix of another job's."""
    assert topics.log_topic(JOB) == f"log.{JOB}"
    assert topics.metrics_topic(JOB) == f"metrics.{JOB}"
    assert topics.job_topic(JOB) == f"job.{JOB}"
