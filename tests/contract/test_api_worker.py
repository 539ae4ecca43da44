"""WorkerService through the real server, asked by a client that has nothing but the stubs of worker.proto."""

import asyncio
import json
from pathlib import Path

import grpc
import pytest
from grpc import aio

from common import records
from common.config.settings import Grpc, LimitPolicy, LimitValues, Quotas
from common.messages import jobs
from proto.joblet.v1 import job_pb2, worker_pb2
from services.api.worker_service import RESOURCES, status_of
from tests.api_node import Client, running_node
from tests.waiting import SLOWNESS, await_for

UNKNOWN = "6fa459ea-ee8a-4ca4-894e-db77e160355e"
MIB = 2**20


async def refusal(call: object) -> tuple[grpc.StatusCode, str]:
    """Status and text of a call that must fail."""
    with pytest.raises(aio.AioRpcError) as refused:
        await call  # type: ignore[misc]  # an awaitable of any answer
    return refused.value.code(), refused.value.details() or ""


async def streamed(client: Client, job: str) -> list[str]:
    """The messages of Stream until its end."""
    request = worker_pb2.StreamRequest(jobID=job)
    return [message.output async for message in client.worker.Stream(request, timeout=30 * SLOWNESS)]


@pytest.mark.requirement("S4.7", "S4.8", "S4.9", "S4.10", "S4.12")
def test_start_query_stream_stop(tmp_path: Path) -> None:
    """A command becomes a job that JobService knows, too; its output comes whole; its end is told as S4.8 says."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            client = node.client("ann", "user")
            job = (await client.worker.Start(worker_pb2.StartRequest(name="sort", args=["-o", "sorted file"]))).jobID
            spec = node.executor.jobs[job].spec
            assert (spec.command, spec.args, node.executor.jobs[job].owner) == ("sort", ("-o", "sorted file"), "ann")
            assert (await client.jobs.GetJob(job_pb2.GetJobRequest(job_id=job))).spec.command == "sort"
            node.executor.change(job, state=jobs.State.RUNNING, pid=4711)
            query = worker_pb2.QueryRequest(jobID=job)
            assert await client.worker.Query(query) == worker_pb2.QueryResponse(pid=4711, exitCode=-1, exited=False)
            node.executor.write(job, b"stored\n", publish=False)
            following = asyncio.create_task(streamed(client, job))
            await await_for(lambda: node.persist.queries, what="the history query")
            node.executor.write(job, b"to stderr\n", stream=records.Stream.STDERR)
            await client.worker.Stop(worker_pb2.StopRequest(jobID=job))
            assert node.executor.requests[-1] == jobs.StopJob(job=job, signal=None, grace_ms=None)
            assert not following.done()
            node.executor.write(job, b"last words")
            node.executor.finish(job, state=jobs.State.STOPPED, exit_code=None, signal=15)
            assert "".join(await following) == "stored\nto stderr\nlast words"
            assert await client.worker.Query(query) == worker_pb2.QueryResponse(pid=4711, exitCode=-1, exited=True)
            assert "".join(await streamed(client, job)) == "stored\nto stderr\nlast words"

    asyncio.run(scenario())


@pytest.mark.requirement("S4.8", "X8")
@pytest.mark.parametrize("state", jobs.State)
def test_status_in_every_state(state: jobs.State) -> None:
    """Exited is every end, however it came; the exit code is there when there is one, 0 included, and −1 else."""

    def status(**fields: int) -> tuple[int, bool]:
        record = jobs.JobRecord(
            id=UNKNOWN,  # type: ignore[arg-type]  # a NewType
            owner="ann",
            node_id="node-1",
            state=state,
            spec=jobs.JobSpec(command="true"),
            created_at_ns=1,
            **fields,  # type: ignore[arg-type]  # exit_code or signal
        )
        answer = status_of(record)
        return answer.exitCode, answer.exited

    ended = state in jobs.TERMINAL
    assert [status(), status(signal=9), status(exit_code=0), status(exit_code=7)] == [
        (-1, ended),
        (-1, ended),
        (0, ended),
        (7, ended),
    ]


@pytest.mark.requirement("X9")
def test_output_that_is_not_text(tmp_path: Path) -> None:
    """Bytes are replaced, a character over two writes is one, what is missing is a line; live and stored alike."""
    euro = "€".encode()
    expected = "a�\0\n€\n[joblet: entries 4 to 6 are missing: journal_full]\nend �"

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            job = node.executor.add("ann").id
            client = node.client("ann", "user")
            following = asyncio.create_task(streamed(client, job))
            await await_for(lambda: node.api.hub.topics, what="the subscription")
            node.executor.write(job, b"a\xff\0\n")
            node.executor.write(job, euro[:1])
            node.executor.write(job, euro[1:] + b"\n")
            node.executor.lose(job, 3, "journal_full", lost_bytes=99)
            node.executor.write(job, b"end \xe2")
            node.executor.finish(job)
            assert "".join(await following) == expected
            assert "".join(await streamed(client, job)) == expected

    asyncio.run(scenario())


@pytest.mark.requirement("S4.11", "S4.17", "S2.23", "X19")
@pytest.mark.threat("D30")
def test_the_rules_are_those_of_job_service(tmp_path: Path) -> None:
    """Readers query and stream anything and start nothing; users have their own jobs, and no others exist for them."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            job = node.executor.add("ann").id
            node.executor.write(job, b"x\n")
            start = worker_pb2.StartRequest(name="true")
            stop, query = worker_pb2.StopRequest(jobID=job), worker_pb2.QueryRequest(jobID=job)
            reader, user, writer = (
                node.client(name, role) for name, role in (("r", "reader"), ("u", "user"), ("w", "writer"))
            )
            assert (await refusal(reader.worker.Start(start)))[0] is grpc.StatusCode.PERMISSION_DENIED
            assert (await refusal(reader.worker.Stop(stop)))[0] is grpc.StatusCode.PERMISSION_DENIED
            assert not (await reader.worker.Query(query)).exited
            hidden = await refusal(user.worker.Query(query))
            assert hidden[0] is grpc.StatusCode.NOT_FOUND
            assert hidden == await refusal(user.worker.Stop(stop))
            assert hidden == await refusal(user.worker.Stream(worker_pb2.StreamRequest(jobID=job)).read())
            assert hidden == await refusal(user.worker.Query(worker_pb2.QueryRequest(jobID=UNKNOWN)))
            assert node.executor.requests == []
            await writer.worker.Stop(stop)
            node.executor.finish(job)
            assert "".join(await streamed(reader, job)) == "x\n"
            assert (await refusal(writer.worker.Stop(stop)))[0] is grpc.StatusCode.FAILED_PRECONDITION
            assert (await writer.worker.Query(worker_pb2.QueryRequest(jobID=job[:8]))).exited
            lines = [json.loads(line) for line in (node.layout.audit / "audit.jsonl").read_text().splitlines()]
            told = {(line["who"], line["method"].rpartition("/")[2], line["outcome"]) for line in lines}
            assert {("r", "Start", "denied"), ("u", "Stream", "not_found"), ("w", "Stop", "allowed")} <= told
            assert all(line["object"] == job for line in lines if line["outcome"] == "allowed")

    asyncio.run(scenario())


