"""Certificates: what is in them, which files there are, and what openssl says."""

import shutil
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cli.joblet.certfiles import FIRST_CLIENTS, init, issue, write_whole
from cli.joblet.certificates import BACKDATED, Issued, make_ca, make_client
from cli.joblet.main import run
from common.errors import JobletError, Reason

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `joblet certs init` makes; made once, because six RSA keys take seconds."""
    made = tmp_path_factory.mktemp("certs") / "certs"
    init(made)
    return made


def load(path: Path) -> x509.Certificate:
    """The certificate in a file."""
    return x509.load_pem_x509_certificate(path.read_bytes())


def days(certificate: x509.Certificate) -> int:
    """Validity in days, from when it was made."""
    return (certificate.not_valid_after_utc - certificate.not_valid_before_utc - BACKDATED).days


def names(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> list[str]:
    """Subject attributes of one kind."""
    return [str(each.value) for each in certificate.subject.get_attributes_for_oid(oid)]


@pytest.mark.requirement("S2.27")
@pytest.mark.requirement("S2.28")
@pytest.mark.requirement("S4.21")
def test_all_are_rsa_4096_with_sha256_and_signed_by_the_ca(directory: Path) -> None:
    """Every certificate, the CA included."""
    ca = load(directory / "ca.crt")
    serials = set()
    for path in directory.glob("*.crt"):
        certificate = load(path)
        key = certificate.public_key()
        assert isinstance(key, rsa.RSAPublicKey)
        assert key.key_size == 4096
        assert isinstance(certificate.signature_hash_algorithm, hashes.SHA256)
        certificate.verify_directly_issued_by(ca)
        private = load_pem_private_key(path.with_suffix(".key").read_bytes(), None)
        assert private.public_key() == key
        serials.add(certificate.serial_number)
    assert len(serials) == 6


@pytest.mark.requirement("S2.29")
@pytest.mark.requirement("S2.22")
def test_ca_and_server_are_valid_for_365_days_and_clients_for_45(directory: Path) -> None:
    """And each already a little before now, for clocks that differ."""
    assert days(load(directory / "ca.crt")) == 365
    assert days(load(directory / "server.crt")) == 365
    for client in FIRST_CLIENTS:
        certificate = load(directory / f"{client.file}.crt")
        assert days(certificate) == 45
        assert certificate.not_valid_before_utc < datetime.now(UTC) - BACKDATED + timedelta(minutes=3)


@pytest.mark.requirement("S3.25")
@pytest.mark.requirement("S4.20")
def test_clients_have_user_in_cn_and_role_in_o_and_may_only_be_clients(directory: Path) -> None:
    """The names of the first start; clientAuth alone, no CA."""
    found = {}
    for client in FIRST_CLIENTS:
        certificate = load(directory / f"{client.file}.crt")
        found[client.file] = (names(certificate, NameOID.COMMON_NAME), names(certificate, NameOID.ORGANIZATION_NAME))
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        assert basic.critical
        assert not basic.value.ca
    assert found == {
        "default": (["admin"], ["admin"]),
        "writer": (["writer"], ["writer"]),
        "user": (["user"], ["user"]),
        "reader": (["reader"], ["reader"]),
    }


@pytest.mark.threat("D07")
def test_the_server_certificate_is_for_servers_and_names_this_host(directory: Path) -> None:
    """For serverAuth alone, and loopback by name and address."""
    certificate = load(directory / "server.crt")
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"localhost", "127.0.0.1", "::1"} <= {str(each.value) for each in alternatives}
    assert not set(names(certificate, NameOID.ORGANIZATION_NAME)) & {"admin", "writer", "user", "reader"}


def test_keys_are_closed_to_others_and_a_ca_is_never_replaced(directory: Path) -> None:
    """0600 for keys; a second init is refused and changes nothing."""
    for path in directory.glob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    with pytest.raises(JobletError) as caught:
        init(directory)
    assert caught.value.reason is Reason.EXISTS
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_openssl_accepts_the_chain_for_its_purpose_only(directory: Path) -> None:
    """An independent reader agrees: clients as clients, the server as a server, neither as the other."""

    def verdict(purpose: str, name: str) -> int:
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", str(directory / "ca.crt")]
        return subprocess.run([*command, str(directory / name)], capture_output=True, check=False).returncode

    assert verdict("sslclient", "default.crt") == 0
    assert verdict("sslserver", "server.crt") == 0
    assert verdict("sslserver", "default.crt") != 0
    assert verdict("sslclient", "server.crt") != 0


def test_issue_and_renew_make_new_keys_for_the_same_user(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`issue` refuses to overwrite; `renew` replaces certificate and key and keeps user and role."""
    arguments = ["--dir", str(directory)]
    assert run(["certs", "issue", "--cn", "alice", "--role", "writer", "--days", "7", *arguments]) == 0
    first = load(directory / "alice.crt")
    assert days(first) == 7
    assert run(["certs", "issue", "--cn", "alice", "--role", "admin", *arguments]) == 4
    assert "certs renew" in capsys.readouterr().err
    assert run(["certs", "renew", "alice", *arguments]) == 0
    second = load(directory / "alice.crt")
    assert second.subject == first.subject
    assert second.public_key() != first.public_key()
    assert run(["certs", "show", str(directory / "alice.crt")]) == 0
    shown = capsys.readouterr().out
    assert "alice" in shown
    assert "clientAuth" in shown


@pytest.mark.threat("D10")
@pytest.mark.parametrize("cn", ["", "a\0b", "a b", "ä", "a" * 65, "../x", "-x", "a,O=admin"])
def test_a_user_name_with_odd_characters_is_refused(cn: str) -> None:
    """Before any key is made."""
    nobody = Issued(b"", b"")
    with pytest.raises(JobletError, match="malformed user name"):
        make_client(nobody, cn=cn, roles=("user",), now=NOW)
    with pytest.raises(JobletError, match="unknown role"):
        make_client(nobody, cn="alice", roles=("root",), now=NOW)


def test_wrong_use_is_told(directory: Path, tmp_path: Path) -> None:
    """No CA, reserved names, days out of bounds, a file that is no certificate, a CA key that others can read."""
    with pytest.raises(JobletError, match="no CA certificate"):
        issue(tmp_path, cn="alice", roles=("user",))
    with pytest.raises(JobletError, match="not a client's name"):
        issue(directory, cn="server", roles=("user",))
    with pytest.raises(JobletError, match="days of validity"):
        make_ca(now=NOW, days=0)
    assert run(["certs", "show", str(directory / "ca.key")]) == 2
    assert run(["certs", "issue", "--cn", "x", "--role", "king", "--dir", str(directory)]) == 2
    (directory / "ca.key").chmod(0o644)
    try:
        with pytest.raises(JobletError, match="others can read"):
            issue(directory, cn="bob", roles=("user",))
    finally:
        (directory / "ca.key").chmod(0o600)


@pytest.mark.threat("F10")
def test_write_whole_replaces_a_file_in_one_step(tmp_path: Path) -> None:
    """New content and mode, no temporary file left, a link in the way is replaced and not followed."""
    target, victim = tmp_path / "a.key", tmp_path / "victim"
    victim.write_text("untouched")
    target.symlink_to(victim)
    write_whole(target, b"new", mode=0o600)
    assert target.read_bytes() == b"new"
    assert victim.read_text() == "untouched"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.key", "victim"]
