"""Roles × every RPC × own and others' jobs and volumes × states of a certificate: the exact status for each.

The tables here are written by hand from docs/security.md, not computed from `services/api/permissions.py`: a mistake
there must differ from them. Only the names of the methods are read from there, so that none is left out.
"""

import asyncio
import datetime
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Final, NamedTuple

import grpc
import pytest
from grpc import aio

from common.messages import jobs
from services.api.looks import Look, Reading
from services.api.permissions import RULES
from tests.api_node import Node, running_node
from tests.certificates import SERVER, Authority, Identity
from tests.security.front_door import HEALTH, JOBS, NODE, PERSIST, REFLECTION, REQUESTS, VOLUMES, WORKER, outcome
from tests.waiting import SLOWNESS

Code = grpc.StatusCode
DAY: Final = datetime.timedelta(days=1)
REPOSITORY: Final = Path(__file__).parents[2]
STRANGER: Final = "6fa459ea-ee8a-4ca4-894e-db77e160355e"
ROLES: Final = ("admin", "writer", "user", "reader")

OK, DENIED, NONE = Code.OK, Code.PERMISSION_DENIED, Code.NOT_FOUND


class Row(NamedTuple):
    """What each role is answered. About jobs and volumes: its own, another's, and one that is not there."""

    admin: tuple[Code, ...]
    writer: tuple[Code, ...]
    user: tuple[Code, ...]
    reader: tuple[Code, ...]


SEEING: Final = Row((OK, OK, NONE), (OK, OK, NONE), (OK, NONE, NONE), (OK, OK, NONE))
CHANGING: Final = Row((OK, OK, NONE), (OK, OK, NONE), (OK, NONE, NONE), (DENIED, DENIED, DENIED))
STARTING: Final = Row((OK,), (OK,), (OK,), (DENIED,))
ANYBODY: Final = Row((OK,), (OK,), (OK,), (OK,))
MANAGING: Final = Row((OK,), (DENIED,), (DENIED,), (DENIED,))
VOLUMES_SEEN: Final = Row((OK, OK, NONE), (OK, NONE, NONE), (OK, NONE, NONE), (OK, NONE, NONE))
VOLUMES_CHANGED: Final = Row((OK, OK, NONE), (OK, NONE, NONE), (OK, NONE, NONE), (DENIED, DENIED, DENIED))

TABLE: Final[dict[str, Row]] = {
    JOBS + "RunJob": STARTING,
    JOBS + "PlanJob": STARTING,
    JOBS + "UploadFiles": STARTING,
    JOBS + "GetJob": SEEING,
    JOBS + "ListJobs": ANYBODY,  # what is in the list is another matter: see test_api_access.py
    JOBS + "StopJob": CHANGING,
    JOBS + "CancelJob": CHANGING,
    JOBS + "WaitJob": SEEING,
    JOBS + "DeleteJob": CHANGING,
    JOBS + "StreamLogs": SEEING,
    JOBS + "WatchJobs": ANYBODY,  # likewise
    JOBS + "StreamMetrics": SEEING,
    PERSIST + "QueryLogs": SEEING,
    PERSIST + "QueryLogBatches": SEEING,
    PERSIST + "QueryMetrics": SEEING,
    PERSIST + "DeleteJobData": CHANGING,
    PERSIST + "ApplyRetention": MANAGING,
    PERSIST + "GetStore": MANAGING,
    PERSIST + "QueryAudit": MANAGING,
    NODE + "GetInfo": ANYBODY,
    NODE + "QueryAudit": MANAGING,
    WORKER + "Start": STARTING,
    WORKER + "Stop": CHANGING,
    WORKER + "Query": SEEING,
    WORKER + "Stream": SEEING,
    VOLUMES + "CreateVolume": STARTING,
    VOLUMES + "ListVolumes": ANYBODY,  # likewise: see tests/contract/test_api_volumes.py
    VOLUMES + "GetVolume": VOLUMES_SEEN,
    VOLUMES + "DeleteVolume": VOLUMES_CHANGED,
    VOLUMES + "AttachVolume": VOLUMES_CHANGED,
    VOLUMES + "DetachVolume": VOLUMES_CHANGED,
    VOLUMES + "ResizeVolume": VOLUMES_CHANGED,
    VOLUMES + "CreateSnapshot": VOLUMES_CHANGED,
    VOLUMES + "ListSnapshots": VOLUMES_SEEN,
    VOLUMES + "DeleteSnapshot": VOLUMES_CHANGED,
    VOLUMES + "RestoreSnapshot": VOLUMES_CHANGED,
    VOLUMES + "CloneVolume": VOLUMES_CHANGED,
    VOLUMES + "ExportVolume": VOLUMES_CHANGED,
    VOLUMES + "ImportVolume": VOLUMES_CHANGED,
    HEALTH + "Check": ANYBODY,
    HEALTH + "List": ANYBODY,
    HEALTH + "Watch": ANYBODY,
    REFLECTION + "ServerReflectionInfo": ANYBODY,
}
RUNNING: Final = {JOBS + "StopJob", WORKER + "Stop", VOLUMES + "AttachVolume", VOLUMES + "DetachVolume"}
"""What needs a job that has not ended."""


