"""Commands about volumes, their answers, and the record of a volume as it crosses process boundaries.

Times are Unix nanoseconds (0: not yet), sizes bytes, latencies microseconds. Who may do what is decided by who asks:
api looks a volume up as its caller may see it, and commands by id; the executor speaks for jobs and their owners.
"""

from enum import StrEnum

import msgspec

from common.identifiers import JobId, VolumeId
from common.messages.envelope import Body
from common.messages.jobs import VolumeMount


class VolumeKind(StrEnum):
    """What a volume is made of."""

    FILESYSTEM = "filesystem"  # survives jobs, restarts and reboots
    MEMORY = "memory"  # tmpfs, cleared when its last job leaves it


class Enforcement(StrEnum):
    """Who sees to it that a volume does not outgrow its size."""

    PROJECT_QUOTA = "project-quota"
    IMAGE = "image"  # a file system of its own in a fallocated file
    TMPFS = "tmpfs"
    ADVISORY = "advisory"  # nobody: it is measured from time to time, and told


class VolumeStatus(StrEnum):
    """Where a volume is in its life. docs/volumes.md draws the transitions."""

    CREATING = "creating"
    AVAILABLE = "available"
    IN_USE = "in use"
    BUSY = "busy"  # with a snapshot, a restore, a copy or a stream of its content
    DELETING = "deleting"
    DAMAGED = "damaged"  # what holds its content is not as it was left; nothing is done to it


class CopyMethod(StrEnum):
    """How a snapshot or a clone was made."""

    REFLINK = "reflink"  # shares blocks until they change
    COPY = "copy"


class VolumeUse(msgspec.Struct, frozen=True, kw_only=True):
    """A job that has a volume."""

    job: JobId
    path: str  # in the job
    read_only: bool
    since_ns: int


class VolumeMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """Since the volumes service began. Latencies are of the last time; what the device moved counts from its mount."""

    mounts: int = 0
    mount_us: int = 0
    unmounts: int = 0
    unmount_us: int = 0
    read_bytes: int = 0
    write_bytes: int = 0
    read_ops: int = 0
    write_ops: int = 0


class VolumeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """All that others may know of a volume. The volumes service owns it; everyone else has copies."""

    id: VolumeId
    name: str
    owner: str
    kind: VolumeKind
    size_bytes: int
    enforcement: Enforcement
    status: VolumeStatus
    created_at_ns: int
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    shared: bool = False
    encryption: str = ""  # "dm-crypt", "fscrypt"; empty: none
    uses: tuple[VolumeUse, ...] = ()  # the oldest first
    last_used_at_ns: int = 0
    last_used_by: str = ""  # a job's id
    used_bytes: int = 0  # as far as known: of a volume that is not mounted, when it was last
    used_inodes: int = 0
    inodes: int = 0  # how many it can have; 0: no bound of its own
    reason: str = ""  # of its status
    origin: str = ""  # VOLUME or VOLUME@SNAPSHOT
    snapshots: int = 0
    metrics: VolumeMetrics = VolumeMetrics()


class SnapshotRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A volume's content as it was."""

    id: str
    name: str
    volume: VolumeId
    created_at_ns: int
    size_bytes: int  # of the volume when it was taken
    method: CopyMethod


# From api. `visible_owner`: the caller sees this owner's volumes only; None: all volumes.


class CreateVolume(Body, frozen=True, kw_only=True):
    """A new, empty volume. Answer: VolumeFound. Names are unique among an owner's volumes."""

    owner: str
    name: str
    kind: VolumeKind
    size_bytes: int
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    shared: bool = False
    advisory: bool = False  # also where the size cannot be enforced
    encrypted: bool = False


class GetVolume(Body, frozen=True, kw_only=True):
    """One volume, by its name among those of `owner`, or else by its id among the visible ones. Answer: VolumeFound."""

    volume: str
    owner: str
    visible_owner: str | None


class VolumeFound(Body, frozen=True, kw_only=True):
    """The volume as it is now."""

    volume: VolumeRecord


class ListVolumes(Body, frozen=True, kw_only=True):
    """Volumes by owner and name. Answer: VolumePage."""

    visible_owner: str | None
    owner: str = ""
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    page_size: int = 100
    page_token: str = ""


class VolumePage(Body, frozen=True, kw_only=True):
    """One page. `next_page_token` is empty on the last one."""

    volumes: tuple[VolumeRecord, ...]
    next_page_token: str = ""


class DeleteVolume(Body, frozen=True, kw_only=True):
    """Remove a volume with all that is in it, its snapshots too. Answer: VolumeDeleted. PRECONDITION while in use."""

    volume: VolumeId


