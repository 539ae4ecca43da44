"""The executor's transport inside one process: nobody is at the other end, so its events only wake who waits here.

The lock is that of the service: a worker and a node, or two workers, never share a directory.
"""

import asyncio
import contextlib
import fcntl
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from common.bus.memory import Memory
from common.bus.transport import PubSocket, PullSocket, PushSocket, SubSocket
from common.errors import JobletError, Reason
from common.messages.topics import Endpoint


class Changes:
    """Tells those who wait that there is something new of a job: output, or a state. What it is they look up."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    @contextlib.contextmanager
    def watched(self, job: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever something happens to the job; who waits for it clears it before he looks."""
        event = asyncio.Event()
        self._waiting[job].add(event)
        try:
            yield event
        finally:
            self._waiting[job].discard(event)
            if not self._waiting[job]:
                del self._waiting[job]

    def happened(self, job: str) -> None:
        """Wake those who wait for the job."""
        for event in self._waiting.get(job, ()):
            event.set()

    def happened_to_all(self) -> None:
        """Wake everybody."""
        for job in self._waiting:
            self.happened(job)


class InProcess:
    """See common.bus.transport.Transport. `run_dir`: where the service has its sockets, and the lock is."""

    def __init__(self, run_dir: Path, changes: Changes) -> None:
        self._run_dir = run_dir
        self._changes = changes
        self._memory = Memory()

    def push(self, endpoint: Endpoint, file: str = "") -> PushSocket:
        """See Transport.push."""
        return self._memory.push(endpoint, file)

    def pull(self, endpoint: Endpoint, file: str = "") -> PullSocket:
        """See Transport.pull."""
        return self._memory.pull(endpoint, file)

    def publisher(self, endpoint: Endpoint) -> PubSocket:
        """See Transport.publisher."""
        return _Announcements(_hold(self._run_dir / f"{endpoint.file}.lock"), self._changes)

    def subscriber(self, endpoint: Endpoint) -> SubSocket:
        """See Transport.subscriber. It hears nothing: `Changes` is how one listens here."""
        return self._memory.subscriber(endpoint)

    def close(self) -> None:
        """See Transport.close."""
        self._memory.close()


class _Announcements:
    """The publishing end of the events."""

    def __init__(self, lock: int, changes: Changes) -> None:
        self._lock = lock
        self._changes = changes

    def publish(self, topic: str, payload: bytes) -> None:  # noqa: ARG002  # the journal and the record have it
        self._changes.happened(topic.partition(".")[2])

    def close(self) -> None:
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)


def _hold(path: Path) -> int:
    """A descriptor that holds the lock at `path` (as common/bus/zeromq.py does); closing it releases the lock."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as cause:
        os.close(lock)
        raise JobletError(
            Reason.EXISTS,
            f"another worker or node uses {path.parent.parent}",
            detail="close it, or use another directory",
        ) from cause
    return lock
