"""Work in a thread of its own that ends with the work, awaited by an event loop.

Why not a pool: a thread that has left the host's network namespace must never do anything else (unshare(2) is for
good), and calls that wait for the kernel must not hold the event loop up.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_new_thread(work: Callable[[], T], *, name: str, undo: Callable[[T], None]) -> T:
    """What `work` answers. When the waiting is cancelled, `undo` gets the answer as soon as there is one."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()
    lock = threading.Lock()
    came: list[T] = []
    given_up = threading.Event()

    def undo_what_came() -> None:
        with lock:
            results = came[:]
            came.clear()
        for result in results:
            undo(result)

    def run() -> None:
        try:
            result = work()
        except BaseException as cause:  # noqa: BLE001  # the thread's entry: the awaiting task raises it
            failure = cause
            _tell(loop, lambda: None if answer.done() else answer.set_exception(failure))
            return
        with lock:
            came.append(result)
            wanted = not given_up.is_set()
        # The loop may take the call and be closed before it makes it: so both sides may undo, and the first one does.
        if not (wanted and _tell(loop, lambda: None if answer.done() else answer.set_result(result))):
            undo_what_came()

    threading.Thread(target=run, name=name, daemon=True).start()
    try:
        return await answer
    except asyncio.CancelledError:
        with lock:
            given_up.set()
        undo_what_came()
        raise


def in_own_thread(work: Callable[[], T]) -> T:
    """The same for a caller without an event loop, who waits here."""
    answers: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(work())
        except BaseException as cause:  # noqa: BLE001  # the thread's entry: the caller raises it
            failures.append(cause)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return answers[0]


def _tell(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> bool:
    """Have the loop call this. False: it is closed, and nobody waits any more."""
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:
        return False
    return True
