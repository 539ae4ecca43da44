"""All stored jobs: who has which files, what of a batch is new, and making it durable. Called in worker threads.

What is known of a job is loaded from its files at the first touch and kept while there is room; the files are the
truth, so anything may be dropped that nobody uses. Not here: when to write (machine.py), what readers get (reader.py).
"""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from common.config.settings import Local
from common.failpoints import reached
from common.identifiers import JobId
from common.records import Record, Stream
from services.persist import member, planning
from services.persist.disk import Disk, job_directory, made_job_directory, remove_job_directory
from services.persist.index import Member, dense_until
from services.persist.lines import Chunk
from services.persist.member import Span
from services.persist.segment import AbandonedSegment, Segment, StaleSegment

log = structlog.get_logger(__name__)

LOG_FILES: Final = {Stream.STDOUT: "stdout.log.gz", Stream.STDERR: "stderr.log.gz"}
METRICS_FILE: Final = "metrics.jsonl.gz"
JOBS_KEPT_MAX: Final = 2048
MEMBERS_KEPT_MAX: Final = 1_000_000
_LOADS_MAX: Final = 3
_RELEASES_BETWEEN_COUNTS: Final = 256


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


class _Stored:
    """One job. `lock` is held by whoever loads, writes or deletes."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.logs: dict[Stream, Segment] | None = None
        self.metrics: Segment | None = None
        self.settled = 0
        self.live = False

    @property
    def members(self) -> int:
        logs, metrics = self.logs, self.metrics  # the lock is not held here
        return sum(len(segment.index) for segment in (logs or {}).values()) + (len(metrics.index) if metrics else 0)

    def forget(self) -> None:
        self.logs = self.metrics = None
        self.settled, self.live = 0, False


class Store:
    """The local store."""

    def __init__(self, *, logs: Path, metrics: Path, settings: Local, disk: Disk) -> None:
        self._logs, self._metrics = logs, metrics
        self._disk = disk
        self._durable = settings.durability == "fsync"
        self._level = settings.compression_level
        self._member_text_bytes = 2 * settings.flush_bytes  # JSON is about twice what the job wrote
        self._jobs: OrderedDict[JobId, _Stored] = OrderedDict()
        self._jobs_lock = threading.Lock()
        self._releases = 0
        self._abandoned: set[JobId] = set()

    def write(self, job: JobId, records: Iterable[Record], *, through: int, end: int | None) -> Written:
        """Make checked `records` durable, of which `through` is the last sequence; `end`: and the job's end there.

        When this returns, everything up to `through` is stored. Raises OSError when it is not and may be later,
        `AbandonedSegment` when it never will be by this process.
        """
        batch = list(records)
        with self._using(job) as stored, stored.lock:
            if job in self._abandoned:
                raise AbandonedSegment(job)
            for _ in range(_LOADS_MAX):
                try:
                    return self._write(job, stored, batch, through=through, end=end)
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
            self._using(job) as stored,
            stored.lock,
            made_job_directory(self._metrics, job, self._disk, durable=False) as directory,
        ):
            segment = stored.metrics or Segment.load(directory, METRICS_FILE)
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
        with self._using(job) as stored, stored.lock:
            logs = self._loaded(job, stored)
            ended = logs[Stream.STDOUT].ended_at is not None
            return View(logs, stored.settled, stored.live, ended)

    def metrics(self, job: JobId) -> Segment:
        """The job's file of samples. Raises OSError."""
        with self._using(job) as stored, stored.lock:
            if stored.metrics is None:
                stored.metrics = _load(self._metrics, job, METRICS_FILE)
            return stored.metrics

    def read(self, job: JobId, segment: Segment, wanted: Member) -> bytes:
        """The text of one member. Raises `DamagedMember`, OSError; FileNotFoundError when the job was deleted."""
        root = self._metrics if segment.name == METRICS_FILE else self._logs
        with job_directory(root, job) as directory:
            return segment.read(directory, wanted)

    def read_block(self, job: JobId, segment: Segment, offset: int, size_bytes: int) -> bytes:
        """Bytes of a log file, to be inflated by whoever asks. Raises as `read` does, but for `DamagedMember`."""
        with job_directory(self._logs, job) as directory:
            return segment.read_block(directory, offset, size_bytes)

    def delete(self, job: JobId) -> tuple[int, int]:
        """Remove all of a job: bytes of logs and of metrics. Raises OSError."""
        with self._using(job) as stored, stored.lock:
            stored.forget()
            self._abandoned.discard(job)
            return remove_job_directory(self._logs, job), remove_job_directory(self._metrics, job)

    def _write(self, job: JobId, stored: _Stored, batch: Sequence[Record], *, through: int, end: int | None) -> Written:
        reached("persist.flush_begun")
        logs = self._loaded(job, stored)
        positions = {stream: segment.last_sequence for stream, segment in logs.items()}
        planned = planning.plan(batch, positions, level_with=end or 0)
        with made_job_directory(self._logs, job, self._disk, durable=self._durable) as directory:
            for stream, segment in reversed(logs.items()):  # stdout last: its end mark speaks for both
                members = self._members(planned.chunks[stream])
                if end is not None and segment.ended_at is None and _wants_mark(stream, segment, members):
                    members.append(member.end_mark(end, batch[-1].time_ns if batch else 0))
                if members or segment.torn or (segment.size_bytes and self._durable and not segment.durable):
                    segment.append(directory, members, self._disk, durable=self._durable)
                if stream is Stream.STDERR:
                    reached("persist.one_stream")
        if end is not None:
            reached("persist.ended")
        stored.settled = max(stored.settled, through)
        stored.live = True
        return Written(planned.repeats, planned.missing)

    def _members(self, chunks: Sequence[Chunk]) -> list[bytes]:
        members, texts, size = [], [], 0
        first = 0
        for number, chunk in enumerate(chunks, 1):
            texts.append(chunk.text)
            size += len(chunk.text)
            if size >= self._member_text_bytes or number == len(chunks):
                span = _joined([part.span for part in chunks[first:number]])
                members.append(member.build(b"".join(texts), span, level=self._level))
                first, size = number, 0
                texts.clear()
        return members

    def _loaded(self, job: JobId, stored: _Stored) -> dict[Stream, Segment]:
        if stored.logs is None:
            stored.logs = {stream: _load(self._logs, job, name) for stream, name in LOG_FILES.items()}
            ended_at = stored.logs[Stream.STDOUT].ended_at
            dense = dense_until(*(segment.index for segment in stored.logs.values()))
            stored.settled = max(stored.settled, dense if ended_at is None else ended_at)
        return stored.logs

    @contextlib.contextmanager
    def _using(self, job: JobId) -> Iterator[_Stored]:
        with self._jobs_lock:
            stored = self._jobs.setdefault(job, _Stored())
            self._jobs.move_to_end(job)
            stored.users += 1
        try:
            yield stored
        finally:
            with self._jobs_lock:
                stored.users -= 1
                self._releases += 1
                if len(self._jobs) > JOBS_KEPT_MAX or not self._releases % _RELEASES_BETWEEN_COUNTS:
                    self._make_room()

    def _make_room(self) -> None:
        members = sum(stored.members for stored in self._jobs.values())
        for job in list(self._jobs):
            if len(self._jobs) <= JOBS_KEPT_MAX and members <= MEMBERS_KEPT_MAX:
                return
            if not self._jobs[job].users:
                members -= self._jobs.pop(job).members


def _load(root: Path, job: JobId, name: str) -> Segment:
    try:
        with job_directory(root, job) as directory:
            return Segment.load(directory, name)
    except FileNotFoundError:
        return Segment.load(None, name)


def _wants_mark(stream: Stream, segment: Segment, members: Sequence[bytes]) -> bool:
    return stream is Stream.STDOUT or bool(members) or segment.size_bytes > 0


def _joined(spans: Sequence[Span]) -> Span:
    return Span(
        sum(span.lines for span in spans),
        spans[0].first_sequence,
        spans[-1].last_sequence,
        min(span.first_time_ns for span in spans),
        max(span.last_time_ns for span in spans),
    )
