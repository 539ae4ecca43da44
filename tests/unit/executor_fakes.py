"""Fakes of the executor's ports: monitors that write real journals, and a persist that can be told to misbehave.

Belongs here: what several tests of the executor's middle share. Does not belong here: any claim.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from common.bus import codec
from common.bus.events import Publisher
from common.bus.memory import Memory
from common.bus.requests import Receiver, Requester
from common.config.layout import Layout, layout_of
from common.config.settings import Joblet, Settings
from common.errors import JobletError, not_found
from common.identifiers import JobId, VolumeId, new_job_id, new_volume_id
from common.messages.envelope import Body
from common.messages.jobs import JobRecord, JobSpec, Limits, NodeFacts, VolumeMount
from common.messages.logs import EndOfJob, Resend, Stored, StoreRecords
from common.messages.topics import API_REPLIES, EXECUTOR_COMMANDS, PERSIST_ACKS, PERSIST_IPC
from common.messages.volumes import PreparedVolume
from common.records import Flags, Record, RecordType, Stream, decode_all, encode
from services.executor.events import Job
from services.executor.identity import JobIdentity
from services.executor.job_store import JobStore
from services.executor.ports import Attachments, Volumes
from services.executor.rootless import own_identity
from services.executor.service import Executor, Ports

ASKER = f"api-replies-{os.getpid()}.sock"
BOOT = "6cd9ee1a-1ea6-4a5e-b8b4-5fd7a4f0e4d1"
NODE = NodeFacts(
    node_id="node-1", version="0", kernel="6", cgroup_version="v2", cpus=2, memory_bytes=2**30, running_jobs=0
)


class FakeMonitor:
    """Writes a job's journal as a monitor does, when the test says so."""

    def __init__(self, directory: Path) -> None:
        self.journal = directory / "journal"
        self.next_sequence = 1
        self.alive = True
        self.commands: list[tuple[str, int, int]] = []
        self.gone: Callable[[], None] | None = None

    def append(self, data: bytes) -> None:
        """Bytes at the end of the journal, whatever they are."""
        with self.journal.open("ab") as file:
            file.write(data)

    def start(self, pid: int = 4711) -> None:
        """The START record."""
        payload = json.dumps({"version": 1, "pid": pid, "monitor_pid": 1}).encode()
        self.append(encode(RecordType.START, payload, time_ns=time.time_ns(), sequence=self.next_sequence))

    def record(self, data: bytes) -> bytes:
        """An OUTPUT record of whole lines; the next sequence goes on behind it."""
        lines = data.count(b"\n")
        record = encode(
            RecordType.OUTPUT,
            data,
            time_ns=time.time_ns(),
            sequence=self.next_sequence,
            lines=lines,
            stream=Stream.STDOUT,
            flags=Flags.NONE,
        )
        self.next_sequence += lines
        return record

    def output(self, data: bytes) -> None:
        """Lines of output."""
        self.append(self.record(data))

    def gap(self, lines: int, *, lost_bytes: int) -> None:
        """A GAP record, as of a full journal."""
        payload = json.dumps({"reason": "journal_full", "bytes": lost_bytes}).encode()
        sequence = self.next_sequence
        self.append(encode(RecordType.GAP, payload, time_ns=time.time_ns(), sequence=sequence, lines=lines))
        self.next_sequence += lines

    def exit_record(self, **fields: Any) -> bytes:
        """The EXIT record, of an exit with code 0 unless told otherwise."""
        payload = {
            "version": 1,
            "outcome": "exited",
            "exit_code": 0,
            "signal": None,
            "ended_by": "",
            "cpu_time_us": 5,
            "memory_peak_bytes": 6,
            "oom_kills": 0,
            "failure": None,
            **fields,
        }
        encoded = json.dumps(payload).encode()
        return encode(RecordType.EXIT, encoded, time_ns=time.time_ns(), sequence=self.next_sequence)

    def exit(self, **fields: Any) -> None:
        """Write the EXIT record and end."""
        self.append(self.exit_record(**fields))
        self.die()

    def die(self) -> None:
        """End, as by kill -9."""
        self.alive = False
        if self.gone is not None:
            gone, self.gone = self.gone, None
            asyncio.get_running_loop().call_soon(gone)


