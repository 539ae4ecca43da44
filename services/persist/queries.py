"""Log queries: what a request asks for, read in worker threads a step at a time, as messages.

Whoever leaves is noticed between two steps; whoever does not read is held by HTTP/2 flow control with one step of
output in memory. There is no time limit here: that is the client's deadline, at which it leaves. Not here: what is read
of which file (reader.py).
"""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from common.errors import not_found
from common.matching import RegexMatcher
from proto.joblet.v1 import persist_pb2 as pb
from services.persist import selection
from services.persist.blocks import Source
from services.persist.changes import Changes
from services.persist.pieces import DamagedMembers
from services.persist.reader import LogReader
from services.persist.runs import Run
from services.persist.selection import LogSelection

EXPRESSIONS_AT_ONCE_MAX: Final = 2
"""Steps of queries with a regular expression, which can be slow: they never take all threads from the others."""

T = TypeVar("T")


class LogQueries:
    """Answers log queries from the store."""

    def __init__(self, *, store: Source, changes: Changes, pool: ThreadPoolExecutor) -> None:
        self._store = store
        self._changes = changes
        self._pool = pool
        self._expressions = asyncio.Semaphore(EXPRESSIONS_AT_ONCE_MAX)
        self.damaged = DamagedMembers()

    async def lines(self, request: pb.LogQueryRequest) -> AsyncIterator[pb.LogLine]:
        """What QueryLogs asks for. Raises JobletError, OSError."""
        wanted = selection.of_lines(request)
        async for messages in self._logs(wanted, functools.partial(_lines, wanted.job)):
            for message in messages:
                yield message

    async def batches(self, request: pb.LogBatchQueryRequest) -> AsyncIterator[pb.LogBatches]:
        """What QueryLogBatches asks for. Raises JobletError, OSError."""
        async for message in self._logs(selection.of_batches(request), _batches):
            if message.batches:
                yield message

    async def _logs(self, wanted: LogSelection, convert: Callable[[list[Run]], T]) -> AsyncIterator[T]:
        reader = LogReader(self._store, wanted, self.damaged)
        run = self._in_turn if isinstance(wanted.matcher, RegexMatcher) else self._in_pool
        with self._changes.watch(wanted.job) as watch:
            while True:
                watch.reset()
                view = await self._in_pool(self._store.view, wanted.job)
                steps = reader.steps(view)
                while (converted := await run(_converted, steps, convert)) is not None:
                    yield converted
                if reader.is_finished(view):
                    return
                if watch.deleted:
                    raise not_found(f"the data of job {wanted.job} was deleted meanwhile")
                await watch.wait()

    async def _in_turn(self, work: Callable[..., T], *arguments: object) -> T:
        """The turn ends with the work, not when whoever asked has left."""
        await self._expressions.acquire()
        running = asyncio.ensure_future(self._in_pool(work, *arguments))
        running.add_done_callback(lambda _: self._expressions.release())
        return await asyncio.shield(running)

    async def _in_pool(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)


def _converted(steps: Iterator[list[Run]], convert: Callable[[list[Run]], T]) -> T | None:
    step = next(steps, None)
    if step is None:
        return None
    converted = convert(step)
    step.clear()  # the reader holds it until it is asked again, which a client that does not read never does
    return converted


def _batches(step: list[Run]) -> pb.LogBatches:
    batches = [
        pb.LogBatch(
            stream=run.stream,  # type: ignore[arg-type]  # the numbers are the same
            first_sequence=run.first,
            lines=min(run.lines, 2**32 - 1),
            timestamp=run.time_ns,
            data=run.data,
            partial=run.partial,
            gap_reason=run.gap_reason,
            gap_bytes=run.gap_bytes,
        )
        for run in step
    ]
    return pb.LogBatches(batches=batches)


def _lines(job: str, step: list[Run]) -> list[pb.LogLine]:
    """Gaps have no line: this query cannot tell of them, QueryLogBatches does."""
    return [
        pb.LogLine(job_id=job, stream=run.stream, content=content, timestamp=run.time_ns, sequence=sequence)  # type: ignore[arg-type]
        for run in step
        for sequence, content in enumerate(run.contents(), run.first)
    ]
