"""The four services under one parent: started in order, kept running, stopped in order.

         start: volumes ─READY─▶ persist ─READY─▶ executor ─READY─▶ api ─READY─▶ all up
         later: each by itself: ended ─▶ RestartPolicy ─▶ pause, start | give up (the others go on)
         stop:  api, executor, persist, volumes: SIGTERM, at most `STOP_TIMEOUT_S`, SIGKILL

Here: that life. Not here: what a process is (`service.py`) and when it is restarted (`restarts.py`). honcho's manager
ends all processes when one ends and cannot start one again, so only its printer is used (docs/operations.md).
"""

import asyncio
import signal
import time
from collections.abc import Callable
from typing import Any, Final

from cli.joblet.restarts import Ended, GiveUp, RestartPolicy, told
from cli.joblet.service import Process, Starter
from common.errors import JobletError, Reason
from common.messages.topics import Service

START_ORDER: Final = (Service.VOLUMES, Service.PERSIST, Service.EXECUTOR, Service.API)
READY_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 10.0


class _Kept:
    """One service and where it is in its life."""

    def __init__(self) -> None:
        self.policy = RestartPolicy()
        self.process: Process | None = None
        self.ready = asyncio.Event()
        self.given_up: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None


class Supervisor:
    """Runs the services of one node. `say(text, name)` takes a line for the operator."""

    def __init__(
        self, starter: Starter, say: Callable[[str, str], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._starter = starter
        self._say = say
        self._clock = clock
        self._kept = {service: _Kept() for service in START_ORDER}

    def heard(self, pid: int, state: str) -> None:
        """A notification of the process `pid`."""
        for service, kept in self._kept.items():
            if kept.process is not None and kept.process.pid == pid and state == "READY=1":
                if not kept.ready.is_set():
                    self._say("ready", service)
                kept.ready.set()

    async def start(self) -> None:
        """Start all, each when the one before is ready. Raises JobletError when one cannot be brought up."""
        for service, kept in self._kept.items():
            kept.task = asyncio.create_task(self._keep(service, kept))
            ready = asyncio.create_task(kept.ready.wait())
            either: set[asyncio.Future[Any]] = {ready, kept.given_up}
            await asyncio.wait(either, timeout=READY_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            ready.cancel()
            if kept.given_up.done():
                raise JobletError(Reason.UNAVAILABLE, f"joblet-{service} did not start", detail=kept.given_up.result())
            if not kept.ready.is_set():
                raise JobletError(
                    Reason.UNAVAILABLE,
                    f"joblet-{service} was not ready within {READY_TIMEOUT_S:g} s",
                    detail="see its log above",
                )

    async def stop(self) -> None:
        """Stop all in the reverse order. Jobs go on."""
        for service, kept in reversed(self._kept.items()):
            if kept.task is None:
                continue
            kept.task.cancel()
            await asyncio.wait({kept.task})
            if kept.process is not None:
                await self._end(service, kept.process)
                kept.process = None

    def states(self) -> dict[Service, str]:
        """Each service's state in words, for the operator."""
        return {service: _state(kept) for service, kept in self._kept.items()}

    async def _keep(self, service: Service, kept: _Kept) -> None:
        while True:
            started_at = self._clock()
            kept.process = await self._starter(service, lambda line: self._say(line, service))
            self._say(f"started, pid {kept.process.pid}", service)
            status = await kept.process.ended()
            ended = Ended(status, self._clock() - started_at, kept.ready.is_set())
            kept.process = None
            kept.ready.clear()
            decision = kept.policy.after(ended)
            if isinstance(decision, GiveUp):
                self._say(f"given up: {decision.reason}. The other services go on; repair it and restart", service)
                kept.given_up.set_result(decision.reason)
                return
            self._say(f"ended with {told(status)}; started again in {decision.pause_s:g} s", service)
            await asyncio.sleep(decision.pause_s)

    async def _end(self, service: Service, process: Process) -> None:
        process.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                status = await process.ended()
        except TimeoutError:
            self._say(f"did not end within {STOP_TIMEOUT_S:g} s: killed", service)
            process.signal(signal.SIGKILL)
            status = await process.ended()
        self._say(f"stopped with {told(status)}", service)


def _state(kept: _Kept) -> str:
    if kept.given_up.done():
        return f"given up: {kept.given_up.result()}"
    if kept.process is None:
        return "not running"
    return "ready" if kept.ready.is_set() else "starting"
