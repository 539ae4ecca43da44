"""PersistService over its socket and the bus on the other side: what the executor and the api rely on."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest

from common.bus import codec
from common.bus.memory import Memory
from common.bus.requests import Receiver
from common.config.settings import Retention
from common.identifiers import JobId, new_job_id
from common.messages.envelope import Body
from common.messages.logs import EndOfJob, Resend, Stored, StoreMetric, StoreRecords
from common.messages.topics import PERSIST_ACKS, PERSIST_IPC
from common.records import Stream
from proto.joblet.v1 import persist_pb2 as pb
from proto.joblet.v1.persist_pb2_grpc import PersistServiceStub, add_PersistServiceServicer_to_server
from services.persist.audit_reader import AuditQueries
from services.persist.changes import Changes
from services.persist.disk import Disk, HostDisk
from services.persist.ingest import Ingest
from services.persist.keeping import Keeper, Line
from services.persist.machine import Limits
from services.persist.outbox import Outbox
from services.persist.queries import LogQueries
from services.persist.samples import Samples
from services.persist.server import PersistServer
from tests.unit.test_persist_journal import TIME_NS, gap, make_store, output
from tests.waiting import SLOWNESS, await_for

JOB = new_job_id()


class Rig:
    """A persist without a process around it; `send` is the executor, `stub` the api."""

    def __init__(self, transport: Memory, stub: Any, ingest: Ingest, keeper: Keeper, audit: "Lines") -> None:
        self._push = transport.push(PERSIST_IPC)
        self.answers: list[Body] = []
        self.stub = stub
        self.ingest = ingest
        self.keeper = keeper
        self.audit = audit

    async def send(self, *bodies: Body) -> None:
        """Queue messages for persist."""
        for body in bodies:
            await self._push.send(codec.encode(body))

    async def send_raw(self, payload: bytes) -> None:
        """Queue anything."""
        await self._push.send(payload)

    async def answered(self, body: Body) -> None:
        """Wait until persist has told this."""
        await await_for(lambda: body in self.answers, what=f"{body} among {self.answers[-5:]}")

    async def listen(self, receiver: Receiver) -> None:
        """Collect what persist tells."""
        async for message in receiver.messages():
            self.answers.append(message.body)


class Lines:
    """An audit file that is a list."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def record(self, decision: msgspec.Struct) -> None:
        """See Audit.record."""
        assert isinstance(decision, Line)
        self.lines.append(decision)


@asynccontextmanager
async def running(
    base: Path, *, concurrent: int = 50, retention: Retention | None = None, disk: Disk | None = None
) -> AsyncIterator[Rig]:
    """A rig below `base`. Retention happens when it is asked for."""
    transport, store, changes, audit = Memory(), make_store(base, disk=disk), Changes(), Lines()
    samples, outbox = Samples(store), Outbox(transport.push(PERSIST_ACKS))
    with ThreadPoolExecutor(2) as writers, ThreadPoolExecutor(2) as readers, ThreadPoolExecutor(1) as keepers:
        ingest = Ingest(
            source=Receiver(transport, PERSIST_IPC),
            answer=outbox.put,
            store=store,
            samples=samples,
            changes=changes,
            limits=Limits(flush_bytes=65536, flush_ms=20, retry_ms=50),
            pool=writers,
        )
        server = grpc.aio.server(maximum_concurrent_rpcs=concurrent)
        queries = LogQueries(store=store, changes=changes, pool=readers)
        keeper = Keeper(
            store=store,
            logs=base / "logs",
            metrics=base / "metrics",
            settings=retention or Retention(),
            audit=audit,
            removed=ingest.deleted,
            pool=keepers,
        )
        servicer = PersistServer(
            store=store,
            samples=samples,
            queries=queries,
            ingest=ingest,
            keeper=keeper,
            pool=readers,
            audit=AuditQueries(base),
        )
        add_PersistServiceServicer_to_server(servicer, server)
        server.add_insecure_port(f"unix:{base}/grpc.sock")
        await server.start()
        async with grpc.aio.insecure_channel(f"unix:{base}/grpc.sock") as channel:
            rig = Rig(transport, PersistServiceStub(channel), ingest, keeper, audit)
            tasks = [
                asyncio.create_task(work)
                for work in (ingest.run(), outbox.run(), rig.listen(Receiver(transport, PERSIST_ACKS)))
            ]
            try:
                yield rig
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await ingest.settle()
                await server.stop(0)


