"""The socket files of the bus: who may connect, and what raw bytes on them can do. See unix(7), zmq_ipc(7)."""

import asyncio
import contextlib
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.bus import codec
from common.bus.requests import Receiver
from common.bus.zeromq import SocketOwners, ZeroMQ
from common.errors import JobletError, Reason
from common.identifiers import JobId
from common.messages import logs
from common.messages.topics import ENDPOINTS, EVENTS, PERSIST_ACKS, PERSIST_IPC, Endpoint, Pattern
from tests.waiting import SLOWNESS, await_for

NOBODY = 65534
API_UID, PERSIST_UID, GID = 64901, 64902, 64903
JOB = JobId("6fa459ea-ee8a-4ca4-894e-db77e160355e")
OWNERS = SocketOwners(api_uid=API_UID, persist_uid=PERSIST_UID, gid=GID)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
each_endpoint = pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.file)

CONNECT = """
import os, socket, sys
path, uid, gid = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
client = socket.socket(socket.AF_UNIX)
os.setgroups([])
os.setresgid(gid, gid, gid)
os.setresuid(uid, uid, uid)
try:
    client.connect(path)
except OSError as error:
    print(error.errno)
else:
    print(0)
"""


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A directory that every user can reach, so that only the sockets' own modes are tested.

    Not below pytest's own, which each run of pytest on the host closes to others when it begins.
    """
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o711)
        yield directory


def bind(transport: ZeroMQ, endpoint: Endpoint) -> None:
    """Bind an endpoint as its service would."""
    if endpoint.pattern is Pattern.PUB_SUB:
        transport.publisher(endpoint)
    else:
        transport.pull(endpoint)


def connect_as(path: Path, uid: int, gid: int) -> int:
    """The errno of a connect by a process of that user without further groups; 0 when it connects."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", CONNECT, str(path), str(uid), str(gid)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@needs_root
@pytest.mark.threat("B04")
@pytest.mark.threat("E01")
@each_endpoint
def test_another_user_cannot_connect(endpoint: Endpoint, run_dir: Path) -> None:
    """Neither a stranger nor the wrong service can connect to a socket; its own connector can."""
    transport = ZeroMQ(run_dir, OWNERS)
    bind(transport, endpoint)
    path = run_dir / endpoint.file
    uid, gid = OWNERS.of(endpoint)
    facts = path.stat()
    assert (facts.st_uid, facts.st_gid, stat.S_IMODE(facts.st_mode)) == (uid, gid, 0o660)
    eacces = 13
    assert connect_as(path, NOBODY, NOBODY) == eacces
    assert connect_as(path, 100_000 + 1000, 100_000 + 1000) == eacces, "a job's user"
    for service in (API_UID, PERSIST_UID):
        allowed = service == uid or gid == GID
        assert connect_as(path, service, GID) == (0 if allowed else eacces)
    transport.close()


@needs_root
@each_endpoint
def test_lock_files_are_private(endpoint: Endpoint, run_dir: Path) -> None:
    """Nobody else can hold the lock that keeps a second binder out."""
    transport = ZeroMQ(run_dir, OWNERS)
    bind(transport, endpoint)
    assert stat.S_IMODE((run_dir / f"{endpoint.file}.lock").stat().st_mode) == 0o600
    transport.close()


@pytest.mark.threat("E03")
@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        bytes(4096),
        b"\xff" * 4096,
        b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x00NULL" + bytes(48) + b"\x02\xff\xff\xff\xff\xff\xff\xff\xff",
        os.urandom(65536),
    ],
    ids=["http", "zeros", "ones", "greeting-and-huge-frame", "random"],
)
def test_raw_bytes_on_the_socket_harm_nobody(garbage: bytes, tmp_path: Path) -> None:
    """Bytes that are no ZeroMQ reach no handler, and the next message of a real sender arrives."""

    async def scene() -> None:
        transport = ZeroMQ(tmp_path)
        receiver = Receiver(transport, PERSIST_ACKS)
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(tmp_path / PERSIST_ACKS.file))
            raw.settimeout(1.0)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
                raw.sendall(garbage)  # the receiver may close it in the middle, and that is right
        push = transport.push(PERSIST_ACKS)
        await push.send(codec.encode(logs.Resend(job=JOB, epoch=1)))
        async with asyncio.timeout(10 * SLOWNESS):
            assert (await anext(receiver.messages())).body == logs.Resend(job=JOB, epoch=1)
        transport.close()

    asyncio.run(scene())


