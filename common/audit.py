"""A file of audit lines: one JSON object a line, each chained to the one before, bounded by rotation.

api and persist have one each. Belongs here: the file, its bound, and what happens when it cannot be written. Does not
belong here: what a line says, which each service knows for itself; the chain (`auditchain.py`); reading them
(`auditread.py`).

A line is one write(2) on an O_APPEND descriptor. When the file cannot be written the line goes to the service's log
instead, and the service goes on: a full disk must not lock the operator out. When it can be written again, a line says
how many are missing. A thread of its own tells the disk to keep what was written, at most once in SYNC_S: a line
outlives its process at once, and a power cut after that time.
"""

import contextlib
import errno
import fcntl
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import structlog

from common import auditchain
from common.auditchain import GENESIS, LINE_BYTES_MAX, Tail
from common.config.settings import AuditLog

log = structlog.get_logger(__name__)

SYNC_S: Final = 1.0
CLOSE_WAIT_S: Final = 5.0
"""How long the end of a service waits for a disk that does not answer."""
CHAIN_BYTES_MAX: Final = 150
"""What `chained` adds at most, and the newline."""
BODY_BYTES_MAX: Final = LINE_BYTES_MAX - CHAIN_BYTES_MAX
TAIL_BYTES: Final = 64 * LINE_BYTES_MAX
"""Read from the end of a file, at most, to find its last line."""
_FLAGS: Final = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class _Lost(NamedTuple):
    lines: int
    first_ns: int
    last_ns: int


class _Tried(NamedTuple):
    """The line that was written last, or not; how many lost lines are accounted for if it stands in the file."""

    digest: str
    settles: int


_NOTHING: Final = _Tried("", 0)


