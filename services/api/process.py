"""The api process put together: from sockets and a connection to persist to a server that can be started.

Belongs here: wiring, and the order of the end. Does not belong here: privileges and signals (`__main__.py`).
"""

import asyncio
import fcntl
import os
from pathlib import Path

from grpc import aio

from common.audit import AuditFile
from common.bus.events import Subscriber
from common.bus.requests import Requester
from common.bus.transport import Transport
from common.config.layout import Layout
from common.config.settings import Settings
from common.messages import topics
from common.tls import ServerMaterial, server_sources
from services.api.access import Access
from services.api.audit_reader import AuditQueries
from services.api.capacity import Capacity
from services.api.followers.feed import Feeds
from services.api.followers.hub import Hub
from services.api.followers.streams import LogStreams
from services.api.gate import Gate
from services.api.health import HealthService
from services.api.history import History
from services.api.identity import schemes_of
from services.api.job_service import JobService
from services.api.keeper import Keeper
from services.api.limit_policy import policy_of
from services.api.material import checked
from services.api.metrics import MetricStreams
from services.api.node_service import NodeService
from services.api.persist_service import PersistService
from services.api.quotas import Quotas
from services.api.rates import Rates
from services.api.rotation import Credentials, Rotation
from services.api.server import bind, build_server
from services.api.submission import Submission
from services.api.uploads.registry import Registry
from services.api.uploads.staging import Staging
from services.api.volume_access import VolumeAccess
from services.api.volume_jobs import VolumeJobs
from services.api.volume_service import VolumeService
from services.api.volume_streams import VolumeStreams
from services.api.watch import Watch
from services.api.worker_service import WorkerService

STOP_GRACE_S = 2.0


def remove_stale_replies(run: Path) -> None:
    """Remove the reply sockets of api processes that were killed; the lock tells which. Before the drop: only root may.

    Each process has a socket of its own, named by its pid: without this every crash would leave one.
    """
    for lock_path in run.glob(topics.API_REPLIES.file.format(pid="*") + ".lock"):
        lock = os.open(lock_path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # it lives
        else:
            lock_path.with_suffix("").unlink(missing_ok=True)
            lock_path.unlink()
        finally:
            os.close(lock)


class Api:
    """One api process. Make it inside the event loop; it binds its sockets at once and serves after `start`.

    Raises JobletError when `material` is no good. What `keeper` sees replaces it later.
    """

    def __init__(
        self,
        settings: Settings,
        layout: Layout,
        transport: Transport,
        material: ServerMaterial,
        keeper: Keeper | None = None,
    ) -> None:
        limits = settings.joblet.grpc
        first = checked(material)
        credentials = Credentials(first.pem)
        self._keeper = keeper or Keeper()
        self._executor = Requester(
            transport,
            commands=topics.EXECUTOR_COMMANDS,
            replies=topics.API_REPLIES,
            reply_file=topics.API_REPLIES.file.format(pid=os.getpid()),
        )
        self._volumes = self._executor.beside(topics.VOLUMES_COMMANDS)
        self._subscriber = Subscriber(transport)
        self._history = History(layout.persist_grpc)
        self._audit = AuditFile(layout.audit, settings.joblet.audit)
        quotas = Quotas(settings.joblet.quotas)
        self._rates = Rates(quotas)
        self.capacity = Capacity(limits.active_streams_max, quotas)
        self.gate = Gate(
            audit_log=self._audit,
            capacity=self.capacity,
            rates=self._rates,
            schemes=schemes_of(settings.security.identity),
        )
        self.rotation = Rotation(
            first,
            keeper=self._keeper,
            sources=server_sources(settings, layout),
            security=settings.security,
            credentials=credentials,
            gate=self.gate,
        )
        self.hub = Hub(self._subscriber)
        self.feeds = Feeds(self.hub, self._executor, window_bytes_max=limits.follower_queue_bytes)
        self.uploads = Registry(layout, settings.joblet.uploads)
        self._volume_streams = VolumeStreams(self._volumes, layout.streams)
        self._health = HealthService()
        self._server = self._build_server(settings, layout, quotas)
        self.port = bind(self._server, settings.server.address, settings.server.port, credentials)
        self._tasks: list[asyncio.Task[None]] = []

    def _build_server(self, settings: Settings, layout: Layout, quotas: Quotas) -> aio.Server:
        """All services behind the gate, on what this process holds."""
        access = Access(self._executor)
        log_streams = LogStreams(
            feeds=self.feeds,
            queries=self._history,
            look=access.look_up,
        )
        submission = Submission(
            executor=self._executor, uploads=self.uploads, policy=policy_of(settings.joblet), quotas=quotas
        )
        return build_server(
            self.gate,
            settings.joblet.grpc,
            job_service=JobService(
                executor=self._executor,
                access=access,
                hub=self.hub,
                history=self._history,
                log_streams=log_streams,
                metric_streams=MetricStreams(hub=self.hub, executor=self._executor, history=self._history),
                watch=Watch(self.hub, self._executor),
                submission=submission,
                staging=Staging(self.uploads, settings.joblet.uploads),
                quotas=quotas,
            ),
            node_service=NodeService(
                self._executor,
                self._history,
                counters=lambda: log_streams.counters | self.rotation.counters,
                certificates=self.rotation.certificates,
                audit=AuditQueries(layout.audit, self._history),
            ),
            volume_service=VolumeService(
                service=self._volumes,
                access=VolumeAccess(self._volumes),
                volume_jobs=VolumeJobs(self._executor, access),
                streams=self._volume_streams,
            ),
            persist_service=PersistService(access=access, history=self._history),
            worker_service=WorkerService(
                executor=self._executor, access=access, submission=submission, log_streams=log_streams
            ),
            health=self._health,
        )

    async def start(self) -> None:
        """Begin to serve."""
        self.uploads.adopt()
        self._volume_streams.clear()
        self._tasks = [
            asyncio.create_task(forever)
            for forever in (
                self._executor.run(),
                self.hub.run(),
                self.uploads.sweep(),
                self.rotation.follow(),
                self.rotation.remind(),
                self._rates.sweep(),
            )
        ]
        await self._server.start()

    async def failed(self) -> None:
        """Raise when one of the tasks that must run for ever does not."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def stop(self) -> None:
        """No new calls, streams end with UNAVAILABLE, and everything is given back. Within 10 s."""
        await self._health.enter_graceful_shutdown()
        await self.gate.shut()
        await self._server.stop(STOP_GRACE_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._volumes.close()
        self._executor.close()
        self._subscriber.close()
        await self._history.close()
        self._keeper.stop()
        self._rates.close()
        self._audit.close()
