"""The unary methods, watches, metrics and uploads through the real server, over a fake executor and persist."""

import asyncio
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc import aio

from common.config.settings import Jobs, Journal, Uploads
from common.identifiers import JobId
from common.messages import jobs, logs
from proto.joblet.v1 import job_pb2, node_pb2, persist_pb2, worker_pb2
from tests.api_node import Client, running_node
from tests.waiting import await_for


async def status(call: object) -> grpc.StatusCode:
    """The status of a call that fails."""
    with pytest.raises(aio.AioRpcError) as refused:
        await call  # type: ignore[misc]  # any gRPC call
    return refused.value.code()


async def parts(*chunks: bytes, path: str = "file") -> AsyncIterator[job_pb2.UploadFilesRequest]:
    """An upload of one file."""
    size = sum(len(chunk) for chunk in chunks)
    entry = job_pb2.UploadEntry(path=path, kind=job_pb2.UploadEntry.FILE, mode=0o755, size_bytes=size)
    yield job_pb2.UploadFilesRequest(entry=entry)
    for chunk in chunks:
        yield job_pb2.UploadFilesRequest(data=chunk)


async def run(client: Client, **fields: object) -> job_pb2.RunJobResponse:
    """Start `true`."""
    spec = job_pb2.JobSpec(command="true", **fields)  # type: ignore[arg-type]  # checked by protobuf
    answer: job_pb2.RunJobResponse = await client.jobs.RunJob(job_pb2.RunJobRequest(spec=spec))
    return answer


