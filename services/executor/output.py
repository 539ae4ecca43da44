"""The output of all jobs between their journals and the world: live cursor → topics, durable cursor → persist.

Joins `follower.py`, `live.py` and `sender.py`, owns the open journals and keeps the cursors. What START and EXIT mean
is decided elsewhere: they are handed to `listener`.
"""

import errno
from functools import partial
from typing import Final, NamedTuple, Protocol

import structlog

from common.bus.transport import PushSocket
from common.config.layout import Layout
from common.config.settings import Settings
from common.failpoints import reached
from common.identifiers import JobId
from common.messages.jobs import JobRecord
from services.executor.follower import Follower
from services.executor.job_store import Cursor
from services.executor.journal import Damage, Journal, Note, Slice
from services.executor.live import Live
from services.executor.sender import Sender
from services.executor.writer import RecordWriter

log = structlog.get_logger(__name__)

JOURNAL_FILE: Final = "journal"
LACKING: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC))
"""What says that a file could be opened, or watched, if there were room for that. ENOSPC: inotify_add_watch(2)."""


class Listener(Protocol):
    """Is told what output says about the jobs themselves."""

    def noted(self, job: JobId, note: Note) -> None:
        """The job's START or EXIT, or a GAP; all output before it was handed on."""

    def damaged(self, job: JobId, problem: str) -> None:
        """Part of the job's journal cannot be read."""

    def delivered(self, job: JobId) -> None:
        """Persist has all of an ended job's output: its journal may go."""

    def space_freed(self, job: JobId) -> None:
        """The job's journal has room again."""


class ReadSoFar(NamedTuple):
    """How far a journal was read: the last entry's sequence, what is wrong behind it, and how many bytes are there."""

    last_sequence: int
    corrupt: str
    rest_bytes: int


