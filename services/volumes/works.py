"""What is done with a volume's content as a whole, as the record tells it: begun, ended, and undone where it failed."""

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator

import msgspec
import structlog

from common.errors import JobletError, Reason
from common.identifiers import VolumeId
from common.messages.volumes import SnapshotRecord
from services.volumes.disk import Disk
from services.volumes.events import FoundDamaged, Unmount, Volume, Work, WorkBegun, WorkEnded, WorkKind, asks
from services.volumes.gauges import Gauges
from services.volumes.records import Records

log = structlog.get_logger(__name__)

_TOUCHES_CONTENT = frozenset({WorkKind.SNAPSHOT, WorkKind.COPY, WorkKind.EXPORT, WorkKind.IMPORT})


class Outcome(msgspec.Struct, kw_only=True):
    """What is to be recorded together with the end of the work."""

    adds: SnapshotRecord | None = None
    drops: SnapshotRecord | None = None


class Works:
    """Begins and ends work. `left`: called when a volume may have become idle."""

    def __init__(
        self,
        records: Records,
        disk: Disk,
        gauges: Gauges,
        *,
        clock_ns: Callable[[], int],
        left: Callable[[VolumeId], None],
    ) -> None:
        self._records = records
        self._disk = disk
        self._gauges = gauges
        self._clock_ns = clock_ns
        self._left = left
        self._under_way: Counter[VolumeId] = Counter()

    @contextlib.asynccontextmanager
    async def alone(self, volume: VolumeId, work: Work) -> AsyncIterator[tuple[Volume, Outcome]]:
        """Do `work` in the block, holding the volume's lock."""
        self._records.check(volume, WorkBegun(at_ns=self._clock_ns(), work=work))  # who is refused need not wait
        async with self._disk.locks.of(volume):
            with self._counted(volume):
                outcome = await self._begin(volume, work)
                try:
                    yield self._records.get(volume), outcome
                except Exception as error:  # a cancelled one is left as it is, to the next start: its thread goes on
                    await self._fail(volume, work, error)
                    raise
                await self._end(volume, outcome)

    @contextlib.asynccontextmanager
    async def beside(self, volume: VolumeId, work: Work) -> AsyncIterator[Volume]:
        """Do `work` in the block, which takes the volume's lock itself where it needs it."""
        with self._counted(volume):
            await self._begin(volume, work)
            try:
                yield self._records.get(volume)
            except Exception as error:  # as above
                async with self._disk.locks.of(volume):
                    await self._fail(volume, work, error)
                raise
            async with self._disk.locks.of(volume):
                await self._end(volume, Outcome())

    def is_abandoned(self, volume: Volume) -> bool:
        """Whether its record tells of work that nobody does: the disk did not take the word of its end."""
        return volume.work is not None and volume.id not in self._under_way

    async def resume(self, volume: VolumeId) -> None:
        """End work that is abandoned."""
        async with self._disk.locks.of(volume):
            known = self._records.get(volume)
            if known.work is not None and self.is_abandoned(known):
                await self.undo(volume, known.work)

    async def undo(self, volume: VolumeId, work: Work) -> None:
        """End work that was interrupted, so that nothing half done is left of it. The caller holds the lock."""
        outcome = Outcome()
        try:
            outcome = await self._undone(self._records.get(volume), work)
        except JobletError as error:
            log.error("what is left of a copy cannot be removed", volume=volume, work=work.kind, problem=str(error))
        await self._end(volume, outcome)

    async def _undone(self, volume: Volume, work: Work) -> Outcome:
        outcome = Outcome()
        match work.kind:
            case WorkKind.SNAPSHOT:
                await self._disk.thaw(volume)
                await self._disk.drop_snapshot(volume, work.snapshot)
            case WorkKind.COPY:
                await self._disk.thaw(volume)
            case WorkKind.DROP:
                await self._disk.drop_snapshot(volume, work.snapshot)
                known = self._records.snapshots(volume.id)
                outcome.drops = next((each for each in known if each.id == work.snapshot), None)
            case WorkKind.SHOW:
                await self._disk.close_snapshot(volume, work.snapshot)
            case WorkKind.RESTORE | WorkKind.EXPORT | WorkKind.IMPORT:
                pass  # the storage restores wholly or not at all; a stream has ended with who moved it
        return outcome

    async def _begin(self, volume: VolumeId, work: Work) -> Outcome:
        await self._records.apply(volume, WorkBegun(at_ns=self._clock_ns(), work=work))
        return Outcome()

    async def _fail(self, volume: VolumeId, work: Work, error: Exception) -> None:
        damaged = isinstance(error, JobletError) and error.reason is Reason.DATA_LOSS
        if damaged and work.kind in _TOUCHES_CONTENT and not (work.kind is WorkKind.COPY and work.snapshot):
            await self._records.apply(volume, FoundDamaged(at_ns=self._clock_ns(), reason=str(error)))
        await self.undo(volume, work)

    async def _end(self, volume: VolumeId, outcome: Outcome) -> None:
        """The caller holds the lock, so that nobody finds in a memory volume what its last job left."""
        event = WorkEnded(at_ns=self._clock_ns())
        if asks(await self._records.apply(volume, event, adds=outcome.adds, drops=outcome.drops), Unmount):
            try:
                await self._disk.unmount(self._records.get(volume))
            except JobletError as error:  # `idle.py` tries again
                log.error("a memory volume cannot be cleared yet", volume=volume, problem=str(error))
        self._gauges.touch(volume)
        self._left(volume)

    @contextlib.contextmanager
    def _counted(self, volume: VolumeId) -> Iterator[None]:
        self._under_way[volume] += 1
        try:
            yield
        finally:
            self._under_way -= Counter([volume])
