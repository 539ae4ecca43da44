"""The shape of the executor's SQLite file, by versions.

Not here: how a file is opened, and what happens to a damaged one (`common/database.py`); what is stored
(`job_store.py`).
"""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

from common.database import Schema, open_database

SCHEMA_VERSION: Final = 2
APPLICATION_ID: Final = 0x4A4C4558  # "JLEX"

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

_FILE: Final = Schema(
    version=SCHEMA_VERSION,
    application_id=APPLICATION_ID,
    script=_SCHEMA,
    migrations=MIGRATIONS,
    probed=("jobs", "cursors"),
    salvaged=("owners", "jobs", "labels", "cursors", "secrets"),
    counted="jobs",
    synchronous="NORMAL",  # raised by who writes what must survive a power cut, see writer.py
)


def open_store(path: Path, *, now_ns: int) -> tuple[sqlite3.Connection, bool]:
    """The executor's database. See `common.database.open_database`."""
    return open_database(path, _FILE, now_ns=now_ns)
