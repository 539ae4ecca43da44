"""fscrypt on real images: what whoever has the image alone can read, and what a wrong key does."""

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from common.errors import JobletError, Reason
from common.identifiers import new_volume_id
from services.volumes.encryption.fscrypt import Fscrypt, offered
from services.volumes.linux import fscrypt
from tests.linux.volumes_images import NAME, TEXT, attached, content_of, make_file_system, make_image, mounted

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not offered(), reason="needs fscrypt: ext4 of this kernel cannot encrypt"),
    pytest.mark.requirement("S1.39"),
    pytest.mark.requirement("S1.46"),
]

VOLUME = new_volume_id()
KEY, WRONG = os.urandom(64), os.urandom(64)
CRYPT = Fscrypt()
FS_IOC_GET_ENCRYPTION_KEY_STATUS = 0xC080661A
FSCRYPT_KEY_STATUS_PRESENT = 2
Result = TypeVar("Result")


@contextmanager
def volume(image: Path, *, key: bytes | None = KEY) -> Iterator[Path]:
    """The data directory of an image as the service mounts it; without a key it stays locked."""
    with attached(image) as device, mounted(CRYPT.open(device, VOLUME, KEY), image.with_name("mount")) as root:
        if key is not None:
            CRYPT.unlock(str(root / "data"), VOLUME, key, fresh=False)
        yield root / "data"


def has_key(data: Path, key: bytes, directory: Path) -> bool:
    """Whether the mounted file system has it. The identifier is asked of another file system, which never had it.

    That one is mounted in `directory`, pytest's own: other tests, which look at the host's mounts, know those.
    """
    elsewhere = make_image(directory / "elsewhere")
    with attached(elsewhere) as device:
        make_file_system(device, CRYPT.features())
        with mounted(device, directory / "mount-elsewhere") as root:
            identifier = on(root, lambda descriptor: fscrypt.add_key(descriptor, key))
    status = bytearray(struct.pack("=II16s104x", 2, 0, identifier))
    on(data, lambda descriptor: fcntl.ioctl(descriptor, FS_IOC_GET_ENCRYPTION_KEY_STATUS, status))
    return bool(struct.unpack_from("=I", status, 64)[0] == FSCRYPT_KEY_STATUS_PRESENT)


def on(path: Path, action: Callable[[int], Result]) -> Result:
    """What it answers for a descriptor of `path`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return action(descriptor)
    finally:
        os.close(descriptor)


def test_the_trial_of_the_ciphers_has_no_name(tmp_path: Path) -> None:
    """Who is killed in it would leave that name, and a directory that is not empty is never given to the owner."""
    with attached(make_image(tmp_path / "image")) as device:
        make_file_system(device, CRYPT.features())
        with mounted(device, tmp_path / "mount") as root:
            data = root / "data"
            data.mkdir()
            os.utime(data, (1, 1))
            CRYPT.unlock(str(data), VOLUME, KEY, fresh=True)
            assert data.stat().st_mtime == 1


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A volume with a file, a directory and a link, which all tell something; not mounted."""
    made = make_image(tmp_path / "image")
    with attached(made) as device:
        make_file_system(device, CRYPT.features())
        with mounted(device, tmp_path / "mount") as root:
            data = root / "data"
            data.mkdir()
            CRYPT.unlock(str(data), VOLUME, KEY, fresh=True)
            assert not list(data.iterdir())
            (data / NAME).write_bytes(TEXT * 10_000)
            (data / f"{NAME}-folder").mkdir()
            (data / "link").symlink_to(TEXT.decode())
    return made


def test_the_image_tells_no_content_and_no_name(image: Path) -> None:
    """Neither of files nor of links; the same image opens again with the key."""
    content = content_of(image)
    assert b"lost+found" in content, "the image is read as it is"
    assert TEXT not in content
    assert NAME.encode() not in content
    assert KEY not in content
    with volume(image) as data:
        assert (data / NAME).read_bytes() == TEXT * 10_000
        assert (data / f"{NAME}-folder").is_dir()
        assert os.readlink(data / "link") == TEXT.decode()  # noqa: PTH115  # a Path would change what it is


def test_without_encryption_the_image_tells_all(tmp_path: Path) -> None:
    """So that the test above can fail."""
    made = make_image(tmp_path / "image")
    with attached(made) as device:
        make_file_system(device)
        with mounted(device, tmp_path / "mount") as root:
            (root / NAME).write_bytes(TEXT)
    assert TEXT in content_of(made)
    assert NAME.encode() in content_of(made)


def test_without_the_key_nothing_is_readable(image: Path) -> None:
    """Root mounts the image and finds other names, and no file opens; nothing can be put there either."""
    with volume(image, key=None) as data:
        names = sorted(each.name for each in data.iterdir())
        assert len(names) == 3
        assert not [each for each in names if NAME in each]
        for path in (data / names[0], data / NAME):
            with pytest.raises(OSError, match=r"Required key not available|No such file|Is a directory") as refused:
                path.read_bytes()
            assert refused.value.errno in {errno.ENOKEY, errno.ENOENT, errno.EISDIR}
        with pytest.raises(OSError, match="Required key not available"):
            (data / "new").write_bytes(b"")


