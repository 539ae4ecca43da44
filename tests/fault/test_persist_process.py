"""The real persist process, killed at any moment: nothing that was acknowledged is lost, nothing comes twice."""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path

import grpc
import pytest

from cli.joblet.supervisor import STOP_TIMEOUT_S
from common.bus import codec
from common.bus.requests import Receiver
from common.bus.zeromq import SocketOwners, ZeroMQ
from common.config.layout import layout_of
from common.config.load import load_settings
from common.identifiers import JobId, new_job_id
from common.messages.logs import EndOfJob, PersistStarted, Resend, Stored, StoreRecords
from common.messages.topics import PERSIST_ACKS, PERSIST_IPC
from common.privileges import prepare_directories, resolve_users
from common.records import Stream
from proto.joblet.v1 import persist_pb2 as pb
from proto.joblet.v1.persist_pb2_grpc import PersistServiceStub
from tests.unit.test_persist_journal import last_sequences, output, run_program
from tests.waiting import SLOWNESS, await_for, wait_for

BATCH_RECORDS = 5
WINDOW_RECORDS = 300


@pytest.fixture
def base() -> Iterator[Path]:
    """A base directory with a short path (sun_path has 108 bytes) that the service user can reach."""
    with tempfile.TemporaryDirectory(prefix="jlp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


class Service:
    """One persist process after the other on one base directory."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self.process: subprocess.Popen[bytes] | None = None
        self.log = base / "persist.log"

    def start(self) -> None:
        """Start it; the one before must be dead."""
        with self.log.open("ab") as out:
            command = (sys.executable, "-m", "services.persist", "--base-dir", str(self._base))
            self.process = subprocess.Popen(command, stdout=out, stderr=out)

    def kill(self, number: int = signal.SIGKILL) -> int:
        """End it by a signal, in time; its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(STOP_TIMEOUT_S * SLOWNESS)


class Sender:
    """The executor's side of go-back-N: all records of one job, from what was acknowledged last."""

    def __init__(
        self, transport: ZeroMQ, job: JobId, encoded: list[bytes], *, owner: str = "", ended_at_ns: int = 0
    ) -> None:
        self._push = transport.push(PERSIST_IPC)
        self._acks = Receiver(transport, PERSIST_ACKS)
        self._job, self._encoded = job, encoded
        self._owner, self._ended_at_ns = owner, ended_at_ns
        self._lasts = last_sequences(encoded)
        self._epoch = 0
        self.acknowledged = 0
        self.ended = False
        self.starts = 0
        self._go_back = asyncio.Event()

    async def run(self) -> None:
        """Send everything, until the end is acknowledged."""
        listening = asyncio.create_task(self._listen())
        try:
            while not self.ended:
                self._go_back.clear()
                self._epoch += 1
                await self._send_epoch(self._epoch)
        finally:
            listening.cancel()

    async def _send_epoch(self, epoch: int) -> None:
        first = sum(last <= self.acknowledged for last in self._lasts)
        batch = 0
        for start in range(first, len(self._encoded), BATCH_RECORDS):
            records = b"".join(self._encoded[start : start + BATCH_RECORDS])
            while start - sum(last <= self.acknowledged for last in self._lasts) > WINDOW_RECORDS:
                if self._go_back.is_set():
                    return
                await asyncio.sleep(0.001)
            await self._push.send(codec.encode(StoreRecords(job=self._job, epoch=epoch, batch=batch, records=records)))
            batch += 1
        end = EndOfJob(
            job=self._job,
            epoch=epoch,
            batch=batch,
            last_sequence=self._lasts[-1],
            owner=self._owner,
            ended_at_ns=self._ended_at_ns,
        )
        await self._push.send(codec.encode(end))
        await self._go_back.wait()

    async def _listen(self) -> None:
        async for message in self._acks.messages():
            match message.body:
                case Stored() as stored:
                    assert stored.last_sequence >= self.acknowledged or stored.epoch < self._epoch
                    self.acknowledged = max(self.acknowledged, stored.last_sequence)
                    self.ended = self.ended or stored.ended
                    if stored.ended:
                        self._go_back.set()
                case Resend() as resend if resend.epoch == self._epoch:
                    self._go_back.set()
                case PersistStarted():
                    self.starts += 1
                    self._go_back.set()


@contextlib.asynccontextmanager
async def transport_of(base: Path) -> AsyncIterator[ZeroMQ]:
    """The executor's transport, with the owners that a real one gives its sockets."""
    settings = load_settings(None, base_dir=base)
    layout = layout_of(settings)
    users = resolve_users(settings.joblet.users, layout) if os.geteuid() == 0 else None
    prepare_directories(layout, users)
    owners = SocketOwners(api_uid=users.api_uid, persist_uid=users.persist_uid, gid=users.gid) if users else None
    transport = ZeroMQ(layout.run, owners)
    try:
        yield transport
    finally:
        transport.close()


async def stored_bytes(base: Path, job: JobId) -> tuple[dict[int, bytes], list[tuple[int, int]]]:
    """The bytes of each stream over the query socket, and first and last sequence of each batch."""
    found: dict[int, bytes] = {pb.STDOUT: b"", pb.STDERR: b""}
    spans: list[tuple[int, int]] = []
    async with grpc.aio.insecure_channel(f"unix:{base}/run/persist-grpc.sock") as channel:
        request = pb.LogBatchQueryRequest(query=pb.LogQueryRequest(job_id=job), wait=True)
        async for answer in PersistServiceStub(channel).QueryLogBatches(
            request, timeout=20 * SLOWNESS, wait_for_ready=True
        ):
            for batch in answer.batches:
                found[batch.stream] += batch.data
                spans.append((batch.first_sequence, batch.first_sequence + batch.lines - 1))
    return found, spans


def numbers(*, count: int) -> tuple[list[bytes], dict[int, bytes]]:
    """Records that print numbers on both streams, and the bytes of each stream."""
    encoded: list[bytes] = []
    expected: dict[int, bytes] = {pb.STDOUT: b"", pb.STDERR: b""}
    sequence = 1
    for record in range(count):
        stream = Stream.STDERR if record % 3 == 0 else Stream.STDOUT
        payload = b"".join(b"%d\n" % number for number in range(sequence, sequence + 50))
        encoded.append(output(payload, sequence, stream=stream, time_ns=10**18 + record))
        expected[int(stream)] += payload
        sequence += 50
    return encoded, expected


@pytest.mark.threat("F02")
@pytest.mark.threat("F24")
def test_killed_again_and_again(base: Path) -> None:
    """Killed by SIGKILL while a job prints: every number is stored once, in order, and a new process goes on."""
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")  # noqa: T201  # to repeat a failure
    source = random.Random(seed)  # noqa: S311  # no secret
    encoded, expected = numbers(count=3000)
    job, service = new_job_id(), Service(base)

    async def scenario() -> None:
        async with transport_of(base) as transport, asyncio.timeout(60 * SLOWNESS):
            service.start()
            sender = Sender(transport, job, encoded)
            sending = asyncio.create_task(sender.run())
            for kills in range(1, 6):
                goal = min(150_000, sender.acknowledged + source.randrange(1, 10_000))
                await await_for(lambda kills=kills: sender.starts >= kills, what="the start", timeout_s=20)  # type: ignore[misc]
                await await_for(lambda goal=goal: sender.acknowledged >= goal, what="some progress", timeout_s=20)  # type: ignore[misc]
                service.kill()
                service.start()
            await sending
            assert sender.acknowledged == 150_000
            found, spans = await stored_bytes(base, job)
            assert found == expected
            assert spans[0][0] == 1
            assert all(after[0] == one[1] + 1 for one, after in pairwise(spans))

    try:
        asyncio.run(scenario())
        assert service.kill(signal.SIGTERM) == 0, service.log.read_text()
    finally:
        if service.process is not None and service.process.poll() is None:
            service.kill()
    for path in (base / "logs" / job).iterdir():
        run_program("gzip", "-t", str(path))


@pytest.mark.requirement("S0.8")
@pytest.mark.requirement("S0.61")
@pytest.mark.threat("A32")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can drop privileges")
def test_the_process_has_no_privileges_and_does_all_its_work_without(base: Path) -> None:
    """After the drop: no root, no capabilities; first use of everything works, errors and deletion included."""
    job, service = new_job_id(), Service(base)
    encoded, expected = numbers(count=10)
    encoded.append(output(b"\xff\xfe\n", 501))
    expected[pb.STDOUT] += b"\xff\xfe\n"

    async def scenario() -> None:
        async with transport_of(base) as transport, asyncio.timeout(30 * SLOWNESS):
            service.start()
            await Sender(transport, job, encoded).run()
            found, _ = await stored_bytes(base, job)
            assert found == expected
            async with grpc.aio.insecure_channel(f"unix:{base}/run/persist-grpc.sock") as channel:
                stub = PersistServiceStub(channel)
                metrics = stub.QueryMetrics(pb.MetricQueryRequest(job_id=job, aggregation="avg"))
                assert [metric async for metric in metrics] == []
                refused = stub.DeleteJobData(pb.DeleteJobDataRequest(job_id="../x"))
                assert await refused.code() is grpc.StatusCode.INVALID_ARGUMENT
                (base / "logs" / new_job_id()).symlink_to("/etc")
                assert (await stub.DeleteJobData(pb.DeleteJobDataRequest(job_id=job))).log_bytes > 0

    try:
        asyncio.run(scenario())
        assert service.process is not None
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{service.process.pid}/status").read_text().splitlines()
        )
        assert "0" not in status["Uid"].split()
        assert {status[name].strip("0") for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {""}
        assert status["Name"] == "joblet-persist"
        socket = base / "run" / "persist-grpc.sock"
        assert socket.stat().st_mode & 0o777 == 0o660
        assert (base / "logs").stat().st_uid == int(status["Uid"].split()[0])
        assert service.kill(signal.SIGTERM) == 0
        assert "Traceback" not in service.log.read_text()
    finally:
        if service.process is not None and service.process.poll() is None:
            service.kill()


@pytest.mark.requirement("S0.35")
@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("server: {nodeId: n1}\npersist: {storage: {type: cloudwatch}}", "cloudwatch"),
        ("persist: {storage: {type: s3}}", "s3"),
        ("persist: {storage: {local: {compression_level: 9}}}", "compression_level"),
        ("persist: {storage: {local: {flush_ms: 0}}}", "flush_ms"),
        ("persist: {ipc: {socket: /elsewhere/persist-ipc.sock}}", "persist.ipc.socket"),
        ("persist: {enabled: false}", "persist.enabled"),
    ],
)
def test_what_it_cannot_do_it_refuses_at_the_start(base: Path, text: str, named: str) -> None:
    """A clear message and an exit code, not a service that does something else."""
    config = base / "joblet-config.yml"
    config.write_text(f'version: "3.0"\n{text}\n')
    command = (sys.executable, "-m", "services.persist", "--config", str(config), "--base-dir", str(base))
    done = subprocess.run(command, capture_output=True, check=False, timeout=20)
    assert done.returncode != 0
    told = (done.stdout + done.stderr).decode()
    assert named in told
    assert "Traceback" not in told


@pytest.mark.requirement("S0.33")
@pytest.mark.requirement("S0.34")
def test_the_documented_socket_paths_may_be_written_out(base: Path) -> None:
    """Both socket keys with the paths that they have anyway, absolute as the sources give them."""
    sockets = base / "run" / "persist-ipc.sock", base / "run" / "persist-grpc.sock"
    (base / "joblet-config.yml").write_text(
        f'version: "3.0"\npersist: {{ipc: {{socket: {sockets[0]}}}, server: {{grpc_socket: {sockets[1]}}}}}\n'
    )
    service = Service(base)
    service.start()
    try:
        wait_for(lambda: "ready" in service.log.read_text(), what="persist to be ready")
        assert all(socket.is_socket() for socket in sockets)
    finally:
        service.kill(signal.SIGTERM)


def test_a_second_persist_is_refused(base: Path) -> None:
    """It would take the first one's sockets."""
    first, second = Service(base), Service(base)
    try:
        first.start()
        wait_for((base / "run" / "persist-grpc.sock").exists, what="the first one's socket")
        second.start()
        assert second.process is not None
        assert second.process.wait(20) != 0
        assert "another process" in second.log.read_text()
        assert first.process is not None
        assert first.process.poll() is None
    finally:
        first.kill()
