"""Reading a range of history for one follower, until all of it is there.

Belongs here: queries to persist for a closed range of sequences, and waiting while persist is away or
behind. Does not belong here: which range (`machine.py`).
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Final, NamedTuple, Protocol, cast

from google.protobuf.message import Message

from common import records
from common.errors import JobletError, Reason
from common.identifiers import JobId
from proto.joblet.v1 import persist_pb2
from services.api.followers.chunks import Chunk, Selection, cut, stored_chunk

RETRY_S: Final = 0.1
RETRY_S_MAX: Final = 1.0


class Queries(Protocol):
    """What is needed of `services.api.history.History`."""

    def raw(self, method: str, request: Message) -> AsyncGenerator[bytes, None]:
        """The answers to a query, as bytes."""


class Part(NamedTuple):
    """Chunks of the range in order, and up to where the range is read with them."""

    chunks: list[Chunk]
    through: int


class Reader:
    """Reads one job's history as one client wants it. `missing_s`: see `read`."""

    def __init__(self, queries: Queries, job: JobId, selection: Selection, *, missing_s: float) -> None:
        self._queries = queries
        self._job = job
        self._selection = selection
        self._missing_s = missing_s

    async def read(self, first: int, last: int, *, tail: int | None, final: bool) -> AsyncGenerator[Part, None]:
        """Every wanted entry from `first` to `last`, in order, once. Goes on while persist is away or behind.

        `tail`: only the last so many wanted entries. `final`: the job has ended, so persist is about to have all. When
        it answers but has nothing more for `missing_s`, the rest does not exist: JobletError(DATA_LOSS).
        """
        loop = asyncio.get_running_loop()
        retry_s, heard_at = RETRY_S, loop.time()
        while first <= last:
            before = first
            try:
                if tail is not None:
                    await self._settled(last)
                async with aclosing(self._once(first, last, tail=tail)) as parts:
                    async for part in parts:
                        first, heard_at = part.through + 1, loop.time()
                        yield part
            except JobletError as error:
                if error.reason is not Reason.UNAVAILABLE:
                    raise
                heard_at = loop.time()  # it is away: that says nothing of what it has
            if first > last:
                return
            if final and loop.time() - heard_at >= self._missing_s:
                raise JobletError(
                    Reason.DATA_LOSS,
                    f"the output from entry {first} to {last} is not stored",
                    detail=f"to read what comes after, ask from sequence {last + 1}",
                )
            retry_s = RETRY_S if first > before else min(retry_s * 2, RETRY_S_MAX)
            tail = tail if first == before else None
            await asyncio.sleep(retry_s)

    async def _settled(self, last: int) -> None:
        """Wait until the entry `last` is stored: a tail is counted from what is there when it is asked for."""
        query = persist_pb2.LogBatchQueryRequest(
            query=persist_pb2.LogQueryRequest(job_id=self._job), from_sequence=last, until_sequence=last, wait=True
        )
        with suppress(TimeoutError):
            async with aclosing(self._ask(query)) as answers:
                async for _ in answers:
                    continue  # the query ends by itself with that entry

    async def _once(self, first: int, last: int, *, tail: int | None) -> AsyncGenerator[Part, None]:
        """One query. It ends early when persist does, or is silent for `missing_s`."""
        through = first - 1
        try:
            async with aclosing(self._ask(self._query(first, last, tail))) as answers:
                async for answer in answers:
                    chunks: list[Chunk] = []
                    for chunk in answer:
                        piece = cut(chunk, through + 1, last)
                        if piece is None:
                            continue
                        if self._selection.everything and tail is None and piece.first > through + 1:
                            chunks.append(_not_stored(through + 1, piece.first - 1, piece.time_ns))
                        chunks.append(piece)
                        through = piece.last
                    if chunks:
                        yield Part(chunks, through)
        except TimeoutError:
            return
        if not self._selection.everything and through < last:
            yield Part([], last)  # the rest of the range was looked through, and nothing in it is wanted

    def _ask(self, query: persist_pb2.LogBatchQueryRequest) -> AsyncGenerator[list[Chunk], None]:
        return _answers(self._queries.raw("QueryLogBatches", query), self._missing_s)

    def _query(self, first: int, last: int, tail: int | None) -> persist_pb2.LogBatchQueryRequest:
        wanted = self._selection
        query = persist_pb2.LogQueryRequest(
            job_id=self._job,
            start_time=wanted.start_ns,
            end_time=wanted.end_ns,
            filter=wanted.text.decode("utf-8"),
        )
        if wanted.stream is not None:
            query.stream = cast(persist_pb2.StreamType, wanted.stream)
        return persist_pb2.LogBatchQueryRequest(
            query=query, from_sequence=first, until_sequence=last, tail=tail, wait=True
        )


def _not_stored(first: int, last: int, time_ns: int) -> Chunk:
    """Persist passed over entries without a gap record: the client is told, not led to believe it has all."""
    return Chunk(
        stream=records.Stream.NONE,
        first=first,
        lines=last - first + 1,
        time_ns=time_ns,
        data=b"",
        partial=False,
        gap_reason="not_stored",
    )


async def _answers(answers: AsyncGenerator[bytes, None], quiet_s: float) -> AsyncGenerator[list[Chunk], None]:
    """The chunks of each answer. Raises TimeoutError when one takes longer than `quiet_s`."""
    async with aclosing(answers):
        while True:
            async with asyncio.timeout(quiet_s):
                answer = await anext(answers, None)
            if answer is None:
                return
            yield [stored_chunk(batch) for batch in persist_pb2.LogBatches.FromString(answer).batches]
