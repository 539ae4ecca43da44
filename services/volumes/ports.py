"""What the volumes service's middle needs of the kernel and the disk: small protocols, each with a fake in tests.

Everything here blocks and is called in a thread. It is called for one volume at a time by one caller, and every call
can be made again after it was interrupted anywhere: what is there already is not made twice, what is gone is no error.
Places (`common/failpoints.py`) are passed by who does the step.
"""

from typing import NamedTuple, Protocol

from common.identifiers import VolumeId
from common.messages.volumes import CopyMethod, Direction, Enforcement, VolumeRecord


class Space(NamedTuple):
    """What a volume holds."""

    used_bytes: int
    used_inodes: int
    inodes: int  # how many it can have; 0: no bound of its own


class Moved(NamedTuple):
    """What a mounted volume's own device has moved since it was mounted; zeros where it has none."""

    read_bytes: int = 0
    write_bytes: int = 0
    read_ops: int = 0
    write_ops: int = 0


class Place(NamedTuple):
    """Where a mounted volume is. See PreparedVolume for the fields' meaning."""

    source: str
    root: str
    device: str


class Ids(NamedTuple):
    """Of an owner's jobs on the host."""

    uid: int
    gid: int


class Found(NamedTuple):
    """What of volumes is on this host, whoever recorded it: for the reconciliation at start."""

    directories: frozenset[VolumeId]  # with whatever is in them
    mounted: frozenset[VolumeId]
    attached: frozenset[VolumeId]  # with a loop device or a mapping, mounted or not


class Storage(Protocol):
    """One way to keep volumes (S1.27): an image, a directory with a project quota, a tmpfs, a mere directory.

    `key`: of an encrypted volume, 64 bytes; empty: it is not encrypted. All raise JobletError or OSError.
    """

    enforcement: Enforcement

    def create(self, volume: VolumeRecord, key: bytes) -> None:
        """Make the empty volume, of full size; nothing of it is left when this fails. EXHAUSTED: no room on the disk.

        What an interrupted `create` left is removed first.
        """

    def delete(self, volume: VolumeRecord) -> None:
        """Remove it and its snapshots. It is not mounted by the service; what jobs still have open stays theirs."""

    def mount(self, volume: VolumeRecord, key: bytes, ids: Ids | None) -> Place:
        """Mount it, or find it mounted. `ids`: whom its root directory belongs to, where that is still nobody's.

        DATA_LOSS: what holds its content is missing or is not what it was.
        """

    def unmount(self, volume: VolumeRecord) -> None:
        """Let it go, with its device; what jobs still have of it lives as long as they do. Nothing when not mounted."""

    def measure(self, volume: VolumeRecord) -> Space | None:
        """What it holds now; None where that cannot be told, as of an image that is not mounted."""

    def moved(self, volume: VolumeRecord) -> Moved:
        """See Moved."""

    def resize(self, volume: VolumeRecord, size_bytes: int, key: bytes) -> None:
        """Make it larger, mounted or not. EXHAUSTED: no room on the disk, and nothing is changed."""

    def snapshot(self, volume: VolumeRecord, snapshot: str) -> CopyMethod:
        """Keep the content under the id `snapshot`, consistent and durable also while it is mounted."""

    def drop_snapshot(self, volume: VolumeRecord, snapshot: str) -> None:
        """Remove a snapshot. Nothing when it is not there."""

    def restore(self, volume: VolumeRecord, snapshot: str, size_bytes: int) -> None:
        """The content becomes the snapshot's, taken at `size_bytes`; the volume keeps its size. It is not mounted.

        Interrupted, it is as it was or as it will be.
        """

    def clone(self, source: VolumeRecord, snapshot: str, target: VolumeRecord, key: bytes) -> CopyMethod:
        """Make `target`, of the same size as `source` or its snapshot had; empty `snapshot`: as it is now.

        `key` is that of `source`, and becomes `target`'s.
        """

    def open_snapshot(self, volume: VolumeRecord, snapshot: str, key: bytes) -> Place:
        """Mount a snapshot read-only, apart from the volume, until `close_snapshot`."""

    def close_snapshot(self, volume: VolumeRecord, snapshot: str) -> None:
        """Let it go. Nothing when it is not open."""

    def thaw(self, volume: VolumeRecord) -> None:
        """End a freeze that an interrupted `snapshot` left. Nothing where there is none."""


class Storages(Protocol):
    """Which ways there are on this host. Built once, from what was found by trying."""

    def choose(self, volume_kind: str, *, encrypted: bool, advisory: bool) -> tuple[Enforcement, str]:
        """How a new volume is kept, and how it is encrypted ("" for not).

        Raises JobletError(PRECONDITION), with the reason and the repair, when this host cannot, unless `advisory`.
        """

    def of(self, volume: VolumeRecord) -> Storage:
        """The one that keeps `volume`. Raises JobletError(PRECONDITION) when this host cannot any more."""

    def remover(self, volume: VolumeRecord) -> Storage:
        """The one that can unmount and delete `volume`, also where `of` refuses."""

    def found(self) -> Found:
        """See Found."""

    def let_go(self, volume: VolumeId) -> None:
        """Unmount and detach what no record explains. Its files are not touched."""

    def room_bytes(self) -> int:
        """What is free on the disk that holds the volumes, for new ones."""

    def memory_bytes(self) -> int:
        """Of the machine."""


class Streams(Protocol):
    """Moves a volume's content through a socket. Not blocking; cancelled, nothing of it goes on."""

    async def run(self, source: str, direction: Direction, socket_path: str, ids: Ids) -> tuple[int, int]:
        """Export or import a tar stream between the directory `source` and the unix socket: entries and bytes of files.

        Raises JobletError.
        """


class Keys(Protocol):
    """Keys of encrypted volumes, each sealed by the node's and bound to the id of the volume that it was made for."""

    def new(self, volume: VolumeId, *, others: bool = False) -> tuple[bytes, bytes]:
        """A new key, and the same sealed. `others`: there are sealed keys already. Raises JobletError."""

    def open(self, volume: VolumeId, sealed: bytes) -> bytes:
        """The key in `sealed`. Raises JobletError(DATA_LOSS) when it is not of this volume and this node."""

    def transfer(self, sealed: bytes, source: VolumeId, target: VolumeId) -> bytes:
        """The key of `source`, sealed for `target`."""
