"""Storage calls, in threads: their errors, their durations, and one at a time for each volume.

Here: how the blocking calls of `ports.Storage` are made. Who calls holds the volume's lock (`locks`), which is never
taken twice by one caller. Not here: when (`life.py`, `uses.py`, `copies.py`, `transfers.py`, `rounds.py`).
"""

import asyncio
import errno
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import structlog

from common.errors import JobletError, Reason, exhausted
from common.identifiers import VolumeId
from common.messages.volumes import CopyMethod, Enforcement, SnapshotRecord, VolumeKind, VolumeRecord
from services.volumes.admission import Room
from services.volumes.events import Measured, Volume
from services.volumes.gauges import Gauges
from services.volumes.locks import Locks
from services.volumes.ports import Found, Ids, Keys, Moved, Place, Space, Storage, Storages
from services.volumes.records import Records

log = structlog.get_logger(__name__)

QUICK_THREADS: Final = 4
"""For what a job waits for: mounting and the like."""
LONG_THREADS: Final = 4
"""For what copies or removes data, so that no number of these keeps a job waiting."""

Result = TypeVar("Result")


class Disk:
    """The storages behind one event loop."""

    def __init__(
        self, storages: Storages, keys: Keys, records: Records, gauges: Gauges, clock_ns: Callable[[], int]
    ) -> None:
        self._storages = storages
        self._keys = keys
        self._records = records
        self._gauges = gauges
        self._clock_ns = clock_ns
        self._quick = ThreadPoolExecutor(QUICK_THREADS, thread_name_prefix="volumes")
        self._long = ThreadPoolExecutor(LONG_THREADS, thread_name_prefix="volumes-long")
        self.locks = Locks()

    async def choose(self, kind: VolumeKind, *, encrypted: bool, advisory: bool) -> tuple[Enforcement, str]:
        """See Storages.choose."""
        return await self._run(
            self._quick,
            "finding a way to keep",
            f"of kind {kind.value}",
            lambda: self._storages.choose(kind.value, encrypted=encrypted, advisory=advisory),
        )

    async def room(self) -> Room:
        """What there is for more."""
        return await self._run(
            self._quick,
            "finding room for",
            "",
            lambda: Room(self._storages.room_bytes(), self._storages.memory_bytes()),
        )

    async def new_key(self, volume: VolumeId) -> tuple[bytes, bytes]:
        """A key for a new volume, and the same sealed."""
        others = any(each.record.encryption for each in self._records.all())
        return await self._run(self._quick, "making a key for", volume, lambda: self._keys.new(volume, others=others))

    async def same_key(self, source: Volume, target: VolumeId) -> tuple[bytes, bytes]:
        """The key of `source`, and the same sealed for `target`; empty: it is not encrypted."""
        key = await self.key(source)
        if not key:
            return b"", b""
        sealed = await self._records.sealed(source.id)
        return key, await self._run(
            self._quick, "sealing the key of", target, lambda: self._keys.transfer(sealed, source.id, target)
        )

    async def key(self, volume: Volume) -> bytes:
        """The volume's key; empty: it is not encrypted."""
        if not volume.record.encryption:
            return b""
        sealed = await self._records.sealed(volume.id)
        if not sealed:
            raise JobletError(Reason.DATA_LOSS, f"no key of volume {volume.record.name} is recorded")
        return await self._run(
            self._quick, "opening the key of", volume.record.name, lambda: self._keys.open(volume.id, sealed)
        )

    async def create(self, volume: Volume, key: bytes) -> None:
        """See Storage.create."""
        await self._at_length("making", volume, lambda storage, record: storage.create(record, key))

    async def delete(self, volume: Volume) -> None:
        """Unmount the volume and remove everything of it."""
        record = volume.record

        def delete() -> None:
            storage = self._storages.remover(record)
            storage.unmount(record)
            storage.delete(record)

        await self._run(self._long, "removing", record.name, delete)
        self._gauges.forget(volume.id)

    async def mount(self, volume: Volume, ids: Ids | None) -> Place:
        """Have the volume mounted. DATA_LOSS: its content is not what it was."""
        key = await self.key(volume)
        began = time.perf_counter_ns()
        place = await self._quickly("mounting", volume, lambda storage, record: storage.mount(record, key, ids))
        self._gauges.note_mounted(volume.id, time.perf_counter_ns() - began)
        return place

    async def unmount(self, volume: Volume) -> None:
        """Let the volume go. What it holds is recorded before."""
        if not self._gauges.is_mounted(volume.id):
            await self._quickly("unmounting", volume, lambda storage, record: storage.unmount(record))
            return

        counted = self._gauges.space_of(volume.id)

        def unmount(storage: Storage, record: VolumeRecord) -> tuple[Space | None, int]:
            space = counted if record.enforcement is Enforcement.ADVISORY else storage.measure(record)
            began = time.perf_counter_ns()
            storage.unmount(record)
            took_ns = time.perf_counter_ns() - began
            if record.kind is VolumeKind.MEMORY:  # what it held is gone
                space = storage.measure(record)
            return space, took_ns

        space, took_ns = await self._quickly("unmounting", volume, unmount)
        if space is not None:
            await self._records.apply(volume.id, Measured(at_ns=self._clock_ns(), **space._asdict()))
        self._gauges.note_unmounted(volume.id, took_ns)

    async def measure(self, volume: Volume) -> Space | None:
        """What a mounted volume holds, noted in the gauges."""

        def measure(storage: Storage, record: VolumeRecord) -> tuple[Space | None, Moved]:
            return storage.measure(record), storage.moved(record)

        # Without a bound there is no number to ask the kernel for: every file is looked at, which takes its time.
        advisory = volume.record.enforcement is Enforcement.ADVISORY
        call = self._at_length if advisory else self._quickly
        space, moved = await call("measuring", volume, measure)
        if space is not None:
            self._gauges.note_space(volume.id, space, moved)
        return space

    async def resize(self, volume: Volume, size_bytes: int) -> None:
        """See Storage.resize."""
        key = await self.key(volume)
        await self._at_length("resizing", volume, lambda storage, record: storage.resize(record, size_bytes, key))

    async def snapshot(self, volume: Volume, snapshot: str) -> CopyMethod:
        """See Storage.snapshot."""
        return await self._at_length(
            "taking a snapshot of", volume, lambda storage, record: storage.snapshot(record, snapshot)
        )

    async def drop_snapshot(self, volume: Volume, snapshot: str) -> None:
        """See Storage.drop_snapshot."""
        await self._at_length(
            "removing a snapshot of", volume, lambda storage, record: storage.drop_snapshot(record, snapshot)
        )

    async def restore(self, volume: Volume, snapshot: SnapshotRecord) -> None:
        """See Storage.restore."""
        await self._at_length(
            "restoring", volume, lambda storage, record: storage.restore(record, snapshot.id, snapshot.size_bytes)
        )

    async def clone(self, source: Volume, snapshot: str, target: Volume, key: bytes) -> CopyMethod:
        """See Storage.clone."""
        return await self._at_length(
            "copying", source, lambda storage, record: storage.clone(record, snapshot, target.record, key)
        )

    async def open_snapshot(self, volume: Volume, snapshot: str) -> Place:
        """See Storage.open_snapshot."""
        key = await self.key(volume)
        return await self._quickly(
            "mounting a snapshot of", volume, lambda storage, record: storage.open_snapshot(record, snapshot, key)
        )

    async def close_snapshot(self, volume: Volume, snapshot: str) -> None:
        """See Storage.close_snapshot."""
        await self._quickly(
            "unmounting a snapshot of", volume, lambda storage, record: storage.close_snapshot(record, snapshot)
        )

    async def thaw(self, volume: Volume) -> None:
        """See Storage.thaw."""
        await self._quickly("thawing", volume, lambda storage, record: storage.thaw(record))

    async def found(self) -> Found:
        """See Storages.found."""
        return await self._run(self._quick, "looking for", "", self._storages.found)

    async def let_go(self, volume: VolumeId) -> None:
        """See Storages.let_go."""
        await self._run(self._quick, "letting go", volume, lambda: self._storages.let_go(volume))

    def close(self) -> None:
        """Begin nothing more. What a thread is doing it ends; the process waits for that."""
        self._quick.shutdown(wait=False, cancel_futures=True)
        self._long.shutdown(wait=False, cancel_futures=True)

    async def _quickly(self, what: str, volume: Volume, call: Callable[[Storage, VolumeRecord], Result]) -> Result:
        record = volume.record
        return await self._run(self._quick, what, record.name, lambda: call(self._storages.of(record), record))

    async def _at_length(self, what: str, volume: Volume, call: Callable[[Storage, VolumeRecord], Result]) -> Result:
        record = volume.record
        return await self._run(self._long, what, record.name, lambda: call(self._storages.of(record), record))

    async def _run(self, pool: ThreadPoolExecutor, what: str, name: str, call: Callable[[], Result]) -> Result:
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, call)
        except OSError as cause:
            log.error("a call of the storage failed", what=what, volume=name, problem=str(cause))
            text = f"{what} volume {name} failed: {cause.strerror or cause}"
            if cause.errno in (errno.ENOSPC, errno.EDQUOT):
                raise exhausted(text, "free space on the disk of the volumes") from cause
            raise JobletError(Reason.INTERNAL, text, detail="see the log of the volumes service") from cause
