"""Volumes in an image: the size is exact, the space is really there, and nothing that is interrupted does harm."""

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from common.config.layout import Layout
from common.errors import JobletError, Reason, unavailable
from common.identifiers import VolumeId, new_volume_id
from common.linux import files
from common.messages.volumes import CopyMethod, VolumeRecord
from services.volumes.encryption import fscrypt
from services.volumes.encryption.choose import encryption_of
from services.volumes.encryption.dmcrypt import DmCrypt
from services.volumes.encryption.fscrypt import Fscrypt
from services.volumes.ports import Place
from services.volumes.storage import copies, ext4, imagefile, loops, mounting, programs
from services.volumes.storage.image import ImageStorage
from services.volumes.storage.imagemount import ImageMount
from tests.linux.volume_storage import (
    BLOCK,
    JOB,
    MIB,
    as_job,
    fill,
    free_bytes,
    fresh_loop_device,
    killed_at,
    lagging_namespace,
    layout_at,
    loops_below,
    may_grow_mounted,
    names,
    needs_loops,
    record,
    refused,
    small_disk,
)
from tests.waiting import wait_for

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), needs_loops]


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    """Where the volumes are. No loop device has a file there afterwards."""
    tmp_path.chmod(0o711)
    yield layout_at(tmp_path / "volumes")
    wait_for(lambda: not loops_below(tmp_path), what="loop devices to go")


@pytest.fixture
def storage(layout: Layout) -> ImageStorage:
    """The real one."""
    return ImageStorage(layout, encryption_of)


def image_of(layout: Layout, volume: VolumeRecord) -> Path:
    """Its file."""
    return layout.volume_dir(volume.id) / imagefile.IMAGE


def write(place: Place, name: str, content: bytes) -> None:
    """As a job would, and durable."""
    path = Path(place.source) / name
    path.write_bytes(content)
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def nobody_has_it(layout: Layout) -> None:
    """No image is behind a device any more: a job of another test that is just starting has all that is mounted."""
    wait_for(lambda: not loops_below(layout.volumes), what="the device to go")


def is_whole(image: Path) -> bool:
    """It has all its blocks."""
    status = image.stat()
    return status.st_blocks * 512 >= status.st_size


