"""The real persist process under floods: another job's line is acknowledged before much of the floods is."""

import asyncio
import signal
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.bus import codec
from common.bus.requests import Receiver
from common.bus.zeromq import ZeroMQ
from common.identifiers import JobId, new_job_id
from common.messages.logs import PersistStarted, Stored, StoreRecords
from common.messages.topics import PERSIST_ACKS, PERSIST_IPC
from tests.fault.test_persist_process import Service, transport_of
from tests.unit.test_persist_journal import output

ON_THE_WAY_BYTES = 56 * 2**20
"""What the executor lets busy jobs have on the way together."""
BATCH_LINES = 5000
QUIET_LINES = 40


@pytest.fixture
def base() -> Iterator[Path]:
    """A base directory with a short path that the service user can reach; persist writes without waiting for more."""
    with tempfile.TemporaryDirectory(prefix="jlp") as name:
        Path(name).chmod(0o755)
        (Path(name) / "joblet-config.yml").write_text('version: "3.0"\npersist: {storage: {local: {flush_ms: 1}}}\n')
        yield Path(name)


class Floods:
    """Jobs that always have more to send, and one that sends a line now and then, as the executor would."""

    def __init__(self, transport: ZeroMQ, count: int) -> None:
        self._push = transport.push(PERSIST_IPC)
        self._acks = Receiver(transport, PERSIST_ACKS)
        self._payload = b"".join(b"%05d of many lines that are said to be in a hurry\n" % n for n in range(BATCH_LINES))
        self._sent = dict.fromkeys([new_job_id() for _ in range(count)], 0)
        self._acknowledged: dict[JobId, int] = dict.fromkeys(self._sent, 0)
        self._quiet = new_job_id()
        self._quiet_lines = 0
        self._heard = asyncio.Event()
        self._started = False

    @property
    def acknowledged_bytes(self) -> int:
        """Of all floods."""
        return sum(self._acknowledged.values()) // BATCH_LINES * len(self._payload)

    async def hear(self) -> None:
        """Take acknowledgements, for ever; nothing else may come."""
        async for message in self._acks.messages():
            match message.body:
                case PersistStarted():
                    self._started = True
                case Stored(job=self._quiet) as stored:
                    self._quiet_lines = stored.last_sequence
                case Stored() as stored:
                    assert stored.last_sequence >= self._acknowledged[stored.job]
                    self._acknowledged[stored.job] = stored.last_sequence
                case other:
                    raise AssertionError(other)
            self._heard.set()

    async def flood(self) -> None:
        """Send for ever, in turns, as much as may be on the way."""
        window = min(ON_THE_WAY_BYTES // len(self._sent), 8 * 2**20)
        while True:
            before = sum(self._sent.values())
            for job, sent in self._sent.items():
                if sent * len(self._payload) - self._acknowledged[job] // BATCH_LINES * len(self._payload) < window:
                    self._sent[job] += 1
                    await self._send(job, sent, output(self._payload, sent * BATCH_LINES + 1))
                    await asyncio.sleep(0)
            if sum(self._sent.values()) == before:
                await self._something_heard()

    async def say(self, number: int) -> int:
        """Send line `number` of the quiet job; how many bytes of the floods are acknowledged before it is."""
        before = self.acknowledged_bytes
        await self._send(self._quiet, number, output(b"line %d\n" % number, number + 1))
        while self._quiet_lines <= number:
            await self._something_heard()
        return self.acknowledged_bytes - before

    async def until_started(self) -> None:
        """Wait until persist has said that it receives."""
        while not self._started:
            await self._something_heard()

    async def until_acknowledged(self, size_bytes: int) -> None:
        """Wait until so much more of the floods is."""
        goal = self.acknowledged_bytes + size_bytes
        while self.acknowledged_bytes < goal:
            await self._something_heard()

    def shares(self) -> list[int]:
        """Acknowledged batches of each flood."""
        return [lines // BATCH_LINES for lines in self._acknowledged.values()]

    async def _something_heard(self) -> None:
        self._heard.clear()
        await self._heard.wait()

    async def _send(self, job: JobId, batch: int, records: bytes) -> None:
        await self._push.send(codec.encode(StoreRecords(job=job, epoch=1, batch=batch, records=records)))


@pytest.mark.threat("C17")
@pytest.mark.parametrize("count", [1, 100])
def test_a_quiet_job_does_not_wait_for_those_that_flood(base: Path, count: int) -> None:
    """While as much as may be is on the way: of that, little is acknowledged before the line that came behind it.

    And nobody starves: all the floods get on, about equally.
    """
    service = Service(base)

    async def scenario() -> tuple[list[int], list[int]]:
        async with transport_of(base) as transport, asyncio.timeout(120), asyncio.TaskGroup() as group:
            floods = Floods(transport, count)
            tasks = [group.create_task(floods.hear())]
            service.start()
            await floods.until_started()
            tasks.append(group.create_task(floods.flood()))
            await floods.until_acknowledged(ON_THE_WAY_BYTES // 4)
            overtaken = []
            for number in range(QUIET_LINES):
                overtaken.append(await floods.say(number))
                await floods.until_acknowledged(2**20)
            for task in tasks:
                task.cancel()
            return overtaken, floods.shares()

    try:
        overtaken, shares = asyncio.run(scenario())
    finally:
        assert service.kill(signal.SIGTERM) == 0, service.log.read_text()
    told = f"MiB acknowledged before the line: {[size >> 20 for size in overtaken]}; batches of each flood: {shares}"
    assert statistics.median(overtaken) < ON_THE_WAY_BYTES // 4, told
    # Of acknowledgements that came while this process stood still nobody can say whether the line was sent before them.
    assert statistics.quantiles(overtaken, n=10)[-1] < ON_THE_WAY_BYTES, told
    assert min(shares) >= max(shares) // 4, told
