"""The records of volumes in SQLite: `{base}/state/volumes.db`.

Synchronous: called in a thread, one call at a time (`records.py`). What a method changes survives a power cut when it
returns. Every row has a checksum over its columns, because SQLite itself has none: one that does not match is reported
and kept out, and nothing is done to the volume that it was about.
"""

import contextlib
import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import msgspec
import structlog

from common.database import Schema, open_database
from common.identifiers import VolumeId
from common.messages.volumes import SnapshotRecord
from services.volumes.events import Volume
from services.volumes.ports import Ids

log = structlog.get_logger(__name__)

SCHEMA_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE volumes (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    data BLOB NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX volumes_by_name ON volumes (owner, name);
CREATE TABLE keys (id TEXT PRIMARY KEY, sealed BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE snapshots (
    id TEXT PRIMARY KEY,
    volume TEXT NOT NULL,
    name TEXT NOT NULL,
    data BLOB NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX snapshots_by_name ON snapshots (volume, name);
CREATE TABLE owners (owner TEXT PRIMARY KEY, uid INTEGER NOT NULL, gid INTEGER NOT NULL) WITHOUT ROWID;
"""
FILE: Final = Schema(
    version=SCHEMA_VERSION,
    application_id=0x4A4C564F,  # "JLVO"
    script=_SCHEMA,
    probed=("volumes", "keys", "snapshots", "owners"),
    salvaged=("volumes", "keys", "snapshots", "owners"),
    counted="volumes",
    synchronous="FULL",
)
_DELETES: Final = (
    "DELETE FROM volumes WHERE id=?",
    "DELETE FROM keys WHERE id=?",
    "DELETE FROM snapshots WHERE volume=?",
)
_ENCODER: Final = msgspec.msgpack.Encoder()
_VOLUMES: Final = msgspec.msgpack.Decoder(Volume)
_SNAPSHOTS: Final = msgspec.msgpack.Decoder(SnapshotRecord)
_CHECKSUM_BYTES: Final = 4

Decoded = TypeVar("Decoded")


class Stored(NamedTuple):
    """Everything that is known. `damaged`: volumes whose row, or that of a snapshot of theirs, cannot be believed."""

    volumes: tuple[Volume, ...]
    snapshots: tuple[SnapshotRecord, ...]
    owners: dict[str, Ids]
    damaged: frozenset[VolumeId]


class VolumeStore:
    """The database. One instance a node; close it."""

    def __init__(self, path: Path, *, now_ns: int) -> None:
        self.connection, self.salvaged = open_database(path, FILE, now_ns=now_ns)
        # A flipped bit can make text of what is none: its checksum shall tell, not an error that hides all other rows.
        self.connection.text_factory = lambda raw: raw.decode(errors="surrogateescape")

    def load(self) -> Stored:
        """All of it."""
        damaged: set[VolumeId] = set()
        volumes = [
            _decoded(_VOLUMES, keys, data, damaged, VolumeId(keys[0]))
            for *keys, data in self.connection.execute("SELECT id, owner, name, data FROM volumes")
        ]
        snapshots = [
            _decoded(_SNAPSHOTS, keys, data, damaged, VolumeId(keys[1]))
            for *keys, data in self.connection.execute("SELECT id, volume, name, data FROM snapshots")
        ]
        owners = self.connection.execute("SELECT owner, uid, gid FROM owners")
        return Stored(
            volumes=tuple(volume for volume in volumes if volume is not None),
            snapshots=tuple(snapshot for snapshot in snapshots if snapshot is not None),
            owners={owner: Ids(uid, gid) for owner, uid, gid in owners},
            damaged=frozenset(damaged),
        )

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes in the block, or none of them."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # a full disk has rolled it back already
                self.connection.execute("ROLLBACK")
            raise

    def insert(self, volume: Volume, sealed: bytes) -> None:
        """Add a volume with its sealed key (empty: it has none). Raises sqlite3.IntegrityError for a known name."""
        record = volume.record
        self.connection.execute(
            "INSERT INTO volumes (id, owner, name, data) VALUES (?,?,?,?)",
            (record.id, record.owner, record.name, _packed([record.id, record.owner, record.name], volume)),
        )
        if sealed:
            self.connection.execute("INSERT INTO keys (id, sealed) VALUES (?,?)", (record.id, sealed))

    def update(self, volume: Volume) -> None:
        """Replace what is stored of a volume."""
        record = volume.record
        data = _packed([record.id, record.owner, record.name], volume)
        self.connection.execute("UPDATE volumes SET data=? WHERE id=?", (data, record.id))

    def forget(self, volume: VolumeId) -> None:
        """Remove a volume with its key and its snapshots."""
        for statement in _DELETES:
            self.connection.execute(statement, (volume,))

    def sealed(self, volume: VolumeId) -> bytes:
        """The volume's sealed key; empty: it has none."""
        row = self.connection.execute("SELECT sealed FROM keys WHERE id=?", (volume,)).fetchone()
        return b"" if row is None else bytes(row[0])

    def insert_snapshot(self, snapshot: SnapshotRecord) -> None:
        """Add a snapshot. Raises sqlite3.IntegrityError for a known name."""
        keys = [snapshot.id, snapshot.volume, snapshot.name]
        self.connection.execute(
            "INSERT INTO snapshots (id, volume, name, data) VALUES (?,?,?,?)", (*keys, _packed(keys, snapshot))
        )

    def remove_snapshot(self, snapshot: str) -> None:
        """Remove a snapshot."""
        self.connection.execute("DELETE FROM snapshots WHERE id=?", (snapshot,))

    def remember(self, owner: str, ids: Ids) -> None:
        """Whose files the owner's are on the host."""
        self.connection.execute("INSERT OR REPLACE INTO owners (owner, uid, gid) VALUES (?,?,?)", (owner, *ids))

    def close(self) -> None:
        """Close the database; it needs no recovery afterwards."""
        self.connection.close()


def _packed(keys: list[str], value: object) -> bytes:
    data = _ENCODER.encode(value)
    return _checksum(keys, data) + data


def _checksum(keys: list[str], data: bytes) -> bytes:
    return zlib.crc32(data, zlib.crc32("\0".join(keys).encode(errors="surrogateescape"))).to_bytes(
        _CHECKSUM_BYTES, "little"
    )


def _decoded(
    decoder: msgspec.msgpack.Decoder[Decoded], keys: list[str], data: bytes, damaged: set[VolumeId], volume: VolumeId
) -> Decoded | None:
    try:
        if _checksum(keys, data[_CHECKSUM_BYTES:]) != data[:_CHECKSUM_BYTES]:
            raise ValueError("checksum does not match")
        return decoder.decode(data[_CHECKSUM_BYTES:])
    except (msgspec.MsgspecError, ValueError, TypeError) as problem:
        damaged.add(volume)
        log.error(
            "a record is damaged: what it is about is not touched", volume=volume, row=keys[0], problem=str(problem)
        )
        return None
