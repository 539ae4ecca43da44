"""What an ended job leaves on the host, and its removal: control groups, `root`, `control`, in the end the directory.

Not here: the journal while the executor still knows the job, and anything inside the job's own namespaces, which the
kernel takes away with their last process. So nothing is mounted below a job's directory in the host's own mount
namespace but by accident; the sweep at start takes that away too. docs/protocol.md describes the directory.
"""

import asyncio
import contextlib
import errno
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from common.config.layout import Layout
from common.errors import JobletError, precondition
from common.identifiers import JobId, parse_job_id
from common.linux import mountinfo, mounts
from common.linux.mountinfo import Mount
from services.executor.cgroups.driver import CgroupDriver
from services.executor.launcher.jobfiles import JOURNAL
from services.executor.monitors import monitor_pid

log = structlog.get_logger(__name__)

GIVE_UP_MS: Final = 10_000
"""A killed process can stay in the kernel (disk wait, memory being freed) and hold its group so long."""

PAUSE_MS_FIRST: Final = 1
PAUSE_MS_MAX: Final = 100
DEPTH_MAX: Final = 64
"""Of directories in a job's directory, which holds one level of our own making."""

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Swept(NamedTuple):
    """What a sweep removed."""

    groups: frozenset[JobId]
    directories: frozenset[JobId]
    mounts: tuple[str, ...] = ()  # mount points, in the order of their removal


class Cleanup:
    """Removes traces through `driver` and below `layout.jobs`. Everything can be done twice."""

    def __init__(self, driver: CgroupDriver, layout: Layout, *, give_up_ms: int = GIVE_UP_MS) -> None:
        self._driver = driver
        self._jobs = layout.jobs
        self._give_up_ms = give_up_ms
        self._unfinished: set[JobId] = set()

    @property
    def unfinished(self) -> frozenset[JobId]:
        """Jobs whose groups could not be removed yet: the sweep list of `retry`."""
        return frozenset(self._unfinished)

    async def end(self, job: JobId) -> bool:
        """Kill what is left of an ended job, and remove its groups, `root` and `control`; keep journal and lock.

        False: a group still held a process when the time was up; the job is on the sweep list.
        """
        removed = await self._remove_groups(job)
        await asyncio.to_thread(self._clear_directory, job)
        return removed

    async def retry(self) -> frozenset[JobId]:
        """Try each job of the sweep list once more; those that are still on it."""
        for job in tuple(self._unfinished):
            if self._try_remove(job):
                log.info("control groups removed at last", job_id=job)
        return self.unfinished

    async def forget(self, job: JobId) -> None:
        """Remove the job's directory with everything in it. Raises JobletError when something is in the way.

        In a thread, as in `end`: to free a journal of a gigabyte takes a while, and other jobs' output does not wait.
        """
        try:
            await asyncio.to_thread(self._remove_directory, job)
        except FileNotFoundError:
            return
        except OSError as cause:
            raise precondition(
                f"cannot remove {self._jobs / job}: {cause.strerror} ({cause.filename})",
                "something that is not joblet's was put there; look at it and remove it by hand",
            ) from cause

    async def sweep(self, *, alive: frozenset[JobId], known: frozenset[JobId]) -> Swept:
        """At start: remove what jobs that are not `alive` left. Directories of `known` jobs keep journal and lock.

        A job that runs and whose record was lost with a damaged database is not touched.
        """
        alive |= await asyncio.to_thread(self._running_without_record, alive | known)
        unmounted = await asyncio.to_thread(self._unmount_all_but, alive)
        groups = self._driver.present() - alive
        directories = self._directories()
        unknown = directories - known - alive
        await asyncio.gather(*(self.end(job) for job in groups | ((directories & known) - alive)))
        for job in unknown:
            try:
                await self.forget(job)
            except JobletError as error:
                log.error("a directory of an unknown job stays", job_id=job, why=str(error))
        if groups or unknown:
            log.info("swept", groups=len(groups), directories=len(unknown))
        return Swept(groups, unknown, unmounted)

    def _running_without_record(self, recorded: frozenset[JobId]) -> frozenset[JobId]:
        """Jobs of nobody whose monitor lives and has written: a spare's has not, and every other job is `recorded`."""
        found = set()
        for job in self._directories() - recorded:
            directory = self._jobs / job
            try:
                monitor = monitor_pid(directory)
                runs = monitor is not None and (directory / JOURNAL).stat().st_size > 0
            except OSError:
                continue  # a spare that goes just now
            if runs:
                log.error("a job runs of which there is no record; it is left alone", job_id=job, monitor=monitor)
                found.add(job)
        return frozenset(found)

    def _unmount_all_but(self, alive: frozenset[JobId]) -> tuple[str, ...]:
        gone = []
        for mount in left_mounted(mountinfo.present(), str(self._jobs.resolve()), alive=alive):
            try:
                mounts.umount2(mount.point, mounts.MNT_DETACH)
            except OSError as cause:
                log.error("cannot unmount what is below the jobs directory", path=mount.point, why=str(cause))
                continue
            log.warning("unmounted", path=mount.point, kind=mount.kind, source=mount.source)
            gone.append(mount.point)
        return tuple(gone)

    async def _remove_groups(self, job: JobId) -> bool:
        deadline = time.monotonic() + self._give_up_ms / 1000
        pause_ms = PAUSE_MS_FIRST
        while True:
            late = time.monotonic() > deadline  # before the look: our own standstill is not the kernel's
            if self._try_remove(job):
                return True
            if late:
                log.error("a control group of an ended job is still in use", job_id=job, waited_ms=self._give_up_ms)
                return False
            await asyncio.sleep(pause_ms / 1000)
            pause_ms = min(PAUSE_MS_MAX, pause_ms * 2)

    def _try_remove(self, job: JobId) -> bool:
        try:
            self._driver.kill(job)
            removed = self._driver.remove(job)
        except (OSError, JobletError) as error:  # one job's groups must not stop the clean-up of the others
            log.error("cannot remove control groups", job_id=job, why=str(error))
            removed = False
        if removed:
            self._unfinished.discard(job)
        else:
            self._unfinished.add(job)
        return removed

    def _remove_directory(self, job: JobId) -> None:
        with _opened(str(self._jobs)) as jobs:
            _remove_tree(jobs, job)

    def _clear_directory(self, job: JobId) -> None:
        """Remove `root` and `control`. What cannot be removed is told: the job has ended all the same."""
        try:
            with _opened(str(self._jobs)) as jobs, _opened(job, jobs) as directory:
                for name in ("root", "control"):
                    with contextlib.suppress(FileNotFoundError):
                        _remove_tree(directory, name)
        except FileNotFoundError:
            return
        except OSError as cause:
            log.error("cannot clear a job's directory", job_id=job, why=str(cause))

    def _directories(self) -> frozenset[JobId]:
        found: set[JobId] = set()
        try:
            with os.scandir(self._jobs) as entries:
                names = sorted(entry.name for entry in entries)
        except FileNotFoundError:
            return frozenset()
        for name in names:
            try:
                found.add(parse_job_id(name))
            except JobletError:
                log.warning("not a job's directory; left alone", path=str(self._jobs / name))
        return frozenset(found)


