"""What the services log, on the supervisor's stderr: one thread, a bounded queue, honcho's format.

Whoever started `joblet up` may not read its stderr. Then lines are dropped and counted; the services and the
supervisor never wait for a reader.
"""

import os
import queue
import threading
from datetime import datetime
from typing import Final

from honcho.colour import get_colours
from honcho.printer import Message, Printer

from cli.client.escape import escape

QUEUE_LINES_MAX: Final = 10_000
OWN_NAME: Final = "joblet"
CLOSE_TIMEOUT_S: Final = 1.0


class _Descriptor:
    """What honcho's printer needs of a file, without a lock.

    A thread that blocks inside sys.stderr holds its lock, and the interpreter aborts when it cannot get it at exit.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._text = ""

    def write(self, text: str) -> None:
        """Keep it until `flush`."""
        self._text += text

    def flush(self) -> None:
        """Write what was kept; may block as long as nobody reads."""
        data, self._text = self._text.encode("utf-8", "replace"), ""
        while data:
            data = data[os.write(self._descriptor, data) :]

    def isatty(self) -> bool:
        """Whether colours make sense."""
        return os.isatty(self._descriptor)


class LogPrinter:
    """Prints lines with the name of the process that wrote them. Use as a context manager."""

    def __init__(self, descriptor: int, names: tuple[str, ...]) -> None:
        colours = get_colours()
        self._colours = {name: next(colours) for name in names}
        self._printer = Printer(output=_Descriptor(descriptor), width=max(len(name) for name in (*names, OWN_NAME)))
        self._queue: queue.Queue[Message | None] = queue.Queue(QUEUE_LINES_MAX)
        self._dropped = 0
        self._thread = threading.Thread(target=self._print, name="printer", daemon=True)

    def __enter__(self) -> "LogPrinter":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._queue.put(None, timeout=CLOSE_TIMEOUT_S)
        except queue.Full:
            return  # nobody reads: the thread is a daemon and goes with the process
        self._thread.join(CLOSE_TIMEOUT_S)

    def line(self, text: str, name: str = OWN_NAME) -> None:
        """Print one line, or count it as dropped when the reader is too slow. Control characters are shown.

        The services escape what they log; what a library of theirs, or the interpreter, prints comes as it is.
        """
        if self._dropped:
            text = f"({self._dropped} lines dropped: nobody read them) {text}"
        message = Message("line", escape(text), datetime.now().astimezone(), name, self._colours.get(name))
        try:
            self._queue.put_nowait(message)
        except queue.Full:
            self._dropped += 1
        else:
            self._dropped = 0

    def _print(self) -> None:
        while (message := self._queue.get()) is not None:
            try:
                self._printer.write(message)
            except OSError:  # the reader is gone for good; go on taking lines away
                continue
