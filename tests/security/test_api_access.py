"""Who gets in, and what each may do: the real server, refused from outside in every way we know."""

import asyncio
import datetime
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # ships no types
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from common.messages import jobs
from proto.joblet.v1 import job_pb2, node_pb2, persist_pb2, volume_pb2
from tests.api_node import Client, Node, running_node
from tests.certificates import ROLES_EXTENSION, SERVER, Authority, Identity, utf8_der
from tests.waiting import SLOWNESS

DAY = datetime.timedelta(days=1)
STRANGER = "6fa459ea-ee8a-4ca4-894e-db77e160355e"
Code = grpc.StatusCode


async def outcome(call: Awaitable[Any]) -> grpc.StatusCode:
    """The status of a call."""
    try:
        await call
    except aio.AioRpcError as error:
        return error.code()
    return Code.OK


async def first(stream: Any) -> Any:
    """The first message of a stream, which is then left; an error when that comes first."""
    try:
        async for message in stream:
            return message
        return None
    finally:
        stream.cancel()


async def wire(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str, bytes]:
    """All of an error that a client can see."""
    try:
        await call
    except aio.AioRpcError as error:
        return (
            error.code(),
            error.details() or "",
            bytes(dict(cast(Any, error.trailing_metadata()))["grpc-status-details-bin"]),
        )
    raise AssertionError("the call should have been refused")


def decisions(node: Node) -> list[dict[str, Any]]:
    """The audit log."""
    return [json.loads(line) for line in (node.layout.audit / "audit.jsonl").read_text().splitlines()]


