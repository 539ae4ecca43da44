"""The middle of a node in this process: the real api, executor and persist, over a memory transport and a fake host.

The volumes service is a fake, too (tests/api_volumes.py).

Belongs here: putting them together, and jobs to ask about. Does not belong here: expectations. What is not real is
below the executor's ports (tests/unit/executor_fakes.py): nothing is launched, a fake monitor writes two lines.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import grpc
import msgspec
from grpc import aio

from common.bus.events import Publisher
from common.bus.memory import Memory
from common.bus.requests import Receiver
from common.config.layout import Layout, layout_of
from common.config.settings import Grpc, Server, Settings
from common.errors import JobletError, Reason
from common.identifiers import JobId
from common.messages import jobs
from common.messages.topics import PERSIST_ACKS, PERSIST_IPC
from common.tls import ServerMaterial
from proto.joblet.v1.persist_pb2_grpc import add_PersistServiceServicer_to_server
from services.api.process import Api
from services.executor.events import Job
from services.executor.job_store import JobStore
from services.executor.rootless import own_identity
from services.executor.service import Executor, Ports
from services.executor.volumes import NoVolumes
from services.persist.audit_reader import AuditQueries
from services.persist.changes import Changes
from services.persist.ingest import Ingest
from services.persist.keeping import Keeper
from services.persist.machine import Limits
from services.persist.outbox import Outbox
from services.persist.queries import LogQueries
from services.persist.samples import Samples
from services.persist.server import REQUEST_BYTES_MAX, PersistServer
from tests.api_volumes import FakeVolumes
from tests.certificates import Authority, Identity
from tests.contract.test_persist_service import Lines
from tests.unit.executor_fakes import BOOT, NODE, FakeAttachments, FakeHost, no_unsupported, node_settings
from tests.unit.test_persist_journal import make_store
from tests.waiting import await_for

JOB_S: Final = 0.02
"""How long a job runs."""


class EndingHost(FakeHost):
    """Every job starts, writes two lines and exits: `false` with 1; the monitor of `die` is killed; `sleep` goes on."""

    async def launch(self, job: Job, secrets: Mapping[str, str]) -> None:
        """See ports.Launches."""
        await super().launch(job, secrets)
        monitor = self.monitors[job.record.id]
        monitor.start()
        monitor.output(b"one\ntwo\n")
        ends = {"sleep": None, "die": monitor.die, "false": partial(monitor.exit, exit_code=1)}
        end = ends.get(job.record.spec.command, monitor.exit)
        if end is not None:
            asyncio.get_running_loop().call_later(JOB_S, end)


class Middle:
    """Everything together."""

    def __init__(
        self,
        api: Api,
        transport: Memory,
        publisher: Publisher,
        authority: Authority,
        tasks: list[asyncio.Task[None]],
    ) -> None:
        self.api = api
        self.transport = transport
        self.publisher = publisher
        self.authority = authority
        self._tasks = tasks
        self._jobs: dict[str, JobId] = {}

    def ended_tasks(self) -> list[asyncio.Task[None]]:
        """What should run for ever, and does not."""
        return [task for task in (*self._tasks, *self.api._tasks) if task.done()]

    def channel(self, identity: Identity) -> aio.Channel:
        """A client's connection. The caller closes it."""
        credentials = grpc.ssl_channel_credentials(self.authority.pem, identity.key, identity.cert)
        options = (
            ("grpc.ssl_target_name_override", "localhost"),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
            ("grpc.max_send_message_length", -1),
        )
        return aio.secure_channel(f"127.0.0.1:{self.api.port}", credentials, options=options)

    async def tokens(self) -> dict[str, str]:
        """Ended jobs of ann and bob that are there now, for the tokens of `malformed.py`."""
        for token, owner in (("@ended", "ann"), ("@others", "bob")):
            if token not in self._jobs or await self.found(self._jobs[token]) is None:
                self._jobs[token] = await self.ended_job(owner)
        return {**self._jobs, "@prefix": self._jobs["@ended"][:8]}

    async def ended_job(self, owner: str) -> JobId:
        """A job of this owner that has run and whose output is stored."""
        asked = jobs.RunJob(owner=owner, spec=jobs.JobSpec(command="true", labels={"a": "b"}))
        job = (await self.api._executor.request(asked, jobs.JobAccepted)).job.id

        async def over() -> bool:
            found = await self.found(job)
            return found is not None and found.job.state in jobs.TERMINAL and found.delivered

        await await_for(over, timeout_s=20, what="the job's end")
        return job

    async def running_job(self, owner: str) -> JobId:
        """A job that has written two lines and does not end."""
        return await self.job_in(jobs.State.RUNNING, owner, jobs.JobSpec(command="sleep"))

    async def job_in(self, state: jobs.State, owner: str, spec: jobs.JobSpec) -> JobId:
        """A job of this owner as soon as it is in that state."""
        job = (await self.api._executor.request(jobs.RunJob(owner=owner, spec=spec), jobs.JobAccepted)).job.id

        async def there() -> bool:
            found = await self.found(job)
            return found is not None and found.job.state is state

        await await_for(there, timeout_s=20, what=f"the job to be {state}")
        return job

    async def found(self, job: JobId) -> jobs.JobFound | None:
        """The job as it is; None when there is none."""
        try:
            return await self.api._executor.request(jobs.GetJob(job=job, visible_owner=None), jobs.JobFound)
        except JobletError as error:
            if error.reason is Reason.NOT_FOUND:
                return None
            raise


