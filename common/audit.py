"""A file of audit lines: one JSON object a line, bounded by rotation. api and persist have one each.

Belongs here: the file and its bound. Does not belong here: what a line says, which each service knows for itself.
A line is one write(2) on an O_APPEND descriptor, so lines are never mixed. When the file cannot be written the line
goes to the service's log instead, and the service goes on: a full disk must not lock the operator out.
"""

import os
from pathlib import Path
from typing import Final

import msgspec
import structlog

log = structlog.get_logger(__name__)

FILE_BYTES_MAX: Final = 64 * 2**20
FILES_KEPT: Final = 8


class AuditFile:
    """The file. At FILE_BYTES_MAX it becomes `audit.jsonl.1`, and so on; FILES_KEPT of them stay."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "audit.jsonl"
        self._descriptor: int | None = None
        self._size_bytes = 0

    def record(self, decision: msgspec.Struct) -> None:
        """Append the line; on failure log it and go on."""
        line = msgspec.json.encode(decision) + b"\n"
        try:
            if self._descriptor is None or self._size_bytes + len(line) > FILE_BYTES_MAX:
                self._open()
            assert self._descriptor is not None
            self._size_bytes += os.write(self._descriptor, line)
        except OSError as error:
            self.close()
            log.error("audit line not written", error=str(error), line=line.decode())

    def close(self) -> None:
        """Close the file; the next record opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> None:
        self.close()
        if self._path.exists() and self._path.stat().st_size >= FILE_BYTES_MAX - 4096:
            for number in range(FILES_KEPT - 1, 0, -1):
                older = self._numbered(number)
                if older.exists():
                    older.replace(self._numbered(number + 1))
            self._path.replace(self._numbered(1))
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size_bytes = os.fstat(self._descriptor).st_size

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")
