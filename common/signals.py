"""SIGTERM and SIGINT of a process that lives in an event loop: asked once or often, it ends by itself."""

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

ENDING: Final = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def asked_to_end(told: Callable[[], None]) -> Iterator[None]:
    """Call `told` in the running loop at each SIGTERM and SIGINT; afterwards, to the end of the process, ignore them.

    Not loop.add_signal_handler: a loop that closes puts the default actions back, and a process that is asked once
    more while it ends would die of it, whichever of its threads gets the signal. Main thread only.
    """
    loop = asyncio.get_running_loop()
    woken, wakes = socket.socketpair()  # signal(7): it may reach another thread than the one that waits in the loop
    with woken, wakes:
        woken.settimeout(0)
        wakes.settimeout(0)
        loop.add_reader(woken, woken.recv, 4096)
        signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
        for number in ENDING:
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(told))
        try:
            yield
        finally:
            for number in ENDING:
                signal.signal(number, signal.SIG_IGN)
            signal.set_wakeup_fd(-1)
            loop.remove_reader(woken)
