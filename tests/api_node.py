"""A whole api for tests: the real gRPC server on loopback, over the memory transport, with a fake executor and persist.

Belongs here: the fakes, and clients with certificates. Does not belong here: expectations. The fakes keep the rules
that the contract states (one in-band marker, sequences, `wait`), and can be told to misbehave: to lose a publication,
to hold back what is stored, to be away.
"""

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_SSL_CIPHER_SUITES", "ECDHE-PSK-CHACHA20-POLY1305")

import grpc
import msgspec
from grpc import aio

from common import records
from common.bus.events import Publisher
from common.bus.memory import Memory
from common.bus.requests import Responder
from common.config.layout import Layout, layout_of
from common.config.settings import Grpc, Joblet, Server, Settings, Uploads
from common.errors import not_found, precondition
from common.identifiers import JobId, new_job_id
from common.messages import jobs, logs, topics
from common.messages.envelope import Body
from common.tls import ServerMaterial
from proto.joblet.v1 import (
    job_pb2_grpc,
    node_pb2_grpc,
    persist_pb2,
    persist_pb2_grpc,
    volume_pb2_grpc,
)
from services.api.process import Api
from tests.certificates import Authority, Identity


class FakeExecutor:
    """Keeps jobs in a dictionary and publishes like the real one. `requests` is what it was asked, in order."""

    def __init__(self, transport: Memory, persist: "FakePersist") -> None:
        self.jobs: dict[JobId, jobs.JobRecord] = {}
        self.requests: list[Body] = []
        self.persist = persist
        self.losing = False
        self._keys: dict[tuple[str, str], JobId] = {}
        self._publisher = Publisher(transport)
        handlers: Mapping[type[Body], Any] = {
            jobs.RunJob: self._run,
            jobs.PlanJob: self._plan,
            jobs.GetJob: self._get,
            jobs.ListJobs: self._list,
            jobs.StopJob: self._stop,
            jobs.CancelJob: self._cancel,
            jobs.DeleteJob: self._delete,
            jobs.SyncLog: self._sync,
            jobs.GetNode: self._node,
        }
        self._responder = Responder(transport, topics.EXECUTOR_COMMANDS, topics.API_REPLIES, handlers)

    async def run(self) -> None:
        """Answer for ever."""
        await self._responder.run()

    async def close(self) -> None:
        """Stop answering and publishing."""
        await self._responder.close()
        self._publisher.close()

    def add(self, owner: str, **fields: Any) -> jobs.JobRecord:
        """A job that runs already."""
        job = new_job_id()
        fields.setdefault("spec", jobs.JobSpec(command="true"))
        fields.setdefault("state", jobs.State.RUNNING)
        self.jobs[job] = jobs.JobRecord(
            id=job, owner=owner, node_id="node-1", created_at_ns=len(self.jobs) + 1, **fields
        )
        return self.jobs[job]

    def change(self, job: JobId, *, announce: bool = True, **fields: Any) -> None:
        """A new version of a record, published."""
        self.jobs[job] = msgspec.structs.replace(self.jobs[job], **fields)
        if announce:
            self._publisher.publish(topics.job_topic(job), jobs.JobChanged(job=self.jobs[job]))

    def write(
        self,
        job: JobId,
        data: bytes,
        *,
        stream: records.Stream = records.Stream.STDOUT,
        time_ns: int = 1_700_000_000 * 10**9,
        publish: bool = True,
        store: bool = True,
    ) -> None:
        """The job writes `data`: whole lines, or one piece without a line end."""
        first = self.jobs[job].last_sequence + 1
        partial = not data.endswith(b"\n")
        lines = 1 if partial else data.count(b"\n")
        flags = records.Flags.PARTIAL if partial else records.Flags.NONE
        record = records.encode(
            records.RecordType.OUTPUT, data, time_ns=time_ns, sequence=first, lines=lines, stream=stream, flags=flags
        )
        self.jobs[job] = msgspec.structs.replace(self.jobs[job], last_sequence=first + lines - 1)
        if publish:
            self.publish_log(job, record)
        if store:
            self.persist.store(job, record)

    def publish_log(self, job: JobId, payload: bytes) -> None:
        """Records on the job's topic."""
        self._publisher.publish(topics.log_topic(job), logs.LogRecords(job=job, records=payload))

    def publish_metric(self, sample: logs.StoreMetric) -> None:
        """A live sample."""
        self._publisher.publish(topics.metrics_topic(sample.job), sample)

    def finish(self, job: JobId, **fields: Any) -> None:
        """The job exits by itself."""
        fields.setdefault("state", jobs.State.COMPLETED)
        fields.setdefault("exit_code", 0)
        self.change(job, ended_at_ns=9, **fields)

    async def _run(self, request: jobs.RunJob) -> Body:
        self.requests.append(request)
        key = (request.owner, request.idempotency_key)
        if request.idempotency_key and key in self._keys:
            return jobs.JobAccepted(job=self.jobs[self._keys[key]], existing=True)
        record = self.add(request.owner, spec=request.spec)
        self._keys[key] = record.id
        return jobs.JobAccepted(job=record)

    async def _plan(self, request: jobs.PlanJob) -> Body:
        self.requests.append(request)
        return jobs.JobPlan(steps=("one", "two"))

    async def _get(self, request: jobs.GetJob) -> Body:
        found = [
            record
            for record in self.jobs.values()
            if record.id.startswith(request.job) and request.visible_owner in {None, record.owner}
        ]
        if len(found) != 1:
            raise not_found(f"no job {request.job}")
        return jobs.JobFound(job=found[0])

    async def _list(self, request: jobs.ListJobs) -> Body:
        found = [
            record
            for record in reversed(self.jobs.values())
            if request.visible_owner in {None, record.owner}
            and request.owner in {"", record.owner}
            and (not request.states or record.state in request.states)
            and request.labels.items() <= record.spec.labels.items()
        ]
        start = int(request.page_token or 0)
        end = start + request.page_size
        return jobs.JobPage(jobs=tuple(found[start:end]), next_page_token=str(end) if end < len(found) else "")

    async def _stop(self, request: jobs.StopJob) -> Body:
        self.requests.append(request)
        if self.jobs[request.job].state in jobs.TERMINAL:
            raise precondition("the job has ended")
        self.change(request.job, stop_requested_at_ns=5)
        return jobs.JobFound(job=self.jobs[request.job])

    async def _cancel(self, request: jobs.CancelJob) -> Body:
        self.requests.append(request)
        return jobs.JobFound(job=self.jobs[request.job])

    async def _delete(self, request: jobs.DeleteJob) -> Body:
        self.requests.append(request)
        record = self.jobs.pop(request.job)
        self._publisher.publish(topics.job_topic(request.job), jobs.JobChanged(job=record, deleted=True))
        return jobs.JobDeleted(job=request.job)

    async def _sync(self, request: jobs.SyncLog) -> Body:
        if request.job not in self.jobs:
            raise not_found(f"no job {request.job}")
        last = self.jobs[request.job].last_sequence
        self._publisher.publish(
            topics.log_topic(request.job), logs.LogMarker(job=request.job, marker=request.marker, last_sequence=last)
        )
        return jobs.LogSynced(job=request.job)

    async def _node(self, request: jobs.GetNode) -> Body:
        self.requests.append(request)
        return jobs.NodeFacts(
            node_id="node-1",
            version="0.1.0",
            kernel="6.18",
            cgroup_version="v2",
            cpus=2,
            memory_bytes=2**32,
            running_jobs=len(self.jobs),
            capabilities=(jobs.Capability(name="limit.memory", level="enforced"),),
        )


