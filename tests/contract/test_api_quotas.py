"""The operator's quotas as callers meet them: through the real server, its connections, its audit log, and rnx."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # ships no types
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from common.config.settings import Identity, Quota, Quotas, RoleQuotas, Security
from common.messages import jobs
from proto.joblet.v1 import job_pb2
from tests.api_node import Client, Node, running_node
from tests.certificates import ADMIN_MARK, ROLES_EXTENSION, utf8_der
from tests.contract.test_api_limits import rnx
from tests.waiting import await_for

Code = grpc.StatusCode
TRUE = job_pb2.RunJobRequest(spec=job_pb2.JobSpec(command="true"))


async def outcome(call: Awaitable[Any]) -> grpc.StatusCode:
    """The status of a call."""
    try:
        await call
    except aio.AioRpcError as error:
        return error.code()
    return Code.OK


def lists(client: Client) -> Awaitable[Any]:
    """One call of the cheapest kind."""
    return cast(Awaitable[Any], client.jobs.ListJobs(job_pb2.ListJobsRequest()))


def told(error: aio.AioRpcError) -> tuple[str, str, float | None]:
    """Text, detail and RetryInfo of a refusal."""
    status = status_pb2.Status.FromString(dict(cast(Any, error.trailing_metadata()))["grpc-status-details-bin"])
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    waits = [retry.retry_delay.ToNanoseconds() / 1e9 for detail in status.details if detail.Unpack(retry)]
    assert status.details[0].Unpack(info)
    assert (info.reason, info.metadata["retryable"]) == ("EXHAUSTED", "true")
    return error.details() or "", info.metadata["detail"], waits[0] if waits else None


def stop_the_clock(node: Node) -> None:
    """Let no bucket fill again, so that a test does not depend on how fast it is."""
    node.api._rates._clock_ns = lambda: 10**15


def audited(node: Node) -> list[dict[str, Any]]:
    """The audit log."""
    return [json.loads(line) for line in (node.layout.audit / "audit.jsonl").read_text().splitlines()]


def test_bounds_of_jobs_travel_to_the_executor(tmp_path: Path) -> None:
    """What holds for the owner's roles goes with each RunJob; None where nothing is set."""
    quotas = Quotas(running_jobs=10, roles=RoleQuotas(user=Quota(running_jobs=2, queued_jobs=5)))

    async def scenario() -> None:
        async with running_node(tmp_path, quotas=quotas) as node:
            for roles, bounds in (
                (["user"], (2, 5)),
                (["writer"], (10, None)),
                (["user", "reader"], (2, 5)),
                (["user", "admin"], (10, None)),
            ):
                await node.client("ann", *roles).jobs.RunJob(TRUE)
                asked = node.executor.requests[-1]
                assert isinstance(asked, jobs.RunJob)
                assert (asked.running_max, asked.queued_max) == bounds, roles

    asyncio.run(scenario())


def test_a_call_too_many_is_told_when_it_may_come_again(tmp_path: Path) -> None:
    """RESOURCE_EXHAUSTED with bound, key, advice and the real time; after that time it works."""

    async def scenario() -> None:
        async with running_node(tmp_path, quotas=Quotas(calls_per_s=2)) as node:
            client = node.client("ann", "user")
            results = await asyncio.gather(*(lists(client) for _ in range(30)), return_exceptions=True)
            refused = [error for error in results if isinstance(error, aio.AioRpcError)]
            assert refused
            assert {error.code() for error in refused} == {Code.RESOURCE_EXHAUSTED}
            for error in refused:
                text, detail, wait_s = told(error)
                assert text == "ann makes more than 2 calls a second"
                assert detail == (
                    "the node's operator set joblet.quotas.calls_per_s to 2; call less often, or ask for more"
                )
                assert wait_s is not None
                assert 0 < wait_s <= 0.5
            await asyncio.sleep(max(told(error)[2] or 0 for error in refused))
            assert await outcome(lists(client)) is Code.OK

    asyncio.run(scenario())


@pytest.mark.threat("D18")
def test_no_more_calls_than_the_rate_over_all_connections(tmp_path: Path) -> None:
    """Five connections are one owner; what came through is at most rate × time and a second of it. Others go on."""

    async def scenario() -> None:
        async with running_node(tmp_path, quotas=Quotas(calls_per_s=20)) as node:
            identity, bob = node.authority.client("ann", "user"), node.client("bob", "user")
            connections = [node.caller(identity) for _ in range(5)]
            for one in connections:
                await one.channel.channel_ready()
            began_s = time.monotonic()
            flood = asyncio.gather(*(outcome(lists(one)) for one in connections for _ in range(60)))
            others = [await outcome(lists(bob)) for _ in range(15)]
            counted = Counter(await flood)
            lasted_s = time.monotonic() - began_s
            assert set(others) == {Code.OK}
            assert counted.keys() <= {Code.OK, Code.RESOURCE_EXHAUSTED}
            assert 20 <= counted[Code.OK] <= 20 + 20 * lasted_s

    asyncio.run(scenario())


