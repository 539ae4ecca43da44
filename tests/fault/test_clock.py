"""The wall clock jumps, or everything stands still: order is that of sequences, times are data, nothing is given up."""

import asyncio
import contextlib
import os
import random
import signal
import time
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import grpc
import pytest

from common.identifiers import new_job_id
from common.messages.logs import Resend, Stored
from common.records import Stream
from proto.joblet.v1 import persist_pb2 as pb
from proto.joblet.v1.persist_pb2_grpc import PersistServiceStub
from services.executor.durable import Outbox
from services.executor.job_store import Cursor
from services.executor.journal import Slice
from services.persist.events import Answer, AskResend, BatchArrived, Flush, Flushed
from services.persist.machine import Limits, Machine
from tests.e2e.node import numbers
from tests.fault.disks_nodes import MONITOR_TITLE, assert_whole, fresh_node, needs_root, wait_until_stored
from tests.fault.test_persist_process import Sender, Service, base, transport_of  # noqa: F401  # base is a fixture
from tests.leaks import command_of
from tests.unit.test_persist_journal import output, records, run_program
from tests.waiting import wait_for

HOUR_NS: Final = 3_600_000_000_000
NOW_NS: Final = 1_800_000_000_000_000_000
YEAR_NS: Final = 365 * 24 * HOUR_NS
LINES_A_RECORD: Final = 20


class Written(NamedTuple):
    """One line that a job wrote."""

    sequence: int
    stream: int
    time_ns: int
    data: bytes


def lines_of_a_jumping_clock() -> tuple[list[bytes], list[Written]]:
    """Records of both streams whose times rise, fall by an hour, leap by a year, go to 1970 and come back."""
    chance = random.Random(29)  # noqa: S311  # reproducible on purpose
    encoded: list[bytes] = []
    written: list[Written] = []
    time_ns, sequence = NOW_NS, 1
    jumps = {
        100: NOW_NS - HOUR_NS,
        200: NOW_NS + YEAR_NS,
        300: NOW_NS - 2 * HOUR_NS,
        400: 10**12,
        500: NOW_NS + HOUR_NS,
    }
    for number in range(600):
        time_ns = jumps.get(number, time_ns) + chance.choice((0, 1, 1000, -500, 10**9))
        stream = chance.choice((Stream.STDOUT, Stream.STDERR))
        each = [b"%d\n" % line for line in range(sequence, sequence + LINES_A_RECORD)]
        encoded.append(output(b"".join(each), sequence, stream=stream, time_ns=time_ns))
        written += [Written(sequence + n, int(stream), time_ns, data) for n, data in enumerate(each)]
        sequence += LINES_A_RECORD
    return encoded, written


