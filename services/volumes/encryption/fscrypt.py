"""fscrypt: ext4 encrypts the contents and the names of all files in the volume's data directory.

Here: the key and the policy of that directory. Not here: the calls (`linux/fscrypt.py`). For hosts without a device
mapper: sizes, times, owners, modes and the shape of the tree stay readable in the image.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from common.errors import JobletError, Reason, precondition
from common.identifiers import VolumeId
from services.volumes.linux import fscrypt

VISIBLE: Final = "contents and names of files are encrypted; their number, sizes, times, owners and modes are not"
REPAIR: Final = "use a kernel with CONFIG_FS_ENCRYPTION, and the modules xts and cts"

_OFFERED: Final = Path("/sys/fs/ext4/features/encryption")
_UNKNOWN_CIPHER: Final = frozenset({errno.ENOPKG, errno.ENOENT, errno.EINVAL})


def offered() -> bool:
    """Whether this kernel's ext4 has it, as it says itself: Documentation/filesystems/fscrypt.rst, "Kernel config"."""
    return _OFFERED.exists()


class Fscrypt:
    """See `choose.Encryption`. The keys are the mount's: they are gone with the last use of the file system."""

    name = "fscrypt"

    def features(self) -> tuple[str, ...]:
        """That of mkfs.ext4 -O."""
        return ("encrypt",)

    def open(self, device: str, volume: VolumeId, key: bytes) -> str:  # noqa: ARG002  # the same for all
        """The device itself: the file system encrypts, not what is below it."""
        return device

    def unlock(self, directory: str, volume: VolumeId, key: bytes, *, fresh: bool) -> None:
        """Give the key to the mounted file system; a fresh directory is encrypted from here on.

        DATA_LOSS: the directory is not encrypted, or not with this key.
        """
        with _opened(directory) as descriptor:
            identifier = _add(descriptor, key)
            if not (fresh and _encrypt(descriptor, identifier)):
                _check(descriptor, identifier, volume)

    def grow(self, volume: VolumeId, key: bytes) -> None:
        """Nothing: the file system itself is made larger."""

    def close(self, volume: VolumeId) -> None:
        """Nothing: no mount, no key."""

    def present(self) -> frozenset[VolumeId]:
        """No mappings."""
        return frozenset()

    def below(self, volume: VolumeId) -> str:  # noqa: ARG002  # there are none
        """Nothing: no mappings."""
        return ""


@contextmanager
def _opened(directory: str) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _add(descriptor: int, key: bytes) -> bytes:
    try:
        return fscrypt.add_key(descriptor, key)
    except OSError as cause:
        if cause.errno in {errno.EOPNOTSUPP, errno.ENOTTY}:
            raise precondition("the volume's file system cannot encrypt", REPAIR) from cause
        raise


def _encrypt(descriptor: int, identifier: bytes) -> bool:
    """Whether it is encrypted with this key now; False: it has content, or another policy.

    A file is created for it: only then the kernel looks for the ciphers, which may be modules that are not there.
    """
    try:
        fscrypt.set_policy(descriptor, fscrypt.aes_256(identifier))
    except OSError as cause:
        if cause.errno in {errno.EEXIST, errno.ENOTEMPTY}:
            return False
        raise
    # Without a name: who is killed in between leaves nothing that the directory would be taken for somebody's by.
    flags = os.O_WRONLY | os.O_TMPFILE | os.O_EXCL | os.O_CLOEXEC
    try:
        os.close(os.open(".", flags, 0o600, dir_fd=descriptor))
    except OSError as cause:
        if cause.errno in _UNKNOWN_CIPHER:
            raise precondition("this kernel has not got AES-256 in XTS and CTS mode", REPAIR) from cause
        raise
    return True


def _check(descriptor: int, identifier: bytes, volume: VolumeId) -> None:
    policy = fscrypt.get_policy(descriptor)
    if policy is None:
        raise _lost(f"volume {volume} is recorded as encrypted, and its content is not")
    if policy.identifier != identifier:
        with suppress(OSError):  # it would go with the mount, too; the right one must never be removed: jobs may use it
            fscrypt.remove_key(descriptor, identifier)
    if policy != fscrypt.aes_256(identifier):
        raise _lost(f"the key of volume {volume} is not the one that its content was encrypted with")


def _lost(what: str) -> JobletError:
    return JobletError(Reason.DATA_LOSS, what, detail="was its image replaced? put the right one back")
