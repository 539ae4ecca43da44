"""Whose turn it is to send to persist, and how much. Pure: no I/O, no clock.

Jobs wait in one of two lines, each first in, first out, and turns alternate between the lines while both may go on:

    quiet   little is on the way and little is to be sent: a line now and then, or the end of a job
    busy    the others

Bytes on the way are bounded for each job and for all together. The last eighth of the whole is for quiet jobs only, so
that they need not wait for acknowledgements of what others send; and the more jobs are busy, the less each may have on
the way. What a turn then sends, and whether it may be sent at all while persist says nothing, is the sender's business.
"""

from typing import Final, NamedTuple

from common.identifiers import JobId

BATCH_BYTES: Final = 1024 * 1024
QUIET_BYTES: Final = 64 * 1024
"""A job with no more than this on the way and to be sent is quiet."""
WINDOW_BYTES_MIN: Final = 256 * 1024
"""However many jobs are busy, each may have so much on the way."""


class Turn(NamedTuple):
    """`job` may send up to `bytes_max`; if it has nothing on the way, one record more than that."""

    job: JobId
    bytes_max: int


class Turns:
    """The jobs that have something to send, and how much of each is on the way."""

    def __init__(self, *, job_bytes_max: int, total_bytes_max: int) -> None:
        self._job_bytes_max = job_bytes_max
        self._total_bytes_max = total_bytes_max
        self._busy_bytes_max = total_bytes_max - total_bytes_max // 8
        self._quiet: dict[JobId, None] = {}
        self._busy: dict[JobId, None] = {}
        self._sharing: set[JobId] = set()
        """Busy jobs: those in line, and those that have something on the way since they were."""
        self._on_the_way: dict[JobId, int] = {}
        self._quiet_is_next = True
        self.total_bytes = 0
        """On the way, of all jobs."""

    @property
    def any_may_send(self) -> bool:
        """Whether there is somebody for whom there is room."""
        return bool(self._open(quiet=True) or self._open(quiet=False))

    def on_the_way(self, job: JobId, size_bytes: int) -> None:
        """So much of `job` is sent and not acknowledged now."""
        self.total_bytes += size_bytes - self._on_the_way.pop(job, 0)
        if size_bytes:
            self._on_the_way[job] = size_bytes
        elif job not in self._busy:
            self._sharing.discard(job)

    def line_up(self, job: JobId, unsent_bytes: int) -> None:
        """`job` has so much to send, or (0) only its end. In line already: it stays there, or has become quiet."""
        if self._on_the_way.get(job, 0) + unsent_bytes <= QUIET_BYTES:
            self._busy.pop(job, None)
            self._sharing.discard(job)
            self._quiet.setdefault(job)
        elif job not in self._quiet:
            self._busy.setdefault(job)
            self._sharing.add(job)

    def forget(self, job: JobId) -> None:
        """Nothing more of `job`."""
        self._quiet.pop(job, None)
        self._busy.pop(job, None)
        self.on_the_way(job, 0)

    def next(self) -> Turn | None:
        """Take the next one out of its line; None while nobody may send."""
        while True:
            quiet, busy = self._open(quiet=True), self._open(quiet=False)
            if not quiet and not busy:
                return None
            line = quiet if quiet and (self._quiet_is_next or not busy) else busy
            self._quiet_is_next = line is not quiet
            job = next(iter(line))
            del line[job]
            turn = Turn(job, self._room(job, quiet=line is quiet))
            if turn.bytes_max > 0:  # else it lines up again when something of it is acknowledged
                return turn

    def _open(self, *, quiet: bool) -> dict[JobId, None]:
        """The line, as long as there is room for anyone of it."""
        if quiet:
            return self._quiet if self.total_bytes < self._total_bytes_max else {}
        return self._busy if self.total_bytes < self._busy_bytes_max else {}

    def _room(self, job: JobId, *, quiet: bool) -> int:
        on_the_way = self._on_the_way.get(job, 0)
        if quiet:
            return min(QUIET_BYTES, self._job_bytes_max - on_the_way)
        share = max(WINDOW_BYTES_MIN, self._busy_bytes_max // len(self._sharing))
        room = min(self._job_bytes_max, share) - on_the_way
        return min(BATCH_BYTES, room, self._busy_bytes_max - self.total_bytes if on_the_way else room)