@pytest.mark.threat("F29")
@pytest.mark.requirement("S0.50")
def test_stored_times_that_jump(base: Path) -> None:  # noqa: F811
    """The real persist process: all in order of sequence; since and until give exactly their times; a tail the last."""
    encoded, written = lines_of_a_jumping_clock()
    job, service = new_job_id(), Service(base)
    moments = sorted({line.time_ns for line in written})
    bounds = [
        (0, 0),
        (NOW_NS, 0),
        (0, NOW_NS),
        (NOW_NS - HOUR_NS, NOW_NS),
        (NOW_NS + YEAR_NS // 2, 0),
        (10**12, 2 * 10**12),
    ]
    bounds += [(moments[len(moments) // 3], moments[len(moments) // 2]), (moments[7], moments[7] + 1)]

    async def scenario() -> None:
        async with transport_of(base) as transport, asyncio.timeout(60):
            service.start()
            await Sender(transport, job, encoded).run()
            async with grpc.aio.insecure_channel(f"unix:{base}/run/persist-grpc.sock") as channel:
                for since, until in bounds:
                    wanted = [line for line in written if since <= line.time_ns and (not until or line.time_ns < until)]
                    request = pb.LogBatchQueryRequest(
                        query=pb.LogQueryRequest(job_id=job, start_time=since, end_time=until)
                    )
                    assert await answered(channel, request) == wanted, (since, until)
                    request.tail = 33
                    assert await answered(channel, request) == wanted[-33:], (since, until)

    try:
        asyncio.run(scenario())
        for path in (base / "logs" / job).iterdir():
            run_program("gzip", "-t", str(path))
    finally:
        assert service.kill(signal.SIGTERM) == 0, service.log.read_text()


async def answered(channel: grpc.aio.Channel, request: pb.LogBatchQueryRequest) -> list[Written]:
    """The lines of a query, in the order in which they came."""
    found: list[Written] = []
    async for answer in PersistServiceStub(channel).QueryLogBatches(request, wait_for_ready=True):
        for batch in answer.batches:
            each = bytes(batch.data).splitlines(keepends=True)
            assert len(each) == batch.lines
            found += [
                Written(batch.first_sequence + n, int(batch.stream), batch.timestamp, data)
                for n, data in enumerate(each)
            ]
    assert all(one.sequence < after.sequence for one, after in pairwise(found))
    return found


@pytest.mark.threat("F29")
@pytest.mark.parametrize("saved", [True, False], ids=["epoch saved", "epoch not saved"])
def test_an_executor_that_comes_back_an_hour_earlier_is_heard(*, saved: bool) -> None:
    """Persist lived on and knows higher epochs than the new executor's clock gives: it stores within a few messages."""
    job, machine = new_job_id(), Machine(Limits(flush_bytes=1, flush_ms=1))
    before = Outbox(Cursor(job=job), now_ns=1, epoch_floor=NOW_NS)
    assert exchange(machine, before, b"1\n2\n", first=1) == 2
    cursor = before.cursor if saved else Cursor(job=job)
    after = Outbox(cursor, now_ns=1, epoch_floor=NOW_NS - HOUR_NS)
    assert exchange(machine, after, b"3\n4\n" if saved else b"1\n2\n3\n4\n", first=3 if saved else 1) == 4


def exchange(machine: Machine, box: Outbox, payload: bytes, *, first: int) -> int:
    """Send `payload` and carry words to and fro until it is stored; its last sequence."""
    encoded = output(payload, first)
    last = first + payload.count(b"\n") - 1
    for _ in range(5):
        start = box.sent.offset
        sent = box.send_records(Slice(start, start + len(encoded), encoded, last), now_ns=1)
        arrived = BatchArrived(
            box.job, sent.epoch, sent.batch, tuple(records(sent.records)), len(encoded), last, None, now_ms=1
        )
        found = list(machine.handle(arrived))
        while found:
            match found.pop(0):
                case Flush() as flush:
                    found += machine.handle(Flushed(flush.job, flush.epoch, last, ended=False, now_ms=1))
                case Answer() as answer:
                    word = Stored(job=answer.job, epoch=answer.epoch, last_sequence=answer.last_sequence, ended=False)
                    assert box.stored(word.last_sequence, ended=word.ended, now_ns=1)
                    return box.acknowledged.sequence
                case AskResend(job=job, epoch=epoch):
                    word_back = Resend(job=job, epoch=epoch)
                    box.missing(word_back.epoch, now_ns=1)
    raise AssertionError("persist refuses every epoch of this executor")


@needs_root
@pytest.mark.threat("F30")
@pytest.mark.timeout(180)
def test_everything_stands_still_for_a_while() -> None:
    """As a paused machine does: services, launcher, monitor and job stop together; nothing is killed or lost."""
    with fresh_node("paused") as node:
        script = "i=0; while [ ! -e /tmp/enough ]; do i=$((i + 1)); echo $i; sleep 0.02; done; echo over $i; exit 4"
        job = node.detached("--timeout", "10m", "--", "sh", "-c", script)
        pid = node.wait_for_state(job, "running")["pid"]
        wait_for(lambda: len(node.entries(job)) > 20, what="some lines to be stored")
        monitor = next(each for each in node.processes() if command_of(each) == MONITOR_TITLE + job)
        services = sorted(node.processes() - {pid})
        group = [*services, pid]
        assert monitor in group
        for each in group:
            with contextlib.suppress(ProcessLookupError):  # a sandbox that is prepared ahead comes and goes
                os.kill(each, signal.SIGSTOP)
        moment = time.monotonic() + 6  # more than the 5 s after which output is sent again
        wait_for(lambda: time.monotonic() >= moment, what="the end of the pause")
        for each in group:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGCONT)
        Path(f"/proc/{pid}/root/tmp/enough").touch()
        assert node.rnx("job", "wait", job).returncode == 4
        wait_until_stored(node, [job])
        *entries, last = node.entries(job)
        printed = len(entries)
        assert last["content"] == f"over {printed}"
        assert numbers(entries) == list(range(1, printed + 1))
        assert [entry["sequence"] for entry in (*entries, last)] == list(range(1, printed + 2))
        assert_whole(node, job)
        assert {node.service(name) for name in ("volumes", "persist", "executor", "api")} <= set(group)