def store_records(*encoded: bytes, batch: int = 0, epoch: int = 1, job: JobId = JOB) -> StoreRecords:
    """A batch of records."""
    return StoreRecords(job=job, epoch=epoch, batch=batch, records=b"".join(encoded))


def end_of_job(last: int, *, batch: int, epoch: int = 1) -> EndOfJob:
    """The end."""
    return EndOfJob(job=JOB, epoch=epoch, batch=batch, last_sequence=last)


def stored(last: int, *, ended: bool = False, epoch: int = 1) -> Stored:
    """The acknowledgement of it."""
    return Stored(job=JOB, epoch=epoch, last_sequence=last, ended=ended)


def batches(rig: Rig, **fields: object) -> Any:
    """A running QueryLogBatches."""
    outer = {name: fields.pop(name) for name in ("from_sequence", "until_sequence", "tail", "wait") if name in fields}
    query = pb.LogQueryRequest(job_id=JOB, **fields)  # type: ignore[arg-type]
    return rig.stub.QueryLogBatches(pb.LogBatchQueryRequest(query=query, **outer))  # type: ignore[arg-type]


async def each(call: Any) -> AsyncIterator[pb.LogBatch]:
    """The batches of all answers of a call."""
    async for answer in call:
        for batch in answer.batches:
            yield batch


def run(base: Path, scenario: Callable[[Rig], Awaitable[None]], **options: Any) -> None:
    """Run a scenario against a rig, with a deadline."""

    async def main() -> None:
        async with running(base, **options) as rig, asyncio.timeout(20 * SLOWNESS):
            await scenario(rig)

    asyncio.run(main())


@pytest.mark.requirement("S0.40")
@pytest.mark.requirement("S0.42")
def test_output_is_acknowledged_and_queried(tmp_path: Path) -> None:
    """Records in, cumulative acknowledgement out; then QueryLogs and QueryLogBatches give them."""

    async def scenario(rig: Rig) -> None:
        await rig.send(store_records(output(b"a\nb\n", 1), output(b"\xff\0 rest", 3, stream=Stream.STDERR)))
        await rig.answered(stored(3))
        await rig.send(store_records(gap(4, 2), batch=1), end_of_job(5, batch=2))
        await rig.answered(stored(5, ended=True))
        lines = [line async for line in rig.stub.QueryLogs(pb.LogQueryRequest(job_id=JOB))]
        assert [(line.sequence, line.stream, line.content) for line in lines] == [
            (1, pb.STDOUT, b"a"),
            (2, pb.STDOUT, b"b"),
            (3, pb.STDERR, b"\xff\0 rest"),
        ]
        assert {(line.job_id, line.timestamp) for line in lines} == {(JOB, TIME_NS)}
        found = [batch async for batch in each(batches(rig))]
        assert [(b.first_sequence, b.lines, b.data, b.partial, b.gap_reason) for b in found] == [
            (1, 2, b"a\nb\n", False, ""),
            (3, 1, b"\xff\0 rest", True, ""),
            (4, 2, b"", False, "journal full"),
        ]
        assert found[2].gap_bytes == 200

    run(tmp_path, scenario)


@pytest.mark.threat("E05")
def test_batches_out_of_turn_are_asked_for_again(tmp_path: Path) -> None:
    """Go-back-N over the bus: a lost batch, then a new epoch from the last acknowledged record."""

    async def scenario(rig: Rig) -> None:
        await rig.send(store_records(output(b"a\n", 1)), store_records(output(b"c\n", 3), batch=2))
        await rig.answered(Resend(job=JOB, epoch=1))
        await rig.send(store_records(output(b"a\n", 1), output(b"b\nc\n", 2), epoch=2))
        await rig.answered(stored(3, epoch=2))
        assert b"".join([b.data async for b in each(batches(rig))]) == b"a\nb\nc\n"
        assert rig.ingest.counts["entries_repeated"] in (0, 1)

    run(tmp_path, scenario)


@pytest.mark.threat("E03")
def test_garbage_is_counted_and_refused(tmp_path: Path) -> None:
    """Bytes, broken records, records that make no sense, job ids that are paths: nothing stops, nothing is stored."""

    async def scenario(rig: Rig) -> None:
        good = output(b"a\n", 1)
        await rig.send_raw(b"\xc1garbage")
        await rig.send_raw(b"")
        await rig.send(store_records(good[:-1]))
        await rig.answered(Resend(job=JOB, epoch=1))
        await rig.send(store_records(good[:-1] + b"X", epoch=2))
        await rig.answered(Resend(job=JOB, epoch=2))
        await rig.send(store_records(b"not a record at all" * 10, epoch=3))
        await rig.answered(Resend(job=JOB, epoch=3))
        await rig.send(store_records(good, job=JobId("../../etc")))
        await rig.send(EndOfJob(job=JOB, epoch=1, batch=0, last_sequence=-4))
        await rig.send(StoreMetric(job=JOB, time_ns=-1, cpu_percent=float("nan"), memory_bytes=1))
        await rig.send(store_records(good, epoch=9))
        await rig.answered(stored(1, epoch=9))
        assert rig.ingest.counts["records_corrupt"] == 3
        assert rig.ingest.counts["messages_refused"] == 2
        assert [path.name for path in (tmp_path / "logs").iterdir()] == [JOB]

    run(tmp_path, scenario)


def test_waiting_readers_see_what_comes_and_the_end(tmp_path: Path) -> None:
    """With wait a stream goes on while output comes, ends with the job, and with until_sequence ends there."""

    async def scenario(rig: Rig) -> None:
        forever, until = batches(rig, wait=True), batches(rig, wait=True, until_sequence=2)
        first = asyncio.create_task(anext(aiter(forever)))
        await rig.send(store_records(output(b"a\n", 1)))
        assert (await first).batches[0].data == b"a\n"
        await rig.send(store_records(output(b"b\nc\n", 2), batch=1))
        assert b"".join([b.data async for b in each(until)]) == b"a\nb\n"
        await rig.send(end_of_job(3, batch=2))
        assert b"".join([b.data async for b in each(forever)]) == b"b\nc\n"
        assert [b.data async for b in each(batches(rig, wait=True, from_sequence=3))] == [b"c\n"]

    run(tmp_path, scenario)


@pytest.mark.threat("D22")
def test_a_reader_that_leaves_leaves_nothing(tmp_path: Path) -> None:
    """A cancelled wait gives its place back."""

    async def scenario(rig: Rig) -> None:
        await rig.send(store_records(output(b"a\n", 1)))
        for _ in range(5):
            call = batches(rig, wait=True)
            assert (await call.read()).batches[0].data == b"a\n"
            call.cancel()

        refusals = []

        async def free() -> bool:
            try:
                return [b.data async for b in each(batches(rig))] == [b"a\n"]
            except grpc.aio.AioRpcError as refusal:
                refusals.append(refusal.code())
                return False

        await await_for(free, what="the places of readers who left")
        assert set(refusals) <= {grpc.StatusCode.RESOURCE_EXHAUSTED}

    run(tmp_path, scenario, concurrent=5)


@pytest.mark.requirement("S0.33")
@pytest.mark.threat("D18")
def test_queries_at_once_are_bounded(tmp_path: Path) -> None:
    """Beyond max_connections a query is refused with RESOURCE_EXHAUSTED, and the others go on."""

    async def scenario(rig: Rig) -> None:
        await rig.send(store_records(output(b"a\n", 1)))
        calls = [batches(rig, wait=True) for _ in range(3)]
        for call in calls:
            assert (await call.read()).batches[0].data == b"a\n"
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await anext(aiter(batches(rig)))
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await rig.send(store_records(output(b"b\n", 2), batch=1))
        for call in calls:
            assert (await call.read()).batches[0].data == b"b\n"
            call.cancel()

    run(tmp_path, scenario, concurrent=3)


class Held(HostDisk):
    """Writes of one job wait until `gate` is set."""

    def __init__(self, job: JobId) -> None:
        self._job = job
        self.gate = threading.Event()

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        """See Disk.write."""
        if self._job in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            self.gate.wait(60 * SLOWNESS)
        return super().write(descriptor, data, offset)


def test_a_job_that_floods_does_not_hold_up_another(tmp_path: Path) -> None:
    """While one job has much to write, the other's line is acknowledged: before the flood's end, and not behind it."""
    flood, line = new_job_id(), b"y" * 99 + b"\n"
    disk = Held(flood)

    async def scenario(rig: Rig) -> None:
        try:
            for batch in range(60):
                await rig.send(store_records(output(line * 5000, 1 + batch * 5000), batch=batch, job=flood))
            await rig.send(store_records(output(b"me too\n", 1)))
            await rig.answered(stored(1))
            assert [one for one in rig.answers if isinstance(one, Stored) and one.job == flood] == []
        finally:
            disk.gate.set()
        await rig.answered(Stored(job=flood, epoch=1, last_sequence=60 * 5000))

    run(tmp_path, scenario, disk=disk)