class FakeHost:
    """Launches, Monitors, Cleans and Samples in one: what outlives an executor."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.monitors: dict[JobId, FakeMonitor] = {}
        self.launched: list[JobId] = []
        self.secrets: dict[JobId, dict[str, str]] = {}
        self.cleaned: list[JobId] = []
        self.fail_launch: Exception | None = None
        self.deaf = False  # monitors take no commands
        self.freed: list[JobId] = []
        self.swept: tuple[frozenset[JobId], frozenset[JobId]] | None = None

    def new_id(self, spec: JobSpec) -> JobId:  # noqa: ARG002
        """See ports.Launches."""
        return new_job_id()

    def give_back(self, job: JobId) -> None:
        """See ports.Launches."""

    def adopt(self, record: JobRecord) -> None:
        """See ports.Launches."""

    async def launch(self, job: Job, secrets: Mapping[str, str]) -> None:
        """See ports.Launches."""
        self.launched.append(job.record.id)
        self.secrets[job.record.id] = dict(secrets)
        if self.fail_launch is not None:
            raise self.fail_launch
        directory = self.layout.job_dir(job.record.id)
        directory.mkdir()
        (directory / "journal").touch()
        self.monitors[job.record.id] = FakeMonitor(directory)

    def limit_volume(self, record: JobRecord, prepared: PreparedVolume) -> None:
        """See ports.Launches."""

    def describe(self, record: JobRecord) -> tuple[str, ...]:
        """See ports.Launches."""
        return (f"run {record.spec.command}",)

    def watch(self, job: JobId, gone: Callable[[], None]) -> bool:
        """See ports.Monitors."""
        monitor = self.monitors.get(job)
        if monitor is None or not monitor.alive:
            return False
        monitor.gone = gone
        return True

    def stop(self, job: JobId, *, signal: int, grace_ms: int) -> bool:
        """See ports.Monitors."""
        monitor = self.monitors.get(job)
        if monitor is None or not monitor.alive or self.deaf:
            return False
        monitor.commands.append(("stop", signal, grace_ms))
        return True

    def space_freed(self, job: JobId) -> None:
        """See ports.Monitors."""
        self.freed.append(job)

    async def end(self, job: JobId) -> bool:
        """See ports.Cleans."""
        self.cleaned.append(job)
        return True

    async def forget(self, job: JobId) -> None:
        """See ports.Cleans."""
        directory = self.layout.job_dir(job)
        if directory.exists():
            for file in directory.iterdir():
                file.unlink()
            directory.rmdir()

    async def sweep(self, *, alive: frozenset[JobId], known: frozenset[JobId]) -> object:
        """See recovery.Sweeps."""
        self.swept = alive, known
        return None

    def add(self, job: JobId, *, started_at_ns: int | None) -> None:
        """Nothing is measured."""

    def finish(self, job: JobId) -> None:
        """Nothing was measured."""


class FakeVolumes:
    """See ports.Volumes: everybody has every volume, but for those that `refused` names with an error."""

    def __init__(self) -> None:
        self.refused: dict[str, JobletError] = {}
        self.checked: list[tuple[str, tuple[VolumeMount, ...]]] = []
        self.having: dict[JobId, tuple[VolumeMount, ...]] = {}
        self.kept: list[JobId] = []
        self.released: list[tuple[JobId, VolumeId | None]] = []

    async def check(self, owner: str, mounts: tuple[VolumeMount, ...]) -> None:
        """See ports.Volumes."""
        if not mounts:
            return
        self.checked.append((owner, mounts))
        for mount in mounts:
            if mount.name in self.refused:
                raise self.refused[mount.name]

    async def prepare(
        self,
        job: JobId,
        owner: str,
        identity: JobIdentity,  # noqa: ARG002
        mounts: tuple[VolumeMount, ...],
    ) -> tuple[PreparedVolume, ...]:
        """See ports.Volumes."""
        await self.check(owner, mounts)
        self.having[job] = self.having.get(job, ()) + mounts
        return tuple(
            PreparedVolume(id=new_volume_id(), mount=mount, source=f"/volumes/{mount.name}", root="1:2:3", device="")
            for mount in mounts
        )

    def keep(self, job: JobId) -> None:
        """See ports.Volumes."""
        self.kept.append(job)

    def leaving(self, job: JobId) -> None:
        """See ports.Volumes."""

    async def release(self, job: JobId, volume: VolumeId | None = None) -> None:
        """See ports.Volumes."""
        self.released.append((job, volume))


class FakeAttachments:
    """See ports.Attachments: which directories are mounted in which job. `fail`: raised by the next call, after it."""

    def __init__(self) -> None:
        self.mounted: dict[JobId, dict[str, PreparedVolume]] = {}
        self.fail: list[JobletError] = []
        self.mounts_all_the_same = False

    async def attach(self, job: JobId, job_pid: int, prepared: PreparedVolume, identity: JobIdentity) -> None:  # noqa: ARG002
        """See ports.Attachments."""
        if not self.fail or self.mounts_all_the_same:
            self.mounted.setdefault(job, {})[prepared.root] = prepared
        if self.fail:
            raise self.fail.pop(0)

    async def detach(self, job: JobId, job_pid: int, prepared: PreparedVolume, *, force: bool) -> None:  # noqa: ARG002
        """See ports.Attachments."""
        if self.fail:
            raise self.fail.pop(0)
        if self.mounted.get(job, {}).pop(prepared.root, None) is None:
            raise not_found(f"volume {prepared.mount.name} is not mounted in job {job}")


class FakePersist:
    """The receiving side of go-back-N: keeps entries by sequence, refuses repeats, acknowledges what it is told to.

    `lose(n)`: whether the n-th message that arrives is lost on the way.
    """

    def __init__(self, transport: Memory, *, lose: Callable[[int], bool] = lambda _: False) -> None:
        self._receiver = Receiver(transport, PERSIST_IPC)
        self._push = transport.push(PERSIST_ACKS)
        self._lose = lose
        self._arrived = 0
        self._expected: dict[JobId, tuple[int, int]] = {}
        self.stored: dict[JobId, list[Record]] = {}
        self.last: dict[JobId, int] = {}
        self.ended: dict[JobId, int] = {}
        self.received: list[Body] = []
        self.answering = True

    async def run(self) -> None:
        """Receive for ever."""
        async for message in self._receiver.messages():
            self._arrived += 1
            if not self._lose(self._arrived):
                await self._take(message.body)

    async def say(self, body: Body) -> None:
        """Send one word to the executor."""
        await self._push.send(codec.encode(body))

    async def _take(self, body: Body) -> None:
        self.received.append(body)
        if not isinstance(body, StoreRecords | EndOfJob):
            return
        epoch, batch = self._expected.get(body.job, (-1, 0))
        if not ((body.epoch > epoch and body.batch == 0) or (body.epoch, body.batch) == (epoch, batch)):
            await self.say(Resend(job=body.job, epoch=max(epoch, body.epoch)))
            return
        self._expected[body.job] = body.epoch, body.batch + 1
        if isinstance(body, StoreRecords):
            self._store(body)
        else:
            self.ended[body.job] = body.last_sequence
        if self.answering:
            ended = isinstance(body, EndOfJob)
            await self.say(
                Stored(job=body.job, epoch=body.epoch, last_sequence=self.last.get(body.job, 0), ended=ended)
            )

    def _store(self, body: StoreRecords) -> None:
        kept = self.stored.setdefault(body.job, [])
        for record in decode_all(body.records):
            if record.lines and record.sequence > self.last.get(body.job, 0):
                assert record.sequence == self.last.get(body.job, 0) + 1, "a hole reached persist"
                kept.append(record)
                self.last[body.job] = record.last_sequence

    def output(self, job: JobId) -> bytes:
        """All stored bytes of the job."""
        return b"".join(bytes(record.payload) for record in self.stored.get(job, []))

    def close(self) -> None:
        """Stop receiving."""
        self._receiver.close()


class Node:
    """An executor over a memory transport and a fake host, and someone who asks it."""

    def __init__(self, executor: Executor, transport: Memory, host: FakeHost, ask: Requester) -> None:
        self.executor = executor
        self.transport = transport
        self.host = host
        self.ask = ask


def node_settings(base: Path, **joblet: Any) -> Settings:
    """Settings with `base` as base directory."""
    settings = Settings(joblet=Joblet(base_dir=str(base), **joblet))
    layout = layout_of(settings)
    for directory in (layout.jobs, layout.state, layout.uploads):
        directory.mkdir(parents=True, exist_ok=True)
    return settings


def no_unsupported(limits: Limits) -> tuple[tuple[str, str], ...]:  # noqa: ARG001
    """Everything can be enforced."""
    return ()


@asynccontextmanager
async def running_node(
    settings: Settings,
    transport: Memory,
    host: FakeHost | None = None,
    *,
    volumes: Volumes | None = None,
    attachments: Attachments | None = None,
    clock_ns: Callable[[], int] = time.time_ns,
) -> AsyncIterator[Node]:
    """An executor that serves, and is closed in the end without its monitors noticing."""
    layout = layout_of(settings)
    host = host or FakeHost(layout)
    ports = Ports(
        launches=host,
        monitors=host,
        cleans=host,
        samples=host,
        volumes=volumes or FakeVolumes(),
        attachments=attachments or FakeAttachments(),
        identities=own_identity,
        unsupported=no_unsupported,
        refused_network=lambda _: None,
        node=NODE,
        boot_id=BOOT,
    )
    executor = Executor(
        settings=settings,
        layout=layout,
        transport=transport,
        store=JobStore(layout.state / "jobs.db", now_ns=time.time_ns()),
        publisher=Publisher(transport),
        ports=ports,
        clock_ns=clock_ns,
    )
    ask = Requester(transport, commands=EXECUTOR_COMMANDS, replies=API_REPLIES, reply_file=ASKER)
    answers = asyncio.create_task(ask.run())
    await executor.start()
    running = asyncio.create_task(executor.run())
    try:
        yield Node(executor, transport, host, ask)
    finally:
        for monitor in host.monitors.values():
            monitor.gone = None
        answers.cancel()
        running.cancel()
        await asyncio.gather(answers, running, return_exceptions=True)
        ask.close()
        await executor.close()
