"""A network between client and node that can be slow and go silent: a TCP proxy on loopback.

Belongs here: passing bytes on, ceasing to, and cutting. Does not belong here: what the bytes are. While it is silent
both ends see a connection that is open and says nothing, as behind a router that lost its memory: no FIN, no RST.
"""

import math
import socket
import threading
import time
from contextlib import suppress
from typing import Final

CHUNK_BYTES: Final = 65536


class _Stretch:
    """The time until the next cut: what the target may still say in it."""

    left_bytes: float = math.inf


class SilentProxy:
    """Listens on `port` and passes connections on to 127.0.0.1:`target`, for as long as the with-block lasts.

    Whatever passes, in either direction, takes `delay_s`. A client that was cut off and comes again while there is
    silence meets silence.
    """

    def __init__(self, target: int, *, delay_s: float = 0.0) -> None:
        self._target = target
        self._delay_s = delay_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._threads: list[threading.Thread] = []
        self._stretch = _Stretch()
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def __enter__(self) -> "SilentProxy":
        self._spawn(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self.cut()
        for thread in self._threads:
            thread.join()
        self._listener.close()
        for pair in self._pairs:
            for end in pair:
                end.close()

    def silence_after(self, size_bytes: int) -> None:
        """Pass on so many bytes more from the target, and then nothing in either direction until `cut`."""
        self._stretch.left_bytes = size_bytes

    def cut(self) -> None:
        """End the connections there are now; new ones are passed on."""
        with self._lock:
            self._stretch = _Stretch()
            pairs = list(self._pairs)
        for pair in pairs:
            for end in pair:
                with suppress(OSError):  # one that the other side has ended already
                    end.shutdown(socket.SHUT_RDWR)

    def _spawn(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]  # a method of ours
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            node = socket.create_connection(("127.0.0.1", self._target))
            with self._lock:
                stretch = self._stretch
                self._pairs.append((client, node))
            self._spawn(self._pass_on, client, node, stretch)
            self._spawn(self._pass_on, node, client, stretch, node)

    def _pass_on(
        self, source: socket.socket, sink: socket.socket, stretch: _Stretch, target: socket.socket | None = None
    ) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK_BYTES):
                if stretch.left_bytes <= 0:
                    return  # both sockets stay open, and nobody reads them
                time.sleep(self._delay_s)
                sink.sendall(data)
                if source is target:
                    stretch.left_bytes -= len(data)
            sink.shutdown(socket.SHUT_WR)
