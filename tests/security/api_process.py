"""The api as a real process on files of its own, without the other services: certificates, handshakes, its keeper.

Belongs here: starting it, writing files as operators do, asking it. Does not belong here: what is expected.
"""

import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("GRPC_SSL_CIPHER_SUITES", "ECDHE-PSK-CHACHA20-POLY1305")

import grpc
import yaml
from cryptography import x509
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.certificates import Authority, Identity
from tests.leaks import OWN_MARK, children_of, command_of
from tests.waiting import SLOWNESS, wait_for

ROOT: Final = Path(__file__).resolve().parents[2]
TAKEN: Final = "changed certificate files are in force"
NOT_TAKEN: Final = "a change of certificate files is not taken"
RELOAD_MS: Final = 100


class ApiProcess:
    """One base directory with certificates, and the api on it while it runs."""

    def __init__(self, **security: Any) -> None:
        self.base = Path(tempfile.mkdtemp(prefix=f"{OWN_MARK}-api-"))
        self.base.chmod(0o755)
        self.certs = self.base / "certs"
        self.certs.mkdir(mode=0o700)
        self.log = self.base / "log"
        self.log.touch()
        self.authority = Authority()
        self.pair = self.authority.server()
        self.write(self.authority.pem, "ca.crt")
        self.write_pair(self.pair)
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.configure(**security)

    def configure(self, **security: Any) -> None:
        """The section `security` of the configuration."""
        settings = {"version": "3.0", "security": {"reload_ms": RELOAD_MS} | security}
        config = self.base / "joblet-config.yml"
        config.touch(mode=0o600)
        config.write_text(yaml.safe_dump(settings))

    def write(self, content: bytes, name: str, mode: int = 0o600) -> None:
        """Put a file there at once, as a careful operator does."""
        fresh = self.certs / f".{name}.new"
        fresh.touch(mode=mode)
        fresh.write_bytes(content)
        fresh.chmod(mode)
        fresh.rename(self.certs / name)

    def write_pair(self, pair: Identity) -> None:
        """Certificate and key, one after the other."""
        self.write(pair.cert, "server.crt")
        self.write(pair.key, "server.key")

    def start(self, before: Sequence[str] = ()) -> None:
        """Run it until it is ready or has ended. `before`: a command that runs the rest of its arguments."""
        command = [sys.executable, "-m", "services.api", "--base-dir", str(self.base), "--port", "0"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*before, *command], stdout=log, stderr=log, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
            )
        wait_for(lambda: self.ended() is not None or self.logged(" ready"), timeout_s=30, what="a ready api")
        if self.ended() is None:
            self.port = port_in(self.log.read_text())

    def ended(self) -> int | None:
        """Its exit status; None while it runs."""
        assert self.process is not None
        return self.process.poll()

    @property
    def pid(self) -> int:
        """Of api."""
        assert self.process is not None
        return self.process.pid

    @property
    def keeper(self) -> int:
        """Process id of its keeper; 0: it has none."""
        return next((pid for pid in children_of(self.pid) if "keeper_program" in command_of(pid)), 0)

    def logged(self, words: str) -> int:
        """How often it said that."""
        return self.log.read_text(errors="replace").count(words)

    def shown_serial(self, identity: Identity, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> int:
        """The serial number of the certificate that a new connection sees; ssl.SSLError when there is none."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.authority.pem.decode())
        context.set_alpn_protocols(["h2"])
        context.maximum_version = version
        with tempfile.NamedTemporaryFile() as pair:
            pair.write(identity.key + identity.cert)
            pair.flush()
            context.load_cert_chain(pair.name)
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=10 * SLOWNESS) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as connection,
        ):
            shown = connection.getpeercert(binary_form=True)
        assert shown is not None
        return x509.load_der_x509_certificate(shown).serial_number

    def close(self) -> None:
        """End it, and take everything away."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.base)


@contextmanager
def api_process(**security: Any) -> Iterator[ApiProcess]:
    """A directory for one api, which the test starts."""
    api = ApiProcess(**security)
    try:
        yield api
    finally:
        api.close()


def port_in(log: str) -> int:
    """The port that an api has said last that it serves on."""
    serving = [line for line in log.splitlines() if "serving" in line]
    return int(serving[-1].rpartition("port=")[2].split()[0])


def serial_of(identity: Identity) -> int:
    """The serial number of a certificate."""
    return x509.load_pem_x509_certificate(identity.cert).serial_number


def channel_to(port: int, ca: bytes, identity: Identity) -> aio.Channel:
    """A connection of its own."""
    credentials = grpc.ssl_channel_credentials(ca, private_key=identity.key, certificate_chain=identity.cert)
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
    return aio.secure_channel(f"localhost:{port}", credentials, options=options)


async def health(channel: aio.Channel) -> grpc.StatusCode:
    """The status of a call that every role may make, and that api answers alone."""
    try:
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10 * SLOWNESS)
    except aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK
