"""The api as a process: TLS 1.3 only, no privileges, a clean end. And the self-test that would refuse to serve."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from common.errors import JobletError
from services.api.selftest import client_hello, require_tls13_only
from tests.certificates import Authority
from tests.security.api_process import port_in
from tests.waiting import SLOWNESS, wait_for

ROOT = Path(__file__).resolve().parents[2]


class Running(NamedTuple):
    """A started api."""

    process: subprocess.Popen[bytes]
    port: int
    base: Path
    log: Path

    def logged(self, word: str) -> bool:
        """Whether `word` is in its output."""
        return word in self.log.read_text()


@pytest.fixture
def api() -> Iterator[Running]:
    """The real process, below a directory that its unprivileged user can reach (pytest's own is closed to others)."""
    base = Path(tempfile.mkdtemp(prefix="joblet-api-"))
    base.chmod(0o755)
    certs = base / "certs"
    certs.mkdir(mode=0o700)
    authority = Authority()
    server, client = authority.server(), authority.client("ann", "admin")
    for name, content in {
        "ca.crt": authority.pem,
        "server.crt": server.cert,
        "server.key": server.key,
        "client.crt": client.cert,
        "client.key": client.key,
    }.items():
        (certs / name).write_bytes(content)
        (certs / name).chmod(0o600)
    log = base / "log"
    # A list that would allow TLS 1.2 in the caller's environment must not survive.
    # And clients in the process of the tests silence gRPC for themselves, which is not to silence the api.
    environment = os.environ | {"GRPC_SSL_CIPHER_SUITES": "HIGH", "PYTHONPATH": str(ROOT)}
    environment.pop("GRPC_VERBOSITY", None)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.api", "--base-dir", str(base), "--port", "0"],
            stdout=output,
            stderr=output,
            cwd=ROOT,
            env=environment,
        )
    try:
        wait_for(lambda: process.poll() is not None or " ready" in log.read_text(), timeout_s=20, what="a ready api")
        assert process.poll() is None, log.read_text()
        yield Running(process, port_in(log.read_text()), base, log)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(base)


def handshake(api: Running, version: ssl.TLSVersion) -> str:
    """The version that a client with a good certificate gets when it speaks at most `version`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(api.base / "certs" / "ca.crt")
    context.load_cert_chain(api.base / "certs" / "client.crt", api.base / "certs" / "client.key")
    context.set_alpn_protocols(["h2"])
    context.minimum_version = min(version, ssl.TLSVersion.TLSv1_2)
    context.maximum_version = version
    with (
        socket.create_connection(("127.0.0.1", api.port), timeout=10 * SLOWNESS) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as connection,
    ):
        return connection.version() or ""


@pytest.mark.threat("D12")
@pytest.mark.threat("D13")
@pytest.mark.threat("A32")
@pytest.mark.threat("F38")
@pytest.mark.requirement("S2.26")
@pytest.mark.requirement("S3.21")
@pytest.mark.requirement("S4.14")
def test_the_process_speaks_tls_13_only_and_has_no_privileges(api: Running) -> None:
    """TLS 1.2 fails with any client, 1.3 works, plain HTTP/2 is closed; refusals are logged; it ends in time."""
    assert handshake(api, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    with pytest.raises((ssl.SSLError, ConnectionError)):
        handshake(api, ssl.TLSVersion.TLSv1_2)
    seen = subprocess.run(
        ["openssl", "s_client", "-tls1_2", "-connect", f"127.0.0.1:{api.port}", "-alpn", "h2"],
        input=b"",
        capture_output=True,
        timeout=20 * SLOWNESS,
        check=False,
    )
    assert b"Cipher is (NONE)" in seen.stdout
    assert b"BEGIN CERTIFICATE" not in seen.stdout
    with socket.create_connection(("127.0.0.1", api.port), timeout=10 * SLOWNESS) as plain:
        plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):  # closed, too
            assert b"HTTP" not in plain.recv(100)
    with subprocess.Popen(
        ["openssl", "s_client", "-tls1_3", "-connect", f"127.0.0.1:{api.port}", "-alpn", "h2"],
        stdin=subprocess.PIPE,  # open until the refusal is there: a client that leaves first is another error
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as anonymous:
        wait_for(lambda: api.logged("PEER_DID_NOT_RETURN_A_CERTIFICATE"), what="the refused handshake in the log")
        anonymous.kill()
    assert api.logged("NO_SHARED_CIPHER")
    status = Path(f"/proc/{api.process.pid}/status").read_text()
    capabilities = [line.split()[1] for line in status.splitlines() if line.startswith("Cap")]
    assert set(capabilities) == {"0" * 16}
    if os.geteuid() == 0:
        assert "\nUid:\t0" not in status
    api.process.send_signal(signal.SIGTERM)
    assert api.process.wait(timeout=10 * SLOWNESS) == 0


@pytest.mark.threat("D12")
def test_the_self_test_finds_a_server_that_accepts_tls_12(tmp_path: Path) -> None:
    """An ordinary TLS server is found out; one that is not there, too."""
    server = Authority().server()
    (tmp_path / "pem").write_bytes(server.key + server.cert)

    async def scenario() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "pem")
        listener = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(JobletError, match=r"would accept TLS 1\.2"):
            await require_tls13_only("127.0.0.1", port)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        await require_tls13_only("127.0.0.1", port)
        listener.close()
        await listener.wait_closed()
        with pytest.raises(JobletError, match="cannot be dialled"):
            await require_tls13_only("127.0.0.1", port)

    asyncio.run(scenario())


def test_a_client_hello_offers_what_it_should() -> None:
    """The probe for 1.2 does not offer 1.3 (extension 43 with 0x0304), the control does."""
    assert b"\x03\x04" in client_hello(ssl.TLSVersion.TLSv1_3)
    assert bytes.fromhex("002b") not in client_hello(ssl.TLSVersion.TLSv1_2)