@pytest.mark.threat("D15")
def test_every_method_has_a_row() -> None:
    """Who adds an RPC has to say here what each role gets, and how it is called."""
    assert set(TABLE) == set(RULES)
    assert set(REQUESTS) == set(RULES)


@pytest.mark.threat("D30")
@pytest.mark.threat("D08")
@pytest.mark.requirement("S3.23")
@pytest.mark.requirement("S2.23")
@pytest.mark.requirement("S2.25")
@pytest.mark.requirement("S4.17")
def test_every_role_on_every_method(tmp_path: Path) -> None:
    """OK, PERMISSION_DENIED, NOT_FOUND as the table says, on one's own and others' jobs and volumes."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            node.executor.add("ann")  # so that a watch has something to tell at once
            wrong: list[object] = []
            for role in ROLES:
                channel = node.client("ann", role).channel
                for method, row in TABLE.items():
                    for position, expected in enumerate(getattr(row, role)):
                        got = await outcome(channel, method, fresh_request(node, method, position))
                        if got is not expected:
                            wrong.append((role, method, ("own", "another's", "none")[position], got, expected))
            assert wrong == []

    asyncio.run(scenario())


def fresh_request(node: Node, method: str, position: int) -> bytes:
    """About one's own job or volume, bob's, or one that there is not; fresh, since methods end and delete them."""
    owner = ("ann", "bob", "nobody")[position]
    job = node.executor.add(owner, state=jobs.State.RUNNING if method in RUNNING else jobs.State.COMPLETED).id
    if not method.startswith(VOLUMES):
        return request_of(method, STRANGER if position == 2 else job)
    volume = node.volumes.add(owner, f"of-{job}")
    node.volumes.keep(volume.id, "kept")
    request = REQUESTS[method](STRANGER if position == 2 else volume.id)
    if method in RUNNING:
        request.job_id = job  # type: ignore[attr-defined]  # attach and detach have it
    return request.SerializeToString()


def request_of(method: str, job: str) -> bytes:
    """A good request, as bytes."""
    return REQUESTS[method](job).SerializeToString()


class State(NamedTuple):
    """A state in which a certificate can be, how to get one, and what every method answers to it."""

    what: str
    issue: Callable[[Authority, str], Identity | None]
    expected: grpc.StatusCode


def stranger(_: Authority, role: str) -> Identity:
    """From an authority of the same name with another key."""
    return Authority().client("ann", role)


# A handshake that fails leaves gRPC without a status of the server: its own is UNAVAILABLE.
STATES: Final = (
    State("no certificate", lambda _, __: None, Code.UNAVAILABLE),
    State("wrong authority", stranger, Code.UNAVAILABLE),
    State(
        "expired",
        lambda authority, role: authority.issue(["ann"], [role], not_before=-2 * DAY, not_after=-DAY),
        Code.UNAVAILABLE,
    ),
    State(
        "not yet valid",
        lambda authority, role: authority.issue(["ann"], [role], not_before=DAY, not_after=2 * DAY),
        Code.UNAVAILABLE,
    ),
    State("for servers", lambda authority, role: authority.issue(["ann"], [role], usages=[SERVER]), Code.UNAVAILABLE),
    State(
        "without usages", lambda authority, role: authority.issue(["ann"], [role], usages=None), Code.UNAUTHENTICATED
    ),
    State("of an authority", lambda authority, role: authority.issue(["ann"], [role], ca=True), Code.UNAUTHENTICATED),
    State("two names", lambda authority, role: authority.issue(["ann", "bob"], [role]), Code.UNAUTHENTICATED),
    State("without a role", lambda authority, _: authority.client("ann"), Code.PERMISSION_DENIED),
)


async def statuses(channel: aio.Channel, node: Node) -> set[tuple[str, grpc.StatusCode]]:
    """What every method answers, on ann's own job and on bob's; all at once, since nothing may come of it."""
    own, others = (str(node.executor.add(owner).id) for owner in ("ann", "bob"))
    calls = [(method, request_of(method, job)) for method, job in product(TABLE, (own, others))]
    answers = await asyncio.gather(*(outcome(channel, method, request) for method, request in calls))
    return {(method, code) for (method, _), code in zip(calls, answers, strict=True)}


def each(expected: grpc.StatusCode) -> set[tuple[str, grpc.StatusCode]]:
    """The same status of every method."""
    return {(method, expected) for method in TABLE}


@pytest.mark.threat("D01")
@pytest.mark.threat("D02")
@pytest.mark.threat("D03")
@pytest.mark.threat("D05")
@pytest.mark.threat("D06")
@pytest.mark.threat("D08")
@pytest.mark.threat("D10")
@pytest.mark.requirement("S2.21")
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.what.replace(" ", "-"))
def test_every_method_refuses_bad_certificates(tmp_path: Path, state: State) -> None:
    """Whatever role it names, on one's own job as on another's: one status, and nothing reaches the executor."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            for role in ROLES:
                channel = node.caller(state.issue(node.authority, role)).channel
                assert await statuses(channel, node) == each(state.expected), (state.what, role)
            assert node.executor.requests == []
            assert node.volumes.requests == []

    asyncio.run(scenario())