def test_a_wrong_key_is_a_loss_of_data_not_garbage(image: Path) -> None:
    """It is refused by the identifier in the policy; afterwards it is not with the file system, and nothing changed."""
    before = content_of(image)
    with volume(image, key=None) as data:
        with pytest.raises(JobletError, match=f"the key of volume {VOLUME} is not the one") as refused:
            CRYPT.unlock(str(data), VOLUME, WRONG, fresh=False)
        assert refused.value.reason is Reason.DATA_LOSS
        assert not has_key(data, WRONG, image.parent)
        assert not [each for each in data.iterdir() if NAME in each.name]
        with pytest.raises(JobletError):
            CRYPT.unlock(str(data), VOLUME, KEY[:63] + bytes([KEY[63] ^ 1]), fresh=False)
        CRYPT.unlock(str(data), VOLUME, KEY, fresh=False)
        assert has_key(data, KEY, image.parent)
        assert (data / NAME).read_bytes() == TEXT * 10_000
    assert len(content_of(image)) == len(before)


def test_the_key_goes_with_the_mount(image: Path) -> None:
    """Unlocked, unmounted, mounted again: it must be given again."""
    with volume(image) as data:
        assert (data / NAME).exists()
    with volume(image, key=None) as data:
        assert not (data / NAME).exists()


def test_unlocking_twice_is_unlocking_once(image: Path) -> None:
    """Also as if it was fresh, when the service was killed after the first time."""
    with volume(image) as data:
        CRYPT.unlock(str(data), VOLUME, KEY, fresh=False)
        CRYPT.unlock(str(data), VOLUME, KEY, fresh=True)
        assert (data / NAME).read_bytes() == TEXT * 10_000


def test_a_directory_in_the_clear_is_not_taken_for_encrypted(tmp_path: Path) -> None:
    """Nor is one with another policy made fresh, or one with content: a swapped image is told, never filled."""
    made = make_image(tmp_path / "image")
    with attached(made) as device:
        make_file_system(device, CRYPT.features())
        with mounted(device, tmp_path / "mount") as root:
            (root / "data").mkdir()
            with pytest.raises(JobletError, match="recorded as encrypted, and its content is not") as refused:
                CRYPT.unlock(str(root / "data"), VOLUME, KEY, fresh=False)
            assert refused.value.reason is Reason.DATA_LOSS
            (root / "data" / "content").write_bytes(b"")
            with pytest.raises(JobletError, match="recorded as encrypted, and its content is not"):
                CRYPT.unlock(str(root / "data"), VOLUME, KEY, fresh=True)
            (root / "other").mkdir()
            CRYPT.unlock(str(root / "other"), VOLUME, WRONG, fresh=True)
            with pytest.raises(JobletError, match="is not the one that its content was encrypted with"):
                CRYPT.unlock(str(root / "other"), VOLUME, KEY, fresh=True)
            (root / "link").symlink_to("other")
            with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
                CRYPT.unlock(str(root / "link"), VOLUME, WRONG, fresh=False)


def test_a_file_system_that_cannot_is_told(tmp_path: Path) -> None:
    """Made without the feature: the repair, not a number."""
    made = make_image(tmp_path / "image")
    with attached(made) as device:
        make_file_system(device)
        with mounted(device, tmp_path / "mount") as root:
            (root / "data").mkdir()
            with pytest.raises(JobletError, match="cannot encrypt: use a kernel with CONFIG_FS_ENCRYPTION") as refused:
                CRYPT.unlock(str(root / "data"), VOLUME, KEY, fresh=True)
            assert refused.value.reason is Reason.PRECONDITION


def test_what_jobs_make_is_encrypted_like_the_rest(image: Path) -> None:
    """By another user, below a directory of theirs; and they cannot take the key away from the others."""
    with volume(image) as data:
        os.chown(data, 100_000, 100_000)
        pid = os.fork()
        if pid == 0:
            try:
                os.chdir(data)
                os.setgroups([])
                os.setresgid(100_000, 100_000, 100_000)
                os.setresuid(100_000, 100_000, 100_000)
                Path("mine").mkdir()
                Path("mine", NAME).write_bytes(TEXT)
                descriptor = os.open(".", os.O_RDONLY)
                policy = fscrypt.get_policy(descriptor)
                assert policy is not None
                assert policy == fscrypt.aes_256(policy.identifier)
                fscrypt.remove_key(descriptor, policy.identifier)
            except BaseException:  # noqa: BLE001  # the child's entry: the parent tells
                os._exit(1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert (data / "mine" / NAME).read_bytes() == TEXT
        (data / "after").write_bytes(TEXT)
    assert TEXT not in content_of(image)
