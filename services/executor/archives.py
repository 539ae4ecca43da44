"""The staged uploads of jobs on the executor's side: kept while their job waits, removed when it has them.

api stages archives and sweeps those that no job took in time (services/api/uploads). It cannot know what a job holds
that waits for hours, nor, after its own restart, what was taken at all. So a job that has to wait takes its archives
out of api's sight, under another name in the same directory, and gives them their name back for the launch.
"""

import structlog

from common.config.layout import HELD, Layout
from common.messages.jobs import JobSpec

log = structlog.get_logger(__name__)


class Archives:
    """Below `layout.uploads`. Everything can be done twice; what goes wrong is in the log."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def staged(self, upload: str) -> bool:
        """Whether a new job may have this upload."""
        return self._layout.upload(upload).is_file()

    def hold(self, spec: JobSpec) -> None:
        """The job waits. An archive that is missing is told by its launch."""
        for upload in spec.uploads:
            self._rename(upload.id, held=True)

    def release(self, spec: JobSpec) -> None:
        """The job is about to be launched."""
        for upload in spec.uploads:
            self._rename(upload.id, held=False)

    def drop(self, spec: JobSpec) -> None:
        """The job has unpacked them, or never will."""
        for upload in spec.uploads:
            for path in (self._layout.upload(upload.id), self._layout.held_upload(upload.id)):
                try:
                    path.unlink(missing_ok=True)
                except OSError as cause:
                    log.warning("a staged upload cannot be removed", upload=upload.id, problem=str(cause))

    def sweep(self, waiting: frozenset[str]) -> None:
        """After a restart: remove what is held for jobs that have ended; `waiting` are the uploads of the others."""
        try:
            for path in self._layout.uploads.glob(f"*{HELD}"):
                if path.name.removesuffix(HELD) not in waiting:
                    path.unlink(missing_ok=True)
        except OSError as cause:
            log.warning("uploads of ended jobs cannot be removed", problem=str(cause))

    def _rename(self, upload: str, *, held: bool) -> None:
        source, target = self._layout.upload(upload), self._layout.held_upload(upload)
        if not held:
            source, target = target, source
        try:
            source.rename(target)
        except FileNotFoundError:
            return  # it was done before
        except OSError as cause:
            log.error("a staged upload cannot be renamed", upload=upload, problem=str(cause))
