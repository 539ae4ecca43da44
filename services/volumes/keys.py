"""The keys of encrypted volumes: made, sealed with the node's key file, opened.

Here: what may be stored of a key. Not here: where it is stored (the record's row), what it opens (`encryption/`). A key
is 64 random bytes, which nobody types: there is nothing to derive, and no passphrase. It is sealed for its volume's id
(`common/vault.py`), so that a row that is copied to another volume opens nothing.

Opening never makes a key file: in the place of a lost one it would look right, and stand in the way of the backup.
"""

import os
from pathlib import Path
from typing import Final

from common.errors import JobletError, Reason
from common.identifiers import VolumeId
from common.vault import Vault

KEY_BYTES: Final = 64
_FIELD: Final = "key"
_PUT_BACK: Final = "put the node's key file back from your backup: without it encrypted volumes cannot be opened"


class Keys:
    """With the key file at `key_file`, which is made with the first key."""

    def __init__(self, key_file: Path) -> None:
        self._key_file = key_file
        self._vault = Vault(key_file)

    def __repr__(self) -> str:
        """Where they are sealed, and nothing of them."""
        return f"Keys({str(self._key_file)!r})"

    def new(self, volume: VolumeId, *, others: bool = False) -> tuple[bytes, bytes]:
        """A key for `volume`, and the same sealed, which may be stored.

        `others`: there are sealed keys already. Then a missing key file is DATA_LOSS, and none is made.
        """
        if others:
            self._must_exist()
        key = os.urandom(KEY_BYTES)
        return key, self._seal(volume, key)

    def open(self, volume: VolumeId, sealed: bytes) -> bytes:
        """The key that was sealed for `volume`. Raises JobletError(DATA_LOSS) when it does not open."""
        self._must_exist()
        try:
            key = bytes.fromhex(self._vault.unseal(volume, sealed)[_FIELD])
        except JobletError as cause:
            if cause.reason is not Reason.DATA_LOSS:
                raise _unusable(cause) from cause
            raise _closed(volume, self._key_file) from cause
        except (KeyError, ValueError) as cause:
            raise _closed(volume, self._key_file) from cause
        if len(key) != KEY_BYTES:
            raise _closed(volume, self._key_file)
        return key

    def transfer(self, sealed: bytes, source: VolumeId, target: VolumeId) -> bytes:
        """The key of `source`, sealed for `target`: its clone has the same content, and so the same key."""
        return self._seal(target, self.open(source, sealed))

    def _must_exist(self) -> None:
        if not self._key_file.exists():
            raise JobletError(Reason.DATA_LOSS, f"the node's key file {self._key_file} is missing", detail=_PUT_BACK)

    def _seal(self, volume: VolumeId, key: bytes) -> bytes:
        try:
            return self._vault.seal(volume, {_FIELD: key.hex()})
        except JobletError as cause:
            raise (_unusable(cause) if cause.reason is Reason.PRECONDITION else cause) from cause


def _unusable(cause: JobletError) -> JobletError:
    """The vault's advice for a damaged key file, to remove it, would be the end of every encrypted volume."""
    if cause.detail.startswith("chmod"):
        return cause
    return JobletError(cause.reason, cause.message, detail=_PUT_BACK)


def _closed(volume: VolumeId, key_file: Path) -> JobletError:
    what = f"the key of volume {volume} cannot be opened with the node's key {key_file}"
    return JobletError(Reason.DATA_LOSS, what, detail=f"it is damaged, or was sealed with another; {_PUT_BACK}")
