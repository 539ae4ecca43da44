"""Opens a SQLite file of a service: schema, versions, and what happens to a file that cannot be used.

Here: which file is opened and in which shape it is. Not here: what is stored in it, which a service's own `Schema`
tells. SQLite's file format (https://www.sqlite.org/fileformat2.html) has our version at byte 60 of its header.
"""

import os
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Literal

import msgspec
import structlog

from common.errors import precondition

log = structlog.get_logger(__name__)

QUICK_CHECK_BYTES: Final = 256 * 2**20
"""Files up to this size are checked whole at start; larger ones row by row as they are read (each has a checksum)."""

_HEADER_BYTES: Final = 100
_MAGIC: Final = b"SQLite format 3\0"


class Schema(msgspec.Struct, frozen=True, kw_only=True):
    """What one service's file is like."""

    version: int
    application_id: int
    script: str  # makes all tables of `version`
    migrations: Mapping[int, Callable[[sqlite3.Connection], object]] = {}
    """From each older version to the next one. Version 1 is the first."""
    probed: tuple[str, ...]  # tables of every version: a file in which these cannot be read is damaged
    salvaged: tuple[str, ...]  # what is taken over from a damaged file, in this order
    counted: str  # the one of them whose rows are told
    synchronous: Literal["NORMAL", "FULL"]


def open_database(path: Path, schema: Schema, *, now_ns: int) -> tuple[sqlite3.Connection, bool]:
    """The database at `path`, made or migrated as needed, in WAL mode, autocommit. True: it is what was salvaged.

    Raises `JobletError(PRECONDITION)` for a schema newer than this program, and leaves the file as it is. A damaged
    file is set aside as `<name>.damaged-<now_ns>`, kept, reported loudly, and what is whole in it is taken over.
    """
    version = _version_of(path)
    if version is not None and version > schema.version:
        raise precondition(
            f"{path} has schema version {version}, this program knows versions up to {schema.version}",
            "start the newer release that wrote it; the file was not touched",
        )
    damaged = None
    if version is not None and (problem := _problem_in(path, schema)):
        damaged = _set_aside(path, now_ns)
        log.error("a database is damaged and was set aside", file=str(damaged), problem=problem)
    if version is None and path.exists():
        log.error("a database is empty: what it had is not known", file=str(path))
    connection = _connect(path, schema)
    _prepare(connection, path, schema)
    if damaged is not None:
        taken = _salvage(connection, damaged, schema)
        log.error("taken over from a damaged database", file=str(damaged), **{schema.counted: taken})
    return connection, damaged is not None


def _version_of(path: Path) -> int | None:
    """The schema version in the file's header, without opening it as a database. None: there is no content."""
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
    except FileNotFoundError:
        return None
    if not header:
        return None
    return int.from_bytes(header[60:64], "big") if header.startswith(_MAGIC) and len(header) == _HEADER_BYTES else 0


def _connect(path: Path, schema: Schema) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    # A service may write in a thread of its own; it is always one thread at a time.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(f"PRAGMA synchronous={schema.synchronous}")
    connection.execute("PRAGMA cache_size=-16384")
    connection.execute("PRAGMA secure_delete=FAST")  # what was sealed is overwritten in the page it was in
    return connection


def _prepare(connection: sqlite3.Connection, path: Path, schema: Schema) -> None:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == 0:
        connection.executescript(
            f"BEGIN IMMEDIATE;{schema.script}"
            f"PRAGMA application_id={schema.application_id};PRAGMA user_version={schema.version};COMMIT;"
        )
    while 0 < version < schema.version:
        connection.execute("BEGIN IMMEDIATE")
        schema.migrations[version](connection)
        version += 1
        connection.execute(f"PRAGMA user_version={version}")
        connection.execute("COMMIT")
        log.info("database migrated", file=str(path), version=version)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # so that the header of the file itself tells its version


def _problem_in(path: Path, schema: Schema) -> str:
    """What is wrong with the database; empty: nothing that was looked for."""
    try:
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            if path.stat().st_size <= QUICK_CHECK_BYTES:
                result: str = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
                if result != "ok":
                    return result
            for table in schema.probed:
                connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone()  # noqa: S608  # a name of our schema
        finally:
            connection.close()
    except sqlite3.DatabaseError as cause:
        return str(cause)
    return ""


def _set_aside(path: Path, now_ns: int) -> Path:
    damaged = path.with_name(f"{path.name}.damaged-{now_ns}")
    for suffix in ("-wal", "-shm", ""):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(damaged.with_name(damaged.name + suffix))
    return damaged


def _salvage(connection: sqlite3.Connection, damaged: Path, schema: Schema) -> int:
    """Copy the rows that can still be read; rows have checksums, which are looked at when they are used."""
    copied = 0
    source = sqlite3.connect(f"{damaged.as_uri()}?mode=ro", uri=True, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        for table in schema.salvaged:
            rows = _copy_table(source, connection, table)
            copied += rows if table == schema.counted else 0
        connection.execute("COMMIT")
    finally:
        source.close()
    return copied


def _copy_table(source: sqlite3.Connection, target: sqlite3.Connection, table: str) -> int:
    """How many rows were copied."""
    copied = 0
    try:
        for row in source.execute(f"SELECT * FROM {table} NOT INDEXED"):  # noqa: S608  # a name of our schema
            marks = ",".join("?" * len(row))
            target.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", row)  # noqa: S608  # as above
            copied += 1
    except sqlite3.DatabaseError as cause:
        log.error("part of a damaged database cannot be read", table=table, problem=str(cause))
    return copied
