"""What Ctrl-C does to an attached run.

Here: the rule, as a SIGINT handler that is in force while a job is attached. Not here: stopping a job (the caller's
`act`). See signal(7).

    policy   first Ctrl-C                          second Ctrl-C
    detach   leaves; the job goes on               –
    stop     asks the job to stop, goes on reading leaves; the job is being stopped
    kill     kills the job, goes on reading        leaves

Leaving waits until the chunk in hand is written and counted, so that the sequence to go on with is exact; one more
Ctrl-C does not wait.

Before the node has answered RunJob the first one is remembered: the job may exist already, and must not be left
running unknown to its user. The second leaves anyway.
"""

import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import StrEnum
from types import FrameType, TracebackType
from typing import Self


class Policy(StrEnum):
    """Values of --on-interrupt."""

    DETACH = "detach"
    STOP = "stop"
    KILL = "kill"


class _Hold(AbstractContextManager[None]):
    """Calls `begin` and `end` around a block, as often as it is entered."""

    def __init__(self, begin: Callable[[], None], end: Callable[[], None]) -> None:
        self._begin = begin
        self._end = end

    def __enter__(self) -> None:
        self._begin()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._end()


class Interrupts:
    """A context manager; inside it SIGINT follows `policy`. `act` is called at most once, in a thread of its own.

    Where SIGINT is ignored from the start (a background job of a shell script) it stays ignored.
    """

    def __init__(self, policy: Policy, act: Callable[[str], None]) -> None:
        self._policy = policy
        self._act = act
        self._job_id: str | None = None
        self.count = 0
        self._holding = False
        self._leaving = False
        self._previous = signal.getsignal(signal.SIGINT)

    def __enter__(self) -> Self:
        if self._previous is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._interrupted)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def job_started(self, job_id: str) -> None:
        """From now on there is a job to act on; an interrupt that came before counts now."""
        self._job_id = job_id
        if self.count:
            self._begin(job_id)

    @property
    def held(self) -> AbstractContextManager[None]:
        """A guard, to be entered again and again: inside it leaving is put off to its end."""
        return _Hold(self._hold, self._release)

    def _hold(self) -> None:
        self._holding = True

    def _release(self) -> None:
        self._holding = False
        if self._leaving:
            raise KeyboardInterrupt

    def _leave(self) -> None:
        if self._holding and not self._leaving:
            self._leaving = True
            return
        raise KeyboardInterrupt

    def _interrupted(self, _: int, __: FrameType | None) -> None:
        self.count += 1
        if self.count > 1:
            self._leave()
        elif self._job_id is not None:
            self._begin(self._job_id)

    def _begin(self, job_id: str) -> None:
        if self._policy is Policy.DETACH:
            self._leave()
            return
        # Not here: the handler runs in the middle of whatever the main thread does, gRPC included.
        threading.Thread(target=self._act, args=(job_id,), name="interrupt", daemon=True).start()
