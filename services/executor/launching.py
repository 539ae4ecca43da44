"""The executor's side of the launcher: start it, hand it requests, start it again when it died.

The wire is told in `launcher/main.py`. Every request has a socket of its own, so that no answer can be taken for
another's and an end without an answer is seen at once.
"""

import asyncio
import contextlib
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

from common.errors import JobletError, Reason, unavailable
from services.executor.launcher.attach import Change
from services.executor.launcher.handshake import Failure, StepFailed
from services.executor.launcher.task import LAUNCH, LENGTH_BYTES, TASK_BYTES_MAX, Task, encode_beginning, encode_rest

ANSWER_S_MAX: Final = 10.0
CLOSE_S_MAX: Final = 5.0
_ANSWER_BYTES_MAX: Final = 64 * 1024
_SOURCE_ROOT: Final = Path(__file__).resolve().parents[2]
_PROGRAM: Final = (
    f"import sys; sys.path.insert(0, {str(_SOURCE_ROOT)!r}); from services.executor.launcher.main import main; main()"
)


class Begun:
    """A monitor, an init and a main process that prepare a sandbox and wait for their task, or have died meanwhile.

    They end with `end`, or when the executor ends. `beginning` is what they were told.
    """

    def __init__(self, endpoint: socket.socket, beginning: bytes) -> None:
        self.endpoint = endpoint
        self.beginning = beginning

    @property
    def alive(self) -> bool:
        """Whether the monitor is there; it says nothing before it has a task."""
        poll = select.poll()
        poll.register(self.endpoint, select.POLLIN)
        return not poll.poll(0)

    async def end(self) -> None:
        """Let it end without a task; its processes have ended when this returns, or do not end in time."""
        with self.endpoint, contextlib.suppress(OSError, TimeoutError):
            self.endpoint.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(CLOSE_S_MAX):
                while await asyncio.get_running_loop().sock_recv(self.endpoint, _ANSWER_BYTES_MAX):
                    pass


class Launcher(Protocol):
    """Starts monitors."""

    async def begin(self, task: Task, *, network: int | None = None) -> Begun:
        """Send the beginning of `task` only. Raises JobletError; what happens after it is told when there is a job.

        `network` is the descriptor of the network namespace that was made for the job; the caller closes it.
        """

    async def finish(self, begun: Begun, task: Task) -> int:
        """Start the job's monitor and return its pid. Its lock is held, its journal and control file exist.

        What happens to the job from there on is told by the journal only. Raises JobletError when no monitor runs.
        """


class LauncherProcess:
    """The real one: a child process. Not for use from several event loops.

    `seccomp` is the system call filter of all jobs, as seccomp/compile.py gives it.
    """

    def __init__(self, seccomp: bytes) -> None:
        self._seccomp = seccomp
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None

    @property
    def pid(self) -> int:
        """Of the launcher; 0 when it was not started."""
        return self._process.pid if self._process else 0

    async def start(self) -> None:
        """Start the launcher. JobletError: it cannot be started."""
        self._start()

    async def begin(self, task: Task, *, network: int | None = None) -> Begun:
        """See `Launcher`."""
        beginning = encode_beginning(task)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with theirs:
                await self._request(LAUNCH, [theirs.fileno(), *([] if network is None else [network])])
            ours.settimeout(0)
            await _send(ours, beginning)
        except BaseException:
            ours.close()
            raise
        return Begun(ours, beginning)

    async def finish(self, begun: Begun, task: Task) -> int:
        """See `Launcher`."""
        with begun.endpoint:
            encoded = encode_rest(task)
            if len(encoded) > TASK_BYTES_MAX:
                raise JobletError(Reason.INVALID, f"job is too large to launch: {len(encoded)} bytes")
            return _monitor_of(await _exchange(begun.endpoint, encoded))

    async def change(self, verb: bytes, process: int, change: Change) -> None:
        """Let a volume appear in, or leave (`verb`), the mount namespace of the process whose pidfd is `process`.

        Raises StepFailed, and it was not done; JobletError UNAVAILABLE, and it may have been done.
        """
        encoded = change.encode()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours:
            with theirs:
                await self._request(verb, [theirs.fileno(), process])
            ours.settimeout(0)
            answer = await _exchange(ours, len(encoded).to_bytes(LENGTH_BYTES, "little") + encoded)
        if not answer:
            raise unavailable(f"the process for the {verb.decode()} has died", "see the node's log and memory")
        failure = json.loads(answer).get("failure")
        if failure is not None:
            raise StepFailed(Failure(*failure))

    async def close(self) -> None:
        """End the launcher. Monitors and jobs go on."""
        if self._requests is not None:
            self._requests.close()
            self._requests = None
        if self._process is not None:
            process, self._process = self._process, None
            try:
                await asyncio.to_thread(process.wait, CLOSE_S_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                await asyncio.to_thread(process.wait)

    async def _request(self, word: bytes, descriptors: list[int]) -> None:
        try:
            await self._pass(word, descriptors)
        except (BrokenPipeError, ConnectionResetError):
            # It is dead, and nothing of this request was read.
            await self.close()
            self._start()
            try:
                await self._pass(word, descriptors)
            except OSError as cause:
                raise unavailable("the launcher ends at once", "its standard error says why") from cause

    async def _pass(self, word: bytes, descriptors: list[int]) -> None:
        if self._requests is None:
            raise BrokenPipeError
        loop = asyncio.get_running_loop()
        while True:
            try:
                socket.send_fds(self._requests, [word], descriptors)
                return
            except BlockingIOError:
                await _writable(loop, self._requests)

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(0)
        try:
            with theirs, _file_of(self._seccomp) as seccomp:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _PROGRAM, str(theirs.fileno())],
                    pass_fds=(theirs.fileno(),),
                    env={},
                    cwd="/",
                    stdin=seccomp,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C at the executor's terminal is not for it
                )
        except OSError as cause:
            ours.close()
            raise unavailable("cannot start the launcher", str(cause)) from cause
        self._requests = ours


