"""Certificates over real handshakes with the real process: what TLS refuses, what the api refuses, and what gets in."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from proto.joblet.v1 import job_pb2, job_pb2_grpc
from tests.certificates import ADMIN_MARK, DAY, ROLES_EXTENSION, SERVER, Authority, Identity, utf8_der
from tests.odd_callers import ADMIN, ANN, FINE, odd_callers
from tests.odd_certificates import CN, issue, text
from tests.security.api_process import port_in
from tests.waiting import SLOWNESS, wait_for

ROOT: Final = Path(__file__).resolve().parents[2]
Code = grpc.StatusCode

PURPOSE: Final = "unsupported certificate purpose"
CRITICAL: Final = "unhandled critical extension"
REFUSED_BY_TLS: Final = {
    "for servers": PURPOSE,
    "for anything": PURPOSE,
    "for servers and anything": PURPOSE,
    "for e-mail": PURPOSE,
    "an unknown critical extension": CRITICAL,
    "critical roles": CRITICAL,
    "a critical mark": CRITICAL,
    "usage twice": "invalid or inconsistent certificate extension",
    "huge": "",  # gRPC closes such connections without a word: see docs/security.md
    "huge by its organizations": "",
}
"""Rows of the table of odd callers that reach no call, and the word for it in the service's log."""


class Door(NamedTuple):
    """A started api, and the authority that it trusts. No executor is there: who gets in is told by Health."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    audit: Path
    authority: Authority

    async def outcome(
        self, identity: Identity | None, metadata: Sequence[tuple[str, str]] = ()
    ) -> tuple[grpc.StatusCode, str]:
        """Status and text of a call of Health with this certificate, over a connection of its own."""
        async with self._channel(identity) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            return await _outcome(
                stub.Check(health_pb2.HealthCheckRequest(), timeout=20 * SLOWNESS, metadata=tuple(metadata))
            )

    async def runs(self, identity: Identity, metadata: Sequence[tuple[str, str]] = ()) -> tuple[grpc.StatusCode, str]:
        """The same of RunJob."""
        async with self._channel(identity) as channel:
            stub: Any = job_pb2_grpc.JobServiceStub(channel)
            return await _outcome(stub.RunJob(job_pb2.RunJobRequest(), timeout=20 * SLOWNESS, metadata=tuple(metadata)))

    def logged(self, word: str, since: int) -> bool:
        """Whether the service has logged `word` behind the first `since` bytes."""
        return word in self.log.read_bytes()[since:].decode()

    def _channel(self, identity: Identity | None) -> aio.Channel:
        credentials = grpc.ssl_channel_credentials(
            self.authority.pem,
            private_key=identity.key if identity else None,
            certificate_chain=identity.cert if identity else None,
        )
        options = (
            ("grpc.ssl_target_name_override", "localhost"),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
        )
        return aio.secure_channel(f"127.0.0.1:{self.port}", credentials, options=options)


async def _outcome(call: Any) -> tuple[grpc.StatusCode, str]:
    try:
        await call
    except aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return Code.OK, ""


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    """One process for all: it must outlive every one of these callers."""
    base = Path(tempfile.mkdtemp(prefix="joblet-door-"))
    base.chmod(0o755)
    certs = base / "certs"
    certs.mkdir(mode=0o700)
    authority = Authority()
    server = authority.server()
    for name, content in {"ca.crt": authority.pem, "server.crt": server.cert, "server.key": server.key}.items():
        (certs / name).write_bytes(content)
        (certs / name).chmod(0o600)
    log = base / "log"
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.api", "--base-dir", str(base), "--port", "0"],
            stdout=output,
            stderr=output,
            cwd=ROOT,
            env=environment | {"PYTHONPATH": str(ROOT)},
        )
    try:
        wait_for(lambda: process.poll() is not None or " ready" in log.read_text(), timeout_s=20, what="a ready api")
        assert process.poll() is None, log.read_text()
        yield Door(process, port_in(log.read_text()), log, base / "audit" / "audit.jsonl", authority)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20 * SLOWNESS) == 0
        assert "Traceback" not in log.read_text()
        assert " ERROR " not in log.read_text()
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(base)


@pytest.mark.filterwarnings("ignore:Attribute's length")
@pytest.mark.threat("D05")
@pytest.mark.threat("D06")
@pytest.mark.threat("D07")
@pytest.mark.threat("D10")
def test_the_table_of_odd_callers_at_the_door(door: Door) -> None:
    """Each is refused with its own reason, by TLS or by the api, whichever looks first; the next one is served."""

    async def scenario() -> None:
        rows = odd_callers(door.authority)
        assert REFUSED_BY_TLS.keys() < rows.keys()
        for what, (identity, why) in rows.items():
            logged = len(door.log.read_bytes())
            code, told = await door.outcome(identity)
            if what in REFUSED_BY_TLS:
                assert code is Code.UNAVAILABLE, (what, told)
                word = REFUSED_BY_TLS[what]
                wait_for(lambda: door.logged(word, logged), what=f"{what}: {word}")  # noqa: B023  # at once
            else:
                assert (code, told) == (Code.UNAUTHENTICATED, f"client certificate refused: {why}"), what
        assert (await door.outcome(door.authority.client("ann", "reader")))[0] is Code.OK

    asyncio.run(scenario())


def test_ordinary_certificates_get_in(door: Door) -> None:
    """What differs from the odd ones in one point is served: the table refuses for the reason that it gives."""

    async def scenario() -> None:
        for what, extensions in FINE.items():
            identity = issue(door.authority, [ANN], [ADMIN], extensions=extensions)
            assert await door.outcome(identity) == (Code.OK, ""), what

    asyncio.run(scenario())


def signed_by_a_client(authority: Authority) -> Identity:
    """What ann signs with the key of her own certificate: an admin, of whom no authority knows."""
    ann = issue(authority, [ANN], [ADMIN])
    hers = Authority("hers")
    hers._name = x509.load_pem_x509_certificate(ann.cert).subject
    hers._key = authority._client_key
    boss = issue(hers, [text(CN, "boss")], [ADMIN])
    return Identity(boss.cert + ann.cert, boss.key)


@pytest.mark.threat("D01")
@pytest.mark.threat("D02")
@pytest.mark.threat("D03")
@pytest.mark.threat("D07")
@pytest.mark.requirement("S2.21")
@pytest.mark.requirement("S2.22")
@pytest.mark.requirement("S4.16")
def test_whom_tls_does_not_let_in(door: Door) -> None:
    """No certificate, another authority of the same name, before and after its time, a server's: no call is made."""
    authority, other = door.authority, Authority()
    wrong = other.client("ann", "admin")
    its_own_key = authority._key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    failed = "CERTIFICATE_VERIFY_FAILED"
    rows = {
        "none": (None, "PEER_DID_NOT_RETURN_A_CERTIFICATE"),
        "another authority of the same name": (wrong, "certificate signature failure"),
        "the same with its authority": (Identity(wrong.cert + other.pem, wrong.key), "certificate signature failure"),
        "another authority": (Authority("other").client("ann", "admin"), "unable to get local issuer certificate"),
        "signed by a client": (signed_by_a_client(authority), failed),
        "expired": (
            authority.issue(["ann"], ["admin"], not_before=-2 * DAY, not_after=-timedelta(minutes=1)),
            "certificate has expired",
        ),
        "not yet valid": (
            authority.issue(["ann"], ["admin"], not_before=timedelta(hours=1), not_after=DAY),
            "certificate is not yet valid",
        ),
        "a server's": (authority.server(), PURPOSE),
        "a server's with a role": (
            authority.issue(["localhost"], ["admin"], usages=[SERVER]),
            PURPOSE,
        ),
    }

    async def scenario() -> None:
        audited = door.audit.read_bytes() if door.audit.exists() else b""
        for what, (identity, word) in rows.items():
            logged = len(door.log.read_bytes())
            code, _ = await door.outcome(identity)
            assert code is Code.UNAVAILABLE, what
            wait_for(lambda: door.logged(word, logged), what=f"{what}: {word}")  # noqa: B023  # at once
        assert (door.audit.read_bytes() if door.audit.exists() else b"") == audited
        code, told = await door.outcome(Identity(authority.pem, its_own_key))  # TLS has nothing against it
        assert (code, told) == (
            Code.UNAUTHENTICATED,
            "client certificate refused: it belongs to a certificate authority",
        )

    asyncio.run(scenario())