class FakePersist(persist_pb2_grpc.PersistServiceServicer):
    """Stores records entry by entry, and answers like the contract says. `away` refuses everything."""

    def __init__(self) -> None:
        self.entries: dict[str, list[persist_pb2.LogBatch]] = {}
        self._whole: dict[str, list[persist_pb2.LogBatch]] = {}
        self.metrics: list[persist_pb2.Metric] = []
        self.deleted: list[str] = []
        self.away = False
        self.queries = 0
        self.open = 0
        self._more = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    def store(self, job: str, payload: bytes) -> None:
        """Keep records; whoever waits is told."""
        for record in records.decode_all(payload):
            data = bytes(record.payload)
            self._whole.setdefault(job, []).append(
                persist_pb2.LogBatch(
                    stream=record.stream,  # type: ignore[arg-type]  # the numbers are the same
                    first_sequence=record.sequence,
                    lines=record.lines,
                    timestamp=record.time_ns,
                    data=data,
                    partial=record.partial,
                )
            )
            pieces = [data] if record.partial else data.splitlines(keepends=True)
            if record.type == records.RecordType.OUTPUT and not record.partial:
                pieces = [line + b"\n" for line in data.split(b"\n")[:-1]]
            for offset, piece in enumerate(pieces):
                self.entries.setdefault(job, []).append(
                    persist_pb2.LogBatch(
                        stream=record.stream,  # type: ignore[arg-type]  # the numbers are the same
                        first_sequence=record.sequence + offset,
                        lines=1,
                        timestamp=record.time_ns,
                        data=piece,
                        partial=record.partial,
                    )
                )
        task = asyncio.get_running_loop().create_task(self.tell())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def tell(self) -> None:
        """Wake those who wait."""
        async with self._more:
            self._more.notify_all()

    async def QueryLogBatches(self, request: Any, context: Any) -> AsyncIterator[persist_pb2.LogBatch]:  # noqa: N802
        """See proto/joblet/v1/persist.proto."""
        self.queries += 1
        self.open += 1
        try:
            if self.away:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
            position = max(request.from_sequence, 1)
            until = request.until_sequence or 2**63
            if request.HasField("tail"):
                async with self._more:
                    await self._more.wait_for(lambda: self._last(request.query.job_id) >= until)
                wanted = [e for e in self._entries(request, position, until) if self._wanted(request.query, e)]
                for entry in wanted[-request.tail :] if request.tail else ():
                    yield entry
                return
            while position <= until:
                if self.away:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
                for entry in self._entries(request, position, until):
                    position = entry.first_sequence + entry.lines
                    if self._wanted(request.query, entry):
                        yield entry
                if position > until or not request.wait:
                    return
                async with self._more:
                    await self._more.wait_for(functools.partial(self._moved, request.query.job_id, position))
        finally:
            self.open -= 1

    async def QueryLogs(self, request: Any, context: Any) -> AsyncIterator[persist_pb2.LogLine]:  # noqa: N802, ARG002
        """Stored lines, as far as tests need it."""
        for entry in list(self.entries.get(request.job_id, ())):
            yield persist_pb2.LogLine(
                job_id=request.job_id,
                stream=entry.stream,
                content=entry.data.removesuffix(b"\n"),
                timestamp=entry.timestamp,
                sequence=entry.first_sequence,
            )

    async def QueryMetrics(self, request: Any, context: Any) -> AsyncIterator[persist_pb2.Metric]:  # noqa: N802, ARG002
        """Stored samples, as far as tests need it."""
        for sample in [one for one in self.metrics if one.job_id == request.job_id]:
            yield sample

    async def DeleteJobData(self, request: Any, context: Any) -> persist_pb2.DeleteJobDataResponse:  # noqa: N802
        """Forget a job."""
        if self.away:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        self.deleted.append(request.job_id)
        removed = self.entries.pop(request.job_id, [])
        return persist_pb2.DeleteJobDataResponse(log_bytes=sum(len(entry.data) for entry in removed))

    def _entries(self, request: Any, first: int, last: int) -> list[persist_pb2.LogBatch]:
        query = request.query
        if query.filter or query.HasField("stream") or request.HasField("tail") or query.start_time or query.end_time:
            return [one for one in self.entries.get(query.job_id, ()) if first <= one.first_sequence <= last]
        # Whole records, which may reach beyond the range at both ends: the contract lets persist answer so.
        return [
            one
            for one in self._whole.get(query.job_id, ())
            if one.first_sequence <= last and one.first_sequence + one.lines > first
        ]

    def _moved(self, job: str, position: int) -> bool:
        return self.away or self._last(job) >= position

    def _last(self, job: str) -> int:
        stored = self.entries.get(job)
        return stored[-1].first_sequence if stored else 0

    @staticmethod
    def _wanted(query: Any, entry: persist_pb2.LogBatch) -> bool:
        return (
            (not query.HasField("stream") or query.stream == entry.stream)
            and entry.timestamp >= query.start_time
            and (not query.end_time or entry.timestamp < query.end_time)
            and query.filter.encode() in entry.data
        )


