"""Encryption of directories by their file system. Header: linux/fscrypt.h; Documentation/filesystems/fscrypt.rst.

Here: the ioctl(2) calls that version 2 policies need. Not here: which policy, and what a wrong key means
(`encryption/fscrypt.py`). Descriptors are of a directory, or of anything on its file system where that says so.
"""

import errno
import fcntl
import struct
from typing import Final, NamedTuple

from common.linux.libc import failed
from services.volumes.linux.wiping import wipe

IDENTIFIER_BYTES: Final = 16
AES_256_XTS: Final = 1
AES_256_CTS: Final = 4
PAD_32: Final = 0x03
KEY_BYTES_MAX: Final = 64

_POLICY_V2: Final = 2
_IDENTIFIER: Final = 2  # FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER

_SPECIFIER: Final = struct.Struct("=II16s16x")
_ADD: Final = struct.Struct("=II16s16xII32x")  # struct fscrypt_add_key_arg, without the key
_REMOVE: Final = struct.Struct("=II16s16xI20x")
_POLICY: Final = struct.Struct("=BBBB4x16s")  # struct fscrypt_policy_v2
_POLICY_EX: Final = struct.Struct(f"=Q{_POLICY.size}s")
assert (_SPECIFIER.size, _ADD.size, _REMOVE.size, _POLICY.size) == (40, 80, 64, 24)

_ROOM_BYTES: Final = 2048
"""Of a buffer with a key: Python copies what has up to 1024 bytes through a buffer that nobody wipes."""


def _command(direction: int, number: int, size: int) -> int:
    """_IOC(direction, 'f', number, size). 2: read, 3: both."""
    return direction << 30 | size << 16 | ord("f") << 8 | number


_SET_POLICY: Final = _command(2, 19, 12)  # the size of version 1, whatever is given
_GET_POLICY_EX: Final = _command(3, 22, 9)
_ADD_KEY: Final = _command(3, 23, _ADD.size)
_REMOVE_KEY: Final = _command(3, 24, _REMOVE.size)


class Policy(NamedTuple):
    """How a directory is encrypted."""

    version: int
    contents: int
    names: int
    flags: int
    identifier: bytes  # of the master key


def add_key(descriptor: int, key: bytes) -> bytes:
    """Give a key to the file system; its identifier, which is a hash of it. It may be there already.

    OSError EOPNOTSUPP: the file system cannot, or was made without the feature.
    """
    buffer = bytearray(_ROOM_BYTES)
    try:
        _ADD.pack_into(buffer, 0, _IDENTIFIER, 0, b"", len(key), 0)
        buffer[_ADD.size : _ADD.size + len(key)] = key
        _do("FS_IOC_ADD_ENCRYPTION_KEY", descriptor, _ADD_KEY, buffer)
        return bytes(buffer[8 : 8 + IDENTIFIER_BYTES])
    finally:
        wipe(buffer)


def remove_key(descriptor: int, identifier: bytes) -> None:
    """Take a key away from the file system; files that are open stay readable. Nothing when it is not there."""
    try:
        _do("FS_IOC_REMOVE_ENCRYPTION_KEY", descriptor, _REMOVE_KEY, bytearray(_REMOVE.pack(2, 0, identifier, 0)))
    except OSError as cause:
        if cause.errno != errno.ENOKEY:
            raise


def set_policy(descriptor: int, policy: Policy) -> None:
    """Encrypt an empty directory from now on. EEXIST: it has another policy; ENOTEMPTY; ENOKEY: no such key."""
    content = (policy.version, policy.contents, policy.names, policy.flags, policy.identifier)
    _do("FS_IOC_SET_ENCRYPTION_POLICY", descriptor, _SET_POLICY, bytearray(_POLICY.pack(*content)))


def get_policy(descriptor: int) -> Policy | None:
    """That of a directory; None: it is not encrypted. OSError EINVAL: it has one of another version."""
    buffer = bytearray(_POLICY_EX.pack(_POLICY.size, b""))
    try:
        _do("FS_IOC_GET_ENCRYPTION_POLICY_EX", descriptor, _GET_POLICY_EX, buffer)
    except OSError as cause:
        if cause.errno == errno.ENODATA:
            return None
        raise
    return Policy(*_POLICY.unpack_from(buffer, 8))


def aes_256(identifier: bytes) -> Policy:
    """Contents by AES-256-XTS, names by AES-256-CBC-CTS, padded to 32 bytes: what every kernel with fscrypt has."""
    return Policy(_POLICY_V2, AES_256_XTS, AES_256_CTS, PAD_32, identifier)


def _do(call: str, descriptor: int, request: int, buffer: bytearray) -> None:
    try:
        fcntl.ioctl(descriptor, request, buffer)
    except OSError as cause:
        raise failed(call, cause.errno or 0) from cause