@pytest.mark.threat("D18")
def test_every_method_counts_and_none_reaches_the_executor(tmp_path: Path) -> None:
    """Health, reflection, streams, what is forbidden: each takes a token; without one nothing else is looked at."""

    async def scenario() -> None:
        async with running_node(tmp_path, quotas=Quotas(calls_per_s=4)) as node:
            stop_the_clock(node)
            client = node.client("ann", "reader")
            health = health_pb2_grpc.HealthStub(client.channel)
            reflection = reflection_pb2_grpc.ServerReflectionStub(client.channel)
            asked = reflection_pb2.ServerReflectionRequest(list_services="")
            watching = client.jobs.WatchJobs(job_pb2.WatchJobsRequest())
            reading = asyncio.ensure_future(watching.read())
            await await_for(lambda: node.api.capacity.streams == 1, what="the stream")
            assert await outcome(health.Check(health_pb2.HealthCheckRequest())) is Code.OK
            assert await outcome(client.jobs.RunJob(TRUE)) is Code.PERMISSION_DENIED
            assert await outcome(reflection.ServerReflectionInfo(_one(asked)).read()) is Code.OK
            for call in (
                lambda: health.Check(health_pb2.HealthCheckRequest()),
                lambda: reflection.ServerReflectionInfo(_one(asked)).read(),
                lambda: client.jobs.RunJob(TRUE),
                lambda: client.jobs.WatchJobs(job_pb2.WatchJobsRequest()).read(),
                lambda: client.jobs.UploadFiles(_parts(b"x")),
                lambda: lists(client),
            ):
                assert await outcome(call()) is Code.RESOURCE_EXHAUSTED
            assert node.executor.requests == []
            assert node.api.capacity.streams == 1
            watching.cancel()
            await asyncio.wait([reading])
            await await_for(lambda: node.api.capacity.streams == 0, what="the stream to be given back")

    asyncio.run(scenario())


def test_a_flood_does_not_flood_the_audit_log(tmp_path: Path) -> None:
    """Of 90 refused calls the first has a line, the others one together; the admitted ones have theirs as ever."""

    async def scenario() -> None:
        async with running_node(tmp_path, quotas=Quotas(calls_per_s=3)) as node:
            stop_the_clock(node)
            client = node.client("ann", "user")
            counted = Counter(await asyncio.gather(*(outcome(lists(client)) for _ in range(93))))
            assert counted == {Code.OK: 3, Code.RESOURCE_EXHAUSTED: 90}
            lines = [line for line in audited(node) if line["outcome"] == "exhausted"]
            assert [line["why"] for line in lines] == ["ann makes more than 3 calls a second; calls refused: 1"]
            node.api._rates._clock_ns = lambda: 10**15 + 10**9
            await await_for(lambda: len(audited(node)) == 5, what="the line for the others")
            last = audited(node)[-1]
            assert last["why"] == "ann makes more than 3 calls a second; calls refused: 89"
            assert (last["who"], last["method"], last["roles"]) == ("ann", "/joblet.v1.JobService/ListJobs", ["user"])
            assert Counter(line["outcome"] for line in audited(node)) == {"allowed": 3, "exhausted": 2}

    asyncio.run(scenario())


@pytest.mark.threat("D18")
@pytest.mark.requirement("S2.13")
def test_streams_of_one_owner_leave_room_for_others(tmp_path: Path) -> None:
    """Over two connections he has two; a third is refused with bound and key, and has a place once one has ended."""

    async def scenario() -> None:
        quotas = Quotas(streams=2, roles=RoleQuotas(admin=Quota(streams=3)))
        async with running_node(tmp_path, quotas=quotas) as node:
            identity = node.authority.client("ann", "user")
            one, other, bob = node.caller(identity), node.caller(identity), node.client("bob", "user")
            held: list[Any] = []

            async def follow(client: Client, count: int) -> None:
                stream = client.jobs.WatchJobs(job_pb2.WatchJobsRequest())
                held.append((stream, asyncio.ensure_future(stream.read())))
                await await_for(lambda: node.api.capacity.streams == count, what=f"{count} streams")

            await follow(one, 1)
            await follow(other, 2)
            for client in (one, other):
                with pytest.raises(aio.AioRpcError) as refused:
                    await client.jobs.WatchJobs(job_pb2.WatchJobsRequest()).read()
                assert refused.value.code() is Code.RESOURCE_EXHAUSTED
                assert told(refused.value) == (
                    "ann has 2 streams open",
                    "the node's operator set joblet.quotas.streams to 2; end one of them first, or ask for more",
                    None,
                )
            assert await outcome(lists(one)) is Code.OK
            await follow(bob, 3)
            await follow(node.client("ann", "admin"), 4)  # of his other certificate three, one more than he has
            held[0][0].cancel()
            held[3][0].cancel()
            await await_for(lambda: node.api.capacity.streams == 2, what="two places to be given back")
            await follow(one, 3)
            for stream, _ in held:
                stream.cancel()
            await asyncio.wait([reading for _, reading in held])
            await await_for(lambda: node.api.capacity.streams == 0, what="all streams to be given back")
            assert node.api.capacity.owners == 0

    asyncio.run(scenario())


