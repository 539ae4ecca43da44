"""The audit log of the real server: what each call leaves in it, and who may read it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cli.joblet.auditverify import verify_audit
from common.config.settings import Grpc
from common.messages import jobs
from proto.joblet.v1 import job_pb2, node_pb2, volume_pb2
from tests.api_node import Client, Node, running_node
from tests.waiting import SLOWNESS, await_for

Code = grpc.StatusCode
STRANGER = "6fa459ea-ee8a-4ca4-894e-db77e160355e"


def lines(node: Node) -> list[dict[str, Any]]:
    """The log so far."""
    path = node.layout.audit / "audit.jsonl"
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def told(node: Node, method: str) -> list[tuple[str, str, str]]:
    """Object, outcome and why of each line of a method."""
    return [
        (line["object"], line["outcome"], line["why"]) for line in lines(node) if line["method"].endswith(f"/{method}")
    ]


async def code_of(call: Any) -> grpc.StatusCode:
    """How a call or a stream ends."""
    try:
        if hasattr(call, "read"):
            while await call.read() is not aio.EOF:  # type: ignore[attr-defined]  # missing in the stubs
                pass
        else:
            await call
    except aio.AioRpcError as error:
        return error.code()
    return Code.OK


async def query(client: Client, **fields: Any) -> list[node_pb2.AuditEntry]:
    """All entries of a query that does not follow."""
    found: list[node_pb2.AuditEntry] = []
    async for message in client.node.QueryAudit(node_pb2.QueryAuditRequest(**fields)):
        found.extend(message.entries)
    return found


@asynccontextmanager
async def following(client: Client, **fields: Any) -> AsyncIterator[list[node_pb2.AuditEntry]]:
    """The entries that come to a follower inside of the block."""
    got: list[node_pb2.AuditEntry] = []
    stream = client.node.QueryAudit(node_pb2.QueryAuditRequest(follow=True, **fields))

    async def collect() -> None:
        async for message in stream:
            got.extend(message.entries)

    collecting = asyncio.create_task(collect())
    try:
        yield got
    finally:
        stream.cancel()
        await asyncio.gather(collecting, return_exceptions=True)


def test_a_unary_call_is_told_when_it_has_ended_with_what_became_of_it(tmp_path: Path) -> None:
    """An allowed StopJob that the executor refuses says so; so does a call to a node whose executor is away."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            client = node.client("ann", "user")
            done = node.executor.add("ann", state=jobs.State.COMPLETED).id
            assert await code_of(client.jobs.CancelJob(job_pb2.CancelJobRequest(job_id=done))) is Code.OK
            live = node.executor.add("ann", state=jobs.State.RUNNING).id
            assert await code_of(client.jobs.DeleteJob(job_pb2.DeleteJobRequest(job_id=live))) is (
                Code.FAILED_PRECONDITION
            )
            ((found, outcome, why),) = told(node, "DeleteJob")
            assert (found, outcome) == (live, "precondition")
            assert "running" in why
            assert await code_of(client.jobs.GetJob(job_pb2.GetJobRequest(job_id=STRANGER))) is Code.NOT_FOUND
            assert told(node, "GetJob") == [(STRANGER, "not_found", "no such job")]
            assert await code_of(client.jobs.GetJob(job_pb2.GetJobRequest(job_id="../x"))) is Code.INVALID_ARGUMENT
            assert told(node, "GetJob")[1][:2] == ("", "invalid")
            assert told(node, "CancelJob") == [(done, "allowed", "")]

    asyncio.run(scenario())