class Output:
    """All jobs' output. Close it."""

    def __init__(
        self,
        listener: Listener,
        *,
        live: Live,
        writer: RecordWriter,
        push: PushSocket,
        settings: Settings,
        layout: Layout,
    ) -> None:
        self._listener = listener
        self._live = live
        self._writer = writer
        self._layout = layout
        self._persists = settings.persist.enabled
        self._journals: dict[JobId, Journal] = {}
        self.follower = Follower(self)
        self.sender = Sender(push, self, settings.joblet.journal)
        self._begun: set[JobId] = set()
        self._damaged: set[JobId] = set()
        self._unreadable: dict[JobId, ReadSoFar] = {}
        self._journals_damaged = self._journals_torn = 0

    @property
    def counters(self) -> dict[str, int]:
        """Since this process began, by the names of NodeFacts.counters."""
        return {
            "journals_damaged": self._journals_damaged,
            "journals_torn": self._journals_torn,
            **self.sender.counts,
        }

    def begin(self, cursor: Cursor) -> bool:
        """Follow and deliver a job from `cursor` on. False: it has no journal; its end can still be delivered.

        A journal that cannot be opened is as one that is damaged from the cursor on. Raises OSError when it could be,
        but this process lacks a descriptor, memory or a watch for it: then nothing was begun. Can be done twice.
        """
        job = cursor.job
        if job in self._begun:
            return job in self._journals
        journal = self._open(cursor)
        if journal is not None:
            try:
                self.follower.follow(
                    job, journal, offset=cursor.acknowledged_offset, last_sequence=cursor.acknowledged_sequence
                )
            except OSError:
                journal.close()
                raise
            self._journals[job] = journal
        self._begun.add(job)
        if self._persists:
            self.sender.add(cursor, journal)
        return journal is not None

    def begun(self, job: JobId) -> bool:
        """Whether the job is followed or delivered."""
        return job in self._begun

    def has_journal(self, job: JobId) -> bool:
        """Whether the job's journal is there: its monitor makes it, once, before it starts anything."""
        return (self._layout.job_dir(job) / JOURNAL_FILE).exists()

    def last_sequence(self, job: JobId) -> int | None:
        """Sequence of the last entry that was published; None: the job is not followed."""
        tail = self.follower.tail(job)
        return None if tail is None else tail.last_sequence

    async def read_all(self, job: JobId) -> ReadSoFar:
        """Wait until all that the journal of a job without a monitor holds was handed on: nobody adds to it."""
        journal = self._journals.get(job)
        if journal is not None:
            journal.sealed = True
            self.sender.sealed(job)
        await self.follower.caught_up(job)
        tail = self.follower.tail(job)
        if tail is None:
            return self._unreadable.get(job, ReadSoFar(0, "", 0))
        return ReadSoFar(tail.last_sequence, tail.corrupt, tail.journal.size() - tail.offset)

    def finish(self, record: JobRecord) -> None:
        """The job has ended: follow no more; deliver what is left, then the end."""
        job = record.id
        tail = self.follower.tail(job)
        rest_bytes = 0 if tail is None or tail.corrupt else tail.journal.size() - tail.offset
        if rest_bytes:
            self._journals_torn += 1
            log.warning("journal of an ended job has a torn tail: ignored", job=job, bytes=rest_bytes)
        self.follower.leave(job)
        if self._persists:
            self.sender.ended(record)
        else:
            self._close_journal(job)

    def drop(self, job: JobId) -> None:
        """Deliver nothing more of a job and close its journal."""
        self.follower.leave(job)
        self.sender.remove(job)
        self._close_journal(job)

    def close(self) -> None:
        """Close every journal."""
        self.follower.close()
        for job in list(self._journals):
            self._close_journal(job)

    def records_read(self, job: JobId, piece: Slice) -> None:
        """See follower.Sink."""
        self._live.records(job, piece.records)
        reached("executor.published")
        self.sender.grown(job, piece.end)
        if piece.corrupt:
            self._count_damaged(job)
            path = str(self._layout.job_dir(job) / JOURNAL_FILE)
            log.error("journal damaged", job=job, path=path, offset=piece.end, problem=piece.corrupt, readable=False)
            self._listener.damaged(job, piece.corrupt)
        for note in piece.notes:
            self._listener.noted(job, note)

    def cursor_moved(self, cursor: Cursor) -> None:
        """See sender.Keeper."""
        self._writer.save_cursor(cursor)

    def save_cursors(self) -> bool:
        """See sender.Keeper."""
        return self._writer.flush()

    def space_freed(self, job: JobId) -> None:
        """See sender.Keeper."""
        self._listener.space_freed(job)

    def damaged(self, job: JobId, problem: str) -> None:
        """See sender.Keeper."""
        self._listener.damaged(job, problem)

    def delivered(self, job: JobId) -> None:
        """See sender.Keeper."""
        self._close_journal(job)
        self._listener.delivered(job)

    def _open(self, cursor: Cursor) -> Journal | None:
        job = cursor.job
        path = self._layout.job_dir(job) / JOURNAL_FILE
        try:
            return Journal(path, partial(self._damage_found, job, str(path)))
        except FileNotFoundError:
            log.info("a job has no journal", job=job)
        except OSError as cause:
            if cause.errno in LACKING:
                raise
            problem = f"it cannot be opened: {cause.strerror}"
            self._unreadable[job] = ReadSoFar(cursor.acknowledged_sequence, f"its journal is damaged: {problem}", 0)
            self._count_damaged(job)
            log.error("journal damaged", job=job, path=str(path), problem=problem, readable=False)
            self._listener.damaged(job, problem)
        return None

    def _damage_found(self, job: JobId, path: str, damage: Damage) -> None:
        """Part of a journal is passed over, by the live cursor or, when it was damaged since, by the durable one."""
        self._count_damaged(job)
        log.error(
            "journal damaged",
            job=job,
            path=path,
            offset=damage.offset,
            bytes=damage.end - damage.offset,
            first=damage.first,
            entries=damage.entries,
            problem=damage.problem,
        )
        what = f"{damage.entries} entries cannot be read" if damage.entries else "no output is missing"
        self._listener.damaged(job, f"{damage.problem}; {what}")

    def _count_damaged(self, job: JobId) -> None:
        self._journals_damaged += job not in self._damaged
        self._damaged.add(job)

    def _close_journal(self, job: JobId) -> None:
        self._begun.discard(job)
        self._damaged.discard(job)
        self._unreadable.pop(job, None)
        journal = self._journals.pop(job, None)
        if journal is not None:
            journal.close()
