"""One client that streams a job's output: runs the machine, reads and encodes what it says.

Belongs here: from a start position and a selection, and from instructions, to messages. Does not belong here: requests
(`wanted.py`), deciding what is next (`machine.py`), receiving (`feed.py`), reading history (`reader.py`).
Each message is awaited by gRPC's flow control before the next is made, so a client that does not read holds one
message and nothing else: what it lacks stands in the window of its job, as long as there is room.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractContextManager, aclosing
from typing import Final, Protocol, TypeAlias, cast

from common import records
from common.errors import JobletError, Reason
from common.identifiers import JobId
from common.matching import RegexMatcher
from common.messages import jobs
from proto.joblet.v1 import job_pb2
from services.api.access import no_such_job
from services.api.convert import job_to_proto
from services.api.followers.chunks import Batch, Chunk, cut, encode
from services.api.followers.machine import Finish, Machine, Mode, Progress, Read, Ready, Send, Wait
from services.api.followers.output import Output
from services.api.followers.reader import Queries, Reader
from services.api.followers.selection import Page
from services.api.followers.wanted import Wanted

POSITION_WAIT_S: Final = 5.0
"""How long a request waits to be told where the job's output is now, before it takes the record's word for it."""

MISSING_S: Final = 30.0
Look: TypeAlias = Callable[[JobId], Awaitable[jobs.JobFound]]


class Following(Protocol):
    """What is needed of `feed.Feeds`."""

    def following(self, job: JobId) -> AbstractContextManager[Output]:
        """The output of a job, told of inside the with-block."""


class LogFollower:
    """One stream of a job that was `found`. Make it, then iterate over `messages`: serialized StreamLogsResponse.

    `look` asks for the job anew.
    """

    def __init__(
        self,
        found: jobs.JobFound,
        wanted: Wanted,
        *,
        feeds: Following,
        queries: Queries,
        look: Look,
        missing_s: float = MISSING_S,
    ) -> None:
        record = found.job
        self._record = record
        self._delivered = found.delivered
        self._is_over = record.state in jobs.TERMINAL
        self._look = look
        self._wanted = wanted
        self._feeds = feeds
        self._reader = Reader(queries, record.id, wanted.selection, missing_s=missing_s, delivered=self._is_delivered)
        self._follow(Output(0))
        self._page = Page(offset=wanted.offset, limit=wanted.limit, gaps_count=wanted.selection.everything)
        self._mark_behind: int | None = None
        self._past_end = False

    @property
    def catching_up(self) -> bool:
        """It is served from history now."""
        return self._machine.mode is Mode.CATCHING_UP

    def _follow(self, output: Output) -> None:
        self._output = output
        self._machine = Machine(next_sequence=self._wanted.from_sequence, window=output.window)

    async def messages(self) -> AsyncGenerator[bytes, None]:
        """Everything wanted, in order, once; then the ended job when the client follows to the end."""
        if self._record.state in jobs.TERMINAL:
            self._output.ended(self._record)
        elif self._wanted.follow:
            with self._feeds.following(self._record.id) as output:
                self._follow(output)
                with output.read_by(self._machine):
                    if self._wanted.tail is not None:
                        self._mark_behind = await self._know_position(output)
                    async with aclosing(self._stream()) as stream:
                        async for message in stream:
                            yield message
            return
        else:
            with self._feeds.following(self._record.id) as output:
                self._output.window.ended(await self._know_position(output))
            # What exists now is all that is asked for: for this stream, the job ends here.
        async with aclosing(self._stream()) as stream:
            async for message in stream:
                yield message

    async def _know_position(self, output: Output) -> int:
        """How far the output reaches now, as the executor says."""
        try:
            async with asyncio.timeout(POSITION_WAIT_S):
                while output.position is None:
                    if output.gone:
                        raise no_such_job()
                    await output.news()
        except TimeoutError:
            return self._record.last_sequence
        return max(output.position, output.window.known_last)

    async def _stream(self) -> AsyncGenerator[bytes, None]:
        for stream in (self._beginning(), self._rest()):
            async with aclosing(stream) as messages:
                async for message in messages:
                    yield message

    async def _beginning(self) -> AsyncGenerator[bytes, None]:
        """The tail. Without a selection it is a matter of counting; with one persist must look, whatever came live."""
        tail = self._wanted.tail
        position = self._output.window.known_last if self._mark_behind is None else self._mark_behind
        if tail is None:
            return
        if self._wanted.selection.everything or tail == 0:
            self._machine.handle(Progress(position - tail))
            return
        async with aclosing(self._read(self._machine.next, position, tail)) as messages:
            async for message in messages:
                yield message

    async def _rest(self) -> AsyncGenerator[bytes, None]:
        while not (self._page.full or self._past_end):
            if self._output.gone:
                raise no_such_job()
            if self._mark_behind is not None and self._machine.next > self._mark_behind:
                self._mark_behind = None
                yield _mark(self._machine.next)
            match self._machine.handle(Ready()):
                case Send(batches, first):
                    message = await self._encoded(cast(list[Batch], batches), first)
                    if message:
                        yield message
                case Read(first, last):
                    async with aclosing(self._read(first, last)) as messages:
                        async for message in messages:
                            yield message
                case Wait():
                    await self._output.news()
                case Finish():
                    if self._wanted.follow and self._output.end is not None:
                        yield job_pb2.StreamLogsResponse(ended=job_to_proto(self._output.end)).SerializeToString()
                    return
                case unexpected:
                    raise AssertionError(unexpected)

    async def _read(self, first: int, last: int, tail: int | None = None) -> AsyncGenerator[bytes, None]:
        parts = self._reader.read(first, last, tail=tail, ended=self._has_ended, complete=self._delivered)
        async with aclosing(parts):
            async for part in parts:
                chunks = self._page.of(part.chunks)
                self._machine.handle(Progress(part.through))
                if chunks:
                    yield encode(chunks)
                if self._page.full or self._output.gone:
                    return

    async def _encoded(self, batches: list[Batch], first: int) -> bytes:
        """One message of live batches; shared bytes where nothing is to be cut."""
        if self._wanted.selection.everything and self._page.whole:
            if batches[0].first < first:  # only the first one can begin below
                return b"".join([encode(self._cut(batches[0], first)), *[batch.encoded for batch in batches[1:]]])
            return batches[0].encoded if len(batches) == 1 else self._output.joined(batches)
        matcher = self._wanted.selection.matcher
        if isinstance(matcher, RegexMatcher) and matcher.is_heavy:
            chunks = await asyncio.to_thread(self._selected, batches, first)
        else:
            chunks = self._selected(batches, first)
        end_ns = self._wanted.selection.end_ns
        self._past_end = bool(end_ns) and batches[-1].chunks[-1].time_ns >= end_ns
        chunks = self._page.of(chunks)
        return encode(chunks) if chunks else b""

    def _selected(self, batches: list[Batch], first: int) -> list[Chunk]:
        selected = self._wanted.selection.of
        return [chosen for batch in batches for chunk in self._cut(batch, first) for chosen in selected(chunk)]

    @staticmethod
    def _cut(batch: Batch, first: int) -> list[Chunk]:
        return [piece for chunk in batch.chunks if (piece := cut(chunk, first, batch.last)) is not None]

    def _has_ended(self) -> bool:
        """As far as is known here: who reads for long learns it in the middle, and without `follow` by looking only."""
        return self._is_over or self._output.end is not None

    async def _is_delivered(self) -> bool:
        """Whether persist has had all output of the ended job, as the executor knows now."""
        if not self._delivered:
            try:
                found = await self._look(self._record.id)
            except JobletError as error:
                if error.reason is not Reason.UNAVAILABLE:
                    raise
            else:
                self._delivered, self._is_over = found.delivered, found.job.state in jobs.TERMINAL
        return self._delivered


def _mark(sequence: int) -> bytes:
    """No entry, but where the next one will be: for a client that must go on there, and has not got anything yet."""
    return encode([Chunk(records.Stream.STDOUT, sequence, 0, 0, b"", partial=False)])