def test_a_call_whose_caller_leaves_is_unfinished(tmp_path: Path) -> None:
    """WaitJob with a deadline: one line, when it is over."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            job = node.executor.add("ann", state=jobs.State.RUNNING).id
            client = node.client("ann", "user")
            await client.channel.channel_ready()  # or its time may be over before the call has come
            wait = client.jobs.WaitJob(job_pb2.WaitJobRequest(job_id=job), timeout=10 * SLOWNESS)
            assert await code_of(wait) is Code.DEADLINE_EXCEEDED
            await await_for(lambda: told(node, "WaitJob"), what="the line of the call")
            ((found, outcome, _),) = told(node, "WaitJob")
            assert (found, outcome) == (job, "unfinished")

    asyncio.run(scenario())


def test_a_stream_is_told_when_it_begins_and_when_it_ends(tmp_path: Path) -> None:
    """At its end; when the caller leaves; when it is refused, once; when the service stops."""

    async def scenario() -> None:
        async with running_node(tmp_path, limits=Grpc(active_streams_max=1)) as node:
            client = node.client("ann", "user")
            watch = client.jobs.WatchJobs(job_pb2.WatchJobsRequest())
            await await_for(lambda: told(node, "WatchJobs"), what="the beginning to be told")
            assert told(node, "WatchJobs") == [("", "allowed", "")]
            other = client.jobs.WatchJobs(job_pb2.WatchJobsRequest())
            assert await code_of(other) is Code.RESOURCE_EXHAUSTED
            assert told(node, "WatchJobs")[1] == ("", "exhausted", "Max capacity reached")
            watch.cancel()
            await await_for(lambda: len(told(node, "WatchJobs")) == 3, what="the end to be told")
            assert told(node, "WatchJobs")[2][1] == "ended"
            job = node.executor.add("ann", state=jobs.State.COMPLETED).id
            bad = client.jobs.StreamLogs(job_pb2.StreamLogsRequest(job_id=job, regex="("))
            assert await code_of(bad) is Code.INVALID_ARGUMENT
            assert [line[:2] for line in told(node, "StreamLogs")] == [(job, "invalid")]
            samples = client.jobs.StreamMetrics(job_pb2.StreamMetricsRequest(job_id=job))
            assert await code_of(samples) is Code.OK
            assert told(node, "StreamMetrics") == [(job, "allowed", ""), (job, "ended", "")]
            kept = client.jobs.WatchJobs(job_pb2.WatchJobsRequest())
            await await_for(lambda: len(told(node, "WatchJobs")) == 4, what="the beginning to be told")
        assert told(node, "WatchJobs")[4] == ("", "ended", "the service stopped")
        kept.cancel()
        assert verify_audit(node.layout.audit, "api").findings == []

    asyncio.run(scenario())


def test_volumes_are_named(tmp_path: Path) -> None:
    """Every method of a volume has its name as object, by whatever it was named; what could be no name has none.

    Of attach and detach the line tells the job, too, of streams how much went.
    """

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            client = node.client("ann", "user")
            for method, request in (
                ("CreateVolume", volume_pb2.CreateVolumeRequest(name="data")),
                ("GetVolume", volume_pb2.GetVolumeRequest(name="data")),
                ("AttachVolume", volume_pb2.AttachVolumeRequest(name="data", job_id=STRANGER)),
                ("DetachVolume", volume_pb2.DetachVolumeRequest(name="data", job_id=STRANGER)),
                ("DeleteVolume", volume_pb2.DeleteVolumeRequest(name="data")),
            ):
                await code_of(getattr(client.volumes, method)(request))
                ((name, _, _),) = told(node, method)
                assert name == "data", method
            await code_of(client.volumes.GetVolume(volume_pb2.GetVolumeRequest(name="../\x1b]0;x")))
            assert told(node, "GetVolume")[1][0] == ""
            for early in ("CreateSnapshot", "DeleteSnapshot"):  # refused before the volume is looked up
                refused = getattr(volume_pb2, f"{early}Request")(volume="data", name="a/b")
                await code_of(getattr(client.volumes, early)(refused))
                assert told(node, early)[0][:2] == ("data", "invalid"), early
            record, job = node.volumes.add("ann", "there"), node.executor.add("ann").id
            for changing, wanted in (
                ("CreateSnapshot", volume_pb2.CreateSnapshotRequest(volume=record.id, name="s")),
                ("RestoreSnapshot", volume_pb2.RestoreSnapshotRequest(volume="there", name="s")),
                ("CloneVolume", volume_pb2.CloneVolumeRequest(volume="there", name="other")),
                ("ResizeVolume", volume_pb2.ResizeVolumeRequest(name=record.id, size_bytes=2**30)),
            ):
                await code_of(getattr(client.volumes, changing)(wanted))
                assert told(node, changing)[-1] == ("there", "allowed", ""), changing
            await code_of(client.volumes.AttachVolume(volume_pb2.AttachVolumeRequest(name=record.id, job_id=job[:8])))
            assert told(node, "AttachVolume")[1] == ("there", "allowed", f"job {job}")
            node.executor.busy = True
            await code_of(client.volumes.DetachVolume(volume_pb2.DetachVolumeRequest(name="there", job_id=job)))
            told_of_it = f"volume there is busy in job {job}; job {job}"
            assert told(node, "DetachVolume")[1] == ("there", "precondition", told_of_it)
            node.volumes.leave(job, "there")
            filling = [volume_pb2.ImportVolumeRequest(volume=record.id, data=b"12345")]
            await code_of(client.volumes.ImportVolume(iter(filling)))
            assert told(node, "ImportVolume") == [("there", "allowed", ""), ("there", "ended", "5 bytes")]
            async for _ in client.volumes.ExportVolume(volume_pb2.ExportVolumeRequest(volume="there")):
                pass
            await await_for(lambda: len(told(node, "ExportVolume")) == 2, what="the end to be told")
            assert told(node, "ExportVolume") == [("there", "allowed", ""), ("there", "ended", "5 bytes")]

    asyncio.run(scenario())


def test_what_libraries_refuse_by_themselves_is_told_too(tmp_path: Path) -> None:
    """Health of a service that there is not: the status of its abort."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            stub = health_pb2_grpc.HealthStub(node.client("ann", "reader").channel)
            assert await code_of(stub.Check(health_pb2.HealthCheckRequest(service="nope"))) is Code.NOT_FOUND
            # The library sends its status itself: the client may have it before the line is written.
            await await_for(lambda: told(node, "Check"), what="the line")
            assert [line[1] for line in told(node, "Check")] == ["not_found"]

    asyncio.run(scenario())


