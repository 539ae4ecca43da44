"""What is kept beside the logs of a job that ended: whose it was, and when it ended. A file of one JSON object.

    {"job":"6fa459ea-…","owner":"ann","ended_at_ns":1700000000000000000}

Retention goes by it, and so does whoever looks at the store without the node's records. It is written behind the end
mark, so where it is the job has ended. Not here: jobs without it, which are older or run still (catalogue.py).
"""

import contextlib
import os
from typing import Final

import msgspec
import structlog

from common.identifiers import JobId
from services.persist.disk import Disk, remove_file, stored_file, write_all

log = structlog.get_logger(__name__)

SUMMARY_FILE: Final = "job.json"
SUMMARY_BYTES_MAX: Final = 4096
UNFINISHED: Final = "job.json.new"
"""Its name until it is whole; what a process that was killed leaves is removed at the next scan."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One job. `owner` "": not known. `ended_at_ns`: Unix nanoseconds."""

    job: JobId
    owner: str
    ended_at_ns: int


_decoder: Final = msgspec.json.Decoder(Summary)


def write(directory: int, summary: Summary, disk: Disk, *, durable: bool) -> None:
    """Put the file in its place, whole; `durable`: a power cut does not take it. Raises OSError."""
    try:
        with stored_file(directory, UNFINISHED, flags=os.O_RDWR | os.O_CREAT | os.O_TRUNC) as descriptor:
            write_all(descriptor, msgspec.json.encode(summary) + b"\n", 0, disk)
            if durable:
                disk.sync(descriptor)
        os.rename(UNFINISHED, SUMMARY_FILE, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        with contextlib.suppress(OSError):
            remove_file(directory, UNFINISHED)
        raise
    if durable:
        disk.sync(directory)


def read(directory: int, job: JobId) -> Summary | None:
    """What the file says; None when there is none, or when it cannot be one of ours. Raises OSError."""
    try:
        with stored_file(directory, SUMMARY_FILE) as descriptor:
            text = os.pread(descriptor, SUMMARY_BYTES_MAX, 0)
        summary = _decoder.decode(text)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as cause:
        log.warning("the summary of a job is damaged", job=job, why=str(cause))
        return None
    return summary if summary.job == job else None
