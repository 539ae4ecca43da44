"""Exports and imports: the service connects to api's socket, and a small process does the rest (`stream_program.py`).

What a job has written, and what a client sends, is read there and not here: the service is root. Here: whose socket it
is, start and end of that process, and what it says of itself. Not here: tar, and when a volume may be streamed.
"""

import asyncio
import contextlib
import os
import socket
import stat
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import structlog

from common.errors import JobletError, Reason, invalid, unavailable
from common.messages.topics import STREAM_FILE
from common.messages.volumes import Direction
from services.volumes.ports import Ids

log = structlog.get_logger(__name__)

STALL_S: Final = 60.0
OUTCOME_BYTES_MAX: Final = 65_536
_SOURCE_ROOT: Final = Path(__file__).resolve().parents[2]
_PROGRAM: Final = (
    f"import sys; sys.path[:0] = [{str(_SOURCE_ROOT)!r}]; from services.volumes.stream_program import main; main()"
)
_UCRED: Final = struct.Struct("=iII")


class _Outcome(msgspec.Struct, frozen=True):
    """What the process says: numbers, or why not."""

    entries: int = 0
    bytes: int = 0
    left_out: int = 0
    changed: int = 0
    reason: Reason | None = None
    message: str = ""
    detail: str = ""


class ProcessStreams:
    """One process a stream.

    `peers`: uids to whom the other end's socket may belong, besides root and this process's own: api's.
    `stall_s`: how long the other end may stand still.
    """

    def __init__(self, *, peers: frozenset[int] = frozenset(), stall_s: float = STALL_S) -> None:
        self._peers = peers | {0, os.geteuid()}
        self._stall_s = stall_s

    async def run(self, source: str, direction: Direction, socket_path: str, ids: Ids) -> tuple[int, int]:
        """Send the directory `source` as a tar archive to the socket, or unpack what comes from it; how much it was.

        Entries and bytes of files. `ids`: whose files they are, and become; root does it as nobody else. When this is
        cancelled the process is gone before it returns. Raises JobletError: of an import, what was unpacked stays.
        """
        root = os.geteuid() == 0
        if root and (ids.uid <= 0 or ids.gid <= 0):
            raise JobletError(Reason.INTERNAL, f"a volume cannot be streamed as uid {ids.uid}, gid {ids.gid}")
        with contextlib.ExitStack() as opened:
            directory = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            opened.callback(os.close, directory)
            connection = opened.enter_context(_connected(socket_path, self._peers))
            ours, theirs = socket.socketpair()
            opened.enter_context(ours)
            with theirs:
                numbers = (os.getpid(), *(ids if root else (0, 0)), round(self._stall_s * 1000))
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-I", "-S", "-c", _PROGRAM),
                    *map(str, (connection.fileno(), theirs.fileno(), directory, direction.value, *numbers)),
                    pass_fds=(connection.fileno(), theirs.fileno(), directory),
                    env={},
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.DEVNULL,
                )
            connection.close()  # or the other end would not see that process end
            said = await _heard(process, ours)
        return _result(said, direction)


async def _heard(process: asyncio.subprocess.Process, answer: socket.socket) -> bytes:
    """All that it says, once it has ended."""
    reader, writer = await asyncio.open_unix_connection(sock=answer, limit=OUTCOME_BYTES_MAX)
    try:
        said = await reader.read(OUTCOME_BYTES_MAX)
        while more := await reader.read(OUTCOME_BYTES_MAX):
            said = (said + more)[:OUTCOME_BYTES_MAX]
        await process.wait()
        return said
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                process.kill()
            await process.wait()
        writer.close()


def _result(said: bytes, direction: Direction) -> tuple[int, int]:
    try:
        outcome = msgspec.json.decode(said, type=_Outcome)
    except msgspec.DecodeError as cause:
        raise JobletError(
            Reason.INTERNAL, f"the {direction} ended without an outcome", detail="try again", retryable=True
        ) from cause
    if outcome.reason is not None:
        retryable = outcome.reason in {Reason.EXHAUSTED, Reason.UNAVAILABLE, Reason.DEADLINE}
        raise JobletError(outcome.reason, outcome.message, detail=outcome.detail, retryable=retryable)
    if outcome.left_out or outcome.changed:
        log.warning("an export is not all of it", sockets_and_devices=outcome.left_out, changed_files=outcome.changed)
    return outcome.entries, outcome.bytes


def _connected(path: str, peers: frozenset[int]) -> socket.socket:
    """A connection to the socket that stands there, if it is one, and one of theirs who may have it there."""
    if not STREAM_FILE.fullmatch(Path(path).name):
        raise invalid("no socket of a stream has this name")
    with _found(path) as number, contextlib.ExitStack() as unless_kept:
        connection = unless_kept.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        try:
            # By its descriptor: the name may be another's by now. Whoever listens has a place in its queue for us.
            connection.settimeout(0)
            connection.connect(f"/proc/self/fd/{number}")
        except OSError as cause:
            raise unavailable(f"nobody listens for the stream: {cause.strerror}", "try again") from cause
        size = _UCRED.size
        _, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        if uid not in peers:
            raise JobletError(Reason.DENIED, f"the socket of the stream belongs to uid {uid}, which is not api's")
        unless_kept.pop_all()
        return connection


@contextlib.contextmanager
def _found(path: str) -> Iterator[int]:
    try:
        number = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as cause:
        raise unavailable(f"the socket of the stream cannot be found: {cause.strerror}", "try again") from cause
    try:
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            raise invalid("what has the name of the stream is no socket")
        yield number
    finally:
        os.close(number)