@pytest.mark.threat("D23")
def test_an_upload_is_taken_by_one_job_of_its_owner(tmp_path: Path) -> None:
    """Bytes arrive in an archive; another owner cannot name it; a retry with the same key is the same job."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            ann, bob = node.client("ann", "user"), node.client("bob", "user")
            data = bytes(range(256)) * 10_000
            upload = await ann.jobs.UploadFiles(parts(data[:1_000_000], data[1_000_000:]))
            assert (upload.bytes, upload.entries) == (len(data), 1)
            with tarfile.open(node.layout.upload(upload.upload_id)) as tar:
                content = tar.extractfile("file")
                assert content is not None
                assert content.read() == data
            spec = job_pb2.JobSpec(command="true", upload_ids=[upload.upload_id])
            assert await status(bob.jobs.RunJob(job_pb2.RunJobRequest(spec=spec))) is grpc.StatusCode.NOT_FOUND
            assert (await ann.jobs.PlanJob(job_pb2.PlanJobRequest(spec=spec))).steps == ["one", "two"]
            request = job_pb2.RunJobRequest(spec=spec, idempotency_key="key-1")
            first = await ann.jobs.RunJob(request)
            again = await ann.jobs.RunJob(request)
            assert (first.job.id, first.existing, again.existing) == (again.job.id, False, True)
            assert await status(ann.jobs.RunJob(job_pb2.RunJobRequest(spec=spec))) is grpc.StatusCode.NOT_FOUND
            asked = [one for one in node.executor.requests if isinstance(one, jobs.RunJob)]
            assert asked[0].spec.uploads == (jobs.Upload(id=upload.upload_id, bytes=len(data), entries=1),)
            assert asked[0].owner == "ann"

    asyncio.run(scenario())


@pytest.mark.threat("D23")
def test_files_sent_again_for_a_job_that_is_there_stay_staged(tmp_path: Path) -> None:
    """A retry that uploads once more gets its job, which has the first files: the second ones count as before."""

    async def scenario() -> None:
        bounds = Uploads(staged_bytes_max=40_000)
        async with running_node(tmp_path, uploads=bounds) as node:
            ann = node.client("ann", "user")
            answers, ids = [], []
            for _ in range(2):
                upload = await ann.jobs.UploadFiles(parts(b"x" * 20_000))
                ids.append(upload.upload_id)
                spec = job_pb2.JobSpec(command="true", upload_ids=[upload.upload_id])
                answers.append(await ann.jobs.RunJob(job_pb2.RunJobRequest(spec=spec, idempotency_key="key-1")))
            first, again = answers
            assert (again.job.id, again.existing, list(again.job.spec.upload_ids)) == (first.job.id, True, ids[:1])
            assert await status(ann.jobs.UploadFiles(parts(b"x" * 20_000))) is grpc.StatusCode.RESOURCE_EXHAUSTED
            spec = job_pb2.JobSpec(command="true", upload_ids=ids[1:])
            assert not (await ann.jobs.RunJob(job_pb2.RunJobRequest(spec=spec))).existing

    asyncio.run(scenario())


@pytest.mark.threat("D22")
def test_a_broken_upload_leaves_nothing(tmp_path: Path) -> None:
    """When the client goes, or sends too much, the staged file is gone within two seconds."""

    async def scenario() -> None:
        async with running_node(tmp_path, uploads=Uploads(bytes_max=10 * 2**20)) as node:
            client = node.client("ann", "user")
            call = client.jobs.UploadFiles()
            entry = job_pb2.UploadEntry(path="x", kind=job_pb2.UploadEntry.FILE, size_bytes=9 * 2**20)
            await call.write(job_pb2.UploadFilesRequest(entry=entry))
            for _ in range(4):
                await call.write(job_pb2.UploadFilesRequest(data=b"x" * 2**20))
            await await_for(lambda: list(node.layout.uploads.iterdir()), what="the staged file")
            call.cancel()
            await await_for(lambda: not list(node.layout.uploads.iterdir()), timeout_s=2, what="its removal")
            large = client.jobs.UploadFiles()
            entry.size_bytes = 11 * 2**20
            await large.write(job_pb2.UploadFilesRequest(entry=entry))  # refused by what it says, before it comes
            assert await status(large) is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert list(node.layout.uploads.iterdir()) == []
            assert await status(client.jobs.UploadFiles(parts(b"x", path="../x"))) is grpc.StatusCode.INVALID_ARGUMENT

    asyncio.run(scenario())


def test_lists_are_paged_and_filtered(tmp_path: Path) -> None:
    """Pages follow each other by their token; filters reach the executor."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            client = node.client("ann", "reader")
            for number in range(7):
                node.executor.add("bob", spec=jobs.JobSpec(command="sh", labels={"n": str(number)}))
            token, seen = "", []
            while True:
                page = await client.jobs.ListJobs(job_pb2.ListJobsRequest(page_size=3, page_token=token))
                seen += [job.spec.labels["n"] for job in page.jobs]
                token = page.next_page_token
                if not token:
                    break
            assert seen == list("6543210")
            wanted = job_pb2.JobFilter(labels={"n": "4"}, states=[job_pb2.RUNNING], owner="bob")
            listed = await client.jobs.ListJobs(job_pb2.ListJobsRequest(filter=wanted))
            assert [job.spec.labels["n"] for job in listed.jobs] == ["4"]
            assert await status(client.jobs.ListJobs(job_pb2.ListJobsRequest(page_size=1001))) is (
                grpc.StatusCode.INVALID_ARGUMENT
            )

    asyncio.run(scenario())


