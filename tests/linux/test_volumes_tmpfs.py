"""Memory volumes: a size in bytes and in files, gone when they are let go, never copied to the disk."""

import os
from pathlib import Path

import msgspec
import pytest

from common.errors import Reason
from common.messages.volumes import Enforcement
from services.volumes.storage import mounting
from services.volumes.storage.tmpfs import TmpfsStorage
from tests.linux.volume_storage import BLOCK, JOB, MIB, as_job, fill, free_bytes, layout_at, names, record, refused

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def storage(tmp_path: Path) -> TmpfsStorage:
    """The real one."""
    tmp_path.chmod(0o711)
    return TmpfsStorage(layout_at(tmp_path / "volumes"))


@pytest.mark.requirement("S1.16")
@pytest.mark.threat("C07")
@pytest.mark.parametrize("size", [1, MIB, 5 * MIB + 1])
def test_the_size_is_exact(storage: TmpfsStorage, size: int) -> None:
    """A job writes whole pages up to it, and then ENOSPC; files have their own bound."""
    volume = record(size, Enforcement.TMPFS)
    storage.create(volume, b"")
    place = storage.mount(volume, b"", JOB)
    pages = -(-size // BLOCK)
    assert free_bytes(place.source) == pages * BLOCK
    filled = as_job(lambda: fill("file", synchronize=False), at=place.source)
    assert filled == f"{pages} No space left on device"
    space = storage.measure(volume)
    assert space is not None
    assert (space.used_bytes, space.used_inodes) == (pages * BLOCK, 1)
    for number in range(space.inodes - 1):
        (Path(place.source) / str(number)).symlink_to("x")
    with pytest.raises(OSError, match="No space left"):
        (Path(place.source) / "more").symlink_to("x")
    storage.delete(volume)


@pytest.mark.requirement("S1.4")
@pytest.mark.threat("C06")
def test_it_is_cleared(storage: TmpfsStorage, tmp_path: Path) -> None:
    """Mounted when it is asked for, found when asked again, empty the next time; nothing of it is on the disk."""
    volume = record(MIB, Enforcement.TMPFS)
    storage.create(volume, b"")
    home = tmp_path / "volumes" / volume.id
    assert not mounting.is_mounted(home / "mount")
    measured = storage.measure(volume)
    assert measured is not None
    assert measured.used_bytes == 0
    place = storage.mount(volume, b"", None)
    assert storage.mount(volume, b"", JOB) == place
    status = Path(place.source).stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777, place.device) == (*JOB, 0o755, "")
    assert os.statvfs(place.source).f_flag & (os.ST_NOSUID | os.ST_NODEV) == os.ST_NOSUID | os.ST_NODEV
    (Path(place.source) / "secret").write_text("x")
    with (Path(place.source) / "secret").open():
        storage.unmount(volume)
    storage.unmount(volume)
    assert names(home / "mount") == []
    assert names(storage.mount(volume, b"", JOB).source) == []
    storage.delete(volume)
    assert not home.exists()


def test_it_grows(storage: TmpfsStorage) -> None:
    """With what is in it; one that is not mounted grows by its record."""
    volume = record(MIB, Enforcement.TMPFS)
    storage.create(volume, b"")
    storage.resize(volume, 2 * MIB, b"")
    place = storage.mount(volume, b"", JOB)
    (Path(place.source) / "file").write_bytes(b"x" * BLOCK)
    storage.resize(volume, 3 * MIB, b"")
    larger = msgspec.structs.replace(volume, size_bytes=3 * MIB)
    assert free_bytes(storage.mount(larger, b"", JOB).source) == 3 * MIB - BLOCK
    assert os.statvfs(place.source).f_flag & (os.ST_NOSUID | os.ST_NODEV) == os.ST_NOSUID | os.ST_NODEV
    storage.delete(larger)


def test_no_snapshots(storage: TmpfsStorage) -> None:
    """Refused, with why: it would be on the disk."""
    volume = record(MIB, Enforcement.TMPFS)
    for action in (storage.snapshot, storage.drop_snapshot, storage.close_snapshot):
        if action == storage.snapshot:
            with refused(Reason.INVALID, "never copied to the disk"):
                action(volume, "one")
        else:
            action(volume, "one")
    with refused(Reason.INVALID):
        storage.restore(volume, "one", MIB)
    with refused(Reason.INVALID):
        storage.clone(volume, "", record(MIB, Enforcement.TMPFS), b"")


def test_a_link_in_place_of_the_mount_point(storage: TmpfsStorage, tmp_path: Path) -> None:
    """Is not followed."""
    volume = record(MIB, Enforcement.TMPFS)
    storage.create(volume, b"")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "volumes" / volume.id / "mount").symlink_to(tmp_path / "elsewhere")
    with refused(Reason.DATA_LOSS):
        storage.mount(volume, b"", JOB)
    storage.delete(volume)
    assert (tmp_path / "elsewhere").is_dir()
