"""A volume's directory on the host, `{volumes}/<id>`, and what every storage does there.

    {volumes}/<id>/        0700 root: no other user of the host comes near a set-id file in it
        image | data/      what it consists of; a new one is made beside, as `image.new`, and renamed when it is whole
        mount/             where it is mounted
        snapshots/<id>     and `<id>.mount`, where one is mounted

Everything is opened without following a symbolic link. Not here: mounting (`mounting.py`), and what is in an image.
"""

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from common.errors import JobletError, Reason, exhausted, invalid
from services.volumes.ports import Ids, Place
from services.volumes.storage.copytree import remove_tree

DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
SNAPSHOTS: Final = "snapshots"
DATA: Final = "data"

_SNAPSHOT_ID: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,63}")
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_REPLACED: Final = frozenset({errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO})


def data_loss(message: str, detail: str) -> JobletError:
    """What holds a volume's content is missing or is not what it was. Nothing was done to it."""
    return JobletError(Reason.DATA_LOSS, message, detail=detail)


@contextmanager
def enough_room(what: str) -> Iterator[None]:
    """EXHAUSTED where the disk is full. `what` was to be made on it."""
    try:
        yield
    except OSError as cause:
        if cause.errno not in _NO_ROOM:
            raise
        raise exhausted(
            f"no room on the disk for {what}", "remove volumes or snapshots, or make the disk of the volumes larger"
        ) from cause


@contextmanager
def opened(path: Path | str, flags: int = DIRECTORY_FLAGS, *, directory: int | None = None) -> Iterator[int]:
    """A descriptor. DATA_LOSS: it is missing, or something else is in its place, such as a symbolic link."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except OSError as cause:
        if cause.errno not in _REPLACED:
            raise
        raise data_loss(
            f"{path} of the volume is missing or was replaced: {os.strerror(cause.errno)}",
            "put it back from a backup, or remove the volume",
        ) from cause
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def opened_file(path: Path, flags: int) -> Iterator[int]:
    """A descriptor of a regular file with one name. DATA_LOSS: see `opened`, and for anything else there."""
    with opened(path, flags | os.O_NONBLOCK) as descriptor:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise data_loss(
                f"{path} of the volume is no regular file of its own", "put it back from a backup, or remove the volume"
            )
        yield descriptor


def make(home: Path) -> None:
    """The directory of a volume, and those above it; durable."""
    home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    make_in(home.parent, home.name)
    make_in(home, SNAPSHOTS)
    synchronize(home.parent)


def make_in(home: Path, name: str) -> Path:
    """A directory in the volume's one; it may be there."""
    path = home / name
    with suppress(FileExistsError), enough_room(f"the directory {name}"):
        path.mkdir(mode=0o700)
    return path


def discard(path: Path) -> None:
    """Remove a file, or a directory with all that is in it. Nothing when it is not there."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISDIR(status.st_mode):
        remove_tree(str(path))
    else:
        path.unlink()
    synchronize(path.parent)


def synchronize(directory: Path) -> None:
    """Names that were made or changed in it are durable."""
    with opened(directory) as descriptor:
        os.fsync(descriptor)


def snapshot_path(home: Path, snapshot: str) -> Path:
    """Where it is kept."""
    if not _SNAPSHOT_ID.fullmatch(snapshot):
        raise invalid(f"malformed snapshot id {snapshot[:64]!r}", "use up to 64 letters, digits and '-'")
    return home / SNAPSHOTS / snapshot


def is_new(directory: int) -> bool:
    """Nobody has got it yet: it is root's (or ours, without root) and empty."""
    return os.fstat(directory).st_uid == os.geteuid() and not os.listdir(directory)


def give(directory: int, ids: Ids | None) -> None:
    """Make it belong to the owner's jobs, if it is nobody's yet.

    Later that is their own affair: a job may close its directory, and others of the owner may rely on that.
    """
    if ids is None or os.geteuid() != 0 or not is_new(directory):
        return
    os.fchown(directory, *ids)
    os.fchmod(directory, 0o755)


def place(source: Path, directory: int) -> Place:
    """`directory` is a descriptor of `source`."""
    status = os.fstat(directory)
    device = disk(status.st_dev)
    return Place(source=str(source), root=f"{_number(status.st_dev)}:{status.st_ino}", device=device)


def disk(device: int) -> str:
    """MAJ:MIN of the block device with the number st_dev, or of the disk that it is a part of; empty: it is none.

    Limits of input and output are set for whole disks; loop devices and mappings are such.
    """
    entry = Path(f"/sys/dev/block/{_number(device)}")
    if not entry.exists():
        return ""
    real = entry.resolve()
    return ((real.parent if (real / "partition").exists() else real) / "dev").read_text(encoding="ascii").strip()


def _number(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"
