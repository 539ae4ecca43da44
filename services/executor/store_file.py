"""Opens the executor's SQLite file: schema, versions, and what happens to a file that cannot be used.

Here: which file is opened and in which shape it is. Not here: what is stored in it (`job_store.py`).
SQLite's file format (https://www.sqlite.org/fileformat2.html) has our version at byte 60 of its header.
"""

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from common.errors import precondition

log = structlog.get_logger(__name__)

SCHEMA_VERSION: Final = 2
APPLICATION_ID: Final = 0x4A4C4558  # "JLEX"
QUICK_CHECK_BYTES: Final = 256 * 2**20
"""Files up to this size are checked whole at start; larger ones row by row as they are read (each has a checksum)."""

_HEADER_BYTES: Final = 100
_MAGIC: Final = b"SQLite format 3\0"

_SECRETS: Final = "CREATE TABLE secrets (id TEXT PRIMARY KEY, sealed BLOB NOT NULL) WITHOUT ROWID"
_SCHEMA: Final = f"""
CREATE TABLE jobs (
    row INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    created_at_ns INTEGER NOT NULL,
    owner TEXT NOT NULL,
    state TEXT NOT NULL,
    key TEXT,
    data BLOB NOT NULL
);
CREATE INDEX jobs_by_time ON jobs (created_at_ns, id);
CREATE INDEX jobs_by_owner ON jobs (owner, created_at_ns, id);
CREATE INDEX jobs_by_state ON jobs (state, created_at_ns, id);
CREATE INDEX jobs_by_owner_state ON jobs (owner, state, created_at_ns, id);
CREATE UNIQUE INDEX jobs_by_key ON jobs (owner, key) WHERE key IS NOT NULL;
CREATE TABLE labels (
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    created_at_ns INTEGER NOT NULL,
    id TEXT NOT NULL,
    owner TEXT NOT NULL,
    PRIMARY KEY (name, value, created_at_ns, id)
) WITHOUT ROWID;
CREATE INDEX labels_by_owner ON labels (owner, name, value, created_at_ns, id);
CREATE INDEX labels_by_id ON labels (id);
CREATE TABLE cursors (
    id TEXT PRIMARY KEY,
    epoch INTEGER NOT NULL,
    acknowledged_offset INTEGER NOT NULL,
    acknowledged_sequence INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE owners (
    number INTEGER PRIMARY KEY,
    owner TEXT NOT NULL UNIQUE
);
{_SECRETS};
"""
# A cursor's row stands for "not yet wholly with persist": it goes when persist has the end of the job.

MIGRATIONS: Final[dict[int, Callable[[sqlite3.Connection], object]]] = {
    1: lambda connection: connection.execute(_SECRETS),
}
"""From each older version to the next one. Version 1 is the first."""


def open_store(path: Path, *, now_ns: int) -> tuple[sqlite3.Connection, bool]:
    """The database at `path`, made or migrated as needed, in WAL mode, autocommit. True: it is what was salvaged.

    Raises `JobletError(PRECONDITION)` for a schema newer than this program, and leaves the file as it is. A damaged
    file is set aside as `<name>.damaged-<now_ns>`, kept, reported loudly, and what is whole in it is taken over.
    """
    version = _version_of(path)
    if version is not None and version > SCHEMA_VERSION:
        raise precondition(
            f"{path} has schema version {version}, this program knows versions up to {SCHEMA_VERSION}",
            "start the newer release that wrote it; the file was not touched",
        )
    damaged = None
    if version is not None and (problem := _problem_in(path)):
        damaged = _set_aside(path, now_ns)
        log.error("the job database is damaged and was set aside", file=str(damaged), problem=problem)
    if version is None and path.exists():
        log.error("the job database is empty: what jobs it had is not known", file=str(path))
    connection = _connect(path)
    _prepare(connection, path)
    if damaged is not None:
        log.error("jobs taken over from the damaged database", jobs=_salvage(connection, damaged), file=str(damaged))
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


def _connect(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA cache_size=-16384")
    connection.execute("PRAGMA secure_delete=FAST")  # sealed secrets are overwritten in the page they were in
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == 0:
        connection.executescript(
            f"BEGIN IMMEDIATE;{_SCHEMA}"
            f"PRAGMA application_id={APPLICATION_ID};PRAGMA user_version={SCHEMA_VERSION};COMMIT;"
        )
    while 0 < version < SCHEMA_VERSION:
        connection.execute("BEGIN IMMEDIATE")
        MIGRATIONS[version](connection)
        version += 1
        connection.execute(f"PRAGMA user_version={version}")
        connection.execute("COMMIT")
        log.info("job database migrated", file=str(path), version=version)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # so that the header of the file itself tells its version


def _problem_in(path: Path) -> str:
    """What is wrong with the database; empty: nothing that was looked for."""
    try:
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            if path.stat().st_size <= QUICK_CHECK_BYTES:
                result: str = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
                if result != "ok":
                    return result
            connection.execute("SELECT id FROM jobs LIMIT 1").fetchone()
            connection.execute("SELECT id FROM cursors LIMIT 1").fetchone()
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


def _salvage(connection: sqlite3.Connection, damaged: Path) -> int:
    """Copy the rows that can still be read; those of jobs are checked by their checksum when they are used."""
    copied = 0
    source = sqlite3.connect(f"{damaged.as_uri()}?mode=ro", uri=True, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        for table in ("owners", "jobs", "labels", "cursors", "secrets"):
            copied += _copy_table(source, connection, table)
        connection.execute("COMMIT")
    finally:
        source.close()
    return copied


def _copy_table(source: sqlite3.Connection, target: sqlite3.Connection, table: str) -> int:
    """Rows of jobs copied from `table`."""
    copied = 0
    try:
        for row in source.execute(f"SELECT * FROM {table} NOT INDEXED"):  # noqa: S608  # names from the tuple above
            marks = ",".join("?" * len(row))
            target.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", row)  # noqa: S608
            copied += table == "jobs"
    except sqlite3.DatabaseError as cause:
        log.error("part of the damaged database cannot be read", table=table, problem=str(cause))
    return copied
