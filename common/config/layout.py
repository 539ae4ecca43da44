"""Where everything lies below the base directory. The one place that joins these paths."""

from pathlib import Path
from typing import Final, NamedTuple

from common.config.settings import DEFAULT_BASE_DIR, Settings
from common.identifiers import JobId, VolumeId
from common.messages.topics import PERSIST_GRPC_FILE

HELD: Final = ".held"
DEFAULT_VOLUMES: Final = "/var/lib/joblet/volumes"


class Layout(NamedTuple):
    """Directories and files of one node."""

    base: Path
    run: Path  # sockets, 0750 root:joblet
    streams: Path  # in it: sockets that api makes while it serves, 0700 api
    jobs: Path  # one directory a job, 0700 root
    state: Path  # records, 0700 root
    certs: Path  # 0700
    uploads: Path  # staged by api, 0700 api
    logs: Path  # 0700 persist
    metrics: Path  # 0700 persist
    persist_grpc: Path
    audit: Path  # written by api, 0700 api
    audit_persist: Path  # in it, written by persist, 0700 persist
    volumes: Path  # one directory a volume, 0700 root

    def from_base(self) -> "Layout":
        """The same paths for a process whose working directory is `base`: relative where they lie below it.

        So a socket's address stays below the 107 bytes of unix(7) wherever the base is, and a service that gave root
        up needs no way through the directories above it.
        """
        return Layout(*(path.relative_to(self.base) if path.is_relative_to(self.base) else path for path in self))

    def job_dir(self, job: JobId) -> Path:
        """`journal`, `lock`, `control` and `root` of a job."""
        return self.jobs / job

    def volume_dir(self, volume: VolumeId) -> Path:
        """What a volume consists of."""
        return self.volumes / volume

    def upload(self, upload_id: str) -> Path:
        """A staged tar archive."""
        return self.uploads / f"{upload_id}.tar"

    def held_upload(self, upload_id: str) -> Path:
        """The same while a job waits that came with it: api, which sweeps what nobody took, does not know this name."""
        return self.uploads / f"{upload_id}{HELD}"


def layout_of(settings: Settings) -> Layout:
    """The paths that `settings` mean."""
    base = Path(settings.joblet.base_dir)
    storage = settings.persist.storage
    store_base = Path(storage.base_dir) if storage.base_dir else base
    local = storage.local
    run = base / "run"
    grpc_socket = settings.persist.server.grpc_socket
    return Layout(
        base=base,
        run=run,
        streams=run / "streams",
        jobs=base / "jobs",
        state=base / "state",
        certs=base / "certs",
        uploads=base / "uploads",
        logs=Path(local.logs.directory) if local.logs.directory else store_base / "logs",
        metrics=Path(local.metrics.directory) if local.metrics.directory else store_base / "metrics",
        persist_grpc=Path(grpc_socket) if grpc_socket else run / PERSIST_GRPC_FILE,
        audit=base / "audit",
        audit_persist=base / "audit" / "persist",
        volumes=_volumes(settings, base),
    )


def _volumes(settings: Settings, base: Path) -> Path:
    if settings.joblet.volumes.directory:
        return Path(settings.joblet.volumes.directory)
    return Path(DEFAULT_VOLUMES) if str(base) == DEFAULT_BASE_DIR else base / "volumes"
