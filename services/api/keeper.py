"""api's side of the keeper: the process that reads certificate files when api no longer may (`keeper_program.py`).

It is begun by exec, not fork: grpc is loaded by then, and whatever api holds would be in it. It is begun before api
gives root up, because nothing that api begins afterwards could have a right (no_new_privs, empty bounding set);
therefore it cannot be begun again. An ordinary user's has no right at all: the files are his.

Here: start, looks, end. Not here: what a look means (`rotation.py`).
"""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

import structlog

from common.config.layout import Layout
from common.config.settings import Settings
from common.privileges import ServiceUsers
from common.tls import ServerSources, is_pem_text, server_sources
from services.api.looks import FRAME_BYTES_MAX, LENGTH, Look, unpacked

log = structlog.get_logger(__name__)

_SOURCE_ROOT: Final = Path(__file__).resolve().parents[2]
_PROGRAM: Final = (
    f"import sys; sys.path.insert(0, {str(_SOURCE_ROOT)!r}); from services.api.keeper_program import main; main()"
)


class Keeper:
    """At most one process, from `start` to `stop`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None

    @property
    def pid(self) -> int:
        """Process id; 0: there is none, because there is nothing to watch, or no more."""
        return self._process.pid if self._process else 0

    def start(self, settings: Settings, layout: Layout, users: ServiceUsers | None) -> None:
        """Begin it, if a file is to be watched at all: `before_drop` of common/runtime.py."""
        paths = watched_paths(server_sources(settings, layout))
        if not any(paths):
            return
        ours, theirs = socket.socketpair()
        ours.settimeout(0)
        uid, gid = (users.api_uid, users.gid) if users else (0, 0)
        numbers = (theirs.fileno(), os.getpid(), uid, gid, settings.security.reload_ms)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _PROGRAM, *map(str, numbers), *paths],
                pass_fds=(theirs.fileno(),),
                env={},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        self._channel = ours

    async def looks(self) -> AsyncGenerator[Look, None]:
        """What it sees, at first and after each change. Ends when the keeper has ended, or sends what is no look."""
        if self._channel is None:
            return
        reader, writer = await asyncio.open_unix_connection(sock=self._channel)
        try:
            while True:
                (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
                if length > FRAME_BYTES_MAX:
                    raise ValueError(f"a frame of {length} bytes")
                yield unpacked(await reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionResetError):
            return
        except ValueError as cause:
            log.error("the keeper said what it never says", what=str(cause))
            return
        finally:
            writer.close()
            self.stop()

    def look_now(self) -> bool:
        """Ask for a look without waiting for its time. False: there is no keeper."""
        if self._channel is None:
            return False
        try:
            os.write(self._channel.fileno(), b"l")
        except BlockingIOError:
            pass  # it has been asked more often than it could look
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """End it and wait for it. It holds nothing, so it is killed; without its socket it ends by itself, too."""
        if self._channel is not None:
            with contextlib.suppress(OSError):
                # Also where asyncio has yet to close it: a keeper that cannot be killed waits for this end.
                self._channel.shutdown(socket.SHUT_RDWR)
            self._channel.close()
            self._channel = None
        if self._process is not None:
            with contextlib.suppress(PermissionError):  # in its first milliseconds it is root, and not ours to kill
                self._process.kill()
            self._process.wait()
            self._process = None


def watched_paths(sources: ServerSources) -> tuple[str, ...]:
    """The path of each file, in the order of a look; empty where the configuration holds the text itself."""
    values = (sources.cert, sources.key, sources.ca, sources.crl)
    return tuple("" if is_pem_text(value) else value for value in values)