class Client:
    """Stubs over one channel of one identity."""

    def __init__(self, channel: aio.Channel) -> None:
        self.channel = channel
        self.jobs: Any = job_pb2_grpc.JobServiceStub(channel)
        self.node: Any = node_pb2_grpc.NodeServiceStub(channel)
        self.persist: Any = persist_pb2_grpc.PersistServiceStub(channel)
        self.volumes: Any = volume_pb2_grpc.VolumeServiceStub(channel)


class Node:
    """Everything together. `client` makes callers; `api` is what is tested."""

    def __init__(
        self, *, api: Api, executor: FakeExecutor, persist: FakePersist, authority: Authority, layout: Layout
    ) -> None:
        self.api = api
        self.executor = executor
        self.persist = persist
        self.authority = authority
        self.layout = layout
        self._channels: list[aio.Channel] = []

    def client(self, name: str, *roles: str) -> Client:
        """A caller with an ordinary certificate."""
        return self.caller(self.authority.client(name, *roles))

    def caller(self, identity: Identity | None, ca: bytes | None = None) -> Client:
        """A caller with this certificate, or none."""
        credentials = grpc.ssl_channel_credentials(
            ca or self.authority.pem,
            private_key=identity.key if identity else None,
            certificate_chain=identity.cert if identity else None,
        )
        options = (
            ("grpc.ssl_target_name_override", "localhost"),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
            ("grpc.max_receive_message_length", 64 * 2**20),
        )
        channel = aio.secure_channel(f"127.0.0.1:{self.api.port}", credentials, options=options)
        self._channels.append(channel)
        return Client(channel)

    async def close(self) -> None:
        """Close the channels."""
        for channel in self._channels:
            await channel.close(None)


