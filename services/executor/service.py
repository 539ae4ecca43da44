"""The executor as a whole, given its ports: joins the parts, takes up old jobs, then serves until it is stopped.

Here: the order of start and end. Not here: which ports are real (`__main__.py`; tests give fakes).
"""

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import msgspec
import structlog

from common.bus import codec
from common.bus.events import Publisher
from common.bus.requests import Receiver, Responder
from common.bus.transport import Transport
from common.config.layout import Layout
from common.config.settings import Settings
from common.errors import JobletError, exhausted, precondition
from common.messages.jobs import JobSpec, Network, NodeFacts
from common.messages.logs import StoreMetric
from common.messages.topics import API_REPLIES, EXECUTOR_COMMANDS, PERSIST_ACKS, PERSIST_IPC, metrics_topic
from common.vault import Vault
from services.executor.admission import Room, Unsupported, admit, check_room
from services.executor.archives import Archives
from services.executor.attaching import Attaching
from services.executor.commands import Commands
from services.executor.identity import JobIdentity
from services.executor.job_store import JobStore
from services.executor.jobs import Jobs
from services.executor.live import Live
from services.executor.output import Output
from services.executor.ports import Attachments, Cleans, Launches, Monitors, Samples, Volumes
from services.executor.recovery import Sweeps, recover
from services.executor.registry import Registry
from services.executor.secret_values import SecretValues
from services.executor.waiting import WaitingLimits
from services.executor.writer import RecordWriter

log = structlog.get_logger(__name__)


class Sweeper(Cleans, Sweeps, Protocol):
    """Both sides of cleanup.Cleanup."""


class Ports(msgspec.Struct, frozen=True, kw_only=True):
    """Everything of the executor that touches the kernel."""

    launches: Launches
    monitors: Monitors
    cleans: Sweeper
    samples: Samples
    volumes: Volumes
    attachments: Attachments
    identities: Callable[[str], JobIdentity]  # whom an owner's jobs are on the host
    unsupported: Unsupported
    refused_network: Callable[[Network], tuple[str, str] | None]  # what this host cannot do, and the repair
    node: NodeFacts
    boot_id: str  # of the machine as it runs now: another one after it was started anew


class Metrics:
    """Where samples go: to subscribers, and to persist when there is room. They are not acknowledged."""

    def __init__(self, publisher: Publisher, transport: Transport, *, persists: bool) -> None:
        self._publisher = publisher
        self._push = transport.push(PERSIST_IPC) if persists else None

    def emit(self, sample: StoreMetric) -> None:
        """Pass one sample on. Never waits."""
        self._publisher.publish(metrics_topic(sample.job), sample)
        if self._push is not None and not self._push.try_send(codec.encode(sample)):
            log.debug("metric sample dropped: persist does not read", job=sample.job)


class Executor:
    """One executor on one event loop. `start`, then `run` until cancelled, then `close`."""

    def __init__(
        self,
        *,
        settings: Settings,
        layout: Layout,
        transport: Transport,
        store: JobStore,
        publisher: Publisher,
        ports: Ports,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.settings = settings
        self.layout = layout
        self.store = store
        self.writer = RecordWriter(store)
        self._ports = ports
        self._publisher = publisher
        self._clock_ns = clock_ns
        self._archives = Archives(layout)
        self._secrets = SecretValues(Vault(layout.state / "node.key"), store, self.writer)
        live = Live(publisher)
        registry = Registry(store, self.writer)
        self.jobs = Jobs(
            registry=registry,
            writer=self.writer,
            live=live,
            launches=ports.launches,
            monitors=ports.monitors,
            cleans=ports.cleans,
            samples=ports.samples,
            archives=self._archives,
            secrets=self._secrets,
            limits=WaitingLimits(
                running_max=settings.joblet.jobs.running_max,
                queued_max=settings.joblet.jobs.queued_max,
                upload_bytes_max=settings.joblet.uploads.staged_bytes_max,
            ),
            has_room=self._has_room,
            node_id=ports.node.node_id,
            boot_id=ports.boot_id,
            clock_ns=clock_ns,
        )
        self.output = Output(
            self.jobs,
            live=live,
            writer=self.writer,
            push=transport.push(PERSIST_IPC),
            settings=settings,
            layout=layout,
        )
        self.jobs.output = self.output
        self.commands = Commands(
            jobs=self.jobs,
            registry=registry,
            store=store,
            live=live,
            launches=ports.launches,
            volumes=ports.volumes,
            attaching=self._attaching(registry),
            admit=self._admit,
            check_room=self._check_room,
            node=self._node,
            clock_ns=clock_ns,
        )
        self._acknowledgements = Receiver(transport, PERSIST_ACKS)
        self._responder = Responder(transport, EXECUTOR_COMMANDS, API_REPLIES, self.commands.handlers())
        self._tasks: list[asyncio.Task[None]] = []

    def _attaching(self, registry: Registry) -> Attaching:
        ports = self._ports
        return Attaching(
            jobs=self.jobs,
            registry=registry,
            writer=self.writer,
            volumes=ports.volumes,
            attachments=ports.attachments,
            limit=ports.launches.limit_volume,
            identities=ports.identities,
            read_only_paths=tuple(self.settings.joblet.jobs.read_only_paths),
            clock_ns=self._clock_ns,
        )

    async def start(self) -> None:
        """Take up the jobs of the time before; commands that arrive meanwhile wait in their queue."""
        self._run(self.output.follower.run())
        self._secrets.drop_stale()
        await recover(
            self.jobs,
            self.store,
            self.output,
            self._archives,
            self._ports.cleans,
            persists=self.settings.persist.enabled,
            now_ns=self._clock_ns(),
            boot_id=self._ports.boot_id,
        )
        self.jobs.waiting.open()
        self._run(self.output.sender.run())
        self._run(self.output.sender.watch())
        self._run(self.output.sender.hear(self._acknowledgements))
        self._run(self._responder.run())

    async def run(self) -> None:
        """Returns only when a part of the executor has failed, with its error."""
        await asyncio.gather(*self._tasks)

    async def close(self) -> None:
        """Stop; running jobs go on without this process."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._responder.close()
        await self.jobs.close()
        self._acknowledgements.close()
        self.output.close()
        self._publisher.close()
        self.store.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work))

    def _admit(self, spec: JobSpec) -> JobSpec:
        refused = self._ports.refused_network(spec.network)
        if refused is not None:
            raise precondition(*refused)
        return admit(
            spec,
            unsupported=self._ports.unsupported,
            staged=self._archives.staged,
            now_ns=self._clock_ns(),
            settings=self.settings.joblet,
        )

    def _check_room(self) -> None:
        try:
            found = os.statvfs(self.layout.jobs)
        except OSError as cause:
            raise exhausted(f"the disk of the jobs' output cannot be used: {cause.strerror}", "repair it") from cause
        room = Room(
            bytes=found.f_bavail * found.f_frsize if found.f_blocks else None,
            files=found.f_favail if found.f_files else None,
        )
        check_room(room, reserve_bytes=self.settings.joblet.journal.reserve_bytes)

    def _has_room(self) -> bool:
        try:
            self._check_room()
        except JobletError:
            return False
        return True

    def _node(self, running_jobs: int) -> NodeFacts:
        return msgspec.structs.replace(
            self._ports.node,
            running_jobs=running_jobs,
            counters={**self.jobs.counters, **self.output.counters},
            queued_jobs=self.jobs.waiting.queued_jobs,
            running_max=self.jobs.waiting.running_max,
        )