@pytest.mark.threat("B20")
def test_values_of_secrets_and_arguments_are_never_in_it(tmp_path: Path) -> None:
    """Environment, secret environment, arguments, labels of good and of refused requests; uploads."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            for roles, names in ((("user",), "A"), (("reader",), "B"), (("user",), "not a name")):
                client = node.client("ann", *roles)
                spec = job_pb2.JobSpec(
                    command="true",
                    args=["hush-argument"],
                    environment={names: "hush-environment"},
                    secret_environment={"S": "hush-secret"},
                    labels={"l": "hush-label"},
                )
                await code_of(client.jobs.RunJob(job_pb2.RunJobRequest(spec=spec)))
                await code_of(client.jobs.PlanJob(job_pb2.PlanJobRequest(spec=spec)))
                spec.limits.cpu_percent = 2**31
                await code_of(client.jobs.RunJob(job_pb2.RunJobRequest(spec=spec)))
            assert len(lines(node)) == 9
            assert b"hush" not in (node.layout.audit / "audit.jsonl").read_bytes()

    asyncio.run(scenario())


@pytest.mark.requirement("S4.18")
def test_only_admins_read_it(tmp_path: Path) -> None:
    """QueryAudit, of the api and of persist: OK for admin, PERMISSION_DENIED for everybody else; both are told."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            for roles in (("writer",), ("user",), ("reader",), ("writer", "user", "reader")):
                client = node.client("ann", *roles)
                for service in (client.node, client.persist):
                    got = await code_of(service.QueryAudit(node_pb2.QueryAuditRequest()))
                    assert got is Code.PERMISSION_DENIED, roles
            admin = node.client("root", "admin")
            entries = await query(admin)
            assert [entry.outcome for entry in entries] == ["denied"] * 8 + ["allowed"]
            assert {entry.who for entry in entries} == {"ann", "root"}

    asyncio.run(scenario())


