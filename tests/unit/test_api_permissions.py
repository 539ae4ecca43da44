"""The permission table is complete, and says what architecture §7 says."""

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from common.config.settings import Quotas as QuotaSettings
from common.errors import JobletError, Reason
from common.richstatus import CODES
from proto.joblet.v1 import job_pb2, node_pb2, persist_pb2, volume_pb2, worker_pb2
from services.api.capacity import Capacity
from services.api.identity import Principal, Role
from services.api.permissions import GRANTS, RULES, Permission, Rule, Scope, scope_of
from services.api.quotas import Quotas
from services.api.server import SERVICES
from services.api.status import status_of

FILES = (
    job_pb2.DESCRIPTOR,
    node_pb2.DESCRIPTOR,
    persist_pb2.DESCRIPTOR,
    volume_pb2.DESCRIPTOR,
    worker_pb2.DESCRIPTOR,
    health_pb2.DESCRIPTOR,
    reflection_pb2.DESCRIPTOR,
)


@pytest.mark.threat("D15")
def test_every_method_of_every_service_has_a_row() -> None:
    """A method that is added to a contract and not to the table fails here; a row without a method, too."""
    methods = {
        f"/{service.full_name}/{method.name}"
        for file in FILES
        for service in file.services_by_name.values()
        for method in service.methods
    }
    assert methods == set(RULES)
    offered = {service.full_name for file in FILES for service in file.services_by_name.values()}
    assert offered == {*SERVICES, reflection.SERVICE_NAME}


@pytest.mark.requirement("S4.18")
def test_the_grants_are_those_of_the_architecture() -> None:
    """Row by row: run, control, read, volumes, node."""
    columns = (Permission.RUN, Permission.CONTROL, Permission.READ, Permission.CHANGE_VOLUMES, Permission.LIST_VOLUMES)
    table = {role: tuple(int(GRANTS[role].get(column, 0)) for column in columns) for role in Role}
    assert table == {
        Role.ADMIN: (2, 2, 2, 2, 2),
        Role.WRITER: (1, 2, 2, 1, 1),
        Role.USER: (1, 1, 1, 1, 1),
        Role.READER: (0, 0, 2, 0, 1),
    }


def test_roles_add_up_and_none_is_nothing() -> None:
    """Two roles reach as far as the farther one; no role reaches nothing."""
    assert scope_of([Role.USER, Role.READER], Permission.READ) is Scope.ANY
    assert scope_of([Role.USER, Role.READER], Permission.CONTROL) is Scope.OWN
    assert scope_of([], Permission.SEE_NODE) is Scope.NONE


@pytest.mark.requirement("S2.13")
def test_streams_are_counted_and_given_back() -> None:
    """One above the bound is refused with the words of the requirement; a place that was left is free again."""
    capacity, rule = Capacity(1, Quotas(QuotaSettings())), Rule(Permission.READ, streams=True)
    ann = Principal("ann", frozenset({Role.USER}), serial="1", scheme="organization")
    with capacity.of(rule, ann):
        with pytest.raises(JobletError) as refused, capacity.of(rule, ann):
            pytest.fail("the second stream must not be admitted")
        assert refused.value.message == "Max capacity reached"
        assert refused.value.reason is Reason.EXHAUSTED
        with capacity.of(Rule(Permission.READ), ann):
            assert capacity.streams == 1
    assert capacity.streams == 0


def test_every_reason_has_its_own_status() -> None:
    """The table is total and can be read backwards."""
    assert set(CODES) == set(Reason)
    assert len(set(CODES.values())) == len(CODES)


@pytest.mark.threat("B21")
def test_internal_errors_tell_nothing() -> None:
    """Whatever went wrong inside, the client gets two words; others are cut to a length."""
    status = status_of(JobletError(Reason.INTERNAL, "/opt/joblet/secret: Traceback", detail="key"))
    assert (status.code, status.details) == (grpc.StatusCode.INTERNAL, "internal error")
    assert b"opt" not in status.trailing_metadata[0][1]
    assert b"key" not in status.trailing_metadata[0][1]
    assert len(status_of(JobletError(Reason.INVALID, "x" * 9999)).details) == 1000


@pytest.mark.threat("B09")
def test_equal_errors_are_equal_bytes() -> None:
    """The serialization of an error does not depend on chance."""
    one = status_of(JobletError(Reason.NOT_FOUND, "no such job", detail="list them", retryable=False))
    assert all(one == status_of(JobletError(Reason.NOT_FOUND, "no such job", detail="list them")) for _ in range(20))
