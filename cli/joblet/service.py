"""One service as a child process: start, its output line by line, its end.

Here: the process. Not here: whether to start it again (`restarts.py`), in which order (`supervisor.py`).
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from common.messages.topics import Service
from common.runtime import SUPERVISOR_VARIABLE

READ_BYTES: Final = 64 * 1024
LINE_BYTES_MAX: Final = 16 * 1024
DRAIN_TIMEOUT_S: Final = 1.0


class Process(Protocol):
    """A service that was started."""

    pid: int

    async def ended(self) -> int:
        """Exit status when it has ended and its output is printed; minus the signal number when one killed it."""

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing when it has ended."""


class Starter(Protocol):
    """Starts services; the real one and the fake of the tests have this shape."""

    async def __call__(self, service: Service, on_line: Callable[[str], None]) -> Process:
        """Start `service`, hand each line of its output to `on_line`."""


class ServiceStarter:
    """Starts the real services with the given arguments."""

    def __init__(self, arguments: tuple[str, ...], notify_address: str) -> None:
        self._arguments = arguments
        self._environment = {
            **os.environ,
            "NOTIFY_SOCKET": notify_address,
            SUPERVISOR_VARIABLE: str(os.getpid()),
            "PYTHONUNBUFFERED": "1",
        }

    async def __call__(self, service: Service, on_line: Callable[[str], None]) -> "ServiceProcess":
        """See Starter."""
        child = await asyncio.create_subprocess_exec(
            *program(service),
            *self._arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._environment,
            start_new_session=True,  # Ctrl-C is for the supervisor, which stops them in order
            limit=READ_BYTES,
        )
        return ServiceProcess(child, on_line)


class ServiceProcess:
    """See Process."""

    def __init__(self, child: asyncio.subprocess.Process, on_line: Callable[[str], None]) -> None:
        self.pid = child.pid
        self._child = child
        self._output = asyncio.create_task(self._read(on_line))

    async def ended(self) -> int:
        """See Process.ended."""
        status = await self._child.wait()
        # A monitor that outlives the executor may hold its output open: what is there is printed, then it is let go.
        await asyncio.wait({self._output}, timeout=DRAIN_TIMEOUT_S)
        self._output.cancel()
        return status

    def signal(self, number: signal.Signals) -> None:
        """See Process.signal."""
        if self._child.returncode is None:
            self._child.send_signal(number)

    async def _read(self, on_line: Callable[[str], None]) -> None:
        assert self._child.stdout is not None
        rest = b""
        while data := await self._child.stdout.read(READ_BYTES):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                on_line(line.decode("utf-8", "replace"))
            if len(rest) > LINE_BYTES_MAX:
                on_line(rest.decode("utf-8", "replace"))
                rest = b""
        if rest:
            on_line(rest.decode("utf-8", "replace"))


def program(service: Service) -> tuple[str, ...]:
    """The command of a service: its console script beside this interpreter, else its module."""
    script = Path(sys.executable).with_name(f"joblet-{service}")
    return (str(script),) if script.exists() else (sys.executable, "-m", f"services.{service}")