@pytest.mark.threat("D08")
@pytest.mark.threat("D11")
@pytest.mark.requirement("S3.25")
@pytest.mark.requirement("S4.19")
@pytest.mark.requirement("S4.20")
@pytest.mark.requirement("S2.25")
def test_roles_come_from_the_certificate_alone(door: Door) -> None:
    """A name, alternative names, metadata give none; what the authority signed does, in each of the three places."""
    issued = door.authority.issue
    claims = [("x-role", "admin"), ("role", "admin"), ("authorization", "Bearer admin"), ("x-forwarded-user", "root")]

    async def scenario() -> None:
        for identity in (
            issued(["ann"]),
            issued(["admin"]),
            issued(["ann"], ["Admin", "root", "admin "]),
            issued(["ann"], names=["admin", "O=admin"]),
            issued(["ann"], extensions=[(ROLES_EXTENSION, utf8_der(""))]),
        ):
            for ask in (door.outcome, door.runs):
                code, told = await ask(identity, claims)
                assert (code, told.partition(" ")[2]) == (Code.PERMISSION_DENIED, "has no role")
        for identity in (
            issued(["ann"], ["reader"]),
            issued(["ann"], extensions=[(ROLES_EXTENSION, utf8_der("root , reader"))]),
        ):
            assert await door.outcome(identity, claims) == (Code.OK, "")
            assert await door.runs(identity, claims) == (Code.PERMISSION_DENIED, "ann may not run jobs")
        for identity in (
            issued(["ann"], ["admin"]),
            issued(["ann"], extensions=[(ROLES_EXTENSION, utf8_der("writer"))]),
            issued(["ann"], ["reader"], extensions=[(ADMIN_MARK, b"\x05\x00")]),
        ):
            assert (await door.runs(identity))[0] is Code.INVALID_ARGUMENT  # as far as the request itself

    asyncio.run(scenario())
