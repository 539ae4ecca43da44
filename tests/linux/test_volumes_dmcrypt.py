"""dm-crypt on a real device mapper: what the image tells, how mappings come, grow and go. Runs in the kernel lane."""

import errno
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import JobletError, Reason
from common.identifiers import VolumeId, new_volume_id
from services.volumes.encryption.choose import choose_encryption
from services.volumes.encryption.dmcrypt import DmCrypt
from services.volumes.encryption.nodes import Nodes
from tests.linux.volumes_images import (
    IMAGE_BYTES,
    NAME,
    TEXT,
    attached,
    content_of,
    make_file_system,
    make_image,
    mounted,
)
from tests.waiting import wait_for


def _without_mapper() -> str:
    """Why there is no device mapper here; empty: there is one."""
    try:
        with Nodes().control() as control:
            control.version()
    except JobletError as refused:
        return str(refused)
    return ""


pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(os.geteuid() == 0 and bool(_without_mapper()), reason="needs a device mapper"),
    pytest.mark.requirement("S1.39"),
    pytest.mark.requirement("S1.46"),
]

KEY, WRONG = os.urandom(64), os.urandom(64)
CRYPT = DmCrypt()


@pytest.fixture
def volume() -> Iterator[VolumeId]:
    """A volume; its mapping is gone at the end."""
    made = new_volume_id()
    yield made
    CRYPT.close(made)
    wait_for(lambda: made not in CRYPT.present(), what="the mapping to go")


@pytest.fixture
def image(tmp_path: Path, volume: VolumeId) -> Path:
    """An encrypted file system with a file; not mapped."""
    made = make_image(tmp_path / "image")
    with attached(made) as device:
        mapped = CRYPT.open(device, volume, KEY)
        make_file_system(mapped)
        with mounted(mapped, tmp_path / "mount") as root:
            (root / NAME).write_bytes(TEXT * 10_000)
        closed(volume)
    return made


def closed(volume: VolumeId) -> None:
    """Its mapping is gone."""
    CRYPT.close(volume)
    wait_for(lambda: volume not in CRYPT.present(), what="the mapping to go")


def test_this_kernel_encrypts_all() -> None:
    """The whole trial succeeds where there is a device mapper with the cipher, and leaves no mapping."""
    encryption, why = choose_encryption()
    assert encryption is not None, why
    assert (encryption.name, why) == ("dm-crypt", "")

    def none_left() -> bool:
        """A node of another test may be trying at this moment."""
        with Nodes().control() as control:
            return not [name for name in control.names() if "trial" in name]

    wait_for(none_left, what="the mappings of trials to be gone")


def test_the_image_tells_nothing(image: Path, volume: VolumeId, tmp_path: Path) -> None:
    """No text, no name, not even that there is a file system; with the key it is all there."""
    content = content_of(image)
    assert TEXT not in content
    assert NAME.encode() not in content
    assert b"lost+found" not in content
    assert content[1024 + 0x38 : 1024 + 0x3A] != b"\x53\xef", "the magic number of ext4"
    assert KEY not in content
    with attached(image) as device:
        with mounted(CRYPT.open(device, volume, KEY), tmp_path / "mount") as root:
            assert (root / NAME).read_bytes() == TEXT * 10_000
        closed(volume)


@pytest.mark.parametrize(
    "key", [WRONG, KEY[:63] + bytes([KEY[63] ^ 1]), KEY[32:] + KEY[:32]], ids=["another", "one bit", "halves exchanged"]
)
def test_a_wrong_key_mounts_nothing(image: Path, volume: VolumeId, tmp_path: Path, key: bytes) -> None:
    """An error of the mount, no garbage; and the image is what it was."""
    before = content_of(image)
    with attached(image) as device:
        mapped = CRYPT.open(device, volume, key)
        with pytest.raises(OSError, match="mount") as refused, mounted(mapped, tmp_path / "mount"):
            pass
        assert refused.value.errno in {errno.EINVAL, errno.EUCLEAN}
        closed(volume)
    assert content_of(image) == before


def test_opening_again_finds_the_mapping(image: Path, volume: VolumeId, tmp_path: Path) -> None:
    """Mounted or not, and the device below is told."""
    with attached(image) as device:
        mapped = CRYPT.open(device, volume, KEY)
        assert CRYPT.open(device, volume, KEY) == mapped
        with mounted(mapped, tmp_path / "mount"):
            assert CRYPT.open(device, volume, KEY) == mapped
            number = Path(device).stat().st_rdev
            assert CRYPT.below(volume) == f"{os.major(number)}:{os.minor(number)}"
        closed(volume)
    assert CRYPT.below(volume) == ""