class AuditFile:
    """The files in `directory`. Use from any thread; nobody else may write them meanwhile (a lock says so)."""

    def __init__(
        self, directory: Path, settings: AuditLog | None = None, *, write: Callable[[int, bytes], int] = os.write
    ) -> None:
        settings = settings or AuditLog()
        self._write = write
        self._directory = directory
        self._path = directory / auditchain.FILE_NAME
        self._bytes_max = settings.file_bytes_max
        self._kept = settings.files_kept
        self._lock = threading.Lock()
        self._locked: int | None = None
        self._descriptor: int | None = None
        self._size_bytes = 0
        self._number, self._previous = 0, GENESIS
        self._tried = _NOTHING
        self._lost: _Lost | None = None
        self._retired: list[int] = []
        self._unsynced = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def record(self, line: msgspec.Struct) -> None:
        """Append `line`, which has neither `number` nor `previous`; on failure log it, count it and go on."""
        body = msgspec.json.encode(line)
        with self._lock:
            try:
                self._ready()
                self._append(body)
            except OSError as cause:
                self._lose(body, cause)

    def close(self) -> None:
        """Tell what is missing, if that is possible now, have all of it kept, and close. No record may come after."""
        with self._lock, contextlib.suppress(OSError):
            if self._lost is not None:
                self._ready()
        self._stopped.set()
        self._unsynced.set()
        if self._thread is not None:
            self._thread.join(CLOSE_WAIT_S)
        with self._lock:
            self._let_go()
            if self._locked is not None:
                os.close(self._locked)
                self._locked = None

    def _ready(self) -> None:
        """Have the file open, and the gap told."""
        if self._descriptor is None:
            self._open()
        if self._lost is not None:
            lost = self._lost
            told = auditchain.missing(lost.lines, first_ns=lost.first_ns, last_ns=lost.last_ns, time_ns=time.time_ns())
            self._append(msgspec.json.encode(told), settles=lost.lines)
            self._lost = None

    def _append(self, body: bytes, *, settles: int = 1) -> None:
        if len(body) > BODY_BYTES_MAX:
            raise OSError(errno.EMSGSIZE, f"a line of {len(body)} bytes, at most {BODY_BYTES_MAX}")
        if self._size_bytes and self._size_bytes + len(body) + CHAIN_BYTES_MAX > self._bytes_max:
            self._rotate()
        line = auditchain.chained(self._number + 1, self._previous, body, begins=not self._size_bytes)
        self._tried = _Tried(auditchain.digest(line), settles)
        self._put(line + b"\n")
        self._number, self._previous = self._number + 1, self._tried.digest
        self._tried = _NOTHING  # it stands there, and settles nothing of what fails from now on

    def _put(self, data: bytes) -> None:
        assert self._descriptor is not None
        written = self._write(self._descriptor, data)
        self._size_bytes += written
        self._unsynced.set()
        if written < len(data):
            raise OSError(errno.ENOSPC, f"{written} of {len(data)} bytes were written")

    def _lose(self, body: bytes, cause: OSError) -> None:
        self._let_go()
        now = time.time_ns()
        before = self._lost or _Lost(0, now, now)
        self._lost = _Lost(before.lines + 1, before.first_ns, now)
        log.error("audit line not written", error=str(cause), line=body.decode())

    def _open(self) -> None:
        if self._locked is None:
            self._locked = _lock(self._directory)
        self._descriptor = os.open(self._path, _FLAGS, 0o600)
        try:
            status = os.fstat(self._descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, f"{self._path} is no regular file")
            os.fchmod(self._descriptor, 0o600)
            self._size_bytes = status.st_size
            self._adopt()
        except OSError:
            self._let_go()
            raise
        if self._thread is None:
            self._thread = threading.Thread(target=self._sync, name="audit-sync", daemon=True)
            self._thread.start()

    def _adopt(self) -> None:
        """Go on behind the last line, wherever this process or the one before it was stopped."""
        assert self._descriptor is not None
        found = _read_tail(self._descriptor, self._size_bytes)
        if found is None and self._size_bytes > TAIL_BYTES:
            log.error("no audit line at the end of the file: a new one is begun", path=str(self._path))
            self._rotate()
            found = Tail(0, GENESIS, b"", open=False)
        tail = found or self._tail_of_older(_read(self._descriptor, self._size_bytes, TAIL_BYTES))
        if not self._number or tail.number == self._number + 1:
            self._number, self._previous = tail.number, tail.digest
        if self._lost is not None and tail.digest == self._tried.digest:
            # Of the line that failed, only the newline had no room.
            left = self._lost.lines - self._tried.settles
            self._lost = self._lost._replace(lines=left) if left else None
        self._tried = _NOTHING
        if tail.torn:
            body = msgspec.json.encode(auditchain.torn(tail.torn, time_ns=time.time_ns()))
            line = auditchain.chained(self._number + 1, self._previous, body)
            self._put((b"\n" if tail.open else b"") + line + b"\n")
            self._number, self._previous = self._number + 1, auditchain.digest(line)
        elif tail.open:
            self._put(b"\n")

    def _tail_of_older(self, text: bytes) -> Tail:
        """Where to go on in a file that has `text` in it and no line: behind the newest of the older files."""
        number, previous = 0, GENESIS
        for _, path in sorted(self._older()):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                tail = _read_tail(descriptor, os.fstat(descriptor).st_size)
            finally:
                os.close(descriptor)
            if tail is not None:
                number, previous = tail.number, tail.digest
                break
        return Tail(number, previous, text.removesuffix(b"\n"), open=text[-1:] not in (b"", b"\n"))

    def _rotate(self) -> None:
        """Begin a new file; the oldest goes. Cut off in the middle, the next rotation goes on with what it finds."""
        for number, path in sorted(self._older(), reverse=True):
            if number >= self._kept:
                path.unlink()
            else:
                path.replace(self._numbered(number + 1))
        self._path.replace(self._numbered(1))
        assert self._descriptor is not None
        self._retired.append(self._descriptor)
        self._descriptor = None
        self._descriptor, self._size_bytes = os.open(self._path, _FLAGS | os.O_EXCL, 0o600), 0

    def _older(self) -> list[tuple[int, Path]]:
        numbered = ((auditchain.older_number(path.name), path) for path in self._directory.iterdir())
        return [(number, path) for number, path in numbered if number is not None]

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _let_go(self) -> None:
        for descriptor in (*self._retired, self._descriptor):
            if descriptor is not None:
                os.close(descriptor)
        self._retired, self._descriptor = [], None

    def _sync(self) -> None:
        ending = False
        while not ending:
            self._unsynced.wait()
            self._unsynced.clear()
            ending = self._stopped.is_set()  # asked before, so that what is written until then is kept, too
            try:
                self._sync_now()
            except OSError as cause:
                log.error("audit lines may not outlive a power cut", error=str(cause))
            self._stopped.wait(SYNC_S)

    def _sync_now(self) -> None:
        with self._lock:
            current = self._descriptor
            if current is not None and not os.fstat(current).st_nlink:
                log.error("the audit log was removed: a new file is begun", path=str(self._path))
                self._let_go()
                current = None
            descriptors, self._retired = self._retired, []
            if current is not None:
                descriptors.append(os.dup(current))
        with contextlib.ExitStack() as stack:
            for descriptor in descriptors:
                stack.callback(os.close, descriptor)
            assert self._locked is not None
            for descriptor in (*descriptors, self._locked):
                os.fsync(descriptor)


def _lock(directory: Path) -> int:
    """A descriptor of the directory that nobody else has locked. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _read_tail(descriptor: int, size_bytes: int) -> Tail | None:
    """The end of a file; None: there is no line in its last TAIL_BYTES."""
    for count in (4 * LINE_BYTES_MAX, TAIL_BYTES):  # nearly always the first is enough
        tail = auditchain.tail_of(_read(descriptor, size_bytes, count), whole=size_bytes <= count)
        if tail is not None:
            return tail
    return None


def _read(descriptor: int, size_bytes: int, count: int) -> bytes:
    """The last `count` bytes."""
    return os.pread(descriptor, count, max(0, size_bytes - count))