def left_mounted(present: Iterable[Mount], jobs: str, *, alive: frozenset[JobId]) -> tuple[Mount, ...]:
    """What is mounted below the directory `jobs`, but for jobs that are `alive`, in the order to unmount it.

    The deepest comes first, and of several at one place the last mounted, which is the one on top.
    """
    place = len(Path(jobs).parts)
    below = reversed(mountinfo.below(present, jobs))
    left = [mount for mount in below if Path(mount.point).parts[place] not in alive]
    left.sort(key=lambda mount: -len(Path(mount.point).parts))  # stable: those at one place stay in order
    return tuple(left)


@contextlib.contextmanager
def _opened(name: str, parent: int | None = None) -> Iterator[int]:
    """A descriptor of a directory that is no symbolic link."""
    descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _remove_tree(parent: int, name: str, *, depth: int = 0) -> None:
    """Remove `name` below the directory `parent`, never through a symbolic link and never into another mount.

    OSError: FileNotFoundError when there is none, EXDEV at a mount, ELOOP when it is too deep.
    """
    try:
        os.unlink(name, dir_fd=parent)
        return
    except IsADirectoryError:
        pass
    if depth == DEPTH_MAX:
        raise OSError(errno.ELOOP, "nested too deep", name)
    with _opened(name, parent) as directory:
        if mountinfo.mount_id(directory) != mountinfo.mount_id(parent):
            raise OSError(errno.EXDEV, "something is mounted there", name)
        for entry in os.listdir(directory):  # noqa: PTH208  # of a descriptor: no path is walked twice
            with contextlib.suppress(FileNotFoundError):  # `end` and `forget` may be at it together
                _remove_tree(directory, entry, depth=depth + 1)
    os.rmdir(name, dir_fd=parent)