async def _one(message: Any) -> AsyncIterator[Any]:
    yield message


async def _parts(*contents: bytes) -> AsyncIterator[job_pb2.UploadFilesRequest]:
    for number, content in enumerate(contents):
        entry = job_pb2.UploadEntry(path=f"file-{number}", kind=job_pb2.UploadEntry.FILE, size_bytes=len(content))
        yield job_pb2.UploadFilesRequest(entry=entry)
        yield job_pb2.UploadFilesRequest(data=content)


def test_staged_bytes_of_one_owner(tmp_path: Path) -> None:
    """Two uploads together are too much; another owner has room, and so has he again once a job took one."""

    async def scenario() -> None:
        async with running_node(tmp_path, quotas=Quotas(roles=RoleQuotas(user=Quota(upload_bytes=100_000)))) as node:
            ann, bob, root = node.client("ann", "user"), node.client("bob", "user"), node.client("root", "admin")
            first = await ann.jobs.UploadFiles(_parts(b"x" * 60_000))
            with pytest.raises(aio.AioRpcError) as refused:
                await ann.jobs.UploadFiles(_parts(b"x" * 60_000))
            assert refused.value.code() is Code.RESOURCE_EXHAUSTED
            text, detail, _ = told(refused.value)
            assert text == "ann would have more than 100000 bytes staged"
            assert detail.startswith("the node's operator set joblet.quotas.roles.user.upload_bytes to 100000; run the")
            assert [path.stem for path in node.layout.uploads.iterdir()] == [first.upload_id]
            await bob.jobs.UploadFiles(_parts(b"x" * 60_000))
            await root.jobs.UploadFiles(_parts(b"x" * 600_000))
            spec = job_pb2.JobSpec(command="true", upload_ids=[first.upload_id])
            await ann.jobs.RunJob(job_pb2.RunJobRequest(spec=spec))
            await ann.jobs.UploadFiles(_parts(b"x" * 60_000))

    asyncio.run(scenario())


def test_rnx_says_when_to_try_again(tmp_path: Path) -> None:
    """One line: bound, key, what to do, and the time; exit code 4."""

    async def scenario() -> None:
        async with running_node(tmp_path / "node", quotas=Quotas(calls_per_s=3)) as node:
            stop_the_clock(node)
            client = node.client("ann", "user")
            for _ in range(3):
                await lists(client)
            code, err = await rnx(node, tmp_path, "job", "list")
            assert (code, err) == (
                4,
                "rnx: ann makes more than 3 calls a second: the node's operator set joblet.quotas.calls_per_s to 3; "
                "call less often, or ask for more; try again in 0.4 s\n",
            )

    asyncio.run(scenario())


@pytest.mark.requirement("S3.25")
@pytest.mark.requirement("S3.26")
def test_the_operators_schemes_hold_at_the_door(tmp_path: Path) -> None:
    """What is switched off gives no role, words of his own do, from the configuration to the call."""
    schemes = Identity(organization=False, marks={}, roles={"platform-team": "admin"})

    async def scenario() -> None:
        async with running_node(tmp_path, security=Security(identity=schemes)) as node:
            issue = node.authority.issue
            for identity, code in (
                (issue(["ann"], ["admin", "platform-team"]), Code.PERMISSION_DENIED),
                (issue(["ann"], extensions=[(ADMIN_MARK, b"\x05\x00")]), Code.PERMISSION_DENIED),
                (issue(["ann"], extensions=[(ROLES_EXTENSION, utf8_der("reader"))]), Code.PERMISSION_DENIED),
                (issue(["ann"], extensions=[(ROLES_EXTENSION, utf8_der("platform-team"))]), Code.OK),
            ):
                assert await outcome(node.caller(identity).jobs.RunJob(TRUE)) is code

    asyncio.run(scenario())
