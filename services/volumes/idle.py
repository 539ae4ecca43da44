"""Volumes that nobody uses stay mounted for a while, in case somebody does (S1.40): how many, and for how long.

Those left longest ago go first. Memory volumes never stay: what they hold goes with their last user.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import structlog

from common.config.settings import Volumes as Settings
from common.errors import JobletError
from common.identifiers import VolumeId
from common.messages.volumes import VolumeKind, VolumeStatus
from services.volumes.disk import Disk
from services.volumes.events import Volume
from services.volumes.gauges import Gauges
from services.volumes.records import Records

log = structlog.get_logger(__name__)

NS_PER_MS: Final = 1_000_000
NS_PER_S: Final = 1_000_000_000
RETRY_S: Final = 30.0
"""After an unmount that failed."""


class Idle(NamedTuple):
    """What is to be unmounted now, and how long the rest may stay as it is; None: until something happens."""

    due: tuple[VolumeId, ...]
    next_due_ns: int | None


def overdue(idle_since_ns: Mapping[VolumeId, int], now_ns: int, *, mounts_max: int, mount_ms: int) -> Idle:
    """Of idle mounts, with the times at which they became so: which are too many or too old."""
    youngest_first = sorted(idle_since_ns, key=lambda volume: idle_since_ns[volume], reverse=True)
    limit_ns = mount_ms * NS_PER_MS
    stay = [volume for volume in youngest_first[:mounts_max] if now_ns - idle_since_ns[volume] < limit_ns]
    due = tuple(volume for volume in reversed(youngest_first) if volume not in stay)
    waits_ns = [idle_since_ns[volume] + limit_ns - now_ns for volume in stay]
    return Idle(due, min(waits_ns, default=None))


class IdleMounts:
    """Unmounts what is idle for too long. `run` must be running."""

    def __init__(
        self, records: Records, disk: Disk, gauges: Gauges, *, settings: Settings, steady_ns: Callable[[], int]
    ) -> None:
        self._records = records
        self._disk = disk
        self._gauges = gauges
        self._settings = settings
        self._steady_ns = steady_ns
        self._wake = asyncio.Event()
        self._failed: dict[VolumeId, int] = {}

    def wake(self) -> None:
        """Something may have become idle."""
        self._wake.set()

    async def run(self) -> None:
        """Look for ever, when something happens or is due."""
        while True:
            self._wake.clear()
            idle = self.look()
            for volume in idle.due:
                await self._let_go(volume)
            timeout_s = RETRY_S if idle.next_due_ns is None else min(RETRY_S, idle.next_due_ns / NS_PER_S)
            with contextlib.suppress(TimeoutError):
                # Not wait_for: in Python 3.11 it swallows a cancel that comes together with what it waits for.
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()

    async def close(self) -> None:
        """Unmount all that is idle, however new: nobody looks after it from now on. `run` has ended."""
        for volume in self.look(mounts_max=0).due:
            await self._let_go(volume)

    def look(self, *, mounts_max: int | None = None) -> Idle:
        """What is due now; `mounts_max` in place of the settings'."""
        now_ns = self._steady_ns()
        since_ns = {}
        at_once = []
        for volume_id, left_at_ns in self._gauges.mounted.items():
            volume = self._known(volume_id)
            held = volume is None or volume.record.uses or volume.work is not None
            if held or self._disk.locks.taken(volume_id) or self._failed.get(volume_id, 0) > now_ns:
                continue
            if volume is not None and _never_stays(volume):
                at_once.append(volume_id)
            else:
                since_ns[volume_id] = left_at_ns
        stay_max = self._settings.idle_mounts_max if mounts_max is None else mounts_max
        idle = overdue(since_ns, now_ns, mounts_max=stay_max, mount_ms=self._settings.idle_mount_ms)
        return Idle((*at_once, *idle.due), idle.next_due_ns)

    def _known(self, volume: VolumeId) -> Volume | None:
        try:
            return self._records.get(volume)
        except JobletError:
            return None

    async def _let_go(self, volume: VolumeId) -> None:
        async with self._disk.locks.of(volume):
            known = self._known(volume)
            if known is None or known.record.uses or known.work is not None:
                return  # somebody has come meanwhile
            try:
                await self._disk.unmount(known)
            except JobletError as error:
                self._failed[volume] = self._steady_ns() + int(RETRY_S * NS_PER_S)
                log.error("an idle volume cannot be unmounted yet", volume=volume, problem=str(error))
            else:
                self._failed.pop(volume, None)


def _never_stays(volume: Volume) -> bool:
    return volume.record.kind is VolumeKind.MEMORY or volume.record.status is VolumeStatus.DAMAGED