@asynccontextmanager
async def running_middle(base: Path, *, limits: Grpc | None = None) -> AsyncIterator[Middle]:
    """All of it below `base`, until the block ends."""
    settings = node_settings(base, grpc=limits or Grpc())
    settings = msgspec.structs.replace(settings, server=Server(address="127.0.0.1", port=0))
    layout = layout_of(settings)
    for directory in (layout.run, layout.streams, layout.uploads, layout.audit, layout.audit_persist):
        directory.mkdir(parents=True, exist_ok=True)
    transport = Memory()
    async with AsyncExitStack() as stack:
        persist = await stack.enter_async_context(_persist(layout, transport))
        volumes = await stack.enter_async_context(_volumes(layout, transport))
        host, publisher = EndingHost(layout), Publisher(transport)
        executor = await stack.enter_async_context(_executor(settings, layout, transport, host, publisher))
        authority = Authority()
        server = authority.server()
        api = Api(settings, layout, transport, ServerMaterial(cert=server.cert, key=server.key, ca=authority.pem))
        await api.start()
        stack.push_async_callback(api.stop)
        yield Middle(api, transport, publisher, authority, [*persist, executor, volumes])


@asynccontextmanager
async def _volumes(layout: Layout, transport: Memory) -> AsyncIterator[asyncio.Task[None]]:
    service = FakeVolumes(transport, layout.streams)
    for owner in ("ann", "bob"):
        service.keep(service.add(owner, "name").id, "name")
    running = asyncio.create_task(service.run())
    try:
        yield running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await service.close()


@asynccontextmanager
async def _executor(
    settings: Settings, layout: Layout, transport: Memory, host: FakeHost, publisher: Publisher
) -> AsyncIterator[asyncio.Task[None]]:
    executor = Executor(
        settings=settings,
        layout=layout,
        transport=transport,
        store=JobStore(layout.state / "jobs.db", now_ns=time.time_ns()),
        publisher=publisher,
        ports=Ports(
            launches=host,
            monitors=host,
            cleans=host,
            samples=host,
            volumes=NoVolumes(),
            attachments=FakeAttachments(),
            identities=own_identity,
            unsupported=no_unsupported,
            refused_network=lambda _: None,
            node=NODE,
            boot_id=BOOT,
        ),
    )
    await executor.start()
    running = asyncio.create_task(executor.run())
    try:
        yield running
    finally:
        for monitor in host.monitors.values():
            monitor.gone = None
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await executor.close()


@asynccontextmanager
async def _persist(layout: Layout, transport: Memory) -> AsyncIterator[list[asyncio.Task[None]]]:
    base = layout.logs.parent
    store, changes = make_store(base), Changes()
    samples, outbox = Samples(store), Outbox(transport.push(PERSIST_ACKS))
    with (
        ThreadPoolExecutor(2) as writers,
        ThreadPoolExecutor(2) as readers,
        ThreadPoolExecutor(1) as keepers,
    ):
        ingest = Ingest(
            source=Receiver(transport, PERSIST_IPC),
            answer=outbox.put,
            store=store,
            samples=samples,
            changes=changes,
            limits=Limits(flush_bytes=65536, flush_ms=5, retry_ms=50),
            pool=writers,
        )
        keeper = Keeper(
            store=store,
            logs=layout.logs,
            metrics=layout.metrics,
            settings=Settings().persist.storage.local.retention,
            audit=Lines(),
            removed=ingest.deleted,
            pool=keepers,
        )
        queries = LogQueries(store=store, changes=changes, pool=readers)
        servicer = PersistServer(
            store=store,
            samples=samples,
            queries=queries,
            ingest=ingest,
            keeper=keeper,
            pool=readers,
            audit=AuditQueries(layout.audit_persist),
        )
        server = aio.server(options=[("grpc.max_receive_message_length", REQUEST_BYTES_MAX)])
        add_PersistServiceServicer_to_server(servicer, server)
        server.add_insecure_port(f"unix:{layout.persist_grpc}")
        await server.start()
        tasks = [asyncio.create_task(work) for work in (ingest.run(), outbox.run())]
        try:
            yield tasks
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await ingest.settle()
            await server.stop(0)
