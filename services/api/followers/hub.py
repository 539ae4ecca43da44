"""The hub: the one subscription socket of the process, shared by everything that listens to the executor's events.

Belongs here: who listens to which topic. A job's log is subscribed once, however many listen, and let go with the last.
The changes of all jobs are subscribed for good: they are few, and a subscription takes effect only a little later, when
a short job may have ended already.
Does not belong here: what the messages mean. Listeners are plain functions that must not wait.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeAlias

from common.bus.events import Subscriber
from common.messages.envelope import Body

Listener: TypeAlias = Callable[[Body], None]

ALL_JOBS: Final = "job."
"""Prefix of every job's own topic."""

TURN_S: Final = 0.005
"""How long messages are handed on before everybody else has a turn."""
TURN_MESSAGES_MIN: Final = 32
"""And how many at least: on a busy host little is done in that time."""


class Hub:
    """Hands events to listeners. `run` must be running."""

    def __init__(self, subscriber: Subscriber) -> None:
        self._subscriber = subscriber
        self._listeners: dict[str, list[Listener]] = {}
        subscriber.subscribe(ALL_JOBS)

    @contextmanager
    def listening(self, topic: str, listener: Listener) -> Iterator[None]:
        """Call `listener` with every message on `topic` (a whole topic, or ALL_JOBS) inside the with-block."""
        listeners = self._listeners.setdefault(topic, [])
        if not listeners and not topic.startswith(ALL_JOBS):
            self._subscriber.subscribe(topic)
        listeners.append(listener)
        try:
            yield
        finally:
            listeners.remove(listener)
            if not listeners:
                del self._listeners[topic]
                if not topic.startswith(ALL_JOBS):
                    self._subscriber.unsubscribe(topic)

    @property
    def topics(self) -> frozenset[str]:
        """What somebody listens to now."""
        return frozenset(self._listeners)

    async def run(self) -> None:
        """Receive for ever."""
        loop = asyncio.get_running_loop()
        handed_on, turn_ends = 0, 0.0
        async for topic, message in self._subscriber.messages():
            for key in (topic, ALL_JOBS) if topic.startswith(ALL_JOBS) else (topic,):
                for listener in tuple(self._listeners.get(key, ())):
                    listener(message.body)
            # Receiving from a socket that is never empty never waits, and would leave no turn to anybody else. With a
            # turn of one message it would fall behind a crowd of followers, who have theirs in between.
            handed_on += 1
            if handed_on >= TURN_MESSAGES_MIN and loop.time() >= turn_ends:
                await asyncio.sleep(0)
                handed_on, turn_ends = 0, loop.time() + TURN_S