@pytest.mark.threat("D03")
def test_every_method_refuses_a_certificate_that_expired_while_connected(tmp_path: Path) -> None:
    """The handshake was fine; from its last second on every method answers UNAUTHENTICATED, on the same connection."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            channels = {role: node.client("ann", role).channel for role in ROLES}
            for channel in channels.values():
                assert await outcome(channel, NODE + "GetInfo", b"") is Code.OK
            asked = list(node.executor.requests)
            node.api.gate._clock = lambda: time.time() + 60 * DAY.total_seconds()  # later than any certificate
            for role, channel in channels.items():
                assert await statuses(channel, node) == each(Code.UNAUTHENTICATED), role
            assert node.executor.requests == asked

    asyncio.run(scenario())


@pytest.mark.threat("D32")
def test_every_method_refuses_a_revoked_certificate(tmp_path: Path) -> None:
    """Revoked while connected: UNAUTHENTICATED on that connection and on new ones; who is not on the list goes on."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            identities = {role: node.authority.client("ann", role) for role in ROLES}
            other = node.client("bob", "admin").channel
            channels = {role: node.caller(identity).channel for role, identity in identities.items()}
            for channel in (*channels.values(), other):
                assert await outcome(channel, NODE + "GetInfo", b"") is Code.OK
            asked = list(node.executor.requests)
            await node.api.rotation.take(
                Look(None, None, None, Reading(node.authority.crl(*identities.values()), 0o600))
            )
            for role, identity in identities.items():
                assert await statuses(channels[role], node) == each(Code.UNAUTHENTICATED), role
                assert await statuses(node.caller(identity).channel, node) == each(Code.UNAUTHENTICATED), role
            assert node.executor.requests == asked
            assert await outcome(other, NODE + "GetInfo", b"") is Code.OK

    asyncio.run(scenario())


@pytest.mark.threat("D12")
@pytest.mark.requirement("S2.26")
def test_every_method_refuses_tls_12(tmp_path: Path) -> None:
    """Should a build of gRPC ever take TLS 1.2 in spite of all, then every method answers UNAUTHENTICATED (16) itself.

    That the handshake fails in the first place, so that there is no status, is for test_api_process.py.
    """
    told = subprocess.run(
        [sys.executable, "-m", "tests.security.tls12_door", str(tmp_path)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        timeout=60 * SLOWNESS,
        check=True,
    ).stdout.decode()
    assert "TLSv1.2\n" in told
    answers = {line for line in told.splitlines() if line.startswith("/")}
    assert answers == {f"{method} {code.value[0]}" for method, code in each(Code.UNAUTHENTICATED)}