def test_stop_and_wait(tmp_path: Path) -> None:
    """Stop passes signal and grace on; wait answers with the ended job, at once when it has ended already."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            client = node.client("ann", "user")
            job = (await run(client)).job.id
            waiting = asyncio.ensure_future(client.jobs.WaitJob(job_pb2.WaitJobRequest(job_id=job)))
            await client.jobs.StopJob(job_pb2.StopJobRequest(job_id=job, signal="SIGKILL", grace_ms=5))
            assert node.executor.requests[-1] == jobs.StopJob(job=JobId(job), signal=9, grace_ms=5)
            await await_for(lambda: node.api.hub.topics, what="the waiter to listen")
            node.executor.finish(JobId(job), state=jobs.State.STOPPED, exit_code=None, signal=9)
            ended = await waiting
            assert (ended.state, ended.signal, ended.HasField("exit_code")) == (job_pb2.STOPPED, 9, False)
            assert (await client.jobs.WaitJob(job_pb2.WaitJobRequest(job_id=job))).state == job_pb2.STOPPED
            assert await status(client.jobs.StopJob(job_pb2.StopJobRequest(job_id=job))) is (
                grpc.StatusCode.FAILED_PRECONDITION
            )
            await await_for(lambda: not node.api.hub.topics, what="no subscription left")

    asyncio.run(scenario())


@pytest.mark.requirement("S0.44")
def test_delete_removes_history_first_and_can_be_repeated(tmp_path: Path) -> None:
    """A living job is refused; while persist is away nothing is removed; then both go, and the job does not exist."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            client = node.client("ann", "user")
            job = node.executor.add("ann").id
            node.executor.write(job, b"x\n")
            request = job_pb2.DeleteJobRequest(job_id=job)
            data = persist_pb2.DeleteJobDataRequest(job_id=job)
            assert await status(client.jobs.DeleteJob(request)) is grpc.StatusCode.FAILED_PRECONDITION
            assert await status(client.persist.DeleteJobData(data)) is grpc.StatusCode.FAILED_PRECONDITION
            node.executor.finish(job)
            node.persist.away = True
            assert await status(client.jobs.DeleteJob(request)) is grpc.StatusCode.UNAVAILABLE
            assert job in node.executor.jobs
            node.persist.away = False
            assert (await client.persist.DeleteJobData(data)).log_bytes == 2
            assert (await client.jobs.DeleteJob(request)).job_id == job
            assert job not in node.executor.jobs
            assert set(node.persist.deleted) == {job}
            assert await status(client.jobs.DeleteJob(request)) is grpc.StatusCode.NOT_FOUND

    asyncio.run(scenario())


def test_a_follower_of_a_deleted_job_ends(tmp_path: Path) -> None:
    """What does not exist any more is NOT_FOUND, also in the middle of a stream."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            client = node.client("ann", "user")
            job = node.executor.add("ann").id
            stream = client.jobs.StreamLogs(job_pb2.StreamLogsRequest(job_id=job, follow=True), timeout=20)
            reading = asyncio.ensure_future(stream.read())
            await await_for(lambda: len(node.api.hub.topics) == 2, what="the subscription")
            await node.executor._delete(jobs.DeleteJob(job=job))  # somebody else deletes it
            assert await status(reading) is grpc.StatusCode.NOT_FOUND

    asyncio.run(scenario())


def test_watch_tells_what_is_and_what_changes(tmp_path: Path) -> None:
    """The snapshot is marked; changes follow in order; a filter holds; a deleted job is said to be."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            client = node.client("ann", "admin")
            old = node.executor.add("bob", spec=jobs.JobSpec(command="a", labels={"k": "v"})).id
            node.executor.add("bob", spec=jobs.JobSpec(command="b"))
            watch = client.jobs.WatchJobs(job_pb2.WatchJobsRequest(filter=job_pb2.JobFilter(labels={"k": "v"})))
            initial = await watch.read()
            assert (initial.job.id, initial.initial) == (old, True)
            new = node.executor.add(
                "ann", state=jobs.State.PENDING, spec=jobs.JobSpec(command="c", labels={"k": "v"})
            ).id
            for state in (jobs.State.PENDING, jobs.State.RUNNING, jobs.State.COMPLETED):
                node.executor.change(new, state=state)
            states = [(await watch.read()).job.state for _ in range(3)]
            assert states == [job_pb2.PENDING, job_pb2.RUNNING, job_pb2.COMPLETED]
            node.executor.finish(old)
            assert (await watch.read()).job.state == job_pb2.COMPLETED
            await client.jobs.DeleteJob(job_pb2.DeleteJobRequest(job_id=old))
            gone = await watch.read()
            assert (gone.job.id, gone.deleted) == (old, True)
            watch.cancel()

    asyncio.run(scenario())


