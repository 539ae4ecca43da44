"""Who may come in, and what he then sees: every refusal is made through the real port."""

import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import identities
from tests.e2e.identities import ADMIN_MARK, CLIENT, READER_MARK, ROLES, SERVER, authority_of, client_certificate
from tests.e2e.node import PROGRAMS, Node
from tests.waiting import SLOWNESS, wait_for

UNKNOWN = "6fa459ea-ee8a-4ca4-894e-db77e160355e"
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


def utf8(text: str) -> bytes:
    """A DER UTF8String."""
    return bytes([0x0C, len(text)]) + text.encode()


class Caller:
    """rnx with one certificate."""

    def __init__(self, node: Node, directory: Path, certificate: bytes, key: bytes) -> None:
        ca = (node.base / "certs" / "ca.crt").read_bytes()
        directory.mkdir(exist_ok=True)
        self._config = identities.write_config(directory, port=node.port, ca=ca, certificate=certificate, key=key)

    def rnx(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """Run rnx with this identity."""
        command = [
            str(PROGRAMS / "rnx"),
            "--config",
            str(self._config),
            "--timeout",
            f"{20 * SLOWNESS:.0f}s",
            *arguments,
        ]
        return subprocess.run(command, capture_output=True, timeout=60 * SLOWNESS, check=False)


@pytest.fixture
def caller(node: Node, tmp_path: Path) -> Callable[..., Caller]:
    """`caller(**how)`: rnx with a certificate made by identities.client_certificate."""
    made = 0

    def make(authority: identities.Authority | None = None, **how: Any) -> Caller:
        nonlocal made
        made += 1
        certificate, key = client_certificate(authority or authority_of(node.base / "certs"), **how)
        return Caller(node, tmp_path / f"caller-{made}", certificate, key)

    return make


def told(node: Node) -> str:
    """Everything that the node wrote about callers."""
    audit = "".join(each.read_text() for each in sorted((node.base / "audit").glob("audit.jsonl*")))
    return node.log_text() + audit


REFUSED: dict[str, dict[str, Any]] = {
    "no-client-auth": {"usage": SERVER},
    "no-usage-at-all": {"usage": ()},
    "no-role": {"organizations": ()},
    "unknown-role": {"organizations": ("root", "Admin", "admin ")},
    "no-name": {"names": ()},
    "empty-looking-name": {"names": (" ",)},
    "two-names": {"names": ("eve", "admin")},
    "nul-in-name": {"names": ("admin\0.evil",)},
    "homoglyph": {"names": ("аdmin",)},
    "expired": {"from_days": -10, "until_days": -1},
    "not-yet-valid": {"from_days": 1, "until_days": 40},
    "role-in-a-wrong-string-type": {"organizations": (), "extensions": [(ROLES, b"\x13\x05admin")]},
}


@pytest.mark.requirement("S2.21")
@pytest.mark.requirement("S4.16")
@pytest.mark.requirement("T.6")
@pytest.mark.threat("D10")
@pytest.mark.threat("D06")
@pytest.mark.threat("D08")
@pytest.mark.parametrize("kind", REFUSED)
def test_bad_certificates_of_our_own_authority(node: Node, caller: Callable[..., Caller], kind: str) -> None:
    """Signed by the right CA and still no way in; the refusal is logged."""
    before = told(node)
    done = caller(**REFUSED[kind]).rnx("job", "list")
    assert done.returncode in (4, 5), done
    assert done.stdout == b""
    assert done.stderr.count(b"\n") == 1
    wait_for(lambda: len(told(node)) > len(before), what="the refusal to be logged")
    assert node.ok("job", "list", "--limit", "1") is not None


@pytest.mark.threat("D02")
@pytest.mark.requirement("S4.16")
def test_wrong_authority(node: Node, caller: Callable[..., Caller]) -> None:
    """An admin certificate of a CA that the node does not know: no connection, and it is logged."""
    before = told(node)
    done = caller(identities.stranger()).rnx("job", "list")
    assert done.returncode in (4, 5)
    assert done.stderr.count(b"\n") == 1
    wait_for(lambda: len(told(node)) > len(before), what="the refusal to be logged")


@needs_openssl
@pytest.mark.requirement("S2.26")
@pytest.mark.threat("D12")
@pytest.mark.parametrize("version", ["-tls1", "-tls1_1", "-tls1_2"])
def test_older_tls_is_refused(node: Node, version: str) -> None:
    """With a good certificate and TLS below 1.3 there is no handshake; with 1.3 there is."""
    certs = node.base / "certs"

    def dial(option: str) -> subprocess.CompletedProcess[bytes]:
        identity = ["-cert", str(certs / "default.crt"), "-key", str(certs / "default.key")]
        trust = ["-CAfile", str(certs / "ca.crt"), "-alpn", "h2"]
        command = ["openssl", "s_client", option, "-connect", f"127.0.0.1:{node.port}", *identity, *trust]
        return subprocess.run(command, input=b"", capture_output=True, timeout=20 * SLOWNESS, check=False)

    refused = dial(version)
    assert b"Cipher is (NONE)" in refused.stdout or b"Cipher    : 0000" in refused.stdout
    assert b"BEGIN CERTIFICATE" not in refused.stdout, "the server said nothing about itself"
    accepted = dial("-tls1_3")
    assert b"TLSv1.3" in accepted.stdout
    assert b"Verify return code: 0" in accepted.stdout


@pytest.mark.threat("D01")
@pytest.mark.requirement("S2.26")
def test_no_certificate_is_refused(node: Node) -> None:
    """Without a client certificate the handshake ends in an alert, and no byte of HTTP/2 is answered."""
    before = told(node)
    context = ssl.create_default_context(cafile=str(node.base / "certs" / "ca.crt"))
    context.set_alpn_protocols(["h2"])
    answer = b"never asked"
    with socket.create_connection(("127.0.0.1", node.port), timeout=20 * SLOWNESS) as raw:
        try:
            with context.wrap_socket(raw, server_hostname="127.0.0.1") as secured:
                secured.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
                answer = secured.recv(100)
        except (ssl.SSLError, ConnectionError):
            answer = b""
    assert answer == b""
    wait_for(lambda: len(told(node)) > len(before), what="the refusal to be logged")


@pytest.mark.threat("D13")
def test_plain_http_is_closed(node: Node) -> None:
    """The port speaks TLS only."""
    with socket.create_connection(("127.0.0.1", node.port), timeout=20 * SLOWNESS) as raw:
        raw.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
        try:
            answer = raw.recv(100)
        except ConnectionError:
            answer = b""
    assert not answer.startswith(b"\x00\x00"), "no HTTP/2 frame comes back"


ADMITTED: dict[str, dict[str, Any]] = {
    "organization": {"organizations": ("reader",)},
    "several-organizations": {"organizations": ("Example Ltd", "reader")},
    "extension": {"organizations": (), "extensions": [(ROLES, utf8("reader"))]},
    "extension-of-several": {"organizations": (), "extensions": [(ROLES, utf8("reader,user"))]},
    "admin-mark": {"organizations": (), "extensions": [(ADMIN_MARK, b"\x05\x00")]},
    "reader-mark": {"organizations": (), "extensions": [(READER_MARK, b"\x05\x00")]},
    "two-usages": {"usage": (*CLIENT, *SERVER)},
}


@pytest.mark.requirement("S2.24")
@pytest.mark.requirement("S2.25")
@pytest.mark.requirement("S3.25")
@pytest.mark.requirement("S4.19")
@pytest.mark.parametrize("kind", ADMITTED)
def test_every_source_of_roles(caller: Callable[..., Caller], kind: str) -> None:
    """Wherever the authority put the role, it counts."""
    done = caller(**ADMITTED[kind]).rnx("job", "list", "--limit", "1")
    assert done.returncode == 0, done.stderr


@pytest.mark.requirement("S4.17")
@pytest.mark.requirement("S3.23")
@pytest.mark.parametrize(
    ("role", "may_run", "may_see", "may_stop"),
    [
        ("admin", True, True, True),
        ("writer", True, True, True),
        ("user", True, False, False),
        ("reader", False, True, False),
    ],
)
def test_roles(
    node: Node, caller: Callable[..., Caller], role: str, *, may_run: bool, may_see: bool, may_stop: bool
) -> None:
    """The table of architecture.md §7 with a job of somebody else."""
    somebody = caller(names=(f"{role}-1",), organizations=(role,))
    job = node.detached("--", "sleep", "1000")
    node.wait_for_state(job, "running")
    assert (somebody.rnx("job", "run", "--", "true").returncode == 0) is may_run
    assert (somebody.rnx("job", "status", job).returncode == 0) is may_see
    assert (job in somebody.rnx("job", "list").stdout.decode()) is may_see
    assert (somebody.rnx("job", "log", job, "--no-follow").returncode == 0) is may_see
    assert (somebody.rnx("job", "stop", job, "--grace", "0s").returncode == 0) is may_stop
    node.rnx("job", "stop", job, "--grace", "0s")
    node.rnx("job", "wait", job)


@pytest.mark.requirement("S3.24")
@pytest.mark.threat("B09")
@pytest.mark.threat("B11")
def test_another_users_job_does_not_exist(caller: Callable[..., Caller]) -> None:
    """Every verb answers for it, by full id and by prefix, in the same words as for one that never was."""
    ann = caller(names=("ann",), organizations=("user",))
    bob = caller(names=("bob",), organizations=("user",))
    job = ann.rnx("job", "run", "--detach", "--", "echo", "private").stdout.decode().strip()
    assert ann.rnx("job", "wait", job).returncode == 0
    for verb in (["status"], ["log"], ["stop"], ["wait"], ["delete"]):
        for name, unknown in ((job, UNKNOWN), (job[:8], UNKNOWN[:8])):
            theirs, nobodys = bob.rnx("job", *verb, name), bob.rnx("job", *verb, unknown)
            assert theirs.returncode == nobodys.returncode == 3
            assert theirs.stdout == nobodys.stdout == b""
            assert theirs.stderr.replace(name.encode(), b"ID") == nobodys.stderr.replace(unknown.encode(), b"ID")
    assert json.loads(bob.rnx("--json", "job", "list").stdout) == []
    assert [each["id"] for each in json.loads(ann.rnx("--json", "job", "list").stdout)] == [job]
    assert ann.rnx("job", "delete", job).returncode == 0


@pytest.mark.threat("B20")
def test_secrets_are_never_shown(node: Node) -> None:
    """The job has it; the value is in no answer, no log and no file, and neither is that of one that was refused."""
    secret = "s3cr3t-value-41"
    done = node.rnx("job", "run", "--secret-env", f"TOKEN={secret}", "--", "sh", "-c", "printenv TOKEN | wc -c")
    assert (done.returncode, done.stdout) == (0, b"%d\n" % (len(secret) + 1))
    refused = node.rnx("job", "run", "--secret-env", f"1={secret}", "--", "true")
    assert refused.returncode == 2
    assert b"secret_environment" in refused.stderr
    assert secret.encode() not in done.stderr + refused.stdout + refused.stderr
    assert secret not in told(node)
    found = subprocess.run(["grep", "-rlF", secret, str(node.base)], capture_output=True, check=False)
    assert found.stdout == b""


@pytest.mark.requirement("S0.64")
@pytest.mark.threat("A32")
@pytest.mark.threat("D31")
def test_services_run_as_who_they_should(node: Node) -> None:
    """Api and persist are unprivileged and without capabilities, the others root; keys are closed to all others."""
    for name, privileged in (("api", False), ("persist", False), ("executor", True), ("volumes", True)):
        status = Path(f"/proc/{node.service(name)}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert (fields["Uid"].split()[0] == "0") is privileged, name
        if not privileged:
            assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 0
            assert "0" not in fields["Groups"].split()
    for key in (node.base / "certs").glob("*.key"):
        assert key.stat().st_mode & 0o077 == 0
    assert (node.base / "certs").stat().st_mode & 0o077 == 0
