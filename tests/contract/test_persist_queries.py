"""PersistService's other calls, and how it refuses: deletion, metrics, errors. The rig is test_persist_service's."""

from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo  # type: ignore[import-untyped]  # ships no types
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # ships no types

from common.messages.logs import StoreMetric
from common.records import Stream
from proto.joblet.v1 import persist_pb2 as pb
from services.persist import member
from services.persist.member import Span
from tests.contract.test_persist_service import JOB, Rig, batches, each, run, store_records, stored
from tests.unit.test_persist_journal import TIME_NS, output


@pytest.mark.requirement("S0.44")
def test_delete_removes_and_ends_those_who_wait(tmp_path: Path) -> None:
    """DeleteJobData tells the bytes; who waits for more gets NOT_FOUND; an unknown job is fine."""

    async def scenario(rig: Rig) -> None:
        await rig.send(store_records(output(b"a\n", 1)))
        await rig.answered(stored(1))
        waiting = batches(rig, wait=True)
        await waiting.read()
        deleted = await rig.stub.DeleteJobData(pb.DeleteJobDataRequest(job_id=JOB))
        assert deleted.log_bytes > 64
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await waiting.read()
        assert error.value.code() is grpc.StatusCode.NOT_FOUND
        assert (await rig.stub.DeleteJobData(pb.DeleteJobDataRequest(job_id=JOB))).log_bytes == 0
        assert [b async for b in batches(rig)] == []

    run(tmp_path, scenario)


@pytest.mark.requirement("S0.43")
@pytest.mark.requirement("S0.46")
def test_metrics_are_stored_and_aggregated(tmp_path: Path) -> None:
    """Samples come back in order, bounded by time and page; one sample of all per aggregation."""

    async def scenario(rig: Rig) -> None:
        for number in range(1, 31):
            await rig.send(StoreMetric(job=JOB, time_ns=number * 10**12, cpu_percent=number / 2, memory_bytes=number))
        await rig.send(store_records(output(b"a\n", 1)))
        await rig.answered(stored(1))

        async def ask(**fields: object) -> list[pb.Metric]:
            request = pb.MetricQueryRequest(job_id=JOB, **fields)  # type: ignore[arg-type]
            return [metric async for metric in rig.stub.QueryMetrics(request)]

        assert [metric.memory_bytes for metric in await ask()] == list(range(1, 31))
        assert [metric.memory_bytes for metric in await ask(offset=3, limit=2)] == [4, 5]
        times = await ask(start_time=5 * 10**12, end_time=7 * 10**12)
        assert [metric.memory_bytes for metric in times] == [5, 6]
        expected = {"avg": (7.75, 16), "min": (0.5, 1), "max": (15.0, 30), "sum": (232.5, 465)}
        for aggregation, (cpu_percent, memory_bytes) in expected.items():
            (one,) = await ask(aggregation=aggregation)
            assert (one.job_id, one.timestamp, one.cpu_percent) == (JOB, 30 * 10**12, cpu_percent)
            assert one.memory_bytes == memory_bytes
        assert await ask(aggregation="max", start_time=10**15) == []

    run(tmp_path, scenario)


def test_a_file_of_samples_that_lies_ends_nothing(tmp_path: Path) -> None:
    """Its header counts further than there are numbers: it is as good as torn, and samples are stored behind it."""
    (tmp_path / "metrics" / JOB).mkdir(parents=True)
    lie = member.build(b"{}\n", Span(1, 2**64 - 1, 2**64 - 1, 1, 1), level=1)
    (tmp_path / "metrics" / JOB / "metrics.jsonl.gz").write_bytes(lie)

    async def scenario(rig: Rig) -> None:
        await rig.send(*(StoreMetric(job=JOB, time_ns=n, cpu_percent=1.0, memory_bytes=n) for n in range(1, 13)))
        await rig.send(store_records(output(b"a\n", 1)))
        await rig.answered(stored(1))
        request = pb.MetricQueryRequest(job_id=JOB)
        assert [metric.memory_bytes async for metric in rig.stub.QueryMetrics(request)] == list(range(1, 13))

    run(tmp_path, scenario)


@pytest.mark.requirement("S0.43")
def test_every_figure_of_a_sample_is_stored_and_aggregated(tmp_path: Path) -> None:
    """Whole numbers stay whole, also as an average; percentages keep their fractions."""

    async def scenario(rig: Rig) -> None:
        whole = ("memory_bytes", "pids", "network_rx_bytes", "network_tx_bytes", "io_read_ops", "io_write_bytes")
        percent = ("cpu_percent", "cpu_pressure", "memory_pressure", "io_pressure")
        for number in (1, 2, 4, 4):
            figures: dict[str, Any] = dict.fromkeys(whole, number) | dict.fromkeys(percent, number / 8)
            await rig.send(StoreMetric(job=JOB, time_ns=number * 10**12, **figures))
        await rig.send(store_records(output(b"a\n", 1)))
        await rig.answered(stored(1))
        expected = {"avg": (3, 0.34375), "min": (1, 0.125), "max": (4, 0.5), "sum": (11, 1.375)}
        for aggregation, values in expected.items():
            request = pb.MetricQueryRequest(job_id=JOB, aggregation=aggregation)
            (one,) = [metric async for metric in rig.stub.QueryMetrics(request)]
            for names, value in zip((whole, percent), values, strict=True):
                assert {name: getattr(one, name) for name in names} == dict.fromkeys(names, value), aggregation

    run(tmp_path, scenario)


