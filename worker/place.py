"""Where a worker keeps what its jobs need, and the settings of its executor.

<directory>/jobs/<id>      a job's journal and root      } as a node's base directory, docs/protocol.md
<directory>/state/jobs.db  the records                   }
<directory>/run            the lock
"""

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import structlog

from common.config.layout import Layout, layout_of
from common.config.ranges import range_of
from common.config.settings import Joblet, Jobs, Journal, Persist, Settings
from common.errors import invalid, precondition
from common.messages.jobs import OnFull
from common.privileges import prepare_directories
from services.executor.monitors import monitor_pid

log = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What `Worker` was made with; it says what each means."""

    directory: Path | None
    keep_jobs: bool
    log_directory: Path | None
    owner: str
    journal_bytes_max: int
    on_full: OnFull
    running_max: int
    cgroup_parent: str
    rootfs: str
    uid_first: int

    def check(self) -> None:
        """Raise INVALID for what cannot be meant."""
        if self.keep_jobs and self.directory is None:
            raise invalid("keep_jobs without a directory", "name the directory in which they are found again")
        for name in ("journal_bytes_max", "running_max"):
            if getattr(self, name) < 1:
                raise invalid(f"{name} is {getattr(self, name)}", "use at least 1")
        least, most = range_of("joblet.jobs.uid_first")
        if not least <= self.uid_first <= most:
            raise invalid(f"uid_first is {self.uid_first}", f"use {least} to {most}")

    def settings(self, base: Path) -> Settings:
        """An executor's, on `base`: without persist, and without spare sandboxes, which would outlive a pause."""
        return Settings(
            joblet=Joblet(
                base_dir=str(base),
                journal=Journal(bytes_max=self.journal_bytes_max, on_full=self.on_full.value),
                jobs=Jobs(
                    running_max=self.running_max,
                    queued_max=0,  # a caller in this process hears that there is no room, and decides himself
                    rootfs=self.rootfs,
                    uid_first=self.uid_first,
                    spares=0,
                ),
                cgroup_parent=self.cgroup_parent,
            ),
            persist=Persist(enabled=False),
        )


@contextlib.contextmanager
def prepared(options: Options) -> Iterator[tuple[Settings, Layout]]:
    """The directory, made; a temporary one is removed at the end. Raises PRECONDITION when it cannot be used."""
    with contextlib.ExitStack() as stack:
        if options.directory is None:
            base = Path(tempfile.mkdtemp(prefix="joblet-worker-"))
            stack.callback(_remove, base)
        else:
            base = options.directory.absolute()
        settings = options.settings(base)
        layout = layout_of(settings)
        # What a node has besides is not wanted here: everything else is said to be where the records are.
        state = layout.state
        prepare_directories(
            layout._replace(certs=state, uploads=state, logs=state, metrics=state, audit=state, audit_persist=state),
            None,
        )
        if options.log_directory is not None:
            _prepare_log_directory(options.log_directory)
        yield settings, layout


def _prepare_log_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as cause:
        raise precondition(
            f"cannot make the log directory {directory}: {cause.strerror}", "name one that can be made"
        ) from cause
    if not os.access(directory, os.W_OK | os.X_OK):
        raise precondition(f"cannot write to the log directory {directory}", "name one that can be written to")


def _remove(base: Path) -> None:
    """Remove a temporary directory; not under a job that could not be ended."""
    alive = [each for each in (base / "jobs").glob("*") if monitor_pid(each) is not None]
    if alive:
        log.error("a temporary directory stays: jobs in it did not end", path=str(base), jobs=len(alive))
        return
    shutil.rmtree(base, onerror=lambda _, path, problem: log.error("cannot remove", path=path, why=str(problem[1])))
