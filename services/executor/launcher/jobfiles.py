"""The files of a job's directory as its monitor makes and holds them: `lock`, `journal`, `control`, and `root`.

`lock` has a POSIX lock (fcntl(2)) for as long as the monitor lives: whoever asks with F_GETLK learns its pid, and the
kernel lets go of it however the monitor ends. Only one descriptor of it may ever be opened here: closing any gives the
lock up.
"""

import contextlib
import fcntl
import os
from typing import Final, NamedTuple

LOCK: Final = "lock"
JOURNAL: Final = "journal"
CONTROL: Final = "control"
ROOT: Final = "root"


class JobFiles(NamedTuple):
    """Descriptors, open for as long as the monitor lives. `control` is non-blocking and has no end of file."""

    lock: int
    journal: int
    control: int


def create_job_files(directory: str) -> JobFiles:
    """Make the directory and everything in it. OSError: such as a journal that exists already."""
    make_directories(directory)
    lock = os.open(f"{directory}/{LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    # O_EXCL: a journal belongs to one monitor for ever; a second start of the same job would mix two lives.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    journal = os.open(f"{directory}/{JOURNAL}", flags, 0o600)
    os.mkfifo(f"{directory}/{CONTROL}", 0o600)
    # O_RDWR: a reader that is also a writer never sees an end of file, and no writer has to come first.
    control = os.open(f"{directory}/{CONTROL}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    return JobFiles(lock, journal, control)


def make_directories(directory: str) -> None:
    """The job's directory and the mount point in it. Monitor and main process may come here at the same time."""
    for path in (directory, f"{directory}/{ROOT}"):
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)  # noqa: PTH102  # pathlib is not loaded in this process