@contextlib.contextmanager
def _file_of(content: bytes) -> Iterator[int]:
    """A descriptor of an anonymous file, to be read from its beginning."""
    descriptor = os.memfd_create("joblet-seccomp")
    try:
        os.write(descriptor, content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


async def _writable(loop: asyncio.AbstractEventLoop, endpoint: socket.socket) -> None:
    ready = asyncio.Event()
    loop.add_writer(endpoint, ready.set)
    try:
        async with asyncio.timeout(ANSWER_S_MAX):  # not wait_for: in Python 3.11 it can swallow a cancel
            await ready.wait()
    except TimeoutError as cause:
        raise unavailable("the launcher does not take requests", "is it stopped?") from cause
    finally:
        loop.remove_writer(endpoint)


async def _send(endpoint: socket.socket, request: bytes) -> None:
    try:
        async with asyncio.timeout(ANSWER_S_MAX):
            await asyncio.get_running_loop().sock_sendall(endpoint, request)
    except TimeoutError as cause:
        raise unavailable("a monitor does not read", "see the node's log and memory") from cause
    except (BrokenPipeError, ConnectionResetError):
        _monitor_of(_last_words(endpoint))  # raises: nobody is asked for a pid before the task is sent


async def _exchange(endpoint: socket.socket, request: bytes) -> bytes:
    """Send `request` and receive to the end."""
    loop = asyncio.get_running_loop()
    received = bytearray()
    try:
        async with asyncio.timeout(ANSWER_S_MAX):
            await loop.sock_sendall(endpoint, request)
            while part := await loop.sock_recv(endpoint, _ANSWER_BYTES_MAX):
                received += part
    except TimeoutError:
        # From here on an answer is refused, and a monitor whose answer is refused does not start the job.
        # One that is in the socket already counts.
        endpoint.shutdown(socket.SHUT_RD)
        received += endpoint.recv(_ANSWER_BYTES_MAX)
        if not received:
            raise unavailable(f"the launcher did not answer within {ANSWER_S_MAX:.0f} s", "is it stopped?") from None
    except (BrokenPipeError, ConnectionResetError):
        received += _last_words(endpoint)
    return bytes(received)


def _last_words(endpoint: socket.socket) -> bytes:
    """What was answered before the other end was closed, such as why nothing could be forked; empty: nothing."""
    try:
        return endpoint.recv(_ANSWER_BYTES_MAX)
    except OSError:
        return b""


def _monitor_of(answer: bytes) -> int:
    if not answer:
        raise unavailable("the monitor died before it began", "see the node's log and memory")
    fields = json.loads(answer)
    if "pid" in fields:
        return int(fields["pid"])
    failure = Failure(*fields["failure"])
    where = f" {failure.path}" if failure.path else ""
    raise JobletError(Reason.INTERNAL, f"cannot launch: {failure.step}{where}: {failure.message}")
