"""Fakes of the volumes service's ports: a disk that outlives the service, fails, is slow, and sees it die.

Belongs here: what several tests of the service's middle share. Does not belong here: any claim.
"""

import asyncio
import os
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from common.bus.memory import Memory
from common.bus.requests import Requester
from common.config.layout import layout_of
from common.config.settings import Joblet, Settings
from common.config.settings import Volumes as VolumeSettings
from common.errors import JobletError, Reason, exhausted, precondition
from common.identifiers import JobId, VolumeId, new_job_id
from common.messages.jobs import VolumeMount
from common.messages.topics import API_REPLIES, EXECUTOR_REPLIES, VOLUMES_COMMANDS
from common.messages.volumes import (
    CopyMethod,
    CreateVolume,
    Direction,
    Enforcement,
    GetVolume,
    PreparedVolume,
    PrepareVolumes,
    ReleaseVolumes,
    VolumeFound,
    VolumeKind,
    VolumeRecord,
    VolumesPrepared,
    VolumesReleased,
)
from services.volumes.ports import Found, Ids, Moved, Place, Space
from services.volumes.service import Ports, Volumes

API = f"api-replies-{os.getpid()}.sock"
MIB = 2**20


def nowhere(place: str) -> None:
    """Every place is passed."""


class Killed(BaseException):
    """Stands for kill -9: nothing that the service has written catches it."""


