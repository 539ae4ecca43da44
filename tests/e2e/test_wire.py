"""Bad input on every way in: the services say no, count it, and go on."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from common.messages.topics import ENDPOINTS
from tests.e2e.node import SERVICES, Node
from tests.waiting import SLOWNESS, wait_for

ZEROMQ_GARBAGE = """
import os, random, sys, zmq
random.seed(7)
context = zmq.Context()
for path in sys.argv[1:]:
    kind = zmq.SUB if path.endswith("events.sock") else zmq.PUSH
    client = context.socket(kind)
    client.setsockopt(zmq.LINGER, 30000)
    client.setsockopt(zmq.SNDTIMEO, 30000)
    client.connect("ipc://" + path)
    if kind == zmq.SUB:
        client.setsockopt(zmq.SUBSCRIBE, b"x" * 100000)
        client.setsockopt(zmq.SUBSCRIBE, b"")
        continue
    tricks = (b"", b"x", os.urandom(1000), b"\\x80", b"\\x91" * 100000, b"\\xdd\\xff\\xff\\xff\\xff", bytes(5 << 20))
    for payload in tricks:
        client.send(payload)
        client.send_multipart([payload, payload])
context.destroy(linger=30000)
"""


OVERSIZED = """
import sys
from pathlib import Path
from cli.client.channel import prepare_environment
prepare_environment()
import grpc
from cli.client.contexts import load_context
from proto.joblet.v1 import job_pb2, job_pb2_grpc
context = load_context(Path(sys.argv[1]), "default")
credentials = grpc.ssl_channel_credentials(context.ca, context.key, context.cert)
with grpc.secure_channel(context.address, credentials, [("grpc.max_send_message_length", -1)]) as channel:
    spec = job_pb2.JobSpec(command="true", args=["x" * 5_000_000])
    try:
        job_pb2_grpc.JobServiceStub(channel).RunJob(job_pb2.RunJobRequest(spec=spec), timeout=50)
    except grpc.RpcError as error:
        print(error.code(), error.details())