@pytest.mark.requirement("S0.45")
def test_an_expression_selects_lines(tmp_path: Path) -> None:
    """With a stream, a time, a page, a tail; as lines and as batches; and of lines that come while one waits."""

    async def scenario(rig: Rig) -> None:
        await rig.send(
            store_records(
                output(b"one 1\ntwo 22\n", 1),
                output(b"three 333\n", 3, stream=Stream.STDERR, time_ns=TIME_NS + 1),
                output(b"four 4444\nfive\n", 4, time_ns=TIME_NS + 2),
            )
        )
        await rig.answered(stored(5))

        async def ask(**fields: Any) -> list[bytes]:
            request = pb.LogQueryRequest(job_id=JOB, **fields)
            found = [line.content async for line in rig.stub.QueryLogs(request)]
            again = [batch.data async for batch in each(batches(rig, **fields))]
            assert b"".join(again) == b"".join(line + b"\n" for line in found)
            return found

        assert await ask(regex="[0-9]{2,}$") == [b"two 22", b"three 333", b"four 4444"]
        assert await ask(regex="[0-9]{2,}$", limit=1, offset=1) == [b"three 333"]
        assert await ask(regex="[0-9]{2,}$", stream=pb.STDERR) == [b"three 333"]
        assert await ask(regex="[0-9]{2,}$", start_time=TIME_NS + 2) == [b"four 4444"]
        assert await ask(regex="^(?i)F") == [b"four 4444", b"five"]
        assert await ask(regex="timestamp|stdout") == []
        assert [batch.data async for batch in each(batches(rig, regex="e", tail=2))] == [b"three 333\n", b"five\n"]
        waiting = each(batches(rig, regex="^f", wait=True, from_sequence=5, until_sequence=7))
        assert (await anext(waiting)).data == b"five\n"
        await rig.send(store_records(output(b"six\nfifty\n", 6), batch=1))
        assert [batch.data async for batch in waiting] == [b"fifty\n"]

    run(tmp_path, scenario)


@pytest.mark.threat("C22")
@pytest.mark.threat("C23")
def test_a_deadline_ends_a_search(tmp_path: Path) -> None:
    """A search that finds nothing for longer than the client's deadline is cut off; others are served meanwhile."""

    async def scenario(rig: Rig) -> None:
        payload = b"".join(b"%08d" % n * 12 + b"\n" for n in range(10_000))
        for number in range(30):
            await rig.send(store_records(output(payload, number * 10_000 + 1), batch=number))
        await rig.answered(stored(300_000))
        query = pb.LogQueryRequest(job_id=JOB, regex="(a|b)*[01].{0,200}c")
        slow = [rig.stub.QueryLogBatches(pb.LogBatchQueryRequest(query=query), timeout=0.1) for _ in range(6)]
        assert [batch.lines async for batch in each(batches(rig, tail=1))] == [1]
        for call in slow:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await anext(aiter(call))
            assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert [batch.lines async for batch in each(batches(rig, limit=1))] == [1]

    run(tmp_path, scenario)


@pytest.mark.threat("B21")
def test_refusals_carry_reason_and_detail(tmp_path: Path) -> None:
    """INVALID_ARGUMENT with ErrorInfo for each query that cannot be meant; no path and no traceback in it."""

    async def scenario(rig: Rig) -> None:
        calls = [
            rig.stub.QueryLogs(pb.LogQueryRequest(job_id="../../etc/passwd")),
            rig.stub.QueryLogs(pb.LogQueryRequest(job_id=JOB, limit=-1)),
            rig.stub.QueryLogBatches(pb.LogBatchQueryRequest()),
            rig.stub.QueryLogs(pb.LogQueryRequest(job_id=JOB, regex="(a)\\1")),
            rig.stub.QueryLogBatches(
                pb.LogBatchQueryRequest(query=pb.LogQueryRequest(job_id=JOB, regex="a", filter="a"))
            ),
            rig.stub.QueryMetrics(pb.MetricQueryRequest(job_id=JOB, aggregation="median")),
        ]
        errors = []
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await anext(aiter(call))
            errors.append(error.value)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await rig.stub.DeleteJobData(pb.DeleteJobDataRequest(job_id="x" * 100))
        for refused in (*errors, error.value):
            assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
            trailers: dict[str, bytes] = dict(refused.trailing_metadata() or ())  # type: ignore[arg-type]  # of pairs
            status = Status.FromString(trailers["grpc-status-details-bin"])
            info = ErrorInfo()
            assert status.details[0].Unpack(info)
            assert (info.reason, info.domain, info.metadata["retryable"]) == ("INVALID", "joblet", "false")
            assert str(tmp_path) not in str(refused.details())
            assert "Traceback" not in str(refused.details())

    run(tmp_path, scenario)


@pytest.mark.threat("B21")
def test_a_store_that_cannot_be_read_is_unavailable(tmp_path: Path) -> None:
    """What the kernel says stays in the log of the service."""

    async def scenario(rig: Rig) -> None:
        (tmp_path / "logs" / JOB).symlink_to("/etc")
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await anext(aiter(batches(rig)))
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "/" not in str(error.value.details())

    run(tmp_path, scenario)
