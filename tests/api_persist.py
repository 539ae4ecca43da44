"""Persist as the api's tests need it: records in memory, queries with `wait` as the contract says, and times away."""

import asyncio
import functools
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import grpc

from common import records
from proto.joblet.v1 import node_pb2, persist_pb2, persist_pb2_grpc


class FakePersist(persist_pb2_grpc.PersistServiceServicer):
    """Stores records entry by entry, and answers like the contract says. `away` refuses everything."""

    def __init__(self) -> None:
        self.entries: dict[str, list[persist_pb2.LogBatch]] = {}
        self._whole: dict[str, list[persist_pb2.LogBatch]] = {}
        self.metrics: list[persist_pb2.Metric] = []
        self.deleted: list[str] = []
        self.away = False
        self.deaf = asyncio.Event()  # while it is clear, nothing is answered: the process is stopped
        self.deaf.set()
        self.counting = True
        self.queries = 0
        self.open = 0
        self._more = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    def store(self, job: str, payload: bytes) -> None:
        """Keep records; whoever waits is told."""
        for record in records.decode_all(payload):
            if not record.lines:
                continue
            whole = _batch(record, record.sequence, record.lines, bytes(record.payload))
            self._whole.setdefault(job, []).append(whole)
            pieces = [whole]
            if record.type == records.RecordType.OUTPUT and not record.partial:
                lines = bytes(record.payload).split(b"\n")[:-1]
                pieces = [_batch(record, record.sequence + n, 1, line + b"\n") for n, line in enumerate(lines)]
            self.entries.setdefault(job, []).extend(pieces)
        task = asyncio.get_running_loop().create_task(self.tell())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def remove(self, job: str, *, first: int = 0, last: int = 2**63) -> None:
        """Entries between two sequences are gone, as if by hand. Borders are those of what was stored at once."""
        for kept in (self.entries, self._whole):
            kept[job] = [
                one for one in kept.get(job, ()) if one.first_sequence + one.lines <= first or one.first_sequence > last
            ]

    async def tell(self) -> None:
        """Wake those who wait."""
        async with self._more:
            self._more.notify_all()

    async def QueryLogBatches(self, request: Any, context: Any) -> AsyncIterator[persist_pb2.LogBatches]:  # noqa: N802
        """See proto/joblet/v1/persist.proto."""
        self.queries += 1
        self.open += 1
        try:
            await self.deaf.wait()
            if self.away:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
            position = max(request.from_sequence, 1)
            until = request.until_sequence or 2**63
            if request.HasField("tail"):
                async with self._more:
                    await self._more.wait_for(lambda: not request.wait or self._last(request.query.job_id) >= until)
                wanted = [e for e in self._entries(request, position, until) if self._wanted(request.query, e)]
                for entry in _tail(request, wanted):
                    yield persist_pb2.LogBatches(batches=[entry])
                return
            left = request.query.limit or 2**63
            while position <= until:
                if self.away:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
                for entry in self._entries(request, position, until):
                    position = entry.first_sequence + entry.lines
                    if left > 0 and self._wanted(request.query, entry):
                        left -= 1
                        yield persist_pb2.LogBatches(batches=[entry])
                if left <= 0 or position > until or not request.wait:
                    return
                async with self._more:
                    await self._more.wait_for(functools.partial(self._moved, request.query.job_id, position))
        finally:
            self.open -= 1

    async def QueryLogs(self, request: Any, context: Any) -> AsyncIterator[persist_pb2.LogLine]:  # noqa: N802, ARG002
        """Stored lines, as far as tests need it."""
        for entry in list(self.entries.get(request.job_id, ())):
            yield persist_pb2.LogLine(
                job_id=request.job_id,
                stream=entry.stream,
                content=entry.data.removesuffix(b"\n"),
                timestamp=entry.timestamp,
                sequence=entry.first_sequence,
            )

    async def QueryMetrics(self, request: Any, context: Any) -> AsyncIterator[persist_pb2.Metric]:  # noqa: N802, ARG002
        """Stored samples, as far as tests need it."""
        for sample in [one for one in self.metrics if one.job_id == request.job_id]:
            yield sample

    async def DeleteJobData(self, request: Any, context: Any) -> persist_pb2.DeleteJobDataResponse:  # noqa: N802
        """Forget a job."""
        if self.away:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        self.deleted.append(request.job_id)
        removed = self.entries.pop(request.job_id, [])
        return persist_pb2.DeleteJobDataResponse(log_bytes=sum(len(entry.data) for entry in removed))

    async def ApplyRetention(self, request: Any, context: Any) -> AsyncIterator[persist_pb2.Removal]:  # noqa: N802
        """Would remove all that is stored; with dry_run it stays."""
        if self.away:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        for job, entries in list(self.entries.items()):
            yield persist_pb2.Removal(job_id=job, bytes=sum(len(entry.data) for entry in entries), why="age")
            if not request.dry_run:
                del self.entries[job]

    async def GetStore(self, request: Any, context: Any) -> persist_pb2.StoreInfo:  # noqa: N802, ARG002
        """How much there is."""
        if self.away:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        await self.deaf.wait()
        if not self.counting:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "an older one")
        return persist_pb2.StoreInfo(jobs=len(self.entries), counters={"entries_repeated": 3})

    async def QueryAudit(self, request: Any, context: Any) -> AsyncIterator[node_pb2.QueryAuditResponse]:  # noqa: N802
        """One line, of whom was asked for."""
        if self.away:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        entry = node_pb2.AuditEntry(who=request.who, method="retention", number=1, source="persist")
        yield node_pb2.QueryAuditResponse(entries=[entry])

    def _entries(self, request: Any, first: int, last: int) -> list[persist_pb2.LogBatch]:
        query = request.query
        if _selects(query) or request.HasField("tail") or query.limit:
            return [
                one
                for one in self.entries.get(query.job_id, ())
                if one.first_sequence <= last and one.first_sequence + one.lines > first
            ]
        # Whole records, which may reach beyond the range at both ends: the contract lets persist answer so.
        return [
            one
            for one in self._whole.get(query.job_id, ())
            if one.first_sequence <= last and one.first_sequence + one.lines > first
        ]

    def _moved(self, job: str, position: int) -> bool:
        return self.away or self._last(job) >= position

    def _last(self, job: str) -> int:
        stored = self.entries.get(job)
        return stored[-1].first_sequence + stored[-1].lines - 1 if stored else 0

    @staticmethod
    def _wanted(query: Any, entry: persist_pb2.LogBatch) -> bool:
        """A gap is told whatever its text would have been."""
        streams = {query.stream, 0} if entry.gap_reason else {query.stream}
        text = entry.data.removesuffix(b"\n")
        return (
            (not query.HasField("stream") or entry.stream in streams)
            and entry.timestamp >= query.start_time
            and (not query.end_time or entry.timestamp < query.end_time)
            and (
                bool(entry.gap_reason)
                or (query.filter.encode() in text and re.search(query.regex.encode(), text) is not None)
            )
        )


def _batch(record: records.Record, first: int, lines: int, data: bytes) -> persist_pb2.LogBatch:
    batch = persist_pb2.LogBatch(
        stream=record.stream,  # type: ignore[arg-type]  # the numbers are the same
        first_sequence=first,
        lines=lines,
        timestamp=record.time_ns,
        data=data,
        partial=record.partial,
    )
    if record.type == records.RecordType.GAP:
        gap = json.loads(data)
        batch.data, batch.gap_reason, batch.gap_bytes = b"", gap["reason"], gap["bytes"]
    return batch


def _selects(query: Any) -> bool:
    return bool(query.filter or query.regex or query.HasField("stream") or query.start_time or query.end_time)


def _tail(request: Any, wanted: list[persist_pb2.LogBatch]) -> list[persist_pb2.LogBatch]:
    """The last entries that count, and the gaps among them."""
    left = request.tail
    for number in range(len(wanted) - 1, -1, -1):
        if left <= 0:
            return wanted[number + 1 :]
        left -= not wanted[number].gap_reason or not _selects(request.query)
    return wanted if request.tail else []
