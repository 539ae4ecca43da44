"""Sockets of volume streams, on a real api that has given root up: whom they let in, and that nothing of them stays."""

import asyncio
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from common.bus.zeromq import SocketOwners, ZeroMQ
from common.messages.volumes import OpenVolumeStream
from proto.joblet.v1 import volume_pb2 as pb
from proto.joblet.v1.volume_pb2_grpc import VolumeServiceStub
from tests.api_volumes import FakeVolumes
from tests.security.door_process import DoorProcess, door_process
from tests.waiting import SLOWNESS, await_for

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: api's user must be another one")
CONTENT = bytes(range(256)) * 4096
NOBODY = 65534
STRANGER = """
import os, socket, sys
nobody = int(sys.argv[2])
os.setgroups([])
os.setresgid(nobody, nobody, nobody)
os.setresuid(nobody, nobody, nobody)
with socket.socket(socket.AF_UNIX) as connection:
    connection.settimeout(10)
    try:
        connection.connect(sys.argv[1])
        print(connection.recv(10) or "closed")
    except OSError as error:
        print(type(error).__name__)
"""


def uid_of(pid: int) -> int:
    """Whose process it is. Its directory in /proc is root's: it is not dumpable."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("Uid:"):
            return int(line.split()[1])
    raise AssertionError(pid)


def on_a_node(scene: Callable[[DoorProcess, FakeVolumes, Any], Awaitable[None]]) -> None:
    """An api in a process of its own, over ZeroMQ with a volumes service in this one, which is root."""
    with door_process() as door:
        status = (door.base / "run" / "streams").stat()

        async def main() -> None:
            owners = SocketOwners(api_uid=status.st_uid, persist_uid=status.st_uid, gid=status.st_gid)
            transport = ZeroMQ(door.base / "run", owners)
            service = FakeVolumes(transport, door.base / "run" / "streams")
            answering = asyncio.create_task(service.run())
            credentials = grpc.ssl_channel_credentials(door.authority.pem, door.identity.key, door.identity.cert)
            options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
            try:
                async with (
                    asyncio.timeout(20 * SLOWNESS),
                    aio.secure_channel(f"localhost:{door.port}", credentials, options) as channel,
                ):
                    await scene(door, service, VolumeServiceStub(channel))
            finally:
                answering.cancel()
                await asyncio.gather(answering, return_exceptions=True)
                await service.close()
                transport.close()

        asyncio.run(main())
        assert [*(door.base / "run" / "streams").iterdir()] == []


@needs_root
@pytest.mark.threat("E01")
def test_content_passes_and_nothing_of_the_socket_stays() -> None:
    """In and out, byte for byte, though api may not make files in run/; the directory is api's alone."""

    async def scene(door: DoorProcess, service: FakeVolumes, stub: Any) -> None:
        status = (door.base / "run" / "streams").stat()
        assert stat.S_IMODE(status.st_mode) == 0o700
        assert status.st_uid == uid_of(door.process.pid) != 0
        record = service.add("ann", "data")

        async def parts() -> AsyncIterator[pb.ImportVolumeRequest]:
            yield pb.ImportVolumeRequest(volume="data")
            for start in range(0, len(CONTENT), 65536):
                yield pb.ImportVolumeRequest(data=CONTENT[start : start + 65536])

        await stub.ImportVolume(parts())
        assert service.content[record.id] == CONTENT
        descriptors = door.descriptors()
        for _ in range(10):
            got = [one.data async for one in stub.ExportVolume(pb.ExportVolumeRequest(volume="data"))]
            assert b"".join(got) == CONTENT
        await await_for(lambda: door.descriptors() <= descriptors + 1, what="api to close what it had open")

    on_a_node(scene)


@needs_root
@pytest.mark.threat("E01")
def test_a_stranger_at_the_socket_gets_nothing() -> None:
    """Another user cannot reach it; one who got there all the same is closed, and the stream goes to whom it is for."""

    async def scene(door: DoorProcess, service: FakeVolumes, stub: Any) -> None:
        service.content[service.add("ann", "data").id] = CONTENT
        service.gate.clear()
        call = stub.ExportVolume(pb.ExportVolumeRequest(volume="data"))
        await await_for(lambda: len(service.of(OpenVolumeStream)) == 1, what="the stream to be asked for")
        streams = door.base / "run" / "streams"
        (path,) = streams.iterdir()
        assert await asyncio.to_thread(as_nobody, path) == "PermissionError"
        streams.chmod(0o755)
        path.chmod(0o777)
        (door.base / "run").chmod(0o755)
        assert await asyncio.to_thread(as_nobody, path) == "closed"
        service.gate.set()
        assert b"".join([one.data async for one in call]) == CONTENT

    on_a_node(scene)


def as_nobody(path: Path) -> str:
    """What a process of nobody's gets there: the name of an error, or `closed`, or what it read.

    It gives its rights up itself: for `user=` subprocess forks (not vfork), and handlers of gRPC crash in that child.
    """
    command = [sys.executable, "-I", "-c", STRANGER, str(path), str(NOBODY)]
    done = subprocess.run(command, cwd="/", stdout=subprocess.PIPE, timeout=20 * SLOWNESS, check=True)
    return done.stdout.decode().strip()


@needs_root
def test_a_caller_that_leaves_frees_everything() -> None:
    """Before the volumes service has connected, and in the middle: the socket is gone, no descriptor is left in api."""

    async def scene(door: DoorProcess, service: FakeVolumes, stub: Any) -> None:
        service.content[service.add("ann", "data").id] = CONTENT * 32
        await stub.GetVolume(pb.GetVolumeRequest(name="data"))
        before = door.descriptors()
        streams = door.base / "run" / "streams"
        for early in (True, False) * 3:
            service.requests.clear()
            if early:
                service.gate.clear()
            call = stub.ExportVolume(pb.ExportVolumeRequest(volume="data"))
            await await_for(lambda: len(service.of(OpenVolumeStream)) == 1, what="the stream to be asked for")
            if not early:
                await call.read()
            call.cancel()
            await await_for(lambda: not [*streams.iterdir()], what="the socket to be gone")
            service.gate.set()
        await await_for(lambda: door.descriptors() <= before + 1, what="api to close what it had open")

    on_a_node(scene)