@asynccontextmanager
async def running_node(
    base: Path, *, limits: Grpc | None = None, uploads: Uploads | None = None, silence_s: float | None = None
) -> AsyncIterator[Node]:
    """A node below `base` that ends with the block."""
    settings = Settings(
        server=Server(address="127.0.0.1", port=0),
        joblet=Joblet(base_dir=str(base), grpc=limits or Grpc(), uploads=uploads or Uploads()),
    )
    layout = layout_of(settings)
    for directory in (layout.run, layout.uploads, layout.audit):
        directory.mkdir(parents=True, exist_ok=True)
    authority = Authority()
    server_identity = authority.server()
    transport = Memory()
    persist = FakePersist()
    persist_server = aio.server()
    persist_pb2_grpc.add_PersistServiceServicer_to_server(persist, persist_server)
    persist_server.add_insecure_port(f"unix:{layout.persist_grpc}")
    await persist_server.start()
    executor = FakeExecutor(transport, persist)
    answering = asyncio.create_task(executor.run())
    material = ServerMaterial(cert=server_identity.cert, key=server_identity.key, ca=authority.pem)
    api = Api(settings, layout, transport, material)
    if silence_s is not None:
        api.feeds._silence_s = silence_s  # the one number of the process that is no setting
    await api.start()
    node = Node(api=api, executor=executor, persist=persist, authority=authority, layout=layout)
    try:
        yield node
    finally:
        await node.close()
        await api.stop()
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)
        await executor.close()
        await persist_server.stop(0)
