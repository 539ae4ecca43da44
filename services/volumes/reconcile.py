"""At start: what the records say and what is on the host, made one again (F10). The plan is pure; nothing is guessed.

Data is never touched but where a record says so: that a volume was being made, or removed. What no record explains
loses its mount and its device and keeps its files; it is told, with what to do.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

import msgspec
import structlog

from common.errors import JobletError, Reason
from common.identifiers import VolumeId
from common.messages.volumes import VolumeKind, VolumeStatus
from services.volumes.disk import Disk
from services.volumes.events import FoundDamaged, FoundWhole, Repair, Restarted, Transition, Volume
from services.volumes.gauges import Gauges
from services.volumes.life import Life
from services.volumes.ports import Found
from services.volumes.records import Records
from services.volumes.works import Works

log = structlog.get_logger(__name__)

AT_ONCE: Final = 8


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """Something to do about one volume."""

    volume: VolumeId

    def describe(self) -> str:
        """In a line of the log."""
        return f"{type(self).__name__} {self.volume}"


class LetGo(Step, frozen=True, kw_only=True):
    """No record explains its mount or its device."""


class Tell(Step, frozen=True, kw_only=True):
    """No record explains its files."""


class Resume(Step, frozen=True, kw_only=True):
    """End what was being done to it."""


class Damage(Step, frozen=True, kw_only=True):
    """Its files are missing."""


class Recheck(Step, frozen=True, kw_only=True):
    """It was damaged, and its files are there: perhaps it is whole again."""


class Mount(Step, frozen=True, kw_only=True):
    """Jobs have it: it is to be mounted, or known to be."""


class Unmount(Step, frozen=True, kw_only=True):
    """Nobody has it."""


def plan_reconciliation(
    volumes: Iterable[Volume], found: Found, *, damaged: frozenset[VolumeId] = frozenset()
) -> tuple[Step, ...]:
    """The steps, those of one volume in order. `damaged`: of these a record exists that cannot be read."""
    known = {volume.id: volume for volume in volumes}
    explained = known.keys() | damaged
    steps: list[Step] = [LetGo(volume=each) for each in sorted((found.mounted | found.attached) - explained)]
    steps += [Tell(volume=each) for each in sorted(found.directories - explained)]
    for each in sorted(known):
        steps += _steps_of(known[each], found)
    return tuple(steps)


def _steps_of(volume: Volume, found: Found) -> list[Step]:
    record = volume.record
    steps: list[Step] = []
    gone = record.status in (VolumeStatus.CREATING, VolumeStatus.DELETING)
    lost = record.kind is VolumeKind.FILESYSTEM and record.id not in found.directories
    if lost and not gone and record.status is not VolumeStatus.DAMAGED:
        steps.append(Damage(volume=record.id))
    if gone or volume.work is not None or volume.resizing_bytes:
        steps.append(Resume(volume=record.id))
    if gone or lost:
        return steps
    if record.status is VolumeStatus.DAMAGED:
        steps.append(Recheck(volume=record.id))
    elif record.uses:
        steps.append(Mount(volume=record.id))
    elif record.id in found.mounted | found.attached:
        steps.append(Unmount(volume=record.id))
    return steps


class Reconciliation:
    """Carries the plan out. One step that fails keeps none of the others from being done."""

    def __init__(
        self, records: Records, disk: Disk, gauges: Gauges, life: Life, works: Works, *, clock_ns: Callable[[], int]
    ) -> None:
        self._records = records
        self._disk = disk
        self._gauges = gauges
        self._life = life
        self._works = works
        self._clock_ns = clock_ns

    async def run(self) -> None:
        """All of it, before anybody is answered."""
        found = await self._disk.found()
        for volume in found.mounted:
            self._gauges.note_mounted(volume, None)
        steps: dict[VolumeId, list[Step]] = {}
        for step in plan_reconciliation(self._records.all(), found, damaged=self._records.damaged):
            log.info("reconciling", step=step.describe())
            steps.setdefault(step.volume, []).append(step)
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(of_volume: list[Step]) -> None:
            async with slots:
                for step in of_volume:
                    await self._try(step)

        await asyncio.gather(*(one(of_volume) for of_volume in steps.values()))

    async def _try(self, step: Step) -> None:
        try:
            await self._do(step)
        except JobletError as error:
            log.error("not reconciled", step=step.describe(), problem=str(error))

    async def _do(self, step: Step) -> None:
        volume, at_ns = step.volume, self._clock_ns()
        match step:
            case LetGo():
                await self._disk.let_go(volume)
                self._gauges.forget(volume)
            case Tell():
                log.warning(
                    "a directory of volumes belongs to no record and is not touched",
                    volume=volume,
                    what_to_do="restore the record's database, or copy what is in it and remove the directory",
                )
            case Damage():
                reason = "its files are missing: is the disk mounted?"
                log.error("a volume is damaged", volume=volume, reason=reason)
                await self._records.apply(volume, FoundDamaged(at_ns=at_ns, reason=reason))
            case Resume():
                await self._resume(volume)
            case Recheck() | Mount():
                await self._mount(volume)
            case Unmount():
                async with self._disk.locks.of(volume):
                    await self._disk.unmount(self._records.get(volume))
            case _:
                raise AssertionError(step)

    async def _resume(self, volume: VolumeId) -> None:
        known = self._records.get(volume)
        if known.work is not None:
            decision = await self._records.apply(volume, Restarted(at_ns=self._clock_ns()))
            assert isinstance(decision, Transition)
            async with self._disk.locks.of(volume):
                for repair in (each for each in decision.instructions if isinstance(each, Repair)):
                    await self._works.undo(volume, repair.work)
        await self._life.resume(volume)

    async def _mount(self, volume: VolumeId) -> None:
        at_ns = self._clock_ns()
        async with self._disk.locks.of(volume):
            try:
                await self._disk.mount(self._records.get(volume), None)
            except JobletError as error:
                if error.reason is not Reason.DATA_LOSS:
                    raise
                log.error("a volume is damaged", volume=volume, reason=str(error))
                await self._records.apply(volume, FoundDamaged(at_ns=at_ns, reason=str(error)))
                await self._disk.unmount(self._records.get(volume))
                return
            await self._records.apply(volume, FoundWhole(at_ns=at_ns))
            self._gauges.touch(volume)