@pytest.mark.threat("E03")
def test_multipart_and_wrong_socket_types_are_dropped(tmp_path: Path) -> None:
    """Messages of several frames, and publishers that meet a PULL socket, do not reach a handler."""

    async def scene() -> None:
        transport = ZeroMQ(tmp_path)
        receiver = Receiver(transport, PERSIST_ACKS)
        socket_file = str(tmp_path / PERSIST_ACKS.file)
        other = await asyncio.create_subprocess_exec(sys.executable, "-c", MULTIPART, socket_file)
        async with asyncio.timeout(20 * SLOWNESS):
            assert (await anext(receiver.messages())).body == logs.Resend(job=JOB, epoch=2)
        assert receiver.rejected.total() == 0
        assert await other.wait() == 0
        transport.close()

    asyncio.run(scene())


MULTIPART = f"""
import sys, zmq
from common.bus import codec
from common.messages import logs
context = zmq.Context()
publisher = context.socket(zmq.PUB)
publisher.connect("ipc://" + sys.argv[1])
publisher.send(b"x")
push = context.socket(zmq.PUSH)
push.connect("ipc://" + sys.argv[1])
good = codec.encode(logs.Resend(job={str(JOB)!r}, epoch=2))
push.send_multipart([good, good])
push.send(good)
context.destroy(linger=60_000)
"""


@pytest.mark.threat("E05")
def test_bit_flips_in_records_are_not_the_codecs_business(tmp_path: Path) -> None:
    """Records travel opaque: a damaged one reaches persist, whose checksum test refuses it; the bus only carries."""

    async def scene() -> None:
        transport = ZeroMQ(tmp_path)
        receiver = Receiver(transport, PERSIST_IPC)
        push = transport.push(PERSIST_IPC)
        body = logs.StoreRecords(job=JOB, epoch=0, batch=0, records=b"JLR1" + b"\xff" * 100)
        await push.send(codec.encode(body))
        async with asyncio.timeout(10 * SLOWNESS):
            assert (await anext(receiver.messages())).body == body
        transport.close()

    asyncio.run(scene())


def test_path_that_is_too_long_for_a_socket_is_refused_in_words(tmp_path: Path) -> None:
    """sockaddr_un holds 107 bytes: the error says what to change."""
    long = tmp_path / ("d" * 107)
    long.mkdir()
    transport = ZeroMQ(long)
    with pytest.raises(JobletError, match="shorter base directory") as caught:
        transport.publisher(EVENTS)
    assert caught.value.reason is Reason.INVALID
    transport.close()


def test_stale_socket_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    """After kill -9 the file and the lock file are still there; the next process binds without repair."""
    code = f"""
import os, sys
from pathlib import Path
from common.bus.zeromq import ZeroMQ
from common.messages.topics import EVENTS
transport = ZeroMQ(Path({str(tmp_path)!r}))
transport.publisher(EVENTS)
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert (tmp_path / EVENTS.file).exists()
    transport = ZeroMQ(tmp_path)
    transport.publisher(EVENTS)
    transport.close()


def test_closing_gives_every_descriptor_back(tmp_path: Path) -> None:
    """Sockets, locks and the context: nothing of a transport stays open after close."""

    async def scene() -> None:
        before = descriptors()
        for _ in range(5):
            transport = ZeroMQ(tmp_path)
            for endpoint in ENDPOINTS:
                bind(transport, endpoint)
            transport.push(PERSIST_ACKS)
            transport.subscriber(EVENTS)
            transport.close()
        await await_for(lambda: descriptors() <= before + 2, what="the descriptors to be closed")

    asyncio.run(scene())


def descriptors() -> int:
    """How many descriptors this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
