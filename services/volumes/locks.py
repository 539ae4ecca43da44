"""A lock for each volume, made when it is asked for and gone when nobody holds or awaits it."""

import asyncio
from weakref import WeakValueDictionary

from common.identifiers import VolumeId


class Locks:
    """`async with locks.of(volume)`: one at a time for each volume. Of one event loop."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[VolumeId, asyncio.Lock] = WeakValueDictionary()

    def of(self, volume: VolumeId) -> asyncio.Lock:
        """The lock of `volume`."""
        lock = self._locks.get(volume)
        if lock is None:
            lock = self._locks[volume] = asyncio.Lock()
        return lock

    def taken(self, volume: VolumeId) -> bool:
        """Whether somebody holds it."""
        lock = self._locks.get(volume)
        return lock is not None and lock.locked()