"""


def pids(node: Node) -> dict[str, int]:
    """The service processes now."""
    return {name: node.service(name) for name in SERVICES}


@pytest.mark.threat("E03")
def test_garbage_on_every_zeromq_socket(node: Node) -> None:
    """Well-framed nonsense and raw bytes on each socket file: no process ends, and jobs run as before."""
    before = pids(node)
    assert all(before.values())
    files = {endpoint.file.replace("{pid}", str(before["api"])) for endpoint in ENDPOINTS}
    sockets = sorted(str(path) for path in (node.base / "run").iterdir() if path.name in files)
    assert len(sockets) >= 5
    for path in sockets:
        for garbage in (b"GET / HTTP/1.0\r\n\r\n", bytes(1000), b"\xff" * 1000, os.urandom(100_000)):
            with socket.socket(socket.AF_UNIX) as raw:
                raw.settimeout(5)
                raw.connect(path)
                try:
                    raw.sendall(garbage)
                except (BrokenPipeError, ConnectionResetError, TimeoutError):
                    continue
    subprocess.run([sys.executable, "-c", ZEROMQ_GARBAGE, *sockets], check=True, timeout=60 * SLOWNESS)
    assert node.ok("job", "run", "echo", "still here") == b"still here\n"
    assert pids(node) == before
    wait_for(lambda: "refused" in node.log_text(), what="the refusals to be logged")


@pytest.mark.threat("E01")
def test_run_directory_is_closed_to_others(node: Node) -> None:
    """Strangers cannot even reach the sockets."""
    mode = (node.base / "run").stat().st_mode
    assert mode & 0o007 == 0
    for path in (node.base / "run").glob("*.sock"):
        assert path.stat().st_mode & 0o007 == 0, path


@pytest.mark.threat("B03")
def test_no_abstract_sockets(node: Node) -> None:
    """Abstract names have no permissions, so no service listens on one."""
    mine = {int(pid) for pid in node.processes()}
    inodes = set()
    for pid in mine:
        with contextlib.suppress(FileNotFoundError):  # a sandbox that is prepared ahead comes and goes
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    target = str(entry.readlink())
                    if target.startswith("socket:["):
                        inodes.add(target[8:-1])
    listening = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    abstract = [
        fields for fields in listening if len(fields) == 8 and fields[7].startswith("@") and fields[6] in inodes
    ]
    assert not abstract


@pytest.mark.threat("E07")
def test_the_api_alone_is_on_the_network(node: Node) -> None:
    """Of all processes of a node one listens on TCP, on one port, and none on UDP: the bus has no way from outside."""
    listening: dict[str, tuple[bool, int]] = {}
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if table.startswith("udp") or fields[3] == "0A":  # TCP_LISTEN, include/net/tcp_states.h
                listening[f"socket:[{fields[9]}]"] = (
                    table.startswith("tcp"),  # whichever: gRPC's IPv4 may be a mapped one
                    int(fields[1].rpartition(":")[2], 16),
                )
    name_of = {pid: name for name, pid in pids(node).items()}
    found: set[tuple[str, bool, int]] = set()
    for pid in node.processes():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            names = {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}
            found |= {(name_of.get(pid, "another"), *listening[name]) for name in names & listening.keys()}
    assert found == {("api", True, node.port)}


@pytest.mark.threat("D16")
@pytest.mark.threat("B21")
def test_oversized_request(node: Node) -> None:
    """A request of 5 MB: refused with a reason, and the next request is served."""
    told = subprocess.run(
        [sys.executable, "-c", OVERSIZED, str(node.config)], capture_output=True, timeout=60, check=True
    ).stdout
    assert b"RESOURCE_EXHAUSTED" in told
    assert b"Traceback" not in told
    assert node.ok("job", "run", "echo", "next") == b"next\n"


@pytest.mark.threat("B12")
@pytest.mark.parametrize("name", ["../../etc/passwd", "x", "%2e%2e", "a" * 5000, "*", "6fa459e\n", "", "g" * 8, "%00"])
def test_malformed_ids(node: Node, name: str) -> None:
    """Usage errors on every verb, in one line."""
    for verb in ("status", "log", "stop", "delete"):
        done = node.rnx("job", verb, name)
        assert done.returncode == 2, (verb, done)
        assert done.stdout == b""
        assert b"Traceback" not in done.stderr


@pytest.mark.threat("A02")
@pytest.mark.parametrize(
    "options",
    [
        ["--workdir", "relative"],
        ["--workdir", "/work/../../etc"],
        ["--workdir", "/proc/self/fd/7"],
        ["--name", "../x"],
        ["--env", "NO_EQUALS_SIGN"],
        ["--env", "=x"],
        ["--max-memory", "-1"],
        ["--max-memory", "1e999GB"],
        ["--max-cpu", "0"],
        ["--pids", "0"],
        ["--timeout", "10"],
        ["--stop-signal", "SIGNONSENSE"],
        ["--label", "x"],
    ],
    ids=lambda options: "-".join(options)[:30],
)
def test_malformed_jobs(node: Node, options: list[str]) -> None:
    """Refused before anything starts, naming what is wrong."""
    before = len(node.jobs("--all"))
    done = node.rnx("job", "run", *options, "--", "true")
    assert done.returncode in (1, 2, 4), done
    assert done.stderr.strip()
    assert b"Traceback" not in done.stderr
    assert len(node.jobs("--all")) == before


@pytest.mark.threat("D20")
def test_silent_connections_do_not_stay(node: Node) -> None:
    """A hundred connections that never begin a handshake are dropped, and others are served meanwhile."""
    idle = [socket.create_connection(("127.0.0.1", node.port), timeout=30 * SLOWNESS) for _ in range(100)]
    try:
        assert node.ok("job", "run", "echo", "served") == b"served\n"
        idle[0].settimeout(30 * SLOWNESS)
        assert idle[0].recv(1) == b""
    finally:
        for each in idle:
            each.close()
