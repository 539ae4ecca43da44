"""All stored jobs: who has which files, what of a batch is new, and making it durable. Called in worker threads.

What is known of a job is kept in memory by holding.py. Not here: when to write (machine.py), what readers get
(reader.py), what is to be removed (retention.py).
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from common.config.settings import Local
from common.failpoints import reached
from common.identifiers import JobId
from common.records import Record, Stream
from services.persist import building, member, planning, summary, trimming
from services.persist import disk as files
from services.persist.disk import Disk, job_directory, made_job_directory
from services.persist.holding import Holding, Holdings
from services.persist.index import Member, dense_until
from services.persist.lines import Chunk
from services.persist.member import DamagedMember, Span
from services.persist.segment import AbandonedSegment, Segment, StaleSegment
from services.persist.summary import Summary
from services.persist.trimming import Cut

log = structlog.get_logger(__name__)

LOG_FILES: Final = {Stream.STDOUT: "stdout.log.gz", Stream.STDERR: "stderr.log.gz"}
METRICS_FILE: Final = "metrics.jsonl.gz"
DAMAGED_KEPT_MAX: Final = 10_000
"""Damaged members that are remembered, so that each is counted once."""
_LOADS_MAX: Final = 3
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Written(NamedTuple):
    """What a write did, in entries."""

    repeats: int
    missing: int


class View(NamedTuple):
    """What readers may see of a job now."""

    segments: dict[Stream, Segment]
    settled: int
    """Both streams are whole up to this sequence."""
    live: bool
    """This process has stored something of it, so `settled` is exact."""
    ended: bool


class Store:
    """The local store."""

    def __init__(
        self, *, logs: Path, metrics: Path, settings: Local, disk: Disk, compressors: Executor | None = None
    ) -> None:
        """`compressors` compress what is large while more of it is encoded; None: one after the other."""
        self._compressors = compressors
        self._logs, self._metrics = logs, metrics
        self._disk = disk
        self._durable = settings.durability == "fsync"
        self._level = settings.compression_level
        self._member_text_bytes = 2 * settings.flush_bytes  # JSON is about twice what the job wrote
        self._jobs = Holdings()
        self._abandoned: set[JobId] = set()
        self._damaged: set[tuple[JobId, str, int]] = set()
        self.when_full: Callable[[int], None] = _nothing
        """Called in a worker thread when so many bytes could not be written for want of room."""

    @property
    def members_damaged(self) -> int:
        """How many members could not be read, up to DAMAGED_KEPT_MAX."""
        return len(self._damaged)

    def write(
        self,
        job: JobId,
        records: Iterable[Record],
        *,
        through: int,
        end: int | None,
        owner: str = "",
        ended_at_ns: int = 0,
    ) -> Written:
        """Make checked `records` durable, of which `through` is the last sequence; `end`: and the job's end there.

        With the end, whose job it was and when it ended is kept, too; 0: not known. When this returns, everything up
        to `through` is stored. Raises OSError when it is not and may be later, `AbandonedSegment` when it never will
        be by this process.
        """
        batch = list(records)
        kept = Summary(job=job, owner=owner, ended_at_ns=ended_at_ns) if ended_at_ns else None
        with self._jobs.using(job) as stored, stored.lock:
            if job in self._abandoned:
                raise AbandonedSegment(job)
            for _ in range(_LOADS_MAX):
                try:
                    return self._write(job, stored, batch, through=through, end=end, kept=kept)
                except StaleSegment as stale:
                    log.warning("a stored file was changed by another hand, loading it again", job=job, file=str(stale))
                    stored.forget()
                except AbandonedSegment:
                    self._abandoned.add(job)
                    raise
        raise OSError(f"the files of job {job} change while they are written")

    def write_metrics(self, job: JobId, text: bytes, times_ns: Sequence[int]) -> None:
        """Store samples, never synchronized: JSON lines, and the time of each. Raises OSError."""
        with (
            self._jobs.using(job) as stored,
            stored.lock,
            made_job_directory(self._metrics, job) as (directory, _),
        ):
            segment = stored.metrics
            if segment is None or not segment.is_in(directory):
                segment = Segment.load(directory, METRICS_FILE)
            first = segment.last_sequence + 1
            span = Span(len(times_ns), first, first + len(times_ns) - 1, min(times_ns), max(times_ns))
            stored.metrics = None
            try:
                segment.append(directory, [member.build(text, span, level=self._level)], self._disk, durable=False)
            except StaleSegment as stale:
                raise OSError(f"{METRICS_FILE} of job {job} was changed by another hand") from stale
            stored.metrics = segment

    def view(self, job: JobId) -> View:
        """What readers may see of the job's output now. Raises OSError."""
        with self._jobs.using(job) as stored, stored.lock:
            logs = self._current(job, stored)
            ended = logs[Stream.STDOUT].ended_at is not None
            return View(logs, stored.settled, stored.live, ended)

    def metrics(self, job: JobId) -> Segment:
        """The job's file of samples. Raises OSError."""
        with self._jobs.using(job) as stored, stored.lock, _directory(self._metrics, job) as directory:
            if stored.metrics is None or not stored.metrics.is_in(directory):
                stored.metrics = Segment.load(directory, METRICS_FILE)
            return stored.metrics

    def read(self, job: JobId, segment: Segment, wanted: Member) -> bytes:
        """The text of one member. Raises `DamagedMember`, OSError; FileNotFoundError when the job was deleted.

        `StaleSegment`: the file is another one by now, trimmed or changed by hand: look again with `view`.
        """
        root = self._metrics if segment.name == METRICS_FILE else self._logs
        try:
            with job_directory(root, job) as directory:
                return segment.read(directory, wanted)
        except DamagedMember:
            if len(self._damaged) < DAMAGED_KEPT_MAX:
                self._damaged.add((job, segment.name, wanted.offset))
            raise

    def read_block(self, job: JobId, segment: Segment, offset: int, size_bytes: int) -> bytes:
        """Bytes of a log file, to be inflated by whoever asks. Raises as `read` does, but for `DamagedMember`."""
        with job_directory(self._logs, job) as directory:
            return segment.read_block(directory, offset, size_bytes)

    def delete(self, job: JobId) -> tuple[int, int]:
        """Remove all of a job: bytes of logs and of metrics. Raises OSError."""
        removed = self.remove(job)
        self.end_removal(job)
        return removed

    def remove(self, job: JobId) -> tuple[int, int]:
        """The same, but that the job is remembered as one that is being removed, also by the next process."""
        with self._jobs.using(job) as stored, stored.lock:
            stored.forget()
            self._abandoned.discard(job)
            files.set_aside(self._logs, job)
            log_bytes = files.empty_set_aside(self._logs, job)
            reached("persist.logs_removed")
            return log_bytes, files.remove_job_directory(self._metrics, job)

    def end_removal(self, job: JobId) -> None:
        """`remove` was told where it must be told: nothing remembers the job any more. Raises OSError."""
        with self._jobs.using(job) as stored, stored.lock:
            files.remove_set_aside(self._logs, job)

    def resume_removal(self, job: JobId) -> tuple[int, int]:
        """What `remove` of a process that was killed left; the job may have begun anew, then its samples stay."""
        with self._jobs.using(job) as stored, stored.lock:
            log_bytes = files.empty_set_aside(self._logs, job)
            with _directory(self._logs, job) as directory:
                begun_anew = directory is not None
            return log_bytes, 0 if begun_anew else files.remove_job_directory(self._metrics, job)

    def tidy(self, job: JobId) -> None:
        """Finish or undo what a process that was killed was doing to the job's files. Raises OSError."""
        with self._jobs.using(job) as stored, stored.lock, _directory(self._logs, job) as directory:
            if directory is not None:
                files.remove_file(directory, summary.UNFINISHED)
                self._recover(directory, stored)

    def find_cut(self, job: JobId, log_bytes: int, bytes_max: int) -> Cut | None:
        """Where to trim an ended job, whose directory of logs has `log_bytes`, so that it has at most `bytes_max`.

        None: nothing can be gained. Raises OSError.
        """
        with self._jobs.using(job) as stored, stored.lock:
            logs = self._current(job, stored)
            other_bytes = log_bytes - sum(segment.size_bytes for segment in logs.values())
            return trimming.find_cut(logs, bytes_max - other_bytes) if _can_be_trimmed(logs) else None

    def trim(self, job: JobId, cut: Cut, *, stopped: Callable[[], bool]) -> int:
        """Take the output before `cut` out of an ended job's files; how many bytes they are smaller.

        Raises OSError, `StaleSegment`, `TrimStopped`: the files are as they were.
        """
        with self._jobs.using(job) as stored:
            with stored.lock:
                logs = self._current(job, stored)
                if not _can_be_trimmed(logs) or stored.trimming:
                    raise StaleSegment(job)
                stored.trimming = True
            try:
                return self._trim(job, stored, logs, cut, stopped)
            finally:
                stored.trimming = False

    def _trim(
        self, job: JobId, stored: Holding, logs: dict[Stream, Segment], cut: Cut, stopped: Callable[[], bool]
    ) -> int:
        before = sum(segment.size_bytes for segment in logs.values())
        with job_directory(self._logs, job) as directory:
            try:
                # Not under the lock: nothing writes to an ended job, and its readers need not wait for the copy.
                gap_bytes = trimming.count_bytes(directory, logs, cut, stopped=stopped)
                trimming.prepare(directory, logs, cut, gap_bytes, self._disk, stopped=stopped)
                reached("persist.trimmed")
                with stored.lock:
                    if not all(segment.is_in(directory) for segment in logs.values()):
                        raise StaleSegment(job)
                    trimming.commit(directory, logs, cut, self._disk)
                    stored.forget()
                    return before - sum(segment.size_bytes for segment in self._loaded(job, stored).values())
            except BaseException:
                with contextlib.suppress(OSError):
                    trimming.recover(directory, LOG_FILES, self._disk)
                raise

    def _write(
        self,
        job: JobId,
        stored: Holding,
        batch: Sequence[Record],
        *,
        through: int,
        end: int | None,
        kept: Summary | None,
    ) -> Written:
        reached("persist.flush_begun")
        logs = self._loaded(job, stored)
        positions = {stream: segment.last_sequence for stream, segment in logs.items()}
        planned = planning.plan(batch, positions, level_with=end or 0)
        with made_job_directory(self._logs, job) as (directory, is_new):
            if self._durable and (is_new or not stored.entry_durable):
                self._sync_entry(job)
                stored.entry_durable = True
            for stream, segment in reversed(logs.items()):  # stdout last: its end mark speaks for both
                members = self._members(planned.chunks[stream])
                if end is not None and segment.ended_at is None and _wants_mark(stream, segment, members):
                    members.append(member.end_mark(end, batch[-1].time_ns if batch else 0))
                if members or segment.torn or (segment.size_bytes and self._durable and not segment.durable):
                    with self._telling(sum(map(len, members))):
                        segment.append(directory, members, self._disk, durable=self._durable)
                elif not segment.is_in(directory):
                    raise StaleSegment(segment.name)
                if stream is Stream.STDERR:
                    reached("persist.one_stream")
            if end is not None:
                reached("persist.ended")
                if kept is not None:
                    with self._telling(summary.SUMMARY_BYTES_MAX):
                        summary.write(directory, kept, self._disk, durable=self._durable)
        stored.settled = max(stored.settled, through)
        stored.live = True
        return Written(planned.repeats, planned.missing)

    def _sync_entry(self, job: JobId) -> None:
        try:
            with files.directory_of(self._logs) as root:
                self._disk.sync(root)
        except OSError as cause:  # never tried again: see Segment
            log.critical("synchronizing failed, the job is abandoned", job=job, why=os.strerror(cause.errno or 0))
            raise AbandonedSegment(job) from cause

    @contextlib.contextmanager
    def _telling(self, size_bytes: int) -> Iterator[None]:
        """Tell whoever can make room that so much is wanted."""
        try:
            yield
        except OSError as cause:
            if cause.errno in _NO_ROOM:
                self.when_full(size_bytes)
            raise

    def _members(self, chunks: Iterable[Chunk]) -> list[bytes]:
        return building.members(
            chunks, text_bytes=self._member_text_bytes, level=self._level, compressors=self._compressors
        )

    def _current(self, job: JobId, stored: Holding) -> dict[Stream, Segment]:
        """As `_loaded`, loaded again when another hand was at the files: removing a job's directory does no harm."""
        if stored.logs is not None:
            with _directory(self._logs, job) as directory:
                if not all(segment.is_in(directory) for segment in stored.logs.values()):
                    log.warning("the stored files of a job were changed by another hand", job=job)
                    stored.forget()
        return self._loaded(job, stored)

    def _loaded(self, job: JobId, stored: Holding) -> dict[Stream, Segment]:
        if stored.logs is None:
            with _directory(self._logs, job) as directory:
                if directory is not None:
                    self._recover(directory, stored)
                stored.logs = {stream: Segment.load(directory, name) for stream, name in LOG_FILES.items()}
            ended_at = stored.logs[Stream.STDOUT].ended_at
            dense = dense_until(*(segment.index for segment in stored.logs.values()))
            stored.settled = max(stored.settled, dense if ended_at is None else ended_at)
        return stored.logs

    def _recover(self, directory: int, stored: Holding) -> None:
        if not stored.trimming:
            trimming.recover(directory, LOG_FILES, self._disk)


@contextlib.contextmanager
def _directory(root: Path, job: JobId) -> Iterator[int | None]:
    with contextlib.ExitStack() as stack:
        try:
            directory = stack.enter_context(job_directory(root, job))
        except FileNotFoundError:
            yield None
            return
        yield directory


def _can_be_trimmed(logs: dict[Stream, Segment]) -> bool:
    return logs[Stream.STDOUT].ended_at is not None and not any(segment.abandoned for segment in logs.values())


def _nothing(size_bytes: int) -> None:
    del size_bytes


def _wants_mark(stream: Stream, segment: Segment, members: Sequence[bytes]) -> bool:
    return stream is Stream.STDOUT or bool(members) or segment.size_bytes > 0
