"""A whole node with a hundred live log streams while everything about its certificates changes."""

import hashlib
import ipaddress
import json
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtensionOID

from tests.e2e.identities import SERVER, Authority, authority_of, client_certificate, stranger, write_config
from tests.e2e.node import PROGRAMS, Node, make_base, read_all
from tests.waiting import SLOWNESS, wait_for

CLIENTS: Final = 100
REVOKED: Final = 37
CUT_WITHIN_S: Final = 10.0
SCRIPT: Final = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.1; done"
SAN: Final = x509.SubjectAlternativeName(
    [x509.DNSName("localhost"), x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]
).public_bytes()


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """A node of its own: others would not survive what happens to its authority."""
    rotated = Node(make_base("rotated", {"security": {"reload_ms": 250}}))
    rotated.start()
    yield rotated
    rotated.remove()


def revocation_list(authority: Authority, *certificates: bytes) -> bytes:
    """Of these certificates (PEM), signed by the node's authority."""
    now = datetime.now(UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(now - timedelta(days=1))
        .next_update(now + timedelta(days=100))
    )
    for pem in certificates:
        serial = x509.load_pem_x509_certificate(pem).serial_number
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def new_pair(authority: Authority) -> tuple[bytes, bytes]:
    """A server's certificate and key."""
    extensions = [(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, SAN)]
    return client_certificate(authority, names=("localhost",), organizations=(), usage=SERVER, extensions=extensions)


def put(path: Path, content: bytes) -> None:
    """Replace a file at once."""
    fresh = path.with_suffix(".new")
    fresh.touch(mode=0o600)
    fresh.write_bytes(content)
    fresh.rename(path)


def shown(node: Node) -> int:
    """Serial number of the certificate that a new connection sees (it may end without a client's)."""
    pem = ssl.get_server_certificate(("127.0.0.1", node.port), ca_certs=str(node.base / "certs" / "ca.crt"))
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


class Followers:
    """The program of rotation_followers.py, and what it said."""

    def __init__(self, node: Node, job: str, identities: list[tuple[bytes, bytes]], ca: bytes, file: Path) -> None:
        given = {
            "address": f"127.0.0.1:{node.port}",
            "ca": ca.decode(),
            "job": job,
            "identities": [{"cert": cert.decode(), "key": key.decode()} for cert, key in identities],
        }
        file.touch(mode=0o600)
        file.write_text(json.dumps(given))
        command = [sys.executable, "-m", "tests.security.rotation_followers", str(file)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self._reader = read_all(self.process.stdout)

    def close(self) -> None:
        """End the program, if it still runs."""
        self.process.kill()
        self.process.wait()
        self._reader.finished()

    def _said(self) -> list[dict[str, Any]]:
        whole, _, _ = self._reader.data.rpartition(b"\n")
        return [json.loads(line) for line in whole.splitlines()]

    def counts(self) -> list[int]:
        """Entries that each has got."""
        return next((said["counts"] for said in reversed(self._said()) if "counts" in said), [0] * CLIENTS)

    def ends(self) -> dict[int, dict[str, Any]]:
        """Of those that have ended."""
        return {said["client"]: said for said in self._said() if "client" in said}

    def wait_for_more(self) -> None:
        """Until everybody who has not ended has got an entry that was not there before, and nobody new has ended."""
        before, ended = self.counts(), set(self.ends())

        def more() -> bool:
            now = self.counts()
            return all(now[number] > before[number] for number in range(CLIENTS) if number not in ended)

        wait_for(more, timeout_s=30, what="more entries for every client")
        assert set(self.ends()) == ended


@pytest.mark.timeout(400)
@pytest.mark.threat("D31")
@pytest.mark.threat("D32")
@pytest.mark.requirement("S2.6")
def test_rotation_below_a_hundred_streams_breaks_none_and_revocation_one(node: Node, tmp_path: Path) -> None:
    """Server pair, authorities and list change three times: every stream goes on. One is revoked: it alone is cut."""
    certs = node.base / "certs"
    authority, ca = authority_of(certs), (certs / "ca.crt").read_bytes()
    identities = [client_certificate(authority, names=(f"client-{n}",)) for n in range(CLIENTS)]
    job = node.detached("--", "sh", "-c", SCRIPT)
    followers = Followers(node, job, identities, ca, tmp_path / "given.json")
    try:
        wait_for(lambda: min(followers.counts()) > 0, timeout_s=60, what="a hundred live streams")
        others: list[bytes] = []
        for round_number in range(3):
            cert, key = new_pair(authority)
            put(certs / "server.key", key)
            put(certs / "server.crt", cert)
            others.append(stranger().certificate.public_bytes(serialization.Encoding.PEM))
            put(certs / "ca.crt", b"".join((ca, *others)))
            gone = client_certificate(authority, names=(f"gone-{round_number}",))[0]
            put(certs / "ca.crl", revocation_list(authority, gone))
            serial = x509.load_pem_x509_certificate(cert).serial_number
            wait_for(lambda want=serial: shown(node) == want, timeout_s=20, what="the new certificate")  # type: ignore[misc]  # bound at once
            followers.wait_for_more()
        assert followers.ends() == {}

        cert, key = identities[REVOKED]
        revoked_at_s = time.time()
        put(certs / "ca.crl", revocation_list(authority, cert))
        cut = wait_for(lambda: followers.ends().get(REVOKED), timeout_s=CUT_WITHIN_S, what="the revoked stream to end")
        assert cut["at_s"] - revoked_at_s < CUT_WITHIN_S * SLOWNESS
        assert (cut["ended"], cut["in_order"]) == ("UNAUTHENTICATED", True)
        assert cut["text"] == "client certificate refused: it was revoked"
        sys.stdout.write(f"cut after {cut['at_s'] - revoked_at_s:.2f} s\n")
        followers.wait_for_more()

        with tempfile.TemporaryDirectory() as directory:
            config = write_config(Path(directory), port=node.port, ca=ca, certificate=cert, key=key)
            command = [str(PROGRAMS / "rnx"), "--config", str(config), "job", "list"]
            refused = subprocess.run(command, capture_output=True, text=True, check=False)
        assert refused.returncode == 4
        assert "it was revoked" in refused.stderr

        info = json.loads(node.ok("--json", "node", "info"))
        assert [each["name"] for each in info["certificates"]] == ["server", "ca", *["ca"] * len(others)]
        counters = {name: value for name, value in info["counters"].items() if name.startswith("api.")}
        assert counters["api.revoked_calls_cut"] == 1
        # A look may come between a key and its certificate, once a round; nothing else is refused.
        mixed = node.log_text().count("does not belong to the server certificate")
        assert counters["api.certificates_refused"] == mixed <= 3
        assert counters["api.keepers_lost"] == 0

        node.ok("job", "stop", job)
        wait_for(lambda: len(followers.ends()) == CLIENTS, timeout_s=60, what="all streams to end")
        stored = node.ok("job", "log", job)
        whole = {
            "ended": "STOPPED",
            "entries": stored.count(b"\n"),
            "in_order": True,
            "sha256": hashlib.sha256(stored).hexdigest(),
        }
        for number, told in followers.ends().items():
            if number != REVOKED:
                assert {name: told[name] for name in whole} == whole, f"client {number}: {told}"
    finally:
        followers.close()
