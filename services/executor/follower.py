"""Follows the journals of jobs as their monitors write them: no polling, one inotify descriptor for all.

The live cursor of each job is here: it only ever goes forward, hands every whole record on at once, and takes turns
with those of other jobs, a slice each, so that one flooding job does not hold up the rest.
"""

import asyncio
from collections import deque
from typing import Final, Protocol

import structlog

from common.identifiers import JobId
from services.executor.inotify import Inotify
from services.executor.journal import Journal, Slice

log = structlog.get_logger(__name__)

SLICE_BYTES: Final = 256 * 1024
"""Records read and published at once. A subscriber's queue holds `EVENTS.queue_messages_max` of them at most."""


class Sink(Protocol):
    """Takes what was read."""

    def records_read(self, job: JobId, piece: Slice) -> None:
        """Records, in order, each once. `piece.corrupt` set: they are the last that can be read."""


class Tail:
    """The live cursor of one job."""

    def __init__(self, job: JobId, journal: Journal, *, offset: int, last_sequence: int, watch: int) -> None:
        self.job = job
        self.journal = journal
        self.offset = offset
        self.last_sequence = last_sequence
        self.corrupt = ""
        self.watch = watch
        self.waiters: list[asyncio.Future[None]] = []

    def read(self) -> Slice | None:
        """The next records, or None when there are none now."""
        if self.corrupt:
            return None
        piece = self.journal.read(self.offset, last_sequence=self.last_sequence, bytes_max=SLICE_BYTES)
        self.offset, self.last_sequence, self.corrupt = piece.end, piece.last_sequence, piece.corrupt
        return piece if piece.records or piece.corrupt else None


class Follower:
    """All live cursors. `run` must be running; close it."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._inotify = Inotify()
        self._tails: dict[JobId, Tail] = {}
        self._by_watch: dict[int, JobId] = {}
        self._ready: deque[JobId] = deque()
        self._queued: set[JobId] = set()
        self._wake = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._inotify.fd, self._fired)

    def follow(self, job: JobId, journal: Journal, *, offset: int, last_sequence: int) -> None:
        """Read `journal` from `offset` on, where `last_sequence` was the last entry. Raises OSError."""
        watch = self._inotify.add(journal.path)
        self._tails[job] = Tail(job, journal, offset=offset, last_sequence=last_sequence, watch=watch)
        self._by_watch[watch] = job
        self._enqueue(job)

    def tail(self, job: JobId) -> Tail | None:
        """The live cursor of a job that is followed."""
        return self._tails.get(job)

    async def caught_up(self, job: JobId) -> None:
        """Returns when all that the journal held at the time of the call was handed on."""
        tail = self._tails.get(job)
        if tail is not None:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            tail.waiters.append(waiter)
            self._enqueue(job)
            await waiter

    def leave(self, job: JobId) -> None:
        """Follow no more. The journal stays open: it is its owner's to close."""
        tail = self._tails.pop(job, None)
        if tail is not None:
            self._by_watch.pop(tail.watch, None)
            self._inotify.remove(tail.watch)
            _resolve(tail)

    async def run(self) -> None:
        """Read what was written, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._ready:
                self._turn(self._ready.popleft())
                await asyncio.sleep(0)  # everyone else's turn: commands, acknowledgements, the durable cursor

    def close(self) -> None:
        """Stop following everything."""
        asyncio.get_running_loop().remove_reader(self._inotify.fd)
        for job in list(self._tails):
            self.leave(job)
        self._inotify.close()

    def _turn(self, job: JobId) -> None:
        self._queued.discard(job)
        tail = self._tails.get(job)
        if tail is None:
            return
        try:
            piece = tail.read()
        except OSError as cause:
            piece = Slice(tail.offset, tail.offset, b"", tail.last_sequence, (), f"cannot be read: {cause}")
            tail.corrupt = piece.corrupt
        if piece is None:
            _resolve(tail)
            return
        self._sink.records_read(job, piece)
        self._enqueue(job)

    def _fired(self) -> None:
        watches, overflowed = self._inotify.read()
        if overflowed:
            log.warning("inotify queue overflowed: every journal is looked at")
        jobs = list(self._tails) if overflowed else [self._by_watch[w] for w in watches if w in self._by_watch]
        for job in jobs:
            self._enqueue(job)

    def _enqueue(self, job: JobId) -> None:
        if job not in self._queued:
            self._queued.add(job)
            self._ready.append(job)
            self._wake.set()


def _resolve(tail: Tail) -> None:
    waiters, tail.waiters = tail.waiters, []
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