@pytest.mark.requirement("S4.6", "S2.31", "S4.7")
def test_resources_are_the_limits_of_the_job(tmp_path: Path) -> None:
    """Each field reaches the executor; the operator's defaults and maxima count as they do for RunJob."""
    policy = LimitPolicy(default=LimitValues(io_weight=500), max=LimitValues(memory_bytes=200 * MIB))
    asked = {"cpu_percent": 50, "memory_bytes": 100 * MIB, "read_bytes_per_s": 8192, "write_bytes_per_s": 4096}
    assert set(RESOURCES) == {*asked, "io_weight"}

    async def scenario() -> None:
        async with running_node(tmp_path, job_limits=policy) as node:
            client = node.client("ann", "user")

            async def start(**resources: int) -> str:
                request = worker_pb2.StartRequest(name="true", resources=worker_pb2.Resources(**resources))
                return str((await client.worker.Start(request)).jobID)

            await start(**asked)
            got = node.executor.requests[-1]
            assert isinstance(got, jobs.RunJob)
            assert got.spec.limits == jobs.Limits(io_weight=500, **asked)  # type: ignore[arg-type]  # numbers all
            started = len(node.executor.requests)
            code, text = await refusal(start(memory_bytes=201 * MIB))
            assert (code, "memory_bytes" in text) == (grpc.StatusCode.PERMISSION_DENIED, True)
            for field in RESOURCES:
                code, text = await refusal(start(**{field: 0}))
                assert code is grpc.StatusCode.INVALID_ARGUMENT
                assert text.startswith(f"resources.{field}: 0 is out of range")
            assert len(node.executor.requests) == started

    asyncio.run(scenario())