def test_an_admin_sees_all_that_a_line_says(tmp_path: Path) -> None:
    """Every field of every line; also calls that never had an identity."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            await code_of(
                node.caller(node.authority.issue(["ann"], ["admin"], usages=None)).jobs.ListJobs(
                    job_pb2.ListJobsRequest()
                )
            )
            user = node.client("ann", "user", "reader")
            job = (await user.jobs.RunJob(job_pb2.RunJobRequest(spec=job_pb2.JobSpec(command="true")))).job.id
            entries = await query(node.client("root", "admin"))
            written = lines(node)
            assert [entry.number for entry in entries] == [1, 2, 3]
            for entry, line in zip(entries, written, strict=False):
                for field in ("who", "serial", "scheme", "method", "object", "peer", "outcome", "why", "number"):
                    assert getattr(entry, field) == line[field]
                assert (list(entry.roles), entry.source) == (line["roles"], "api")
                assert entry.timestamp > 1_700_000_000 * 10**9
            nobody, run, _ = entries
            assert (nobody.who, nobody.outcome) == ("", "unauthenticated")
            assert nobody.serial.startswith("sha256:")
            assert (run.object, list(run.roles), run.outcome) == (job, ["reader", "user"], "allowed")

    asyncio.run(scenario())


def test_filters_and_tail_reach_the_reader(tmp_path: Path) -> None:
    """Who, method, object, outcome, times and tail of the request; malformed ones are INVALID_ARGUMENT."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            job = node.executor.add("ann").id
            for who in ("ann", "bob", "carl"):
                client = node.client(who, "user")
                await code_of(client.jobs.GetJob(job_pb2.GetJobRequest(job_id=job)))
                await code_of(client.jobs.ListJobs(job_pb2.ListJobsRequest()))
            admin = node.client("root", "admin")
            assert [e.method.rpartition("/")[2] for e in await query(admin, who="bob")] == ["GetJob", "ListJobs"]
            assert [e.who for e in await query(admin, method="GetJob", object=job[:8])] == ["ann", "bob", "carl"]
            assert [e.who for e in await query(admin, method="GetJob", outcome="allowed")] == ["ann"]
            assert [e.who for e in await query(admin, method="ListJobs", tail=2)] == ["bob", "carl"]
            second = (await query(admin, method="ListJobs"))[1].timestamp
            assert [e.who for e in await query(admin, method="ListJobs", end_time=second)] == ["ann"]
            assert [e.who for e in await query(admin, method="ListJobs", start_time=second)] == ["bob", "carl"]
            for wrong in ({"tail": 2**40}, {"source": "executor"}, {"start_time": -1}, {"who": "x" * 1000}):
                request = node_pb2.QueryAuditRequest(**wrong)
                assert await code_of(admin.node.QueryAudit(request)) is Code.INVALID_ARGUMENT, wrong

    asyncio.run(scenario())


def test_a_follower_sees_calls_as_they_come(tmp_path: Path) -> None:
    """What was there, then what comes, each line once."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            user = node.client("ann", "user")
            await user.jobs.ListJobs(job_pb2.ListJobsRequest())
            async with following(node.client("root", "admin"), who="ann") as got:
                await await_for(lambda: got, what="the past")
                for _ in range(3):
                    await user.jobs.ListJobs(job_pb2.ListJobsRequest())
                await await_for(lambda: len(got) == 4, what="the new lines")
            assert len({entry.number for entry in got}) == 4

    asyncio.run(scenario())


def test_the_lines_of_persist_come_from_persist(tmp_path: Path) -> None:
    """By NodeService with a source, and by PersistService; UNAVAILABLE while it is away, the api's own go on."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            admin = node.client("root", "admin")
            (entry,) = await query(admin, source="persist", who="x")
            assert (entry.source, entry.who, entry.method) == ("persist", "x", "retention")
            async for message in admin.persist.QueryAudit(node_pb2.QueryAuditRequest()):
                assert [one.source for one in message.entries] == ["persist"]
            node.persist.away = True
            assert await code_of(admin.node.QueryAudit(node_pb2.QueryAuditRequest(source="persist"))) is (
                Code.UNAVAILABLE
            )
            assert len(await query(admin, source="api")) >= 3

    asyncio.run(scenario())


def test_a_large_log_stalls_nobody(tmp_path: Path) -> None:
    """While forty thousand lines are read for a client that takes none of them, calls of others are answered."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            admin = node.client("root", "admin")
            await query(admin)
            path = node.layout.audit / "audit.jsonl"
            path.write_bytes(path.read_bytes() * 20_000)
            stream = admin.node.QueryAudit(node_pb2.QueryAuditRequest())
            assert len((await stream.read()).entries) == 500
            user = node.client("ann", "user")
            for _ in range(20):
                await user.jobs.ListJobs(job_pb2.ListJobsRequest(), timeout=10)
            rest = 500
            while (message := await stream.read()) is not aio.EOF:  # type: ignore[attr-defined]  # as above
                rest += len(message.entries)
            assert rest >= 40_000

    asyncio.run(scenario())
