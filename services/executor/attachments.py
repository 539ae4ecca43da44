"""The real port `Attachments`: whose mount namespace it is, and what the answers of the launcher's process mean.

Here: on the executor's side. What that process does is in `launcher/attach.py`.
"""

import errno
import os
from typing import Protocol

from common.config.layout import Layout
from common.errors import JobletError, Reason, exhausted, invalid, not_found, precondition
from common.identifiers import JobId
from common.messages.volumes import PreparedVolume
from services.executor.identity import JobIdentity
from services.executor.launcher import attach as steps
from services.executor.launcher.handshake import Failure, StepFailed
from services.executor.monitors import open_inside

_WORDS = {
    errno.ELOOP: "the path leads through a symbolic link, which is not followed",
    errno.ENOENT: "there is no such directory, and none can be made there",
    errno.ENOTDIR: "it is no directory",
}
_REPAIR = "use /volumes/NAME or a directory below /work"


class Changer(Protocol):
    """What is needed of launching.LauncherProcess."""

    async def change(self, verb: bytes, process: int, change: steps.Change) -> None:
        """See LauncherProcess.change."""


class KernelAttachments:
    """See ports.Attachments."""

    def __init__(self, launcher: Changer, layout: Layout) -> None:
        self._launcher = launcher
        self._layout = layout

    async def attach(self, job: JobId, job_pid: int, prepared: PreparedVolume, identity: JobIdentity) -> None:
        """See ports.Attachments."""
        mount = prepared.mount
        uid, gid = identity.mount_owner
        change = steps.Change(
            root=prepared.root, path=mount.path, source=prepared.source, read_only=mount.read_only, uid=uid, gid=gid
        )
        await self._change(steps.ATTACH, job, job_pid, prepared, change)

    async def detach(self, job: JobId, job_pid: int, prepared: PreparedVolume, *, force: bool) -> None:
        """See ports.Attachments."""
        change = steps.Change(root=prepared.root, path=prepared.mount.path, force=force)
        await self._change(steps.DETACH, job, job_pid, prepared, change)

    async def _change(
        self, verb: bytes, job: JobId, job_pid: int, prepared: PreparedVolume, change: steps.Change
    ) -> None:
        process = open_inside(self._layout.job_dir(job), job_pid)
        if process is None:
            raise _ended(job)
        try:
            await self._launcher.change(verb, process, change)
        except StepFailed as failed:
            raise _meaning(failed.failure, job, prepared) from failed
        finally:
            os.close(process)


def _ended(job: JobId) -> JobletError:
    return precondition(f"job {job} has ended", "its volumes are released")


def _meaning(failure: Failure, job: JobId, prepared: PreparedVolume) -> JobletError:
    """The failed step in words for a client."""
    name, path = prepared.mount.name, prepared.mount.path
    match failure.step:
        case steps.ENTER if failure.errno == errno.ESRCH:
            error = _ended(job)
        case steps.ENTER if failure.errno == errno.EPERM:
            error = precondition(
                f"the mounts of job {job} cannot be entered without root: {failure.message}",
                "name the volume when the job is run, or run the node as root",
            )
        case steps.PLACE if failure.errno in (errno.ENOSPC, errno.EDQUOT):
            error = exhausted(f"there is no room for the directory {path} in job {job}", "remove files there")
        case steps.PLACE:
            words = _WORDS.get(failure.errno, failure.message)
            error = invalid(f"volume {name} cannot be attached at {path}: {words}", _REPAIR)
        case steps.TAKEN:
            error = precondition(f"volume {name} cannot be attached at {path}: {failure.message}", "use another path")
        case steps.UNMOUNT if failure.errno == errno.EBUSY:
            error = precondition(
                f"a process of job {job} has something open in volume {name}", "stop it or close it, or use --force"
            )
        case steps.UNMOUNT if failure.errno == errno.EAGAIN:
            error = precondition(f"job {job} keeps volume {name} from being found: {failure.message}", "stop the job")
        case steps.ABSENT:
            error = not_found(f"volume {name} is not mounted in job {job}")
        case _:
            text = f"volume {name} of job {job}: {failure.step}: {failure.message}"
            error = JobletError(Reason.INTERNAL, text, detail="see the node's log")
    return error