@pytest.mark.threat("D01")
@pytest.mark.threat("D02")
@pytest.mark.threat("D03")
@pytest.mark.threat("D05")
@pytest.mark.threat("D06")
@pytest.mark.threat("D07")
@pytest.mark.threat("D08")
@pytest.mark.threat("D10")
@pytest.mark.threat("D11")
@pytest.mark.requirement("S4.16")
def test_the_table_of_refused_callers(tmp_path: Path) -> None:
    """Each bad certificate has its status and reaches no executor; what reached us is in the audit log."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            authority, other = node.authority, Authority()
            malformed = [(ROLES_EXTENSION, b"\x0c\x09admin")]
            table: list[tuple[str, Identity | None, grpc.StatusCode]] = [
                ("no certificate", None, Code.UNAVAILABLE),
                ("wrong authority", other.client("ann", "admin"), Code.UNAVAILABLE),
                ("expired", authority.issue(["ann"], ["admin"], not_before=-2 * DAY, not_after=-DAY), Code.UNAVAILABLE),
                (
                    "not yet valid",
                    authority.issue(["ann"], ["admin"], not_before=DAY, not_after=2 * DAY),
                    Code.UNAVAILABLE,
                ),
                ("for servers only", authority.issue(["ann"], ["admin"], usages=[SERVER]), Code.UNAVAILABLE),
                ("the server's own", authority.server(), Code.UNAVAILABLE),
                ("no usage", authority.issue(["ann"], ["admin"], usages=None), Code.UNAUTHENTICATED),
                ("no name", authority.issue([], ["admin"]), Code.UNAUTHENTICATED),
                ("two names", authority.issue(["ann", "boss"], ["admin"]), Code.UNAUTHENTICATED),
                ("NUL in the name", authority.client("ann\0.evil", "admin"), Code.UNAUTHENTICATED),
                ("homoglyph", authority.client("аnn", "admin"), Code.UNAUTHENTICATED),
                (
                    "malformed roles",
                    authority.issue(["ann"], extensions=malformed),
                    Code.UNAUTHENTICATED,
                ),
                ("no role", authority.client("ann"), Code.PERMISSION_DENIED),
                ("unknown role", authority.client("ann", "root"), Code.PERMISSION_DENIED),
            ]
            request = job_pb2.ListJobsRequest()
            metadata = (("x-role", "admin"), ("role", "admin"), ("authorization", "Bearer admin"))
            for what, identity, code in table:
                client = node.caller(identity)
                assert await outcome(client.jobs.ListJobs(request, timeout=10 * SLOWNESS, metadata=metadata)) is code, (
                    what
                )
                health = health_pb2_grpc.HealthStub(client.channel)
                assert await outcome(health.Check(health_pb2.HealthCheckRequest(), timeout=10 * SLOWNESS)) is code, what
            refused = [one["outcome"] for one in decisions(node)]
            assert refused.count("unauthenticated") == 12
            assert refused.count("denied") == 4
            fine = authority.issue(["ann"], extensions=[(ROLES_EXTENSION, utf8_der("reader"))])
            assert await outcome(node.caller(fine).jobs.ListJobs(request, metadata=metadata)) is Code.OK
            assert await outcome(node.caller(fine).jobs.RunJob(job_pb2.RunJobRequest(), metadata=metadata)) is (
                Code.PERMISSION_DENIED
            )
            assert node.executor.requests == []

    asyncio.run(scenario())


def calls(client: Client, job: str) -> dict[str, Callable[[], Awaitable[Any]]]:
    """Every method that names a job, on `job`."""
    query = persist_pb2.LogQueryRequest(job_id=job)
    return {
        "GetJob": lambda: client.jobs.GetJob(job_pb2.GetJobRequest(job_id=job)),
        "WaitJob": lambda: client.jobs.WaitJob(job_pb2.WaitJobRequest(job_id=job)),
        "StreamLogs": lambda: first(client.jobs.StreamLogs(job_pb2.StreamLogsRequest(job_id=job))),
        "StreamMetrics": lambda: first(client.jobs.StreamMetrics(job_pb2.StreamMetricsRequest(job_id=job))),
        "QueryLogs": lambda: first(client.persist.QueryLogs(query)),
        "QueryLogBatches": lambda: first(client.persist.QueryLogBatches(persist_pb2.LogBatchQueryRequest(query=query))),
        "QueryMetrics": lambda: first(client.persist.QueryMetrics(persist_pb2.MetricQueryRequest(job_id=job))),
        "StopJob": lambda: client.jobs.StopJob(job_pb2.StopJobRequest(job_id=job)),
        "CancelJob": lambda: client.jobs.CancelJob(job_pb2.CancelJobRequest(job_id=job)),
        "DeleteJobData": lambda: client.persist.DeleteJobData(persist_pb2.DeleteJobDataRequest(job_id=job)),
        "DeleteJob": lambda: client.jobs.DeleteJob(job_pb2.DeleteJobRequest(job_id=job)),
    }


READS = {"GetJob", "WaitJob", "StreamLogs", "StreamMetrics", "QueryLogs", "QueryLogBatches", "QueryMetrics"}


@pytest.mark.threat("D30")
@pytest.mark.requirement("S3.23")
@pytest.mark.requirement("S2.23")
@pytest.mark.requirement("S4.17")
def test_every_role_on_every_method_on_own_and_others_jobs(tmp_path: Path) -> None:
    """Roles × methods × {own, another's, none}: OK, PERMISSION_DENIED or NOT_FOUND exactly as architecture §7 says."""
    own = {"admin": (Code.OK, Code.OK), "writer": (Code.OK, Code.OK), "user": (Code.OK, Code.OK)}
    own["reader"] = (Code.OK, Code.PERMISSION_DENIED)
    others = own | {"user": (Code.NOT_FOUND, Code.NOT_FOUND), "user+reader": (Code.OK, Code.PERMISSION_DENIED)}
    own["user+reader"] = (Code.OK, Code.OK)

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            for role in own:
                client = node.client("ann", *role.split("+"))
                for table, owner in ((own, "ann"), (others, "bob")):
                    for method in calls(client, ""):
                        ended = jobs.State.COMPLETED if method != "StopJob" else jobs.State.RUNNING
                        job = node.executor.add(owner, state=ended).id
                        expected = table[role][0 if method in READS else 1]
                        got = await outcome(calls(client, job)[method]())
                        assert got is expected, (role, method, owner, got)
                for method, call in calls(client, STRANGER).items():
                    code = Code.PERMISSION_DENIED if role == "reader" and method not in READS else Code.NOT_FOUND
                    assert await outcome(call()) is code, (role, method)

    asyncio.run(scenario())


@pytest.mark.threat("B09")
@pytest.mark.threat("B11")
def test_anothers_job_does_not_exist(tmp_path: Path) -> None:
    """Every method gives the same bytes for another's job and for none; lists, prefixes and totals leave it out."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            bobs = node.executor.add("bob", state=jobs.State.COMPLETED).id
            client = node.client("ann", "user")
            for method in calls(client, bobs):
                there = await wire(calls(client, bobs)[method]())
                nowhere = await wire(calls(client, STRANGER)[method]())
                assert there == nowhere, method
                assert there[0] is Code.NOT_FOUND
            assert await wire(client.jobs.GetJob(job_pb2.GetJobRequest(job_id=bobs[:8]))) == nowhere
            for job_filter in (job_pb2.JobFilter(), job_pb2.JobFilter(owner="bob")):
                listed = await client.jobs.ListJobs(job_pb2.ListJobsRequest(filter=job_filter))
                assert list(listed.jobs) == []
            assert (await client.node.GetInfo(node_pb2.GetInfoRequest())).running_jobs == 0
            watching = client.jobs.WatchJobs(job_pb2.WatchJobsRequest())
            reading = asyncio.ensure_future(watching.read())
            node.executor.change(bobs, state=jobs.State.COMPLETED)
            mine = node.executor.add("ann").id
            node.executor.change(mine)
            assert (await reading).job.id == mine
            watching.cancel()

    asyncio.run(scenario())


@pytest.mark.threat("B12")
@pytest.mark.threat("C24")
@pytest.mark.threat("B21")
def test_malformed_requests_are_refused_without_telling_of_the_host(tmp_path: Path) -> None:
    """Ids that are paths, negative numbers, bytes that are no message: INVALID_ARGUMENT, and no path in any text."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            client = node.client("ann", "admin")
            for bad in ("../../etc/passwd", "..", "%2f" * 4, "a\0b", "", "A" * 36, "é" * 8, "0" * 37):
                for method, call in calls(client, bad).items():
                    code, text, raw = await wire(call())
                    assert code is Code.INVALID_ARGUMENT, (method, bad)
                    assert str(tmp_path) not in text
                    assert b"Traceback" not in raw
            job = node.executor.add("ann").id
            for query in (
                persist_pb2.LogQueryRequest(job_id=job, limit=-1),
                persist_pb2.LogQueryRequest(job_id=job, offset=-1),
                persist_pb2.LogQueryRequest(job_id=job, start_time=-(2**63)),
            ):
                assert await outcome(first(client.persist.QueryLogs(query))) is Code.INVALID_ARGUMENT
            for request in (
                job_pb2.StreamLogsRequest(job_id=job, start_time=-1),
                job_pb2.StreamLogsRequest(job_id=job, stream=7),  # type: ignore[arg-type]  # open enumeration
                job_pb2.StreamLogsRequest(job_id=job, filter="x" * 5000),
            ):
                assert await outcome(first(client.jobs.StreamLogs(request))) is Code.INVALID_ARGUMENT
            garbage = client.channel.unary_unary("/joblet.v1.JobService/GetJob", lambda data: data, None)
            assert await outcome(garbage(b"\xff\xff\xff")) is Code.INVALID_ARGUMENT
            unknown = client.channel.unary_unary("/joblet.v1.JobService/getjob", lambda data: data, None)
            assert await outcome(unknown(b"")) is Code.UNIMPLEMENTED

    asyncio.run(scenario())


@pytest.mark.threat("D16")
@pytest.mark.threat("D21")
def test_oversized_requests_and_metadata_are_refused(tmp_path: Path) -> None:
    """A body above 4 MiB, also one that is small when compressed, and large metadata: refused; others go on."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            client = node.client("ann", "user")
            large = job_pb2.RunJobRequest(spec=job_pb2.JobSpec(command="x" * 5 * 2**20))
            assert await outcome(client.jobs.RunJob(large)) is Code.RESOURCE_EXHAUSTED
            assert (
                await outcome(client.jobs.RunJob(large, compression=grpc.Compression.Gzip)) is Code.RESOURCE_EXHAUSTED
            )
            many = tuple((f"x-{n}", "y" * 1000) for n in range(40))
            code = await outcome(client.jobs.ListJobs(job_pb2.ListJobsRequest(), metadata=many))
            assert code in {Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE, Code.INTERNAL, Code.UNKNOWN}
            assert await outcome(node.client("bob", "user").jobs.ListJobs(job_pb2.ListJobsRequest())) is Code.OK
            assert node.executor.requests == []

    asyncio.run(scenario())


def test_authorization_comes_before_the_body(tmp_path: Path) -> None:
    """A caller without the permission is refused although his body is no message at all."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            client = node.client("ann", "reader")
            raw = client.channel.unary_unary("/joblet.v1.JobService/RunJob", lambda data: data, None)
            assert await outcome(raw(b"\xff\xff\xff")) is Code.PERMISSION_DENIED

    asyncio.run(scenario())


def test_every_decision_is_in_the_audit_log(tmp_path: Path) -> None:
    """Who, serial, roles, method, object, peer and outcome; one line a call; allowed ones too."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            client = node.client("ann", "user")
            run = await client.jobs.RunJob(job_pb2.RunJobRequest(spec=job_pb2.JobSpec(command="true")))
            bobs = node.executor.add("bob").id
            await outcome(client.jobs.StopJob(job_pb2.StopJobRequest(job_id=bobs)))
            await outcome(client.jobs.StopJob(job_pb2.StopJobRequest(job_id=run.job.id)))
            await outcome(client.volumes.ListVolumes(volume_pb2.ListVolumesRequest()))
            lines = decisions(node)
            methods = [(line["method"].rpartition("/")[2], line["object"], line["outcome"]) for line in lines]
            assert methods == [
                ("RunJob", run.job.id, "allowed"),
                ("StopJob", bobs, "not_found"),
                ("StopJob", run.job.id, "allowed"),
                ("ListVolumes", "", "allowed"),
            ]
            assert {line["who"] for line in lines} == {"ann"}
            assert all(line["roles"] == ["user"] and line["serial"] and "127.0.0.1" in line["peer"] for line in lines)
            assert (node.layout.audit / "audit.jsonl").stat().st_mode & 0o777 == 0o600

    asyncio.run(scenario())


def test_errors_carry_machine_readable_details(tmp_path: Path) -> None:
    """google.rpc.ErrorInfo with reason, domain, what to do, and whether to try again."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            client = node.client("ann", "user")
            _, text, raw = await wire(client.jobs.GetJob(job_pb2.GetJobRequest(job_id=STRANGER)))
            info = error_details_pb2.ErrorInfo()
            assert status_pb2.Status.FromString(raw).details[0].Unpack(info)
            assert (text, info.reason, info.domain) == ("no such job", "NOT_FOUND", "joblet")
            assert info.metadata["retryable"] == "false"
            assert info.metadata["detail"]

    asyncio.run(scenario())


def test_health_and_reflection(tmp_path: Path) -> None:
    """They answer anybody with a role."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            reader = node.client("ann", "reader")
            health = health_pb2_grpc.HealthStub(reader.channel)
            answer = await health.Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            watched = await first(health.Watch(health_pb2.HealthCheckRequest()))
            assert watched.status == health_pb2.HealthCheckResponse.SERVING
            reflect = reflection_pb2_grpc.ServerReflectionStub(reader.channel).ServerReflectionInfo()
            await reflect.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            services = {one.name for one in (await reflect.read()).list_services_response.service}
            assert {"joblet.v1.JobService", "joblet.v1.PersistService", "grpc.health.v1.Health"} <= services
            reflect.cancel()

    asyncio.run(scenario())
