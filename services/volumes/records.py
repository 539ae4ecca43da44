"""What is known of all volumes, in memory, and on the disk before anybody is told.

Reading costs nothing: there are few volumes. A change is decided by the machine, written in the thread of the database,
and known only then; two changes of one volume never overlap. What the instructions besides Save and Forget ask for is
the caller's to do.
"""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import structlog

from common.errors import JobletError, Reason, exhausted, not_found
from common.identifiers import VolumeId
from common.messages.volumes import SnapshotRecord
from services.volumes.events import AnyEvent, Decision, Forget, Refused, Save, Transition, Volume, asks
from services.volumes.locks import Locks
from services.volumes.machine import handle
from services.volumes.ports import Ids
from services.volumes.store import VolumeStore

log = structlog.get_logger(__name__)

Result = TypeVar("Result")
LIST_THEM = "list the volumes you can see with: rnx volume list"


def no_volume(reference: str) -> JobletError:
    """Nobody of this name or id, as far as the asker may know: the same words for what exists and is another's."""
    return not_found(f"there is no volume {reference[:64]}", LIST_THEM)


class Records:
    """All volumes and their snapshots. Of one event loop; owns the store."""

    def __init__(self, store: VolumeStore) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="volume-records")
        self._locks = Locks()
        stored = store.load()
        self._volumes = {volume.id: volume for volume in stored.volumes}
        self._names = {(volume.record.owner, volume.record.name): volume.id for volume in stored.volumes}
        self._snapshots: dict[VolumeId, dict[str, SnapshotRecord]] = {}
        for snapshot in stored.snapshots:
            self._snapshots.setdefault(snapshot.volume, {})[snapshot.name] = snapshot
        self._owners = stored.owners
        self.damaged = stored.damaged
        """Volumes of which something is stored that cannot be believed."""

    def all(self) -> tuple[Volume, ...]:
        """Every volume, in no order."""
        return tuple(self._volumes.values())

    def get(self, volume: VolumeId) -> Volume:
        """The volume. Raises NOT_FOUND."""
        known = self._volumes.get(volume)
        if known is None:
            raise no_volume(volume)
        return known

    def named(self, owner: str, name: str) -> Volume | None:
        """The owner's volume of this name."""
        known = self._names.get((owner, name))
        return None if known is None else self._volumes[known]

    def snapshots(self, volume: VolumeId) -> tuple[SnapshotRecord, ...]:
        """The volume's snapshots, the oldest first."""
        known = self._snapshots.get(volume, {})
        return tuple(sorted(known.values(), key=lambda snapshot: (snapshot.created_at_ns, snapshot.name)))

    def snapshots_of(self, owner: str) -> tuple[SnapshotRecord, ...]:
        """Those of all the owner's volumes, in no order."""
        own = (volume.id for volume in self._volumes.values() if volume.record.owner == owner)
        return tuple(snapshot for volume in own for snapshot in self._snapshots.get(volume, {}).values())

    def snapshot(self, volume: VolumeId, name: str) -> SnapshotRecord:
        """The volume's snapshot of this name. Raises NOT_FOUND."""
        known = self._snapshots.get(volume, {}).get(name)
        if known is None:
            owner = self.get(volume).record.name
            raise not_found(f"volume {owner} has no snapshot {name[:64]}", "list its snapshots")
        return known

    def ids_of(self, owner: str) -> Ids | None:
        """Whose files the owner's are on the host; None: no job of his has had a volume yet."""
        return self._owners.get(owner)

    async def sealed(self, volume: VolumeId) -> bytes:
        """The volume's sealed key; empty: it has none."""
        return await self._in_thread(lambda: self._store.sealed(volume))

    async def insert(self, volume: Volume, sealed: bytes) -> None:
        """Add a volume. Raises EXISTS for a name that its owner has, EXHAUSTED when the disk does not take it."""
        key = volume.record.owner, volume.record.name
        if key in self._names:
            raise _exists(volume)
        self._names[key] = volume.id  # taken from now on; `named` is asked for it only by those who wait for us
        self._volumes[volume.id] = volume
        try:
            await self._write(lambda: self._store.insert(volume, sealed))
        except JobletError as error:
            del self._names[key], self._volumes[volume.id]
            if isinstance(error.__cause__, sqlite3.IntegrityError):  # the name of a row that is damaged
                raise _exists(volume) from error
            raise

    async def apply(
        self,
        volume: VolumeId,
        event: AnyEvent,
        *,
        adds: SnapshotRecord | None = None,
        drops: SnapshotRecord | None = None,
        ids: Ids | None = None,
    ) -> Decision:
        """Let `event` happen to the volume; what is to be saved is durable when this returns.

        `adds`, `drops`: a snapshot that is known, or not any more, from the same moment on; `ids`: likewise those of
        the volume's owner. Raises the error of a refusal, NOT_FOUND, and EXHAUSTED when the disk does not take it.
        """
        async with self._locks.of(volume):
            decision = handle(self.get(volume), event)
            if isinstance(decision, Refused):
                raise decision.error
            if asks(decision, Forget):
                await self._forget(volume)
            elif isinstance(decision, Transition) and asks(decision, Save):
                changed = decision.volume
                await self._write(lambda: self._save(changed, adds, drops, ids))
                self._volumes[volume] = changed
                self._note(volume, adds, drops, ids)
            return decision

    def check(self, volume: VolumeId, event: AnyEvent) -> None:
        """Raise what `apply` would be refused with now."""
        decision = handle(self.get(volume), event)
        if isinstance(decision, Refused):
            raise decision.error

    async def close(self) -> None:
        """Close the database, behind what is being written."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._store.close)
        self._thread.shutdown()

    def _save(self, volume: Volume, adds: SnapshotRecord | None, drops: SnapshotRecord | None, ids: Ids | None) -> None:
        self._store.update(volume)
        if adds is not None:
            self._store.insert_snapshot(adds)
        if drops is not None:
            self._store.remove_snapshot(drops.id)
        if ids is not None and ids != self._owners.get(volume.record.owner):
            self._store.remember(volume.record.owner, ids)

    def _note(
        self, volume: VolumeId, adds: SnapshotRecord | None, drops: SnapshotRecord | None, ids: Ids | None
    ) -> None:
        if adds is not None:
            self._snapshots.setdefault(volume, {})[adds.name] = adds
        if drops is not None:
            self._snapshots.get(volume, {}).pop(drops.name, None)
        if ids is not None:
            self._owners[self._volumes[volume].record.owner] = ids

    async def _forget(self, volume: VolumeId) -> None:
        await self._write(lambda: self._store.forget(volume))
        gone = self._volumes.pop(volume).record
        del self._names[gone.owner, gone.name]
        self._snapshots.pop(volume, None)

    async def _write(self, change: Callable[[], None]) -> None:
        def write() -> None:
            with self._store.transaction():
                change()

        await self._in_thread(write)

    async def _in_thread(self, call: Callable[[], Result]) -> Result:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, call)
        except sqlite3.Error as cause:
            log.error("the records of volumes cannot be used", problem=str(cause))
            raise exhausted(f"the records of volumes cannot be used: {cause}", "free space for the state") from cause


def _exists(volume: Volume) -> JobletError:
    name, owner = volume.record.name, volume.record.owner
    return JobletError(Reason.EXISTS, f"{owner} has a volume {name}", detail="use it, or another name for the new one")