@pytest.mark.requirement("S1.28", "S1.27")
@pytest.mark.threat("C07")
@pytest.mark.parametrize("size", [1, MIB, 5 * MIB + 1, 17 * MIB, 40 * MIB])
def test_the_size_is_exact(storage: ImageStorage, layout: Layout, size: int) -> None:
    """Statvfs tells it of the empty volume; a job writes exactly so much, and then ENOSPC; the image stays whole."""
    volume = record(size)
    storage.create(volume, b"")
    place = storage.mount(volume, b"", JOB)
    assert names(place.source) == []
    assert free_bytes(place.source) == ext4.round_up(size)
    measured = storage.measure(volume)
    assert measured is not None
    assert (measured.used_bytes, measured.used_inodes) == (0, 0)
    assert is_whole(image_of(layout, volume))
    blocks, _, why = as_job(lambda: fill("file"), at=place.source).partition(" ")
    # One may be the block of the file's own extents, or be left.
    assert (ext4.round_up(size) // BLOCK - int(blocks) in {0, 1}, why) == (True, "No space left on device")
    measured = storage.measure(volume)
    assert measured is not None
    assert ext4.round_up(size) - measured.used_bytes in {0, BLOCK}
    assert measured.used_inodes == 1
    assert is_whole(image_of(layout, volume))
    if size >= MIB:
        assert storage.moved(volume).write_bytes >= size
    storage.delete(volume)


def test_what_the_job_gets(storage: ImageStorage) -> None:
    """A directory of its own ids, no set-id, no devices, named by device and inode; found again when asked again."""
    volume = record(MIB)
    storage.create(volume, b"")
    assert storage.measure(volume) is None
    place = storage.mount(volume, b"", None)
    assert Path(place.source).stat().st_uid == 0  # asked for by nobody's job
    place = storage.mount(volume, b"", JOB)
    status = Path(place.source).stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (*JOB, 0o755)
    assert place.root == f"{place.device}:{status.st_ino}"
    assert os.statvfs(place.source).f_flag & (os.ST_NOSUID | os.ST_NODEV) == os.ST_NOSUID | os.ST_NODEV
    Path(place.source).chmod(0o700)
    os.chown(place.source, 7, 7)
    assert storage.mount(volume, b"", JOB) == place
    assert Path(place.source).stat().st_uid == 7  # it is somebody's
    storage.unmount(volume)
    storage.unmount(volume)
    storage.delete(volume)
    storage.delete(volume)


@pytest.mark.threat("C07")
@pytest.mark.threat("C09")
def test_a_job_cannot_make_holes(storage: ImageStorage, layout: Layout) -> None:
    """Writing here and there into allocated space, giving space back, trimming as root: every block stays."""
    fresh_loop_device()
    volume = record(24 * MIB)
    storage.create(volume, b"")
    place = storage.mount(volume, b"", JOB)
    blocks = image_of(layout, volume).stat().st_blocks
    descriptor = os.open(f"{place.source}/file", os.O_CREAT | os.O_RDWR)
    try:
        os.posix_fallocate(descriptor, 0, 16 * MIB)
        for offset in range(0, 16 * MIB, 3 * BLOCK):
            os.pwrite(descriptor, b"x", offset)
        os.fsync(descriptor)
        files.punch_hole(descriptor, 0, 8 * MIB)
        os.ftruncate(descriptor, 0)
        os.fsync(descriptor)
        trim = struct.pack("=QQQ", 0, 2**63, 0)
        with pytest.raises(OSError, match="not supported"):
            fcntl.ioctl(descriptor, 0xC0185879, trim)  # FITRIM
    finally:
        os.close(descriptor)
    storage.unmount(volume)
    assert image_of(layout, volume).stat().st_blocks >= blocks
    storage.delete(volume)


@pytest.mark.threat("C07")
def test_inodes_have_their_own_bound(storage: ImageStorage) -> None:
    """With the last one gone there is no further file, and still room in those that are there."""
    volume = record(8 * MIB)
    storage.create(volume, b"")
    place = storage.mount(volume, b"", JOB)
    space = storage.measure(volume)
    assert space is not None
    for number in range(space.inodes):
        (Path(place.source) / str(number)).touch()
    with pytest.raises(OSError, match="No space left") as raised:
        (Path(place.source) / "more").touch()
    assert raised.value.errno == errno.ENOSPC
    full = storage.measure(volume)
    assert full is not None
    assert full.used_inodes == full.inodes >= ext4.inodes(8 * MIB) - ext4.EMPTY_INODES
    write(place, "0", b"x" * MIB)
    storage.delete(volume)


@pytest.mark.parametrize("size", [MIB, 100 * MIB, 127 * MIB, 129 * MIB, 2**30, 10 * 2**30, 65 * 2**30])
def test_the_estimate_holds(tmp_path: Path, size: int) -> None:
    """An image of that size has room for the volume, at the first attempt; this one is sparse, to be quick."""
    path = tmp_path / imagefile.NEW
    with path.open("wb") as file:
        file.truncate(ext4.image_bytes(size))
    identity = "6fa459ea-ee8a-4ca4-894e-db77e160355e"
    assert imagefile.format_device(str(path), tmp_path, size_bytes=size, identity=identity, features=()) == 0
    assert imagefile.check(str(path), identity).blocks * BLOCK <= path.stat().st_size
    assert not (tmp_path / "template").exists()


@pytest.mark.threat("F33")
def test_mounted_twice_is_mounted_once(storage: ImageStorage, layout: Layout) -> None:
    """One loop device, also while the namespace of a job that ended has the file system still."""
    volume = record(2 * MIB)
    storage.create(volume, b"")
    first = storage.mount(volume, b"", JOB)
    assert storage.mount(volume, b"", JOB) == first
    assert len(loops_below(layout.volumes)) == 1
    with lagging_namespace(layout.volumes) as finish:
        write(first, "kept", b"before")
        storage.unmount(volume)
        assert len(loops_below(layout.volumes)) == 1
        assert storage.mount(volume, b"", JOB) == first
        assert (Path(first.source) / "kept").read_bytes() == b"before"
        assert len(loops_below(layout.volumes)) == 1
        storage.unmount(volume)
        finish()
    wait_for(lambda: not loops_below(layout.volumes), what="the device to go with the job")
    storage.mount(volume, b"", JOB)
    with (Path(first.source) / "kept").open():
        storage.unmount(volume)  # somebody looks into it from the host
        assert not mounting.is_mounted(layout.volume_dir(volume.id) / "mount")
    storage.delete(volume)


def test_a_deleted_volume_lives_as_long_as_its_jobs(storage: ImageStorage, layout: Layout) -> None:
    """The job's own mount stays whole; nothing of the volume has a name any more."""
    volume = record(2 * MIB)
    storage.create(volume, b"")
    place = storage.mount(volume, b"", JOB)
    write(place, "kept", b"x" * 100)
    directory = os.open(place.source, os.O_RDONLY)
    try:
        storage.delete(volume)
        assert not layout.volume_dir(volume.id).exists()
        descriptor = os.open("kept", os.O_RDONLY, dir_fd=directory)
        assert os.read(descriptor, 200) == b"x" * 100
        os.close(descriptor)
    finally:
        os.close(directory)


@pytest.mark.threat("B17")
def test_a_new_volume_is_empty(storage: ImageStorage, layout: Layout) -> None:
    """Also raw: what was in the one before it is nowhere in its image."""
    secret = b"the quick brown secret" * 200
    volume = record(4 * MIB)
    for _ in range(2):
        storage.create(volume, b"")
        assert secret[:22] not in image_of(layout, volume).read_bytes()
        place = storage.mount(volume, b"", JOB)
        assert names(place.source) == []
        for number in range(20):
            write(place, str(number), secret)
        storage.unmount(volume)
        assert secret[:22] in image_of(layout, volume).read_bytes()
    storage.delete(volume)


@pytest.mark.threat("F10")
@pytest.mark.parametrize("place", ["volumes.allocated", "volumes.formatted"])
def test_killed_while_it_creates(storage: ImageStorage, layout: Layout, tmp_path: Path, place: str) -> None:
    """There is no image or a whole one; nothing is attached; a second attempt succeeds, and so does removing it."""
    volume = record(2 * MIB)
    assert killed_at(place, tmp_path / "points", lambda: storage.create(volume, b""))
    assert image_of(layout, volume).exists() == (place == "volumes.formatted")
    assert not loops_below(layout.volumes)
    storage.create(volume, b"")
    assert names(layout.volume_dir(volume.id)) == ["image", "mount", "snapshots"]
    storage.mount(volume, b"", JOB)
    storage.delete(volume)
    assert killed_at(place, tmp_path / "points", lambda: storage.create(volume, b""))
    storage.delete(volume)
    assert names(layout.volumes) == []


@pytest.mark.threat("F10")
def test_killed_while_it_mounts_and_unmounts(storage: ImageStorage, layout: Layout, tmp_path: Path) -> None:
    """No device is left of a mount that did not come about; what was written stays."""
    volume = record(2 * MIB)
    storage.create(volume, b"")
    assert killed_at("volumes.device", tmp_path / "points", lambda: storage.mount(volume, b"", JOB))
    wait_for(lambda: not loops_below(layout.volumes), what="the device to go with its process")
    write(storage.mount(volume, b"", JOB), "kept", b"1")
    assert killed_at("volumes.unmounted", tmp_path / "points", lambda: storage.unmount(volume))
    storage.unmount(volume)
    place = storage.mount(volume, b"", JOB)
    assert (Path(place.source) / "kept").read_bytes() == b"1"
    storage.delete(volume)


@pytest.mark.requirement("S1.45")
@pytest.mark.threat("F10")
def test_killed_while_it_copies(storage: ImageStorage, layout: Layout, tmp_path: Path) -> None:
    """A file system that is left frozen is thawed; a snapshot that no record names is made again, or removed."""
    volume = record(2 * MIB)
    storage.create(volume, b"")
    place = storage.mount(volume, b"", JOB)
    write(place, "kept", b"1")
    assert killed_at("volumes.frozen", tmp_path / "points", lambda: storage.snapshot(volume, "one"))
    directory = os.open(place.source, os.O_RDONLY)
    with pytest.raises(OSError, match="busy"):
        files.freeze(directory)
    os.close(directory)
    storage.thaw(volume)
    storage.thaw(volume)
    write(place, "kept", b"2")
    for _ in range(2):
        assert killed_at("volumes.copied", tmp_path / "points", lambda: storage.snapshot(volume, "one"))
    storage.snapshot(volume, "one")
    storage.drop_snapshot(volume, "one")
    storage.drop_snapshot(volume, "one")
    assert names(layout.volume_dir(volume.id) / "snapshots") == []
    storage.delete(volume)


@pytest.mark.threat("C07")
@pytest.mark.threat("C09")
def test_a_full_disk_below(tmp_path: Path) -> None:
    """Nothing is made there, nothing of it is left, and no write into a volume that is there is lost."""
    with small_disk(tmp_path, 48) as disk:
        layout = layout_at(disk / "volumes")
        storage = ImageStorage(layout, encryption_of)
        volume = record(4 * MIB)
        storage.create(volume, b"")
        with refused(Reason.EXHAUSTED):
            storage.create(large := record(60 * MIB), b"")
        assert not layout.volume_dir(large.id).exists()
        place = storage.mount(volume, b"", JOB)
        with refused(Reason.EXHAUSTED):
            storage.resize(volume, 60 * MIB, b"")
        assert free_bytes(place.source) == 4 * MIB
        size = image_of(layout, volume).stat().st_size
        fill(str(disk / "rest"))
        written = int(as_job(lambda: fill("file"), at=place.source).split()[0])
        assert written in {1023, 1024}
        with refused(Reason.EXHAUSTED):
            storage.snapshot(volume, "one")
        with refused(Reason.EXHAUSTED):
            storage.clone(volume, "", record(MIB), b"")
        assert names(layout.volumes) == [volume.id]
        assert names(layout.volume_dir(volume.id) / "snapshots") == []
        storage.unmount(volume)
        place = storage.mount(volume, b"", JOB)
        content = (Path(place.source) / "file").read_bytes()
        assert content == b"".join(bytes([number % 251]) * BLOCK for number in range(written))
        assert image_of(layout, volume).stat().st_size == size
        storage.delete(volume)
        wait_for(lambda: not loops_below(disk), what="loop devices to go")


def _missing(image: Path, other: Path) -> None:  # noqa: ARG001
    image.unlink()


def _link(image: Path, other: Path) -> None:
    image.unlink()
    image.symlink_to(other)


def _second_name(image: Path, other: Path) -> None:
    image.unlink()
    os.link(other, image)


def _directory(image: Path, other: Path) -> None:  # noqa: ARG001
    image.unlink()
    image.mkdir()


def _fifo(image: Path, other: Path) -> None:  # noqa: ARG001
    image.unlink()
    os.mkfifo(image)


def _truncated(image: Path, other: Path) -> None:  # noqa: ARG001
    os.truncate(image, image.stat().st_size // 2)


def _foreign(image: Path, other: Path) -> None:
    image.write_bytes(other.read_bytes())


def _zeros(image: Path, other: Path) -> None:  # noqa: ARG001
    image.write_bytes(bytes(image.stat().st_size))


def _torn(image: Path, other: Path) -> None:  # noqa: ARG001
    with image.open("r+b") as file:
        file.seek(BLOCK)  # the group descriptors
        file.write(b"\xff" * BLOCK)


@pytest.mark.parametrize(
    "harm", [_missing, _link, _second_name, _directory, _fifo, _truncated, _foreign, _zeros, _torn]
)
def test_what_is_not_the_image_is_not_touched(storage: ImageStorage, layout: Layout, harm: object) -> None:
    """DATA_LOSS, no device, no mount, and every byte as it was; it can be removed."""
    volume, other = record(2 * MIB), record(2 * MIB)
    storage.create(volume, b"")
    storage.create(other, b"")
    image = image_of(layout, volume)
    assert callable(harm)
    harm(image, image_of(layout, other))
    before = image.read_bytes() if image.is_file() else b""
    kept = image_of(layout, other).read_bytes()
    with refused(Reason.DATA_LOSS):
        storage.mount(volume, b"", JOB)
    assert (image.read_bytes() if image.is_file() else b"") == before
    assert image_of(layout, other).read_bytes() == kept
    nobody_has_it(layout)
    storage.unmount(volume)
    storage.delete(volume)
    assert image_of(layout, other).read_bytes() == kept
    storage.delete(other)


def test_a_link_in_place_of_a_directory_is_refused(storage: ImageStorage, layout: Layout, tmp_path: Path) -> None:
    """Neither the mount point nor the volume's directory is followed anywhere; removing takes the link alone."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("kept")
    volume = record(MIB)
    storage.create(volume, b"")
    point = layout.volume_dir(volume.id) / "mount"
    point.rmdir()
    point.symlink_to(elsewhere)
    with refused(Reason.DATA_LOSS):
        storage.mount(volume, b"", JOB)
    storage.delete(volume)
    layout.volume_dir(volume.id).symlink_to(elsewhere)
    with refused(Reason.DATA_LOSS):
        storage.mount(volume, b"", JOB)
    storage.delete(volume)
    assert not layout.volume_dir(volume.id).is_symlink()
    assert names(elsewhere) == ["file"]


def test_a_file_system_that_stopped_writing_is_damaged(storage: ImageStorage, layout: Layout) -> None:
    """What the kernel made read-only is not given to a job as if nothing had happened."""
    volume = record(MIB)
    storage.create(volume, b"")
    storage.mount(volume, b"", JOB)
    point = layout.volume_dir(volume.id) / "mount"
    mounting.mount("none", point, "ext4", 0x21, "")  # MS_REMOUNT | MS_RDONLY
    with refused(Reason.DATA_LOSS, "stopped writing"):
        storage.mount(volume, b"", JOB)
    storage.delete(volume)


@pytest.mark.parametrize("mounted", [True, False])
def test_it_grows(storage: ImageStorage, layout: Layout, tmp_path: Path, *, mounted: bool) -> None:
    """To exactly the new size, with what is in it, whole; and again after a kill."""
    volume = record(MIB)
    storage.create(volume, b"")
    place = storage.mount(volume, b"", JOB)
    write(place, "kept", b"x" * 1000)
    if not mounted:
        storage.unmount(volume)
    for size in (3 * MIB, 20 * MIB + 5, 50 * MIB):
        assert killed_at("volumes.resized", tmp_path / "points", lambda: storage.resize(volume, size, b""))  # noqa: B023
        storage.mount(volume, b"", JOB)
        assert free_bytes(place.source) == ext4.round_up(volume.size_bytes) - BLOCK  # the record decides
        if not mounted:
            storage.unmount(volume)
        storage.resize(volume, size, b"")
        volume = msgspec.structs.replace(volume, size_bytes=size)
        assert mounting.is_mounted(layout.volume_dir(volume.id) / "mount") == mounted
        place = storage.mount(volume, b"", JOB)
        assert free_bytes(place.source) == ext4.round_up(size) - BLOCK
        assert is_whole(image_of(layout, volume))
        if not mounted:
            storage.unmount(volume)
    place = storage.mount(volume, b"", JOB)
    assert (Path(place.source) / "kept").read_bytes() == b"x" * 1000
    blocks, _, why = as_job(lambda: fill("file"), at=place.source).partition(" ")
    assert 50 * MIB // BLOCK - int(blocks) in {1, 2}, why  # "kept" has one
    storage.unmount(volume)
    assert programs.run("e2fsck", "-f", "-n", str(image_of(layout, volume))) == 0
    storage.delete(volume)


def test_it_grows_while_it_is_used_or_stays_as_it_is(storage: ImageStorage, layout: Layout) -> None:
    """Where this host's root may not (CAP_SYS_RESOURCE), the answer says so and nothing is changed."""
    volume = record(MIB)
    storage.create(volume, b"")
    place = storage.mount(volume, b"", JOB)
    size = image_of(layout, volume).stat().st_size
    with lagging_namespace(layout.volumes), (Path(place.source) / "open").open("w") as held:
        if may_grow_mounted():
            storage.resize(volume, 30 * MIB, b"")
            assert free_bytes(place.source) == 30 * MIB
        else:
            with refused(Reason.PRECONDITION, "while a job uses it"):
                storage.resize(volume, 30 * MIB, b"")
            assert (free_bytes(place.source), image_of(layout, volume).stat().st_size) == (MIB, size)
        held.write("still here")
    storage.delete(volume)


class NoRightToGrow:
    """The kernel of a host whose root lacks CAP_SYS_RESOURCE."""

    def grow(self, mounted: int, blocks: int) -> None:  # noqa: ARG002
        """See imagemount.Kernel."""
        raise PermissionError(errno.EPERM, "no right")


class Stuck(Fscrypt):
    """Opens the device as it is, but not for ever."""

    def __init__(self, times: int) -> None:
        self.left = times

    def open(self, device: str, volume: VolumeId, key: bytes) -> str:  # noqa: ARG002
        """See choose.Encryption."""
        self.left -= 1
        if self.left < 0:
            raise unavailable("the old mapping is not gone yet", "try again")
        return device


@pytest.mark.parametrize("opened", [1, 2])
def test_a_volume_that_cannot_be_mounted_again_after_it_has_grown_is_whole(
    storage: ImageStorage, layout: Layout, opened: int
) -> None:
    """Neither before the file system was enlarged nor behind that is anything cut off that belongs to it."""
    volume = record(MIB)
    storage.create(volume, b"")
    write(storage.mount(volume, b"", JOB), "kept", b"x" * 1000)
    storage.unmount(volume)
    mount = ImageMount(layout.volume_dir(volume.id), volume.id, 40 * MIB, Stuck(opened), NoRightToGrow())
    with refused(Reason.UNAVAILABLE):
        mount.mount(b"")
    place = storage.mount(volume, b"", JOB)
    assert (Path(place.source) / "kept").read_bytes() == b"x" * 1000
    assert free_bytes(place.source) == MIB - BLOCK
    storage.unmount(volume)
    assert programs.run("e2fsck", "-f", "-n", str(image_of(layout, volume))) == 0
    storage.delete(volume)


@pytest.mark.requirement("S1.45")
@pytest.mark.requirement("S1.47")
def test_snapshots_and_clones(storage: ImageStorage, layout: Layout) -> None:
    """A snapshot of a volume in use is consistent, read-only and apart; restored and cloned, it is what it was."""
    volume = record(4 * MIB)
    storage.create(volume, b"")
    place = storage.mount(volume, b"", JOB)
    write(place, "file", b"first")
    assert storage.snapshot(volume, "one") in CopyMethod
    write(place, "file", b"second")
    opened = storage.open_snapshot(volume, "one", b"")
    assert opened == storage.open_snapshot(volume, "one", b"")
    assert (Path(opened.source) / "file").read_bytes() == b"first"
    with pytest.raises(OSError, match="Read-only"):
        write(opened, "file", b"x")
    copy = record(4 * MIB)
    storage.clone(volume, "", copy, b"")
    cloned = storage.mount(copy, b"", JOB)
    assert (Path(cloned.source) / "file").read_bytes() == b"second"
    assert is_whole(image_of(layout, copy))
    assert free_bytes(cloned.source) == 4 * MIB - BLOCK
    storage.close_snapshot(volume, "one")
    storage.close_snapshot(volume, "one")
    storage.unmount(volume)
    (layout.volume_dir(volume.id) / "image.copy.new").write_bytes(b"of a restore that was interrupted")
    storage.restore(volume, "one", volume.size_bytes)
    place = storage.mount(volume, b"", JOB)
    assert (Path(place.source) / "file").read_bytes() == b"first"
    assert is_whole(image_of(layout, volume))
    assert names(layout.volume_dir(volume.id)) == ["image", "mount", "snapshots"]
    with refused(Reason.INVALID):
        storage.snapshot(volume, "../one")
    with refused(Reason.DATA_LOSS):
        storage.restore(volume, "none", MIB)
    for each in (volume, copy):
        storage.delete(each)


@pytest.mark.requirement("S1.45")
@pytest.mark.parametrize("encryption", ["", *(name for name in ("fscrypt",) if fscrypt.offered())])
def test_copies_have_what_was_written_before_the_unmount(
    storage: ImageStorage, layout: Layout, encryption: str
) -> None:
    """Also while the namespace of another job, which begins or ends, keeps the file system in memory."""
    key = os.urandom(64) if encryption else b""
    volume, copy = (msgspec.structs.replace(record(4 * MIB), encryption=encryption) for _ in range(2))
    storage.create(volume, key)
    place = storage.mount(volume, key, JOB)
    with lagging_namespace(layout.volumes):
        (Path(place.source) / "file").write_bytes(b"not synced by the job")
        storage.unmount(volume)
        storage.snapshot(volume, "one")
        storage.clone(volume, "", copy, key)
    for taken in (storage.open_snapshot(volume, "one", key), storage.mount(copy, key, JOB)):
        assert (Path(taken.source) / "file").read_bytes() == b"not synced by the job"
    storage.close_snapshot(volume, "one")
    for each in (volume, copy):
        storage.delete(each)


def test_what_was_interrupted_takes_no_room(storage: ImageStorage, layout: Layout) -> None:
    """A copy of a restore, or of a snapshot, that never became whole."""
    volume = record(MIB)
    storage.create(volume, b"")
    home = layout.volume_dir(volume.id)
    for name in ("image.copy", "image.copy.new", "snapshots/one.new"):
        (home / name).write_bytes(b"x" * MIB)
    storage.mount(volume, b"", JOB)
    storage.drop_snapshot(volume, "one")
    assert names(home) == ["image", "mount", "snapshots"]
    assert names(home / "snapshots") == []
    storage.delete(volume)


def test_a_snapshot_from_before_it_grew(storage: ImageStorage) -> None:
    """Restored, the volume has its present size still."""
    volume = record(MIB)
    storage.create(volume, b"")
    write(storage.mount(volume, b"", JOB), "file", b"first")
    storage.unmount(volume)
    storage.snapshot(volume, "one")
    storage.resize(volume, 24 * MIB, b"")
    grown = msgspec.structs.replace(volume, size_bytes=24 * MIB)
    storage.restore(grown, "one", MIB)
    place = storage.mount(grown, b"", JOB)
    assert (Path(place.source) / "file").read_bytes() == b"first"
    assert free_bytes(place.source) == 24 * MIB - BLOCK
    storage.delete(grown)


def test_after_a_power_cut(storage: ImageStorage, layout: Layout) -> None:
    """An image as it is in the middle of writing has its journal: snapshot and clone have what was synced."""
    volume = record(4 * MIB)
    storage.create(volume, b"")
    place = storage.mount(volume, b"", JOB)
    write(place, "file", b"synced")
    crashed = image_of(layout, volume).read_bytes()
    storage.unmount(volume)
    nobody_has_it(layout)
    image_of(layout, volume).write_bytes(crashed)
    found = imagefile.read_superblock(image_of(layout, volume))
    assert found is not None
    assert found.needs_recovery
    storage.snapshot(volume, "one")
    opened = storage.open_snapshot(volume, "one", b"")
    assert (Path(opened.source) / "file").read_bytes() == b"synced"
    storage.close_snapshot(volume, "one")
    copy = record(4 * MIB)
    storage.clone(volume, "", copy, b"")
    for each in (copy, volume):
        assert (Path(storage.mount(each, b"", JOB).source) / "file").read_bytes() == b"synced"
        storage.delete(each)


@pytest.mark.requirement("S1.39")
@pytest.mark.parametrize("encryption", ["fscrypt", "dm-crypt"])
def test_encrypted(storage: ImageStorage, layout: Layout, encryption: str) -> None:
    """The whole way with a key: exact, unlocked, nothing in clear, copied, grown; another key is refused."""
    if not _offered(encryption):
        pytest.skip(f"needs {encryption}")
    snapshot = new_volume_id()
    key, secret = os.urandom(64), b"the quick brown secret" * 200
    volume = record(4 * MIB, encryption=encryption)
    storage.create(volume, key)
    place = storage.mount(volume, key, JOB)
    assert free_bytes(place.source) == 4 * MIB
    write(place, "file", secret)
    storage.snapshot(volume, snapshot)
    storage.unmount(volume)
    assert secret[:22] not in image_of(layout, volume).read_bytes()
    opened = storage.open_snapshot(volume, snapshot, key)
    assert (Path(opened.source) / "file").read_bytes() == secret
    storage.close_snapshot(volume, snapshot)
    with pytest.raises(JobletError):
        storage.mount(volume, os.urandom(64), JOB)
    assert not mounting.is_mounted(layout.volume_dir(volume.id) / "mount")
    storage.resize(volume, 12 * MIB, key)
    grown = msgspec.structs.replace(volume, size_bytes=12 * MIB)
    copy = msgspec.structs.replace(record(12 * MIB), encryption=encryption)
    storage.clone(grown, "", copy, key)
    for each in (grown, copy):
        assert (Path(storage.mount(each, key, JOB).source) / "file").read_bytes() == secret
        storage.delete(each)


@pytest.mark.requirement("S1.39")
@pytest.mark.skipif(not fscrypt.offered(), reason="needs fscrypt: ext4 of this kernel cannot encrypt")
def test_a_new_volume_is_encrypted_before_anybody_has_it(storage: ImageStorage, layout: Layout) -> None:
    """A kernel without the ciphers refuses it while it is made; and its first snapshot is as good as any other."""
    key = os.urandom(64)
    volume = record(2 * MIB, encryption="fscrypt")
    storage.create(volume, key)
    assert not mounting.is_mounted(layout.volume_dir(volume.id) / "mount")
    wait_for(lambda: not loops_below(layout.volumes), what="the device to go")
    storage.snapshot(volume, "one")
    assert names(storage.open_snapshot(volume, "one", key).source) == []
    storage.close_snapshot(volume, "one")
    place = storage.mount(volume, key, JOB)
    assert (free_bytes(place.source), Path(place.source).stat().st_uid) == (2 * MIB, JOB.uid)
    storage.delete(volume)


def _offered(encryption: str) -> bool:
    """By trying."""
    if encryption == "fscrypt":
        return fscrypt.offered()
    try:
        DmCrypt().try_out()
    except (JobletError, OSError):
        return False
    return True


def test_thaw_and_freeze_are_the_kernels(storage: ImageStorage) -> None:
    """A freeze that is not ours ends as well; nothing happens to a volume that is not mounted."""
    volume = record(MIB)
    storage.create(volume, b"")
    storage.thaw(volume)
    place = storage.mount(volume, b"", JOB)
    copies.freeze(place.source)
    storage.thaw(volume)
    write(place, "file", b"x")
    storage.delete(volume)
    assert not any(each.file.endswith(volume.id) for each in loops.present())
