"""Reading a range of history for one follower, until all of it is there or is known to be gone.

Belongs here: queries to persist for a closed range of sequences, waiting while persist is away or behind, and telling
what is not stored. Does not belong here: which range (`machine.py`).

    the job runs             what is missing is on its way: waited for
    it has ended             the same; when persist answers and takes nothing more for `missing_s`: UNAVAILABLE.
                             It is no gap, because the job's journal still has it
    ended and delivered      persist has had all of it: what it does not have any more was removed, and is a gap at once
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Final, NamedTuple, Protocol, cast

from google.protobuf.message import Message

from common import records
from common.errors import JobletError, Reason
from common.identifiers import JobId
from common.quantities import as_request_time
from proto.joblet.v1 import persist_pb2
from services.api.followers.chunks import LINES_MAX, Chunk, cut, stored_chunk
from services.api.followers.selection import Selection

RETRY_S: Final = 0.1
RETRY_S_MAX: Final = 1.0


GONE_MAX: Final = 3
"""So often in a row persist says that what it had is not there: then it is not."""

NOT_STORED: Final = "not_stored"
"""Reason of a gap: persist passed over these entries and does not say why."""
REMOVED: Final = "removed"
"""Reason of a gap: persist has had these entries, and has them no more."""


class Queries(Protocol):
    """What is needed of `services.api.history.History`."""

    def raw(self, method: str, request: Message) -> AsyncGenerator[bytes, None]:
        """The answers to a query, as bytes; UNAVAILABLE behind an answer that was not taken for long."""


class Part(NamedTuple):
    """Chunks of the range in order, and up to where the range is read with them."""

    chunks: list[Chunk]
    through: int


class Reader:
    """Reads one job's history as one client wants it. `delivered` tells whether persist has had all of it by now."""

    def __init__(
        self,
        queries: Queries,
        job: JobId,
        selection: Selection,
        *,
        missing_s: float,
        delivered: Callable[[], Awaitable[bool]],
    ) -> None:
        self._queries = queries
        self._job = job
        self._selection = selection
        self._missing_s = missing_s
        self._delivered = delivered

    async def read(
        self, first: int, last: int, *, tail: int | None, ended: Callable[[], bool], complete: bool
    ) -> AsyncGenerator[Part, None]:
        """Every wanted entry from `first` to `last`, in order, once. Goes on while persist is away or behind.

        `tail`: only the last so many wanted entries. `ended`: whether the job has ended, so that persist is about to
        have all, asked behind `delivered`; `complete`: it has had all. Raises JobletError(UNAVAILABLE) when it takes
        nothing more of an ended job, as with a full disk.
        """
        loop = asyncio.get_running_loop()
        retry_s, heard_at, gone = RETRY_S, loop.time(), 0
        while first <= last:
            before = first
            ask = self._what_is_left if complete else self._what_comes
            try:
                async with aclosing(ask(first, last, tail)) as parts:
                    async for part in parts:
                        first, heard_at = part.through + 1, loop.time()
                        yield part
            except TimeoutError:
                pass  # it is silent, and time goes on
            except JobletError as error:
                if complete and error.reason is Reason.NOT_FOUND:
                    # Removed meanwhile: the next answer says what is left, unless persist keeps a file in mind that
                    # somebody else has removed.
                    gone = gone + 1 if first == before else 1
                    if gone == GONE_MAX:
                        yield Part(_gap(first, last, REMOVED), last)
                        return
                elif error.reason not in {Reason.UNAVAILABLE, Reason.EXHAUSTED}:
                    raise
                heard_at = loop.time()  # it is away, or has too many to serve: that says nothing of what it has
            if first > last:
                return
            if not complete and loop.time() - heard_at >= self._missing_s:
                complete = await self._delivered()
                if not complete and ended() and await self._lacks(first):
                    raise _not_yet(first, last)
                heard_at = loop.time()
                continue
            retry_s = RETRY_S if first > before else min(retry_s * 2, RETRY_S_MAX)
            tail = tail if first == before else None
            await asyncio.sleep(retry_s)

    async def _what_comes(self, first: int, last: int, tail: int | None) -> AsyncGenerator[Part, None]:
        """One query that waits for what is not stored yet. It ends early when persist does."""
        if tail is not None:
            await self._settled(last)
        async with aclosing(self._once(first, last, tail=tail, wait=True)) as parts:
            async for part in parts:
                yield part

    async def _settled(self, last: int) -> None:
        """Wait until the entry `last` is stored: a tail is counted from what is there when it is asked for."""
        query = self._of_range(last, last, wait=True)
        with suppress(TimeoutError):
            async with aclosing(self._ask(query)) as answers:
                async for _ in answers:
                    continue  # the query ends by itself with that entry

    async def _what_is_left(self, first: int, last: int, tail: int | None) -> AsyncGenerator[Part, None]:
        """All that is there now, and gaps for what is not.

        Among selected entries no hole shows by itself. So the ends of what is stored are asked for before; what is
        missing between them is not told then.
        """
        low, high = first, last
        if not self._selection.everything:
            low, high = await self._ends_of_what_is_stored(first, last)
        through = low - 1
        if first <= through:
            yield Part(_gap(first, through, REMOVED), through)
        if low <= high:
            async with aclosing(self._once(low, high, tail=tail, wait=False)) as parts:
                async for part in parts:
                    through = part.through
                    yield part
        if through < last:
            yield Part(_gap(through + 1, last, REMOVED), last)

    async def _ends_of_what_is_stored(self, first: int, last: int) -> tuple[int, int]:
        """The lowest and the highest sequence between `first` and `last` that is stored; last + 1 and last: none is."""
        lowest = self._of_range(first, last, wait=False)
        lowest.query.limit = 1
        low, _ = await self._span(lowest)
        highest = self._of_range(first, last, wait=False)
        highest.tail = 1
        _, high = await self._span(highest)
        return (last + 1, last) if low == 0 or high == 0 else (max(low, first), min(high, last))

    async def _span(self, query: persist_pb2.LogBatchQueryRequest) -> tuple[int, int]:
        low = high = 0
        async with aclosing(self._ask(query)) as answers:
            async for answer in answers:
                for chunk in answer:
                    low, high = low or chunk.first, chunk.last
        return low, high

    async def _lacks(self, sequence: int) -> bool:
        """Persist answers, and does not have this entry. One that is stopped does not answer, and may have it."""
        try:
            found, _ = await self._span(self._of_range(sequence, sequence, wait=False))
        except (TimeoutError, JobletError):
            return False
        return found == 0

    async def _once(self, first: int, last: int, *, tail: int | None, wait: bool) -> AsyncGenerator[Part, None]:
        """One query. It ends early when persist does. Raises TimeoutError when that is silent for `missing_s`."""
        through = first - 1
        everything = self._selection.everything and tail is None
        async with aclosing(self._ask(self._query(first, last, tail, wait=wait))) as answers:
            async for answer in answers:
                chunks: list[Chunk] = []
                for chunk in answer:
                    piece = cut(chunk, through + 1, last)
                    if piece is None:
                        continue
                    if everything and piece.first > through + 1:
                        # The client is told, not led to believe that it has all.
                        reason = NOT_STORED if wait else REMOVED
                        chunks += _gap(through + 1, piece.first - 1, reason, piece.time_ns)
                    chunks.append(piece)
                    through = piece.last
                if chunks:
                    yield Part(chunks, through)
        if not everything and through < last:
            yield Part([], last)  # the rest of the range was looked through, and nothing in it is wanted

    def _ask(self, query: persist_pb2.LogBatchQueryRequest) -> AsyncGenerator[list[Chunk], None]:
        return _answers(self._queries.raw("QueryLogBatches", query), self._missing_s)

    def _of_range(self, first: int, last: int, *, wait: bool) -> persist_pb2.LogBatchQueryRequest:
        return persist_pb2.LogBatchQueryRequest(
            query=persist_pb2.LogQueryRequest(job_id=self._job), from_sequence=first, until_sequence=last, wait=wait
        )

    def _query(self, first: int, last: int, tail: int | None, *, wait: bool) -> persist_pb2.LogBatchQueryRequest:
        wanted = self._selection
        request = self._of_range(first, last, wait=wait)
        request.query.start_time = as_request_time(wanted.start_ns)
        request.query.end_time = as_request_time(wanted.end_ns)
        request.query.filter = wanted.text
        request.query.regex = wanted.pattern
        if wanted.stream is not None:
            request.query.stream = cast(persist_pb2.StreamType, wanted.stream)
        if tail is not None:
            request.tail = tail
        return request


def _not_yet(first: int, last: int) -> JobletError:
    return JobletError(
        Reason.UNAVAILABLE,
        f"the output from entry {first} to {last} is kept on the node and cannot be stored now",
        detail=f"is the disk of the logs full? Ask again later, from sequence {first}",
        retryable=True,
    )


def _gap(first: int, last: int, reason: str, time_ns: int = 0) -> list[Chunk]:
    """The hole from `first` to `last`: one chunk, or as many as it takes."""
    return [
        Chunk(
            stream=records.Stream.NONE,
            first=start,
            lines=min(last - start + 1, LINES_MAX),
            time_ns=time_ns,
            data=b"",
            partial=False,
            gap_reason=reason,
        )
        for start in range(first, last + 1, LINES_MAX)
    ]


async def _answers(answers: AsyncGenerator[bytes, None], quiet_s: float) -> AsyncGenerator[list[Chunk], None]:
    """The chunks of each answer. Raises TimeoutError when one takes longer than `quiet_s`."""
    async with aclosing(answers):
        while True:
            async with asyncio.timeout(quiet_s):
                answer = await anext(answers, None)
            if answer is None:
                return
            yield [stored_chunk(batch) for batch in persist_pb2.LogBatches.FromString(answer).batches]
