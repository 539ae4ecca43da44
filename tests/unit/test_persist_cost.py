"""What a query costs is bounded, whatever is stored and asked for: work of a step, memory, threads, and an end."""

import asyncio
import contextlib
import random
import threading
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from common.identifiers import JobId, new_job_id
from common.records import Stream
from proto.joblet.v1 import persist_pb2 as pb
from services.persist import reader
from services.persist.changes import Changes
from services.persist.index import Bounds, Member
from services.persist.queries import EXPRESSIONS_AT_ONCE_MAX, LogQueries
from services.persist.reader import LogReader
from services.persist.segment import Segment
from services.persist.store import Store, View
from tests.unit.test_persist_journal import TIME_NS, gap, make_store, output, select, write
from tests.waiting import await_for

JOB, OTHER = new_job_id(), new_job_id()
MIB = 2**20


class Counted:
    """A store that counts reads, and whose `gate` holds those of JOB."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.reads = self.waiting = 0
        self.gate = threading.Event()
        self.gate.set()

    def view(self, job: JobId) -> View:
        """See Store.view."""
        return self._store.view(job)

    def read(self, job: JobId, segment: Segment, wanted: Member) -> bytes:
        """See Store.read."""
        self._enter(job)
        return self._store.read(job, segment, wanted)

    def read_block(self, job: JobId, segment: Segment, offset: int, size_bytes: int) -> bytes:
        """See Store.read_block."""
        self._enter(job)
        return self._store.read_block(job, segment, offset, size_bytes)

    def _enter(self, job: JobId) -> None:
        if job == JOB:
            self.waiting += 1
            assert self.gate.wait(30)
            self.waiting -= 1
        self.reads += 1


@pytest.fixture(scope="module")
def bomb(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """24 MiB of zeros without a line end between flooding lines: 150 MB of text in less than 1 MB of file."""
    store = make_store(tmp_path_factory.mktemp("bomb"), flush_bytes=2**16)
    sequence = 1
    for number in range(24):
        flood = output((b"z" * 9 + b"\n") * 5000, sequence + 1, stream=Stream(1 + number % 2), time_ns=TIME_NS + number)
        write(store, JOB, output(b"\0" * MIB, sequence, time_ns=TIME_NS + number), flood)
        sequence += 5001
    write(store, JOB, gap(sequence, 10**9), end=sequence + 10**9 - 1)
    return store


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """24 members that are inflated one by one."""
    source, store = random.Random(3), make_store(tmp_path_factory.mktemp("large"), flush_bytes=MIB)  # noqa: S311
    for number in range(24):
        payload = b"".join(source.randbytes(49).hex().encode() + b"\n" for _ in range(5000))
        write(store, JOB, output(payload, number * 5000 + 1))
    write(store, OTHER, output(b"a\n", 1))
    return store


@pytest.mark.threat("C22")
@pytest.mark.parametrize(
    ("fields", "streams"),
    [
        ({"filter": "nowhere"}, (1, 2)),
        ({"filter": "nowhere", "tail": 5}, (1, 2)),
        ({"filter": "\0 "}, (1, 2)),
        ({"regex": "nowh[e]re"}, (1, 2)),
        ({"regex": "(x|\\x00)+ $", "stream": 2}, (2,)),
        ({"offset": 2**31 - 1}, (1, 2)),
        ({"start_time": TIME_NS + 10**6}, ()),
        ({"from_sequence": 10**8, "filter": "nowhere"}, ()),
        ({}, (1, 2)),
        ({"tail": 50_000}, ()),
    ],
)
def test_the_work_of_a_step_and_the_memory_are_bounded(
    bomb: Store, fields: dict[str, Any], streams: tuple[int, ...]
) -> None:
    """Whatever is skipped of `streams`, a step inflates no more than its measure and some members, and keeps none."""
    segments = bomb.view(JOB).segments
    sizes = {s: [m.header.inflated_bytes for m in segments[s].index.touched(Bounds())] for s in segments}
    largest = max(max(of_stream) for of_stream in sizes.values())
    number = 0
    tracemalloc.start()
    try:
        for number, step in enumerate(LogReader(bomb, select(JOB, **fields)).steps(bomb.view(JOB)), 1):  # noqa: B007
            assert sum(len(run.data) for run in step) <= reader.STEP_BYTES + 2 * MIB
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 6 * largest
    assert number >= sum(sum(sizes[Stream(s)]) for s in streams) / (reader.STEP_COST_BYTES + 3 * largest)
    assert largest < 8 * MIB


@contextlib.asynccontextmanager
async def served(source: Counted, *, threads: int) -> AsyncIterator[LogQueries]:
    """Queries with so many threads."""
    with ThreadPoolExecutor(threads) as pool:
        try:
            yield LogQueries(store=source, changes=Changes(), pool=pool)
        finally:
            source.gate.set()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    """With a deadline."""

    async def main() -> None:
        async with asyncio.timeout(30):
            await scenario()

    asyncio.run(main())


async def ask(queries: LogQueries, job: JobId, **fields: Any) -> int:
    """How many entries a query gives."""
    query = pb.LogBatchQueryRequest(query=pb.LogQueryRequest(job_id=job, **fields))
    return sum([batch.lines async for message in queries.batches(query) for batch in message.batches])


@pytest.mark.threat("C22")
@pytest.mark.threat("C23")
@pytest.mark.parametrize("fields", [{"filter": "nowhere"}, {"regex": "nowh[e]re"}])
def test_whoever_leaves_stops_the_search_within_a_step(large: Store, fields: dict[str, str]) -> None:
    """The step that runs comes to its end, and no other begins."""

    async def scenario() -> None:
        source = Counted(large)
        source.gate.clear()
        async with served(source, threads=1) as queries:
            asking = asyncio.create_task(ask(queries, JOB, **fields))
            await await_for(lambda: source.waiting == 1, what="a step that reads")
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            source.gate.set()
            nobody = new_job_id()
            assert await ask(queries, nobody) == 0  # by the only thread, which is free then
            members = sum(len(segment.index) for segment in large.view(JOB).segments.values())
            reads = source.reads
            assert 0 < reads < members / 3
            await ask(queries, nobody)
            assert source.reads == reads

    run(scenario)


@pytest.mark.threat("C23")
def test_slow_expressions_do_not_take_all_threads(large: Store) -> None:
    """While as many as there are threads search, and leave, and come again, others are served."""

    async def scenario() -> None:
        source = Counted(large)
        source.gate.clear()
        async with served(source, threads=EXPRESSIONS_AT_ONCE_MAX + 1) as queries:
            asking = [asyncio.create_task(ask(queries, JOB, regex="nowh[e]re")) for _ in range(6)]
            await await_for(lambda: source.waiting == EXPRESSIONS_AT_ONCE_MAX, what="searches that read")
            assert await ask(queries, OTHER) == 1
            for task in asking[:4]:
                task.cancel()
            await asyncio.gather(*asking[:4], return_exceptions=True)
            assert await ask(queries, OTHER, filter="a") == 1
            assert source.waiting == EXPRESSIONS_AT_ONCE_MAX
            source.gate.set()
            assert await asyncio.gather(*asking[4:]) == [0, 0]
            assert await ask(queries, OTHER, regex="[a]") == 1

    run(scenario)


@pytest.mark.threat("C23")
def test_the_thread_of_one_search_serves_others_between_its_steps(large: Store) -> None:
    """One thread, one long search, and a short query that comes later and is done before."""

    async def scenario() -> None:
        source = Counted(large)
        source.gate.clear()
        async with served(source, threads=1) as queries:
            long = asyncio.create_task(ask(queries, JOB, filter="nowhere"))
            await await_for(lambda: source.waiting == 1, what="a step that reads")
            short = asyncio.create_task(ask(queries, OTHER))
            source.gate.set()
            assert await short == 1
            assert not long.done()
            assert await long == 0

    run(scenario)
