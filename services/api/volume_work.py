"""Commands on which the volumes service works for long: it is waited for as long as it takes, and as long as it lives.

A process that ended answers nothing. So while a command is waited for, the service is asked from time to time which
process it is: when it is another one than at the beginning, nobody will answer any more. Not here: which commands.
"""

import asyncio
from typing import Final, TypeVar

from common.bus.requests import Asker
from common.errors import JobletError, unavailable
from common.messages.envelope import Body
from common.messages.volumes import GetVolumesService, VolumesService

Answer = TypeVar("Answer", bound=Body)

WORK_S_MAX: Final = 3600.0
"""How long the volumes service may work on one command: some copy a whole volume. The client's deadline, or that it
leaves, ends the waiting before; what was begun the volumes service does to its end, or undoes."""
LOOK_S: Final = 1.0


class VolumeWork:
    """Asks, and waits. `look_s`: the time between two looks at the service."""

    def __init__(self, service: Asker, *, look_s: float = LOOK_S) -> None:
        self._service = service
        self._look_s = look_s

    async def done(self, command: Body, answer: type[Answer]) -> Answer:
        """The answer to `command`. Raises JobletError: UNAVAILABLE when the service is away, or ended over it."""
        instance = await self._instance()
        working = asyncio.create_task(self._service.request(command, answer, timeout_s=WORK_S_MAX))
        try:
            while True:
                await asyncio.wait({working}, timeout=self._look_s)
                ended = not working.done() and await self._is_another(instance)
                if working.done():  # perhaps while the service was looked at: an answer comes before its successor's
                    return working.result()
                if ended:
                    raise unavailable(
                        "the volumes service ended before this was done", "look at the volume, and try again"
                    )
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def _is_another(self, instance: str) -> bool:
        try:
            return await self._instance() != instance
        except JobletError:
            return False  # it is away, or busy: whoever answers next tells

    async def _instance(self) -> str:
        return (await self._service.request(GetVolumesService(), VolumesService)).instance
