"""Whatever fails, is killed or loses its power: what was acknowledged is there afterwards, once and in order.

A disk of its own remembers what fsync(2) made durable, file by file and directory by directory, and takes the rest away
when the power is cut. What a failed fsync held is never durable again, as on Linux (fsync(2), NOTES).
"""

import errno
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from common.identifiers import new_job_id
from common.records import Stream
from services.persist.disk import HostDisk
from services.persist.segment import AbandonedSegment
from services.persist.store import Store
from tests.unit.test_persist_journal import joined, last_sequences, make_store, query, random_journal, write

JOB = new_job_id()


class Killed(BaseException):
    """In place of SIGKILL: nothing of the process goes on behind it."""


class PowerDisk:
    """A real disk that fails or kills at a step that is told, and knows what a power cut would leave."""

    def __init__(self) -> None:
        self._disk = HostDisk()
        self._durable: dict[int, bytes | dict[str, int]] = {}
        """By inode: the bytes of a file, the names in a directory."""
        self._lost: set[tuple[int, str, int]] = set()
        """Names that a failed fsync of a directory has given up."""
        self.has_failed = False
        """A fsync did: before the next process the disk is repaired, and what it holds is what was durable."""
        self._at = 0
        self._happens: Callable[[str], None] | None = None

    def arm(self, happens: Callable[[str], None], *, at: int) -> None:
        """At the `at`-th step from now `happens`, which may raise."""
        self._at, self._happens = at, happens

    def disarm(self) -> None:
        """Nothing happens."""
        self._happens = None

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        """See Disk.write; what it fails at is written in part."""
        try:
            self._step("write")
        except BaseException:
            self._disk.write(descriptor, data[: len(data) // 2], offset)
            raise
        return self._disk.write(descriptor, data, offset)

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        """See Disk.truncate."""
        self._step("truncate")
        self._disk.truncate(descriptor, size_bytes)

    def sync(self, descriptor: int) -> None:
        """See Disk.sync."""
        inode, now = os.fstat(descriptor).st_ino, _content(descriptor)
        try:
            self._step("sync")
        except OSError:
            self.has_failed = True
            if isinstance(now, dict):
                known = self._durable.get(inode, {})
                assert isinstance(known, dict)
                self._lost |= {(inode, name, child) for name, child in now.items() if known.get(name) != child}
            raise
        if isinstance(now, dict):
            now = {name: child for name, child in now.items() if (inode, name, child) not in self._lost}
        self._durable[inode] = now

    def cut_power(self, root: Path, target: Path) -> "PowerDisk":
        """Make at `target` what is left of `root`; the disk as it is then."""
        self._restore(root.stat().st_ino, target)
        after = PowerDisk()
        for path in (target, *target.rglob("*")):
            descriptor = os.open(path, os.O_RDONLY)
            after.sync(descriptor)
            os.close(descriptor)
        return after

    def _restore(self, inode: int, target: Path) -> None:
        left = self._durable.get(inode, {})
        if isinstance(left, bytes):
            target.write_bytes(left)
            return
        target.mkdir(exist_ok=True)
        for name, child in left.items():
            if child in self._durable:
                self._restore(child, target / name)

    def _step(self, kind: str) -> None:
        if self._happens is None:
            return
        self._at -= 1
        if self._at < 0:
            happens, self._happens = self._happens, None
            happens(kind)


def _content(descriptor: int) -> bytes | dict[str, int]:
    status = os.fstat(descriptor)
    if not stat.S_ISDIR(status.st_mode):
        return os.pread(descriptor, status.st_size, 0)
    with os.scandir(descriptor) as entries:
        return {entry.name: entry.inode() for entry in entries}


def _fails(kind: str) -> None:
    number = errno.EIO if kind != "write" else errno.ENOSPC
    raise OSError(number, os.strerror(number))


def _kills(kind: str) -> None:
    raise Killed(kind)


@pytest.mark.parametrize("seed", range(150))
def test_what_was_acknowledged_survives_everything(tmp_path: Path, seed: int) -> None:
    """Batches with repeats, a full disk, a failed fsync, kills at any step; at last the power goes."""
    source = random.Random(seed)  # noqa: S311  # no secret
    encoded, _ = random_journal(source, count=30)
    lasts = [0, *last_sequences(encoded)]
    disk, base = PowerDisk(), _base(tmp_path, 0)
    store = make_store(base, disk=disk, durability="fsync")
    acknowledged = 0
    for number in range(source.randrange(1, 25)):
        start = source.randrange(acknowledged + 1)
        end = min(len(encoded), start + source.randrange(1, 6))
        if source.random() < 0.5:
            disk.arm(source.choice((_fails, _kills)), at=source.randrange(8))
        restarts = False
        try:
            write(store, JOB, *encoded[start:end], end=lasts[-1] if end == len(encoded) else None)
        except AbandonedSegment:
            restarts = source.random() < 0.5
        except Killed:
            restarts = True
        except OSError:
            pass
        else:
            acknowledged = max(acknowledged, end)
        disk.disarm()
        if restarts:
            if disk.has_failed:
                root, base = base / "logs", _base(tmp_path, number + 1)
                disk = disk.cut_power(root, base / "logs")
            store = make_store(base, disk=disk, durability="fsync")
        _check(store, encoded, at_least=lasts[acknowledged])
    after = _base(tmp_path, -1)
    disk.cut_power(base / "logs", after / "logs")
    _check(make_store(after), encoded, at_least=lasts[acknowledged])


def _base(parent: Path, number: int) -> Path:
    base = parent / str(number)
    (base / "logs").mkdir(parents=True)
    return base


def _check(store: Store, encoded: list[bytes], *, at_least: int) -> None:
    """All up to `at_least` is there, and of each stream a beginning of what was written; once and in order."""
    runs = query(store, JOB)
    firsts = [run.first for run in runs]
    assert firsts == sorted(set(firsts))
    assert not [run for run in runs if run.gap_reason]
    there = {sequence for run in runs for sequence in range(run.first, run.last + 1)}
    assert sum(run.lines for run in runs) == len(there)
    assert there >= set(range(1, at_least + 1))
    for stream in (Stream.STDOUT, Stream.STDERR):
        written = b"".join(record[36:] for record in encoded if record[5] == stream)
        assert written.startswith(joined(runs, stream))
