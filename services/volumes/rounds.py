"""What is done every so often: what is mounted is measured, idle memory volumes are removed, leftovers ended."""

import asyncio
from collections.abc import Callable

import structlog

from common.config.settings import Volumes as Settings
from common.errors import JobletError
from common.identifiers import VolumeId
from common.messages.volumes import Enforcement, VolumeKind, VolumeRecord, VolumeStatus
from common.quantities import format_size
from services.volumes.disk import Disk
from services.volumes.events import Volume
from services.volumes.gauges import Gauges
from services.volumes.idle import IdleMounts
from services.volumes.life import Life
from services.volumes.ports import Space
from services.volumes.records import Records
from services.volumes.works import Works

log = structlog.get_logger(__name__)

NS_PER_MS = 1_000_000


class Rounds:
    """Goes round all volumes, for ever."""

    def __init__(
        self,
        records: Records,
        disk: Disk,
        gauges: Gauges,
        life: Life,
        idle: IdleMounts,
        *,
        works: Works,
        settings: Settings,
        clock_ns: Callable[[], int],
    ) -> None:
        self._records = records
        self._disk = disk
        self._gauges = gauges
        self._life = life
        self._works = works
        self._idle = idle
        self._settings = settings
        self._clock_ns = clock_ns

    async def run(self) -> None:
        """One round after the other."""
        while True:
            await asyncio.sleep(self._settings.interval_ms / 1000)
            await self.go()

    async def go(self) -> None:
        """One round. What cannot be done is told, and tried again in the next one."""
        self._idle.wake()
        for volume in self._records.all():
            if self._disk.locks.taken(volume.id):
                continue
            try:
                await self._visit(volume)
            except JobletError as error:
                log.warning("a volume cannot be seen to", volume=volume.id, problem=str(error))

    async def look(self, volume: VolumeId) -> None:
        """Measure one volume now, if that is quick: for somebody who asks."""
        known = self._records.get(volume)
        if known.record.enforcement is Enforcement.ADVISORY or self._disk.locks.taken(volume):
            return
        try:
            await self._measure(known)
        except JobletError as error:
            log.warning("a volume cannot be measured", volume=volume, problem=str(error))

    async def _visit(self, volume: Volume) -> None:
        if volume.record.status in (VolumeStatus.CREATING, VolumeStatus.DELETING) or volume.resizing_bytes:
            await self._life.resume(volume.id)  # nobody holds its lock: who began it has failed
        elif self._works.is_abandoned(volume):
            await self._works.resume(volume.id)
        elif is_idle_memory(volume.record, self._clock_ns(), idle_ms=self._settings.memory_idle_ms):
            await self._life.expire(volume.id)
        else:
            await self._measure(volume)

    async def _measure(self, volume: Volume) -> None:
        if not self._gauges.is_mounted(volume.id):
            return
        if volume.record.enforcement is Enforcement.ADVISORY:
            # Every file is looked at: no job waits for that. What goes meanwhile is not counted.
            self._warn(volume.record, await self._disk.measure(volume))
            return
        async with self._disk.locks.of(volume.id):
            if self._gauges.is_mounted(volume.id):  # still
                await self._disk.measure(volume)

    def _warn(self, record: VolumeRecord, space: Space | None) -> None:
        if space is None or space.used_bytes <= record.size_bytes:
            self._gauges.warnings.pop(record.id, None)
            return
        used, size = format_size(space.used_bytes), format_size(record.size_bytes)
        if record.id not in self._gauges.warnings:
            log.warning("a volume is over its size, which nothing enforces", volume=record.id, used=space.used_bytes)
        self._gauges.warnings[record.id] = f"holds {used} of {size}: nothing enforces its size"


def is_idle_memory(record: VolumeRecord, now_ns: int, *, idle_ms: int) -> bool:
    """Whether it is a memory volume that nobody has used for so long (S1.31)."""
    used_at_ns = max(record.created_at_ns, record.last_used_at_ns)
    return (
        record.kind is VolumeKind.MEMORY
        and record.status is VolumeStatus.AVAILABLE
        and now_ns - used_at_ns > idle_ms * NS_PER_MS
    )
