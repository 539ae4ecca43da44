"""Named places between two steps of a service, at which a test can have the process killed.

A place costs one look at a variable unless JOBLET_FAILPOINTS names a directory. Then the file `<directory>/<name>`
arms a place: it holds a number n, and the n-th passing removes the file and ends the process by SIGKILL, once; the
process that takes its place goes on. Nothing else can be done to a process through a failpoint.

Does not belong here: errors. What a disk or a peer does is injected behind their Protocols.
"""

import functools
import os
import signal
from pathlib import Path
from typing import Final

VARIABLE: Final = "JOBLET_FAILPOINTS"

PLACES: Final[dict[str, str]] = {
    # persist: a batch on its way into the store
    "persist.taken": "a batch is taken, nothing is written",
    "persist.flush_begun": "a flush has begun, nothing is written",
    "persist.tail_cut": "what was behind the last whole member is cut off",
    "persist.written": "members are in the file, not synchronized",
    "persist.synchronized": "members are durable, not in the index",
    "persist.one_stream": "stderr is stored, stdout is not",
    "persist.stored": "all is stored, not acknowledged",
    "persist.acknowledged": "the acknowledgement is sent",
    "persist.ended": "the end of the job is stored, its summary is not written",
    # persist, retention
    "persist.chosen": "retention has chosen a job, nothing is removed",
    "persist.logs_removed": "its logs are removed, its metrics are not",
    "persist.trimmed": "a shorter file is written, it has not taken the place of the longer one",
    "persist.half_trimmed": "the shorter file of stdout is in its place, that of stderr is not",
    # executor: a job begins
    "executor.recorded": "the record is durable, its client is not answered",
    "executor.due": "the time of a SCHEDULED job has come, nothing of it is written",
    "executor.chosen": "it is the turn of a waiting job, nothing of it is written",
    "executor.launching": "the job is STARTING, the launcher is not asked",
    "executor.launched": "the monitor exists, the executor has not looked at it",
    # executor: output on its way
    "executor.published": "records are published, not sent to persist",
    "executor.sent": "a batch is sent to persist",
    "executor.heard": "an acknowledgement is heard, the cursor is not saved",
    "executor.cursor_saved": "the cursor is saved, no space of the journal is given back",
    "executor.given_back": "space is given back, the monitor is not told",
    # executor: a job ends
    "executor.ended": "the end is decided, nothing of it is carried out",
    "executor.cleaned": "processes and groups are removed, the journal is not",
    "executor.delivered": "persist has everything, the journal is still there",
    "executor.journal_removed": "the journal is removed, the cursor is not",
    # executor: after a restart
    "executor.taken_up": "one job is taken up again",
    "executor.settled": "jobs without a monitor are settled",
    "executor.swept": "what nobody owns is removed",
    # volumes: a volume begins
    "volumes.recorded": "the record is durable and says creating, nothing is on the disk",
    "volumes.allocated": "its directory and its space are there, without a file system",
    "volumes.formatted": "its content can be mounted, the record still says creating",
    # volumes: a job gets it and leaves it
    "volumes.use_recorded": "the record names the job, nothing is mounted",
    "volumes.device": "the image has its loop device, nothing is mounted",
    "volumes.mounted": "it is mounted, the executor is not answered",
    "volumes.unmounted": "nothing is mounted any more, the loop device is not let go",
    "volumes.released": "device and mount are gone, the record still names the job",
    # volumes: a volume ends
    "volumes.deleting": "the record is durable and says deleting, nothing is removed",
    "volumes.removed": "nothing is on the disk any more, the record still says deleting",
    # volumes: copies of the content
    "volumes.frozen": "the file system is frozen, nothing is copied",
    "volumes.copied": "the copy is whole and durable, no record names it",
    "volumes.resized": "the space is larger, the record has the old size",
}
"""Every place, and what is true there."""


def reached(name: str) -> None:
    """The process is at `name`."""
    directory = _directory()
    if directory is None:
        return
    assert name in PLACES, name
    _pass(directory / name)


@functools.cache
def _directory() -> Path | None:
    named = os.environ.get(VARIABLE, "")
    return Path(named) if named else None


def _pass(armed: Path) -> None:
    try:
        left = int(armed.read_text())
    except (OSError, ValueError):
        return
    if left > 1:
        armed.write_text(str(left - 1))
        return
    armed.unlink()
    os.kill(os.getpid(), signal.SIGKILL)
