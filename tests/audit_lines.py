"""Audit logs for tests: small ones that were written by the product's own writer, and disks that fill up.

Belongs here: making them. Does not belong here: what must hold of them.
"""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from common.audit import AuditFile
from common.auditchain import older_number
from common.config.settings import AuditLog


class Line(msgspec.Struct, frozen=True):
    """A line as a service has it."""

    time: str = "2026-01-02T03:04:05Z"
    who: str = "ann"
    method: str = "/joblet.v1.JobService/GetJob"
    object: str = ""
    outcome: str = "allowed"
    why: str = ""


class Disk:
    """`write` that has room for `room_bytes` more; the line that does not fit is cut off, as write(2) does it."""

    def __init__(self, room_bytes: int = 2**62) -> None:
        self.room_bytes = room_bytes

    def write(self, descriptor: int, data: bytes) -> int:
        """As os.write."""
        count = min(len(data), self.room_bytes)
        if not count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room_bytes -= count
        return os.write(descriptor, data[:count])


@contextmanager
def writing(directory: Path, *, bytes_max: int = 2**26, kept: int = 8, disk: Disk | None = None) -> Iterator[AuditFile]:
    """The log of one process, closed behind it."""
    settings = AuditLog(file_bytes_max=bytes_max, files_kept=kept)
    audit = AuditFile(directory, settings, write=(disk or Disk()).write)
    try:
        yield audit
    finally:
        audit.close()


def write(directory: Path, count: int, **settings: Any) -> None:
    """`count` lines by a process of their own; `object` counts them."""
    with writing(directory, **settings) as audit:
        for number in range(1, count + 1):
            audit.record(Line(object=str(number)))


def names(directory: Path) -> list[str]:
    """The files, the oldest first."""
    found = (path.name for path in directory.iterdir())
    return sorted(found, key=lambda name: older_number(name) or 0, reverse=True)


def text(directory: Path) -> bytes:
    """All of the log, the oldest first."""
    return b"".join((directory / name).read_bytes() for name in names(directory))


def lines(directory: Path) -> list[dict[str, Any]]:
    """Every line that is one."""
    found = []
    for name in names(directory):
        for line in (directory / name).read_bytes().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found
