"""The volumes service as a whole, given its ports: joins the parts, makes the host fit the records, then serves.

Here: the order of start and end. Not here: which ports are real (`__main__.py`; tests give fakes).
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import msgspec
import structlog

from common import failpoints
from common.bus.requests import Handler, Responder
from common.bus.transport import Transport
from common.config.layout import Layout
from common.config.settings import Settings
from common.identifiers import VolumeId
from common.messages.envelope import Body
from common.messages.topics import API_REPLIES, EXECUTOR_REPLIES, VOLUME_COMMANDS, VOLUMES_COMMANDS
from services.volumes.commands import Commands
from services.volumes.copies import Copies
from services.volumes.disk import Disk
from services.volumes.gauges import Gauges
from services.volumes.idle import IdleMounts
from services.volumes.life import Life
from services.volumes.ports import Ids, Keys, Storages, Streams
from services.volumes.reconcile import Reconciliation
from services.volumes.records import Records
from services.volumes.rounds import Rounds
from services.volumes.store import VolumeStore
from services.volumes.transfers import Transfers
from services.volumes.uses import Uses
from services.volumes.works import Works

log = structlog.get_logger(__name__)


class Ports(msgspec.Struct, frozen=True, kw_only=True):
    """Everything of the service that touches the kernel."""

    storages: Callable[[], Storages]  # blocks: what this host can do is found by trying
    keys: Keys
    streams: Streams
    own: Ids | None  # whose everything is, where the service is not root


class Volumes:
    """One volumes service on one event loop. `start`, then `run` until cancelled, then `close`."""

    def __init__(
        self,
        *,
        settings: Settings,
        layout: Layout,
        transport: Transport,
        ports: Ports,
        run_directory: Path | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
        steady_ns: Callable[[], int] = time.monotonic_ns,
        reached: Callable[[str], None] = failpoints.reached,
    ) -> None:
        self._settings = settings.joblet.volumes
        self._layout = layout
        self._ports = ports
        self._run_directory = run_directory or layout.streams
        self._clock_ns = clock_ns
        self._steady_ns = steady_ns
        self._reached = reached
        # First of all: whoever has this socket has the records and the disk, and there is one such process.
        self._responder = Responder(
            transport,
            VOLUMES_COMMANDS,
            API_REPLIES,
            dict.fromkeys(VOLUME_COMMANDS, self.answer),
            also=(EXECUTOR_REPLIES,),
        )
        self._handlers: Mapping[type[Body], Handler] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._records: Records | None = None
        self._disk: Disk | None = None
        self._idle: IdleMounts | None = None

    async def start(self) -> None:
        """Make the host fit the records; commands that arrive meanwhile wait in their queue."""
        storages = await asyncio.to_thread(self._ports.storages)
        store = await asyncio.to_thread(VolumeStore, self._layout.state / "volumes.db", now_ns=self._clock_ns())
        records = self._records = Records(store)
        gauges = Gauges(self._steady_ns)
        disk = self._disk = Disk(storages, self._ports.keys, records, gauges, self._clock_ns)
        idle = self._idle = IdleMounts(records, disk, gauges, settings=self._settings, steady_ns=self._steady_ns)

        def left(_: VolumeId) -> None:
            idle.wake()

        clock_ns, settings, reached = self._clock_ns, self._settings, self._reached
        life = Life(records, disk, settings=settings, clock_ns=clock_ns, reached=reached)
        works = Works(records, disk, gauges, clock_ns=clock_ns, left=left)
        rounds = Rounds(records, disk, gauges, life, idle, works=works, settings=settings, clock_ns=clock_ns)
        commands = Commands(
            records=records,
            gauges=gauges,
            rounds=rounds,
            life=life,
            uses=Uses(records, disk, gauges, settings=settings, clock_ns=clock_ns, reached=reached, left=left),
            copies=Copies(records, disk, works, life, settings=settings, clock_ns=clock_ns),
            instance=uuid.uuid4().hex,
            transfers=Transfers(
                records, disk, works, self._ports.streams, run_directory=self._run_directory, own=self._ports.own
            ),
        )
        await Reconciliation(records, disk, gauges, life, works, clock_ns=clock_ns).run()
        self._handlers = commands.handlers()
        self._run(self._responder.run())
        self._run(idle.run())
        self._run(rounds.run())

    async def run(self) -> None:
        """Returns only when a part of the service has failed, with its error."""
        await asyncio.gather(*self._tasks)

    async def close(self, *, tidy: bool = False) -> None:
        """Stop. Volumes stay mounted for the jobs that have them; what is interrupted is ended by the next start.

        `tidy`: what nobody has is unmounted first, as nobody would look after it.
        """
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._responder.close()
        log.info("messages refused", **self._responder.rejected)
        if tidy and self._idle is not None:
            await self._idle.close()
        if self._disk is not None:
            self._disk.close()
        if self._records is not None:
            await self._records.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work))

    async def answer(self, request: Body) -> Body:
        """What is answered to one command. Raises JobletError."""
        return await self._handlers[type(request)](request)