class VolumeDeleted(Body, frozen=True, kw_only=True):
    """Nothing of it is left."""

    volume: VolumeId


class ResizeVolume(Body, frozen=True, kw_only=True):
    """Make a volume larger, also while it is used. Answer: VolumeFound."""

    volume: VolumeId
    size_bytes: int


class CreateSnapshot(Body, frozen=True, kw_only=True):
    """Keep a volume's content as it is now. Answer: SnapshotFound. An empty name: the time."""

    volume: VolumeId
    name: str = ""


class SnapshotFound(Body, frozen=True, kw_only=True):
    """The snapshot exists."""

    snapshot: SnapshotRecord


class ListSnapshots(Body, frozen=True, kw_only=True):
    """All snapshots of a volume, of which there are few. Answer: SnapshotList."""

    volume: VolumeId


class SnapshotList(Body, frozen=True, kw_only=True):
    """The oldest first."""

    snapshots: tuple[SnapshotRecord, ...]


class DeleteSnapshot(Body, frozen=True, kw_only=True):
    """Remove a snapshot, by name. Answer: SnapshotDeleted."""

    volume: VolumeId
    name: str


class SnapshotDeleted(Body, frozen=True, kw_only=True):
    """Nothing of it is left."""

    volume: VolumeId
    name: str


class RestoreSnapshot(Body, frozen=True, kw_only=True):
    """The volume's content becomes the snapshot's. Answer: VolumeFound. PRECONDITION while in use."""

    volume: VolumeId
    name: str


class CloneVolume(Body, frozen=True, kw_only=True):
    """A new volume of the same owner with the content of `volume` or of its snapshot. Answer: VolumeFound."""

    volume: VolumeId
    name: str  # of the new one
    snapshot: str = ""
    labels: dict[str, str] = msgspec.field(default_factory=dict)


class Direction(StrEnum):
    """Of a tar stream."""

    EXPORT = "export"
    IMPORT = "import"


class OpenVolumeStream(Body, frozen=True, kw_only=True):
    """Connect to the unix socket `{base}/run/streams/<file>`, where api listens, and export or import a tar stream.

    Answer: VolumeStreamClosed, when the stream has ended. An export is read-only; an import is the volume's one writer.
    """

    volume: VolumeId
    direction: Direction
    file: str  # see topics.STREAM_FILE
    snapshot: str = ""


class VolumeStreamClosed(Body, frozen=True, kw_only=True):
    """All of it was sent, or unpacked."""

    entries: int
    bytes: int  # of files


class GetVolumesService(Body, frozen=True, kw_only=True):
    """Which process is it that answers? Answer: VolumesService."""


class VolumesService(Body, frozen=True, kw_only=True):
    """`instance` is another one after each start: what was asked before it is answered by nobody any more."""

    instance: str


# From the executor. Jobs use volumes of their own owner only.


class CheckVolumes(Body, frozen=True, kw_only=True):
    """Could a job of `owner` have these now? Answer: VolumesChecked, or why not. Nothing is kept for it."""

    owner: str
    mounts: tuple[VolumeMount, ...]


class VolumesChecked(Body, frozen=True, kw_only=True):
    """It could."""


class PrepareVolumes(Body, frozen=True, kw_only=True):
    """Mount these and count `job` among their users. Answer: VolumesPrepared: all of them, or a failure and none.

    What the job has already is answered again. `uid` and `gid`: of the owner's jobs on the host, whose a new volume is.
    """

    job: JobId
    owner: str
    uid: int
    gid: int
    mounts: tuple[VolumeMount, ...]


class PreparedVolume(msgspec.Struct, frozen=True, kw_only=True):
    """Where the executor finds a volume, to bind it into a job."""

    id: VolumeId
    mount: VolumeMount  # as it was asked for
    source: str  # absolute path on the host: the directory that the job is to see
    root: str  # `MAJ:MIN:INO` of that directory, so that nothing else is bound in its place
    device: str  # MAJ:MIN of the block device that holds it, for limits of input and output; empty: it has none


class VolumesPrepared(Body, frozen=True, kw_only=True):
    """In the order of `mounts`."""

    volumes: tuple[PreparedVolume, ...]


class ReleaseVolumes(Body, frozen=True, kw_only=True):
    """The job has ended, or has left one volume. Answer: VolumesReleased, also when it had none."""

    job: JobId
    volume: VolumeId | None = None  # None: all that it has


class VolumesReleased(Body, frozen=True, kw_only=True):
    """The job is no user of them any more."""


class SyncVolumes(Body, frozen=True, kw_only=True):
    """These jobs have volumes, and no other job has. Answer: VolumesReleased. What others had is released."""

    jobs: tuple[JobId, ...]