class OnDisk:
    """What there is of one volume on the fake disk."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.content = b""
        self.owner: Ids | None = None
        self.snapshots: dict[str, bytes] = {}
        self.whole = False


class FakeDisk:
    """The host: what outlives the service. `trouble` and `gates` are by the name of a call of Storage."""

    def __init__(self) -> None:
        self.volumes: dict[VolumeId, OnDisk] = {}
        self.mounted: set[VolumeId] = set()
        self.attached: set[VolumeId] = set()
        self.frozen: set[VolumeId] = set()
        self.shown: set[tuple[VolumeId, str]] = set()
        self.damaged: dict[VolumeId, str] = {}
        self.room_bytes = 2**40
        self.memory_bytes = 64 * MIB
        self.trouble: dict[str, Exception] = {}
        self.gates: dict[str, threading.Event] = {}
        self.calls: list[tuple[str, VolumeId]] = []
        self.keys: dict[VolumeId, bytes] = {}
        self.unsupported = ""
        self.encrypts = True
        self.enforcement = Enforcement.IMAGE
        self.used_bytes: dict[VolumeId, int] = {}
        self.overlaps: list[str] = []
        self.watch: Callable[[str], None] = nowhere  # told of the beginning and the end of every call
        self._busy: set[VolumeId] = set()
        self._guard = threading.Lock()

    def times(self, call: str) -> int:
        """How often it was made."""
        return Counter(name for name, _ in self.calls)[call]

    @contextmanager
    def call(self, name: str, volume: VolumeId, *, alone: bool = True) -> Iterator[None]:
        """One call of Storage: noted, held up, failed as told; two at once for one volume are noted as well."""
        with self._guard:
            self.calls.append((name, volume))
            if alone and volume in self._busy:
                self.overlaps.append(f"{name} of {volume}")
            self._busy |= {volume} if alone else set()
        try:
            gate = self.gates.get(name)
            if gate is not None:
                gate.wait(30)
            if name in self.trouble:
                raise self.trouble[name]
            self.watch(f"{name} begins")
            yield
            self.watch(f"{name} ends")
        finally:
            with self._guard:
                self._busy -= {volume} if alone else set()

    def leftovers(self, known: set[VolumeId]) -> list[str]:
        """What there is of volumes that are not known, or that is half done."""
        strange = [f"{what} of {each}" for what in ("mounted", "attached") for each in getattr(self, what) - known]
        strange += [f"files of {each}" for each in self.volumes.keys() - known]
        strange += [f"half of {each}" for each, there_is in self.volumes.items() if not there_is.whole]
        return strange + [f"frozen {each}" for each in self.frozen] + [f"shown {each}" for each in self.shown]


class FakeStorage:
    """See ports.Storage. Passes places as the real one does."""

    def __init__(self, disk: FakeDisk, enforcement: Enforcement, reached: Callable[[str], None]) -> None:
        self.disk = disk
        self.enforcement = enforcement
        self._reached = reached

    def create(self, volume: VolumeRecord, key: bytes) -> None:
        """See ports.Storage."""
        with self.disk.call("create", volume.id):
            if volume.size_bytes > self.disk.room_bytes:
                raise exhausted("no room")
            self._new(volume, key)
            self._reached("volumes.allocated")
            self.disk.volumes[volume.id].whole = True
            self._reached("volumes.formatted")

    def delete(self, volume: VolumeRecord) -> None:
        """See ports.Storage."""
        with self.disk.call("delete", volume.id):
            assert volume.id not in self.disk.mounted, "a mounted volume is not removed"
            self.disk.volumes.pop(volume.id, None)
            self.disk.attached.discard(volume.id)

    def mount(self, volume: VolumeRecord, key: bytes, ids: Ids | None) -> Place:
        """See ports.Storage."""
        with self.disk.call("mount", volume.id):
            there_is = self.disk.volumes.get(volume.id)
            if there_is is None or volume.id in self.disk.damaged:
                why = self.disk.damaged.get(volume.id, "its image is missing")
                raise JobletError(Reason.DATA_LOSS, why)
            assert key == self.disk.keys.get(volume.id, b""), "the wrong key"
            self.disk.attached.add(volume.id)
            self._reached("volumes.device")
            self.disk.mounted.add(volume.id)
            there_is.owner = there_is.owner or ids
            return Place(source=f"/volumes/{volume.id}/mount/data", root="7:1:2", device="7:1")

    def unmount(self, volume: VolumeRecord) -> None:
        """See ports.Storage."""
        with self.disk.call("unmount", volume.id):
            self.disk.mounted.discard(volume.id)
            if volume.kind is VolumeKind.MEMORY and volume.id in self.disk.volumes:
                self.disk.volumes[volume.id].content = b""
            self._reached("volumes.unmounted")
            self.disk.attached.discard(volume.id)

    def measure(self, volume: VolumeRecord) -> Space | None:
        """See ports.Storage."""
        with self.disk.call("measure", volume.id, alone=volume.enforcement is not Enforcement.ADVISORY):
            if volume.kind is VolumeKind.MEMORY and volume.id not in self.disk.mounted:
                return Space(0, 0, 100)
            return Space(self.disk.used_bytes.get(volume.id, 0), 3, 100)

    def moved(self, volume: VolumeRecord) -> Moved:  # noqa: ARG002
        """See ports.Storage."""
        return Moved(read_bytes=1, write_bytes=2, read_ops=3, write_ops=4)

    def resize(self, volume: VolumeRecord, size_bytes: int, key: bytes) -> None:  # noqa: ARG002
        """See ports.Storage."""
        with self.disk.call("resize", volume.id):
            self.disk.volumes[volume.id].size_bytes = size_bytes

    def snapshot(self, volume: VolumeRecord, snapshot: str) -> CopyMethod:
        """See ports.Storage."""
        with self.disk.call("snapshot", volume.id):
            self.disk.frozen.add(volume.id)
            self._reached("volumes.frozen")
            there_is = self.disk.volumes[volume.id]
            there_is.snapshots[snapshot] = there_is.content
            self._reached("volumes.copied")
            self.disk.frozen.discard(volume.id)
            return CopyMethod.COPY

    def drop_snapshot(self, volume: VolumeRecord, snapshot: str) -> None:
        """See ports.Storage."""
        with self.disk.call("drop_snapshot", volume.id):
            self.disk.volumes[volume.id].snapshots.pop(snapshot, None)

    def restore(self, volume: VolumeRecord, snapshot: str, size_bytes: int) -> None:  # noqa: ARG002
        """See ports.Storage."""
        with self.disk.call("restore", volume.id):
            assert volume.id not in self.disk.mounted
            there_is = self.disk.volumes[volume.id]
            there_is.content = there_is.snapshots[snapshot]
            self._reached("volumes.copied")

    def clone(self, source: VolumeRecord, snapshot: str, target: VolumeRecord, key: bytes) -> CopyMethod:
        """See ports.Storage."""
        with self.disk.call("clone", source.id):
            there_is = self.disk.volumes[source.id]
            self._new(target, key)
            self._reached("volumes.allocated")
            new = self.disk.volumes[target.id]
            new.content = there_is.snapshots[snapshot] if snapshot else there_is.content
            new.whole = True
            self._reached("volumes.copied")
            return CopyMethod.REFLINK

    def open_snapshot(self, volume: VolumeRecord, snapshot: str, key: bytes) -> Place:  # noqa: ARG002
        """See ports.Storage."""
        with self.disk.call("open_snapshot", volume.id):
            self.disk.shown.add((volume.id, snapshot))
            return Place(source=f"/volumes/{volume.id}/snapshots/{snapshot}.mount/data", root="7:2:2", device="7:2")

    def close_snapshot(self, volume: VolumeRecord, snapshot: str) -> None:
        """See ports.Storage."""
        with self.disk.call("close_snapshot", volume.id):
            self.disk.shown.discard((volume.id, snapshot))

    def thaw(self, volume: VolumeRecord) -> None:
        """See ports.Storage."""
        with self.disk.call("thaw", volume.id):
            self.disk.frozen.discard(volume.id)

    def _new(self, volume: VolumeRecord, key: bytes) -> None:
        self.disk.volumes[volume.id] = OnDisk(volume.size_bytes)
        if volume.encryption:
            self.disk.keys[volume.id] = key
        assert bool(key) == bool(volume.encryption)


class FakeStorages:
    """See ports.Storages."""

    def __init__(self, disk: FakeDisk, reached: Callable[[str], None]) -> None:
        self.disk = disk
        self._reached = reached

    def choose(self, volume_kind: str, *, encrypted: bool, advisory: bool) -> tuple[Enforcement, str]:
        """See ports.Storages."""
        if self.disk.unsupported and not advisory:
            raise precondition(self.disk.unsupported, "use --advisory")
        if encrypted and not self.disk.encrypts:
            raise precondition("this kernel has no dm-crypt", "load it")
        memory = volume_kind == VolumeKind.MEMORY
        return Enforcement.TMPFS if memory else self.disk.enforcement, "dm-crypt" if encrypted else ""

    def of(self, volume: VolumeRecord) -> FakeStorage:
        """See ports.Storages."""
        return FakeStorage(self.disk, volume.enforcement, self._reached)

    def remover(self, volume: VolumeRecord) -> FakeStorage:
        """See ports.Storages."""
        return self.of(volume)

    def found(self) -> Found:
        """See ports.Storages."""
        disk = self.disk
        return Found(frozenset(disk.volumes), frozenset(disk.mounted), frozenset(disk.attached))

    def let_go(self, volume: VolumeId) -> None:
        """See ports.Storages."""
        self.disk.mounted.discard(volume)
        self.disk.attached.discard(volume)

    def room_bytes(self) -> int:
        """See ports.Storages."""
        return self.disk.room_bytes

    def memory_bytes(self) -> int:
        """See ports.Storages."""
        return self.disk.memory_bytes


class FakeKeys:
    """See ports.Keys. What is sealed is bound to its volume."""

    def new(self, volume: VolumeId, *, others: bool = False) -> tuple[bytes, bytes]:  # noqa: ARG002
        """See ports.Keys."""
        key = os.urandom(64)
        return key, self._sealed(volume, key)

    def open(self, volume: VolumeId, sealed: bytes) -> bytes:
        """See ports.Keys."""
        if not sealed.startswith(volume.encode()):
            raise JobletError(Reason.DATA_LOSS, "sealed for another volume")
        return sealed.removeprefix(volume.encode())[::-1]

    def transfer(self, sealed: bytes, source: VolumeId, target: VolumeId) -> bytes:
        """See ports.Keys."""
        return self._sealed(target, self.open(source, sealed))

    def _sealed(self, volume: VolumeId, key: bytes) -> bytes:
        return volume.encode() + key[::-1]


class FakeStreams:
    """See ports.Streams. Notes what it is asked for; waits at `gate`, fails with `trouble`."""

    def __init__(self) -> None:
        self.runs: list[tuple[str, Direction, str, Ids]] = []
        self.gate: asyncio.Event | None = None
        self.trouble: Exception | None = None

    async def run(self, source: str, direction: Direction, socket_path: str, ids: Ids) -> tuple[int, int]:
        """See ports.Streams."""
        self.runs.append((source, direction, socket_path, ids))
        if self.gate is not None:
            await self.gate.wait()
        if self.trouble is not None:
            raise self.trouble
        return 3, 4096


class Clock:
    """Both clocks of the service; goes on when told."""

    def __init__(self) -> None:
        self.wall_ns = time.time_ns()
        self.steady_ns = 10**18

    def go_on(self, milliseconds: int) -> None:
        """So much time goes by."""
        self.wall_ns += milliseconds * 10**6
        self.steady_ns += milliseconds * 10**6


class Node:
    """A service over a memory transport and a fake disk, with api and the executor asking it."""

    def __init__(self, service: Volumes, disk: FakeDisk, streams: FakeStreams, clock: Clock) -> None:
        self.service = service
        self.disk = disk
        self.streams = streams
        self.clock = clock
        self.api: Requester
        self.executor: Requester

    async def create(self, name: str = "data", owner: str = "ann", **fields: Any) -> VolumeRecord:
        """A new volume of 1 MiB."""
        request = CreateVolume(owner=owner, name=name, kind=VolumeKind.FILESYSTEM, size_bytes=MIB)
        return (await self.api.request(replace(request, **fields), VolumeFound)).volume

    async def get(self, name: str = "data", owner: str = "ann") -> VolumeRecord:
        """What is told of it."""
        request = GetVolume(volume=name, owner=owner, visible_owner=None)
        return (await self.api.request(request, VolumeFound)).volume

    async def prepare(
        self, *names: str, job: JobId, owner: str = "ann", read_only: bool = False, uid: int = 101_000
    ) -> tuple[PreparedVolume, ...]:
        """Give a job the volumes of these names."""
        request = prepare_request(*names, job=job, owner=owner, read_only=read_only, uid=uid)
        return (await self.executor.request(request, VolumesPrepared)).volumes

    async def use(self, *names: str, owner: str = "ann", read_only: bool = False) -> JobId:
        """A new job has them."""
        job = new_job_id()
        await self.prepare(*names, job=job, owner=owner, read_only=read_only)
        return job

    async def release(self, job: JobId, volume: VolumeId | None = None) -> None:
        """The job has them no more."""
        await self.executor.request(ReleaseVolumes(job=job, volume=volume), VolumesReleased)


def prepare_request(
    *names: str, job: JobId, owner: str = "ann", read_only: bool = False, uid: int = 101_000
) -> PrepareVolumes:
    """Volumes of these names, each at its usual path."""
    mounts = tuple(VolumeMount(name=name, path=f"/volumes/{name}", read_only=read_only) for name in names)
    return PrepareVolumes(job=job, owner=owner, uid=uid, gid=uid, mounts=mounts)


def volume_settings(base: Path, **volumes: Any) -> Settings:
    """Settings with `base` as base directory."""
    settings = Settings(joblet=Joblet(base_dir=str(base), volumes=VolumeSettings(**volumes)))
    layout_of(settings).state.mkdir(parents=True, exist_ok=True)
    return settings


def make_service(
    settings: Settings,
    disk: FakeDisk,
    *,
    transport: Memory,
    streams: FakeStreams,
    clock: Clock,
    reached: Callable[[str], None] = nowhere,
    own: Ids | None = None,
) -> Volumes:
    """A service that has not started."""
    return Volumes(
        settings=settings,
        layout=layout_of(settings),
        transport=transport,
        ports=Ports(storages=lambda: FakeStorages(disk, reached), keys=FakeKeys(), streams=streams, own=own),
        clock_ns=lambda: clock.wall_ns,
        steady_ns=lambda: clock.steady_ns,
        reached=reached,
    )


@asynccontextmanager
async def running_volumes(
    settings: Settings,
    disk: FakeDisk | None = None,
    *,
    clock: Clock | None = None,
    own: Ids | None = None,
) -> AsyncIterator[Node]:
    """A service that serves, and is closed in the end. No two calls of its storage met at one volume."""
    disk, transport, streams, clock = disk or FakeDisk(), Memory(), FakeStreams(), clock or Clock()
    service = make_service(settings, disk, transport=transport, streams=streams, clock=clock, own=own)
    node = Node(service, disk, streams, clock)
    commands = VOLUMES_COMMANDS
    node.api = Requester(transport, commands=commands, replies=API_REPLIES, reply_file=API)
    node.executor = Requester(transport, commands=commands, replies=EXECUTOR_REPLIES, reply_file=EXECUTOR_REPLIES.file)
    tasks = [asyncio.create_task(node.api.run()), asyncio.create_task(node.executor.run())]
    await service.start()
    tasks.append(asyncio.create_task(service.run()))
    try:
        yield node
    finally:
        for gate in disk.gates.values():
            gate.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        node.api.close()
        node.executor.close()
        await service.close(tidy=True)
    assert disk.overlaps == []


def serve(
    scenario: Callable[[Node], Awaitable[None]], base: Path, disk: FakeDisk | None = None, **volumes: Any
) -> None:
    """Run `scenario` with a service below `base`."""

    async def run() -> None:
        async with running_volumes(volume_settings(base, **volumes), disk) as node:
            await scenario(node)

    asyncio.run(run())


async def refusal(asking: Awaitable[object]) -> JobletError:
    """What it is refused with."""
    with pytest.raises(JobletError) as refused:
        await asking
    return refused.value