@pytest.mark.requirement("S0.43")
def test_metrics_stored_then_live_until_the_end(tmp_path: Path) -> None:
    """Each sample once, in the order of time; the stream ends with the job. The public query gives the stored ones."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            client = node.client("ann", "user")
            job = node.executor.add("ann").id
            node.persist.metrics = [persist_pb2.Metric(job_id=job, timestamp=n, pids=n) for n in (1, 2, 3)]
            request = job_pb2.StreamMetricsRequest(job_id=job, follow=True)
            stream = client.jobs.StreamMetrics(request, timeout=20)
            assert [(await stream.read()).timestamp for _ in range(3)] == [1, 2, 3]
            for time_ns in (2, 3, 4, 5):
                node.executor.publish_metric(
                    logs.StoreMetric(job=job, time_ns=time_ns, cpu_percent=1.5, memory_bytes=7, pids=time_ns)
                )
            assert [(await stream.read()).pids for _ in range(2)] == [4, 5]
            node.executor.finish(job)
            assert await stream.read() is aio.EOF  # type: ignore[attr-defined]  # missing in the stubs
            query = client.persist.QueryMetrics(persist_pb2.MetricQueryRequest(job_id=job))
            assert [one.timestamp async for one in query] == [1, 2, 3]
            late = job_pb2.StreamMetricsRequest(job_id=job, start_time=10**10, end_time=10**11 - 1)
            assert len([one async for one in client.jobs.StreamMetrics(late)]) == 3  # what to leave out persist says
            for bad in (
                job_pb2.StreamMetricsRequest(job_id=job, aggregation="median"),
                job_pb2.StreamMetricsRequest(job_id=job, aggregation="avg", follow=True),
            ):
                assert await status(client.jobs.StreamMetrics(bad).read()) is grpc.StatusCode.INVALID_ARGUMENT

    asyncio.run(scenario())


@pytest.mark.requirement("S0.8")
@pytest.mark.requirement("S0.42")
def test_stored_lines_are_open_to_api_clients(tmp_path: Path) -> None:
    """QueryLogs and QueryLogBatches on the public port, by a prefix of the id; persist away is UNAVAILABLE."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            client = node.client("ann", "user")
            job = node.executor.add("ann").id
            node.executor.write(job, b"a\nb\n")
            lines = client.persist.QueryLogs(persist_pb2.LogQueryRequest(job_id=job[:8]))
            assert [(line.sequence, line.content) async for line in lines] == [(1, b"a"), (2, b"b")]
            query = persist_pb2.LogBatchQueryRequest(query=persist_pb2.LogQueryRequest(job_id=job))
            assert [
                batch.data async for answer in client.persist.QueryLogBatches(query) for batch in answer.batches
            ] == [b"a\nb\n"]
            node.persist.away = True
            assert await status(client.persist.QueryLogBatches(query).read()) is grpc.StatusCode.UNAVAILABLE

    asyncio.run(scenario())


