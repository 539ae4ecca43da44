"""What is stored, measured: one walk over the directories of all jobs, in a worker thread, without any lock.

What is written or removed meanwhile may be counted or not. Names that are no job's are passed over, and symbolic links
are not followed. A job has ended when its summary says so, or, of a job from before there were summaries, when
stdout's file ends with an end mark; its owner is not known then, and the file's time stands for that of its end.
Not here: what is to be removed (retention.py).
"""

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from common.errors import JobletError
from common.identifiers import JobId, parse_job_id
from common.records import Stream
from services.persist import member, summary
from services.persist.disk import SET_ASIDE, directory_in, directory_of, stored_file
from services.persist.retention import StoredJob
from services.persist.store import LOG_FILES
from services.persist.summary import UNFINISHED
from services.persist.trimming import TRIMMED

_BLOCK_BYTES: Final = 512
"""Of st_blocks, whatever the file system's own blocks are: stat(3type)."""
_END_MARK_BYTES: Final = len(member.end_mark(0, 0))
_LEFTOVERS: Final = frozenset({UNFINISHED, *(name + TRIMMED for name in LOG_FILES.values())})
_STDOUT: Final = LOG_FILES[Stream.STDOUT]


class ScanStopped(Exception):
    """The process ends."""


class Catalogue(NamedTuple):
    """Everything that is stored. Bytes are of files."""

    jobs: tuple[StoredJob, ...]
    log_bytes: int
    metric_bytes: int
    free_bytes: int
    """Of the file system that holds the logs, for whoever is not root."""
    set_aside: tuple[JobId, ...]
    """Jobs that a process was removing when it was killed."""
    untidy: tuple[JobId, ...]
    """Jobs with files that a process was writing when it was killed, or writes just now."""

    @property
    def newest_ns(self) -> int:
        """When the job ended that ended last; 0: none."""
        return max((job.ended_at_ns for job in self.jobs if job.ended), default=0)


class _Size(NamedTuple):
    """Of the files in a directory; `disk_bytes` with the directory's own. `end`: owner and time of the job's end."""

    file_bytes: int
    disk_bytes: int
    end: tuple[str, int] | None = None
    is_untidy: bool = False


_NOTHING: Final = _Size(0, 0)


def scan(logs: Path, metrics: Path, *, stopped: Callable[[], bool]) -> Catalogue:
    """Measure everything. Raises OSError when a root cannot be read, `ScanStopped`."""
    with directory_of(logs) as log_root, directory_of(metrics) as metric_root:
        one_disk = os.fstat(log_root).st_dev == os.fstat(metric_root).st_dev
        samples = dict(_sizes(metric_root, stopped))
        metric_bytes = sum(size.file_bytes for size in samples.values())
        jobs: list[StoredJob] = []
        untidy: list[JobId] = []
        for job, size in _sizes(log_root, stopped):
            of_samples = samples.pop(job, _NOTHING)
            if size.is_untidy:
                untidy.append(job)
            disk_bytes = size.disk_bytes + (of_samples.disk_bytes if one_disk else 0)
            owner, ended_at_ns = size.end or ("", 0)
            ended = size.end is not None
            jobs.append(StoredJob(job, owner, ended_at_ns, ended, size.file_bytes, of_samples.file_bytes, disk_bytes))
        log_bytes = sum(job.log_bytes for job in jobs)
        jobs += [_without_logs(job, size) for job, size in samples.items()]
        return Catalogue(tuple(jobs), log_bytes, metric_bytes, free(logs), _set_aside(log_root), tuple(untidy))


def free(logs: Path) -> int:
    """Bytes that are free on the file system that holds the logs. Raises OSError."""
    status = os.statvfs(logs)
    return status.f_bavail * status.f_frsize


def _without_logs(job: JobId, samples: _Size) -> StoredJob:
    """Nothing printed yet, or logs removed by hand: nobody knows that it has ended."""
    return StoredJob(
        job, owner="", ended_at_ns=0, ended=False, log_bytes=0, metric_bytes=samples.file_bytes, disk_bytes=0
    )


def _sizes(root: int, stopped: Callable[[], bool]) -> Iterator[tuple[JobId, _Size]]:
    for name in _names(root):
        if stopped():
            raise ScanStopped
        job = _job_of(name)
        # Gone meanwhile, or no directory that we may read: not there.
        with contextlib.suppress(OSError):
            if job is not None:
                with directory_in(root, name) as directory:
                    size = _size(directory, job)
                yield job, size


def _size(directory: int, job: JobId) -> _Size:
    file_bytes, disk_bytes = 0, os.fstat(directory).st_blocks * _BLOCK_BYTES
    names: set[str] = set()
    with os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                names.add(entry.name)
                disk_bytes += status.st_blocks * _BLOCK_BYTES
                file_bytes += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return _Size(file_bytes, disk_bytes, _end(directory, job, names), is_untidy=not names.isdisjoint(_LEFTOVERS))


def _end(directory: int, job: JobId, names: set[str]) -> tuple[str, int] | None:
    """None: it has not ended, as far as anyone knows."""
    with contextlib.suppress(OSError):
        found = summary.read(directory, job) if summary.SUMMARY_FILE in names else None
        if found is not None:
            return found.owner, found.ended_at_ns
        if _STDOUT not in names:
            return None
        with stored_file(directory, _STDOUT) as descriptor:
            status = os.fstat(descriptor)
            tail = os.pread(descriptor, _END_MARK_BYTES, max(0, status.st_size - _END_MARK_BYTES))
            header = member.parse_header(tail)
            if header is not None and header.member_bytes == len(tail) and not header.span.lines:
                return "", status.st_mtime_ns
    return None


def _set_aside(root: int) -> tuple[JobId, ...]:
    names = (name.removeprefix(SET_ASIDE) for name in _names(root) if name.startswith(SET_ASIDE))
    return tuple(job for job in map(_job_of, names) if job is not None)


def _names(root: int) -> Iterator[str]:
    with os.scandir(root) as entries:
        for entry in entries:
            yield entry.name


def _job_of(name: str) -> JobId | None:
    try:
        return parse_job_id(name)
    except JobletError:
        return None
