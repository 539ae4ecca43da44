"""One client that streams a job's output: runs the machine, reads and encodes what it says.

Belongs here: turning a request into a start position and a selection, and instructions into messages. Does not belong
here: deciding what is next (`machine.py`), receiving (`feed.py`), reading history (`reader.py`).
Each message is awaited by gRPC's flow control before the next is made, so a client that does not read holds one
message, its live queue, and nothing else.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final, NamedTuple, cast

from common.errors import invalid
from common.messages import jobs
from common.quantities import request_time_ns
from proto.joblet.v1 import job_pb2, persist_pb2
from services.api.access import no_such_job
from services.api.convert import job_to_proto
from services.api.followers.chunks import Batch, Chunk, Selection, cut, encode
from services.api.followers.feed import Feeds
from services.api.followers.machine import Ended, Finish, Live, Machine, Marked, Progress, Read, Ready, Send, Wait, Wake
from services.api.followers.reader import Queries, Reader

POSITION_WAIT_S: Final = 5.0
"""How long a request waits to be told where the job's output is now, before it takes the record's word for it."""

MISSING_S: Final = 30.0
FILTER_BYTES_MAX: Final = 4096


class Wanted(NamedTuple):
    """What a client asked for."""

    selection: Selection
    from_sequence: int
    tail: int | None
    limit: int  # 0: none
    follow: bool


def wanted_of(request: job_pb2.StreamLogsRequest, *, now_ns: int) -> Wanted:
    """The request, checked. Raises JobletError(INVALID) naming the field."""
    stream = request.stream if request.HasField("stream") else None
    if stream is not None and stream not in {persist_pb2.STDOUT, persist_pb2.STDERR}:
        raise invalid(f"stream: no such stream {stream}", "use STDOUT or STDERR, or leave it out for both")
    text = request.filter.encode()
    if len(text) > FILTER_BYTES_MAX:
        raise invalid(f"filter has {len(text)} bytes, at most {FILTER_BYTES_MAX}")
    end_ns = request_time_ns(request.end_time)
    return Wanted(
        selection=Selection(stream=stream, start_ns=request_time_ns(request.start_time), end_ns=end_ns, text=text),
        from_sequence=max(request.from_sequence, 1),
        tail=request.tail if request.HasField("tail") else None,
        limit=request.limit,
        follow=request.follow and not 0 < end_ns <= now_ns,  # nothing that is still to come would be before the end
    )


class LogFollower:
    """One stream. Make it, then iterate over `messages`: serialized StreamLogsResponse, one at a time."""

    def __init__(
        self,
        record: jobs.JobRecord,
        wanted: Wanted,
        *,
        feeds: Feeds,
        queries: Queries,
        queue_bytes_max: int,
        missing_s: float = MISSING_S,
    ) -> None:
        self._record = record
        self._wanted = wanted
        self._feeds = feeds
        self._reader = Reader(queries, record.id, wanted.selection, missing_s=missing_s)
        self._machine = Machine(next_sequence=wanted.from_sequence, queue_bytes_max=queue_bytes_max)
        self._wake = asyncio.Event()
        self._position: int | None = None
        self._end: jobs.JobRecord | None = None
        self._gone = False
        self._left = wanted.limit or None
        self._tail = wanted.tail
        self._past_end = False

    def live(self, batch: Batch) -> None:
        """See feed.Follower."""
        self._told(Live(batch))

    def marked(self, last: int) -> None:
        """See feed.Follower."""
        if self._position is None:
            self._position = last
            self._wake.set()
        self._told(Marked(last))

    def ended(self, record: jobs.JobRecord) -> None:
        """See feed.Follower."""
        self._end = record
        if self._position is None:
            self._position = record.last_sequence
            self._wake.set()
        self._told(Ended(record.last_sequence))

    def gone(self) -> None:
        """See feed.Follower."""
        self._gone = True
        self._wake.set()

    def _told(self, event: Live | Marked | Ended) -> None:
        if isinstance(self._machine.handle(event), Wake):
            self._wake.set()

    async def messages(self) -> AsyncGenerator[bytes, None]:
        """Everything wanted, in order, once; then the ended job when the client follows to the end."""
        if self._record.state in jobs.TERMINAL:
            self.ended(self._record)
        elif self._wanted.follow:
            with self._feeds.following(self._record.id, self):
                if self._tail is not None:
                    await self._know_position()
                async with aclosing(self._stream()) as stream:
                    async for message in stream:
                        yield message
            return
        else:
            with self._feeds.following(self._record.id, self):
                await self._know_position()
            # What exists now is all that is asked for: for this machine, the job ends here.
            self._machine = Machine(next_sequence=self._wanted.from_sequence, queue_bytes_max=0)
            self._machine.handle(Ended(self._position or 0))
        async with aclosing(self._stream()) as stream:
            async for message in stream:
                yield message

    async def _know_position(self) -> None:
        try:
            async with asyncio.timeout(POSITION_WAIT_S):
                while self._position is None and not self._gone:
                    self._wake.clear()
                    await self._wake.wait()
        except TimeoutError:
            self._position = self._record.last_sequence

    async def _stream(self) -> AsyncGenerator[bytes, None]:
        if self._tail is not None:
            self._skip_to_tail(self._tail)
        while not (self._left == 0 or self._past_end):
            if self._gone:
                raise no_such_job()
            match self._machine.handle(Ready()):
                case Send(batches, first):
                    message = self._encoded(cast(Sequence[Batch], batches), first)
                    if message:
                        yield message
                case Read(first, last):
                    async with aclosing(self._read(first, last)) as messages:
                        async for message in messages:
                            yield message
                case Wait():
                    self._wake.clear()
                    await self._wake.wait()
                case Finish():
                    if self._wanted.follow and self._end is not None:
                        yield job_pb2.StreamLogsResponse(ended=job_to_proto(self._end)).SerializeToString()
                    return
                case unexpected:
                    raise AssertionError(unexpected)

    def _skip_to_tail(self, tail: int) -> None:
        """Without a filter the tail is a matter of counting; with one, persist must look (`_read` asks it to)."""
        position = self._position or 0
        if self._wanted.selection.everything or tail == 0:
            self._machine.handle(Progress(position - tail))
            self._tail = None

    async def _read(self, first: int, last: int) -> AsyncGenerator[bytes, None]:
        parts = self._reader.read(first, last, tail=self._tail, final=self._end is not None)
        async with aclosing(parts):
            async for part in parts:
                self._tail = None
                chunks = self._within_limit(part.chunks)
                self._machine.handle(Progress(part.through))
                if chunks:
                    yield encode(chunks)
                if self._left == 0 or self._gone:
                    return

    def _encoded(self, batches: Sequence[Batch], first: int) -> bytes:
        """One message of live batches; shared bytes where nothing is to be cut."""
        if self._wanted.selection.everything and self._left is None:
            whole = [batch.encoded for batch in batches if batch.first >= first]
            if len(whole) < len(batches):  # only the first one can begin below
                whole.insert(0, encode(self._cut(batches[0], first)))
            return whole[0] if len(whole) == 1 else b"".join(whole)
        chunks = [
            chosen
            for batch in batches
            for chunk in self._cut(batch, first)
            for chosen in self._wanted.selection.of(chunk)
        ]
        end_ns = self._wanted.selection.end_ns
        self._past_end = bool(end_ns) and batches[-1].chunks[-1].time_ns >= end_ns
        chunks = self._within_limit(chunks)
        return encode(chunks) if chunks else b""

    @staticmethod
    def _cut(batch: Batch, first: int) -> list[Chunk]:
        return [piece for chunk in batch.chunks if (piece := cut(chunk, first, batch.last)) is not None]

    def _within_limit(self, chunks: list[Chunk]) -> list[Chunk]:
        if self._left is None:
            return chunks
        kept: list[Chunk] = []
        for chunk in chunks:
            if self._left == 0:
                break
            piece = cut(chunk, chunk.first, chunk.first + self._left - 1)
            assert piece is not None
            kept.append(piece)
            self._left -= piece.lines
        return kept


class LogStreams:
    """Opens log streams: the dependencies that all of them share."""

    def __init__(self, *, feeds: Feeds, queries: Queries, queue_bytes_max: int) -> None:
        self._feeds = feeds
        self._queries = queries
        self._queue_bytes_max = queue_bytes_max

    def open(self, record: jobs.JobRecord, request: job_pb2.StreamLogsRequest) -> AsyncGenerator[bytes, None]:
        """The messages of one client's stream. Raises JobletError for a malformed request, or while iterating."""
        wanted = wanted_of(request, now_ns=time.time_ns())
        follower = LogFollower(
            record, wanted, feeds=self._feeds, queries=self._queries, queue_bytes_max=self._queue_bytes_max
        )
        return follower.messages()