def test_the_node_tells_of_the_queue_what_its_caller_may_see(tmp_path: Path) -> None:
    """How many wait: of all owners, or of his own; how many may run, to both. Positions are on the jobs."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            client = node.client("ann", "admin")
            info = await client.node.GetInfo(node_pb2.GetInfoRequest())
            assert (info.node_id, info.cpus, info.capabilities[0].level) == ("node-1", 2, node_pb2.Capability.ENFORCED)
            for owner in ("ann", "bob", "bob"):
                job = node.executor.add(owner).id
                node.executor.change(job, state=jobs.State.PENDING, queue_position=len(node.executor.jobs))
            assert (await client.jobs.GetJob(job_pb2.GetJobRequest(job_id=job))).queue_position == 3
            info = await client.node.GetInfo(node_pb2.GetInfoRequest())
            assert (info.queued_jobs, info.running_max) == (3, 7)
            info = await node.client("bob", "user").node.GetInfo(node_pb2.GetInfoRequest())
            assert (info.running_jobs, info.queued_jobs, info.running_max) == (0, 2, 7)

    asyncio.run(scenario())


def test_counters_of_all_services_for_those_who_see_all_jobs(tmp_path: Path) -> None:
    """Each with its service before its name; without persist's while it is away, older or stopped; never for owners."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            node.executor.counters = {"lost_entries": 7}
            job = node.executor.add("ann").id
            owner, everyone = node.client("ann", "user"), node.client("eve", "reader")

            async def counters(client: Client) -> dict[str, int]:
                return dict((await client.node.GetInfo(node_pb2.GetInfoRequest(), timeout=20)).counters)

            assert await counters(owner) == {}
            follower = owner.jobs.StreamLogs(job_pb2.StreamLogsRequest(job_id=job, follow=True))
            await await_for(lambda: node.api.capacity.streams == 1, what="the stream")
            await await_for(lambda: node.api.hub.topics, what="the subscription")
            expected = {
                "executor.lost_entries": 7,
                "persist.entries_repeated": 3,
                "api.followers": 1,
                "api.batches_dropped": 0,
                "api.records_corrupt": 0,
            }
            assert (await counters(everyone)).items() >= expected.items()
            node.executor.publish_log(job, b"no record at all")
            node.executor.write(job, b"a\n")
            await follower.read()
            found = await counters(everyone)
            assert (found["api.records_corrupt"], found["api.followers_catching_up"]) == (1, 0)
            follower.cancel()
            await await_for(lambda: node.api.capacity.streams == 0, what="the stream to be given back")
            assert (await counters(everyone))["api.followers"] == 0
            for name, value in (("away", True), ("counting", False)):
                before = getattr(node.persist, name)
                setattr(node.persist, name, value)
                found = await counters(everyone)
                assert not any(key.startswith("persist.") for key in found)
                assert found["executor.lost_entries"] == 7
                setattr(node.persist, name, before)
            node.persist.deaf.clear()
            assert not any(key.startswith("persist.") for key in await counters(everyone))
            node.persist.deaf.set()

    asyncio.run(scenario())


def test_a_job_has_the_policy_of_the_node_or_its_own(tmp_path: Path) -> None:
    """on_full goes to the executor and comes back in the record; who does not say gets the node's default."""

    async def scenario() -> None:
        async with running_node(tmp_path, journal=Journal(on_full="drop")) as node:
            client = node.client("ann", "user")
            for asked, held in (
                (job_pb2.ON_FULL_UNSPECIFIED, job_pb2.DROP),
                (job_pb2.BLOCK, job_pb2.BLOCK),
                (job_pb2.DROP, job_pb2.DROP),
            ):
                spec = job_pb2.JobSpec(command="true", on_full=asked)
                ran = await client.jobs.RunJob(job_pb2.RunJobRequest(spec=spec))
                assert ran.job.spec.on_full == held
                await client.jobs.PlanJob(job_pb2.PlanJobRequest(spec=spec))
                planned = node.executor.requests[-1]
                assert isinstance(planned, jobs.PlanJob)
                assert planned.spec == node.executor.jobs[ran.job.id].spec

    asyncio.run(scenario())


@pytest.mark.requirement("X18")
def test_a_job_has_the_grace_of_the_node_or_its_own(tmp_path: Path) -> None:
    """Who does not say how long it takes from the stop signal to SIGKILL gets the node's default, `jobs.grace_ms`."""

    async def scenario() -> None:
        async with running_node(tmp_path, job_defaults=Jobs(grace_ms=700)) as node:
            client = node.client("ann", "user")
            for spec, held in (
                (job_pb2.JobSpec(command="true"), 700),
                (job_pb2.JobSpec(command="true", grace_ms=0), 0),
                (job_pb2.JobSpec(command="true", grace_ms=30_000), 30_000),
            ):
                ran = await client.jobs.RunJob(job_pb2.RunJobRequest(spec=spec))
                assert ran.job.spec.grace_ms == held
                assert node.executor.jobs[ran.job.id].spec.grace_ms == held
            started = await client.worker.Start(worker_pb2.StartRequest(name="true"))
            assert node.executor.jobs[started.jobID].spec.grace_ms == 700

    asyncio.run(scenario())
