"""The api alone as a process, for floods: what it costs shows in its own memory and descriptors, not in the test's.

Belongs here: starting and measuring it. Does not belong here: expectations. There is no executor behind it, so methods
of the health service stand for all the others: they pass the same gate.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import grpc
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.certificates import Authority, Identity
from tests.security.api_process import port_in
from tests.waiting import SLOWNESS, wait_for

ROOT: Final = Path(__file__).resolve().parents[2]
CHECK: Final = "/grpc.health.v1.Health/Check"
WATCH: Final = "/grpc.health.v1.Health/Watch"


class DoorProcess:
    """A started api. `base` is its directory, and may hold files of the test."""

    def __init__(self, process: "subprocess.Popen[bytes]", base: Path, port: int, authority: Authority) -> None:
        self.process = process
        self.base = base
        self.port = port
        self.authority = authority
        self.identity: Identity = authority.client("ann", "admin")

    def figure(self, name: str) -> int:
        """Of /proc/pid/status, in bytes: VmRSS now, VmHWM at most. proc_pid_status(5)."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise AssertionError(f"no {name}")

    def forget_peak(self) -> None:
        """From now on VmHWM counts anew. proc_pid_clear_refs(5)."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def descriptors(self) -> int:
        """How many are open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))  # noqa: PTH208  # only how many

    def serves(self) -> None:
        """Somebody else is answered."""
        credentials = grpc.ssl_channel_credentials(self.authority.pem, self.identity.key, self.identity.cert)
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
        with grpc.secure_channel(f"localhost:{self.port}", credentials, options) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=20 * SLOWNESS, wait_for_ready=True
            )
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert self.process.poll() is None


@contextmanager
def door_process(limits: Mapping[str, int] | None = None) -> Iterator[DoorProcess]:
    """An api with these settings of joblet.grpc, until the end of the block."""
    base = Path(tempfile.mkdtemp(prefix="joblet-door-"))
    base.chmod(0o755)
    certs = base / "certs"
    certs.mkdir(mode=0o700)
    authority = Authority()
    server = authority.server()
    for name, content in {"ca.crt": authority.pem, "server.crt": server.cert, "server.key": server.key}.items():
        (certs / name).write_bytes(content)
        (certs / name).chmod(0o600)
    server_settings = {"address": "127.0.0.1", "port": 0}
    config = {
        "version": "3.0",
        "server": server_settings,
        "joblet": {"base_dir": str(base), "grpc": dict(limits or {})},
    }
    (base / "config.yml").write_text(yaml.safe_dump(config))
    log = base / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.api", "--config", str(base / "config.yml")],
            stdout=output,
            stderr=output,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "GRPC_VERBOSITY": "NONE"},
        )
    try:
        wait_for(lambda: process.poll() is not None or " ready" in log.read_text(), timeout_s=20, what="a ready api")
        assert process.poll() is None, log.read_text()
        yield DoorProcess(process, base, port_in(log.read_text()), authority)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(base)
