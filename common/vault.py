"""What is sealed with the node's key: secret variables of jobs until their launch, and the keys of encrypted volumes.

Here: the key's file, and sealing. Not here: where sealed secrets lie, and when they go (`services/executor`,
`services/volumes`). ChaCha20-Poly1305, RFC 8439: a random nonce of 96 bits each time, and the id of the job or volume
as associated data, so that what is sealed for one opens for no other. Whoever reads the state directory as root has
the key, too; the seal is for copies of the databases and of volumes: backups, and pages not overwritten yet.
"""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from common.errors import JobletError, Reason, exhausted, precondition

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12


class Vault:
    """Seals and opens. The key is made with the first secret."""

    def __init__(self, key_file: Path) -> None:
        self._key_file = key_file
        self._key = b""

    def seal(self, whose: str, secrets: Mapping[str, str]) -> bytes:
        """What may be stored; empty when there is nothing to seal. Raises JobletError when there can be no key."""
        if not secrets:
            return b""
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305  # noqa: PLC0415  # 6 MB, rarely used

        nonce = os.urandom(NONCE_BYTES)
        return nonce + ChaCha20Poly1305(self._get_key()).encrypt(nonce, msgspec.json.encode(secrets), whose.encode())

    def unseal(self, whose: str, sealed: bytes) -> dict[str, str]:
        """What was sealed for `whose`. Raises JobletError(DATA_LOSS) when it was changed, or the key is another."""
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415  # see above
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305  # noqa: PLC0415

        nonce, content = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
        try:
            plain = ChaCha20Poly1305(self._get_key()).decrypt(nonce, content, whose.encode())
            return msgspec.json.decode(plain, type=dict[str, str])
        except (InvalidTag, ValueError) as cause:
            what = "what was sealed cannot be opened with the node's key"
            raise JobletError(Reason.DATA_LOSS, what, detail="was the node's key replaced?") from cause

    def _get_key(self) -> bytes:
        if not self._key:
            try:
                self._key = _read_key(self._key_file)
            except FileNotFoundError:
                self._key = _make_key(self._key_file)
        return self._key


def _read_key(path: Path) -> bytes:
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        key = file.read(KEY_BYTES + 1)
    if len(key) != KEY_BYTES:
        raise precondition(f"the node key {path} has not {KEY_BYTES} bytes", "remove it: waiting secrets are lost")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise precondition(f"the node key {path} has mode {mode:04o}: others can read it", f"chmod 600 {path}")
    return key


def _make_key(path: Path) -> bytes:
    """A new key, whole and durable before it has its name: nothing is ever sealed with half of one."""
    key = os.urandom(KEY_BYTES)
    unfinished = path.with_name(f"{path.name}.new")
    try:
        unfinished.unlink(missing_ok=True)
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as cause:
        raise exhausted(f"the node key cannot be written: {cause.strerror}", "free space for the state") from cause
    return key