@pytest.mark.requirement("S4.12", "X7")
def test_both_services_ask_the_executor_for_the_same(tmp_path: Path) -> None:
    """The same command is the same message, quotas of the caller included: there is one way to start a job."""
    quotas = Quotas(running_jobs=3, queued_jobs=7)

    async def scenario() -> None:
        async with running_node(tmp_path, quotas=quotas) as node:
            client = node.client("ann", "user")
            resources = {"cpu_percent": 50, "memory_bytes": 100 * MIB}
            spec = job_pb2.JobSpec(command="sort", args=["-u"], limits=job_pb2.Limits(**resources))  # type: ignore[arg-type]  # numbers all
            await client.jobs.RunJob(job_pb2.RunJobRequest(spec=spec))
            short = worker_pb2.StartRequest(name="sort", args=["-u"], resources=worker_pb2.Resources(**resources))
            await client.worker.Start(short)
            long, started = node.executor.requests
            assert long == started
            assert isinstance(started, jobs.RunJob)
            assert (started.running_max, started.queued_max) == (3, 7)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (worker_pb2.StartRequest(), "name is missing"),
        (worker_pb2.StartRequest(name="a\0b"), "name has a NUL byte"),
        (worker_pb2.StartRequest(name="x" * 4097), "name has 4097 bytes"),
        (worker_pb2.StartRequest(name="true", args=["\0"]), "args has a NUL byte"),
        (worker_pb2.StartRequest(name="true", args=["x"] * 4097), "args has 4097 entries"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_malformed_is_named(tmp_path: Path, request_: worker_pb2.StartRequest, words: str) -> None:
    """INVALID_ARGUMENT with the name that the field has in worker.proto."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            code, text = await refusal(node.client("ann", "user").worker.Start(request_))
            assert (code, words in text) == (grpc.StatusCode.INVALID_ARGUMENT, True), text
            assert node.executor.requests == []

    asyncio.run(scenario())


@pytest.mark.requirement("S2.13", "S4.12")
@pytest.mark.threat("D17")
@pytest.mark.threat("F38")
def test_streams_are_the_same_streams(tmp_path: Path) -> None:
    """They count among the bounded streams, are given back when a client leaves, and end with UNAVAILABLE with api."""

    async def scenario() -> None:
        async with running_node(tmp_path, limits=Grpc(active_streams_max=1)) as node:
            job = node.executor.add("ann").id
            client = node.client("ann", "user")
            request = worker_pb2.StreamRequest(jobID=job)
            held = client.worker.Stream(request)
            await await_for(lambda: node.api.capacity.streams == 1, what="the stream")
            full = await refusal(client.worker.Stream(request).read())
            assert full == (grpc.StatusCode.RESOURCE_EXHAUSTED, "Max capacity reached")
            held.cancel()
            await await_for(lambda: node.api.capacity.streams == 0, what="the stream to be given back")
            await await_for(lambda: not node.api.hub.topics, what="no subscription left")
            following = asyncio.create_task(streamed(client, job))
            await await_for(lambda: node.api.hub.topics, what="the subscription")
            await node.api.stop()
            assert (await refusal(following))[0] is grpc.StatusCode.UNAVAILABLE

    asyncio.run(scenario())


@pytest.mark.threat("D17")
@pytest.mark.threat("F26")
def test_a_client_that_never_reads_costs_its_bound(tmp_path: Path) -> None:
    """While one stream is not read the job's window lets output go; when it is read at last it has everything."""
    line = b"\xff" + b"x" * 98 + b"\n"
    lines = 640 * 80  # 5 MB, and more as text: above the window and the HTTP/2 window of one client

    async def scenario() -> None:
        async with running_node(tmp_path, limits=Grpc(follower_queue_bytes=256 * 1024)) as node:
            job = node.executor.add("ann").id
            lazy_client, client = node.client("ann", "user"), node.client("ann", "user")
            lazy = lazy_client.worker.Stream(worker_pb2.StreamRequest(jobID=job), timeout=60 * SLOWNESS)
            await await_for(lambda: node.api.hub.topics, what="the subscription")
            for _ in range(lines // 640):
                node.executor.write(job, line * 640)
                await asyncio.sleep(0)
            node.executor.finish(job)
            expected = line.decode("utf-8", "replace") * lines
            assert "".join(await streamed(client, job)) == expected
            assert "".join([message.output async for message in lazy]) == expected

    asyncio.run(scenario())