def test_what_a_job_still_has_goes_with_the_job(image: Path, volume: VolumeId, tmp_path: Path) -> None:
    """Closed under an open file: the file stays whole, a new opening takes the closing back, the last use ends it."""
    mount = tmp_path / "mount"
    with attached(image) as device:
        mapped = CRYPT.open(device, volume, KEY)
        with mounted(mapped, mount) as root:
            held = (root / NAME).open("rb")
        with held:
            CRYPT.close(volume)
            assert volume in CRYPT.present()
            assert held.read(len(TEXT)) == TEXT
            assert CRYPT.open(device, volume, KEY) == mapped
            with mounted(mapped, mount) as root:
                assert (root / NAME).read_bytes() == TEXT * 10_000
            CRYPT.close(volume)
        wait_for(lambda: volume not in CRYPT.present(), what="the mapping to go with the file")


def test_two_images_are_not_mixed_up(image: Path, volume: VolumeId, tmp_path: Path) -> None:
    """While the first is open the second is refused; an unused one makes room."""
    other = make_image(tmp_path / "other")
    with attached(image) as device, attached(other) as second:
        with mounted(CRYPT.open(device, volume, KEY), tmp_path / "mount"):
            with pytest.raises(JobletError, match="still mapped to another device") as refused:
                CRYPT.open(second, volume, KEY)
            assert refused.value.reason is Reason.UNAVAILABLE

        def opened() -> bool:
            """The kernel may let go of a mount a moment after its end."""
            try:
                return bool(CRYPT.open(second, volume, KEY))
            except JobletError:
                return False

        wait_for(opened, what="the old mapping to make room")
        number = Path(second).stat().st_rdev
        assert CRYPT.below(volume) == f"{os.major(number)}:{os.minor(number)}"
        closed(volume)


def test_an_interrupted_opening_is_made_anew(image: Path, volume: VolumeId, tmp_path: Path) -> None:
    """Killed between the mapping and its table."""
    with Nodes().control() as control:
        control.create(f"joblet-{volume}", f"JOBLET-CRYPT-{volume}")
    assert volume in CRYPT.present()
    with attached(image) as device:
        with mounted(CRYPT.open(device, volume, KEY), tmp_path / "mount") as root:
            assert (root / NAME).stat().st_size == len(TEXT) * 10_000
        closed(volume)


def test_a_mounted_volume_grows(image: Path, volume: VolumeId, tmp_path: Path) -> None:
    """Device, mapping, file system, in this order; what was there stays, and what is new is encrypted, too."""
    with attached(image) as device:
        mapped = CRYPT.open(device, volume, KEY)
        with mounted(mapped, tmp_path / "mount") as root:
            room = os.statvfs(root).f_blocks
            with image.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, 2 * IMAGE_BYTES)
            subprocess.run(["losetup", "--set-capacity", device], check=True)
            CRYPT.grow(volume, KEY)
            subprocess.run(["resize2fs", mapped], check=True, capture_output=True)
            assert os.statvfs(root).f_blocks > 1.8 * room
            assert (root / NAME).read_bytes() == TEXT * 10_000
            (root / "more").write_bytes(TEXT * (IMAGE_BYTES // len(TEXT)))
        closed(volume)
    content = content_of(image)
    assert len(content) == 2 * IMAGE_BYTES
    assert TEXT not in content


def test_without_nodes_of_the_kernel_ours_are_used(image: Path, volume: VolumeId, tmp_path: Path) -> None:
    """As in a container whose /dev knows no device mapper: made, mounted through, and gone with the mapping."""
    with tempfile.TemporaryDirectory(prefix="joblet-test-", dir="/dev") as directory:  # never mounted nodev
        bare = Path(directory)
        crypt = DmCrypt(Nodes(bare))
        with attached(image) as device:
            mapped = crypt.open(device, volume, KEY)
            assert mapped == str(bare / "joblet-volumes" / volume)
            with mounted(mapped, tmp_path / "mount") as root:
                assert (root / NAME).exists()
            crypt.close(volume)
            wait_for(lambda: volume not in CRYPT.present(), what="the mapping to go")
        assert not list(bare.iterdir())


def test_where_the_kernel_makes_nodes_none_are_ours(image: Path, volume: VolumeId) -> None:
    """The directory in /dev is not left either."""
    with attached(image) as device:
        mapped = CRYPT.open(device, volume, KEY)
        if not mapped.startswith("/dev/dm-"):
            assert mapped == f"/dev/joblet-volumes/{volume}"
        closed(volume)
    assert not Path("/dev/joblet-volumes", volume).exists()


def test_a_device_in_use_is_told(image: Path, volume: VolumeId, tmp_path: Path) -> None:
    """An image that is mounted as it is cannot be mapped at the same time; nothing is left of the attempt."""
    plain = make_image(tmp_path / "plain")
    with attached(plain) as device:
        make_file_system(device)
        with mounted(device, tmp_path / "mount"):
            with pytest.raises(JobletError, match="is in use already") as refused:
                CRYPT.open(device, volume, KEY)
            assert refused.value.retryable
            assert volume not in CRYPT.present()
    assert image.exists()
