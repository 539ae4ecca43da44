"""A node to run clients against: the services of the contract on loopback, over mutual TLS, with scripted behaviour.

Belongs here: the fake and how the programs are called. Does not belong here: tests. The real api has its own
suite; what this fake promises is proto/joblet/v1 and nothing else.
"""

import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import yaml

from cli.rnx.main import run
from proto.joblet.v1 import (
    job_pb2_grpc,
    node_pb2_grpc,
    volume_pb2_grpc,
)
from tests.certificates import Authority, Identity
from tests.contract.rnx_fake_services import FakeJobs, FakeNodeInfo
from tests.contract.rnx_fake_volumes import FakeVolumes
from tests.waiting import SLOWNESS

REPOSITORY = Path(__file__).parents[2]


class Outcome(NamedTuple):
    """What a run of rnx left."""

    code: int
    out: bytes
    err: str


class Breaks(grpc.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Ends calls as a broken connection does: of each method in `left` so many. `seen`: how often each was called."""

    def __init__(self) -> None:
        self.left: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """See grpc.ServerInterceptor."""
        method = handler_call_details.method.rpartition("/")[2]
        self.seen[method] += 1
        if self.left[method] <= 0:
            return continuation(handler_call_details)
        self.left[method] -= 1

        def broken(_: Any, context: grpc.ServicerContext) -> None:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

        return grpc.unary_unary_rpc_method_handler(broken)


class FakeNode:
    """A served FakeJobs, and rnx with a configuration for it."""

    def __init__(self, directory: Path) -> None:
        self.jobs = FakeJobs()
        self.nodes = FakeNodeInfo()
        self.volumes = FakeVolumes()
        self.breaks = Breaks()
        self.authority = Authority()
        self.config = directory / "rnx-config.yml"
        self._directory = directory
        self._server: grpc.Server | None = None
        # Bound all the time, and listened on by the server only: nobody else gets the port while that is stopped.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self.port = self._reserved.getsockname()[1]
        self.serve()
        self.write_config(self.authority.client("alice"))

    def serve(self) -> None:
        """Listen, always on the same port."""
        identity = self.authority.server()
        server = grpc.server(ThreadPoolExecutor(16), interceptors=[self.breaks], options=[("grpc.so_reuseport", 1)])
        job_pb2_grpc.add_JobServiceServicer_to_server(self.jobs, server)
        node_pb2_grpc.add_NodeServiceServicer_to_server(self.nodes, server)
        volume_pb2_grpc.add_VolumeServiceServicer_to_server(self.volumes, server)
        credentials = grpc.ssl_server_credentials(
            [(identity.key, identity.cert)], root_certificates=self.authority.pem, require_client_auth=True
        )
        server.add_secure_port(f"127.0.0.1:{self.port}", credentials)
        server.start()
        self._server = server

    def stop(self) -> None:
        """Break every connection, as a killed service does."""
        assert self._server is not None
        self._server.stop(grace=None).wait()

    def close(self) -> None:
        """Stop, and give the port back."""
        self.stop()
        self._reserved.close()

    def write_config(self, identity: Identity, *, ca: bytes | None = None) -> None:
        """Make `identity` the default context."""
        files = {"cert": identity.cert, "key": identity.key, "ca": ca or self.authority.pem}
        for name, content in files.items():
            path = self._directory / f"{name}.pem"
            path.write_bytes(content)
            path.chmod(0o600)
        context = {"address": f"127.0.0.1:{self.port}", "nodeId": "node-1"} | {name: f"{name}.pem" for name in files}
        self.config.write_text(yaml.safe_dump({"version": "3.0", "nodes": {"default": context}}))

    def command(self, *arguments: str, program: str = "rnx") -> list[str]:
        """The command line of a program below cli."""
        return [sys.executable, "-m", f"cli.{program}", "--config", str(self.config), *arguments]

    def start(self, *arguments: str, program: str = "rnx", **options: Any) -> "subprocess.Popen[bytes]":
        """A process of its own that is rnx, or another program."""
        streams: dict[str, Any] = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "stdin": subprocess.DEVNULL,
        } | options
        return subprocess.Popen(self.command(*arguments, program=program), cwd=REPOSITORY, env=environment(), **streams)

    def call(self, *arguments: str) -> int:
        """The exit code of rnx run in this process, for what it prints only."""
        return run(["--config", str(self.config), *arguments])

    def rnx(self, *arguments: str) -> Outcome:
        """The outcome of rnx run to its end."""
        return self.outcome("rnx", *arguments)

    def outcome(self, program: str, *arguments: str) -> Outcome:
        """The outcome of a program run to its end."""
        process = self.start(*arguments, program=program)
        out, err = process.communicate(timeout=30 * SLOWNESS)
        return Outcome(process.returncode, out, err.decode())


def environment() -> dict[str, str]:
    """That of the tests without what would change what the programs print."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("RNX_", "_RNX_", "JOBC_", "_JOBC_", "WORKER_", "_WORKER_", "GRPC_"))
    }
    return kept | {"COLUMNS": "120", "TERM": "xterm-256color"}


@contextmanager
def fake_node(directory: Path) -> Iterator[FakeNode]:
    """A node until the block ends."""
    node = FakeNode(directory)
    try:
        yield node
    finally:
        node.jobs.end_gate.set()
        node.jobs.upload_gate.set()
        node.volumes.gate.set()
        node.close()
