"""Revocation lists: made, extended, shown, and refused when something about them is wrong."""

import json
import shutil
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from cli.joblet.certificates import Issued, Signer, open_ca
from cli.joblet.crlfiles import lists_of, refresh, revoke_certificate, revoke_serial
from cli.joblet.main import run
from cli.joblet.revocations import CRL_DAYS, REASONS, number_of, parse_serial, reason_of, revoke
from common.errors import JobletError, Reason
from tests.certificates import Authority

UNSPECIFIED = x509.ReasonFlags.unspecified


@pytest.fixture(scope="module")
def authority() -> Authority:
    """Keys are quickly made."""
    return Authority()


@pytest.fixture
def certs(tmp_path: Path, authority: Authority) -> Path:
    """A CA with the clients ann and bob, and no list."""
    return directory_of(tmp_path / "certs", authority, "ann", "bob")


def directory_of(path: Path, authority: Authority, *clients: str) -> Path:
    """A CA's directory, with clients."""
    path.mkdir()
    (path / "ca.crt").write_bytes(authority.pem)
    (path / "ca.key").write_bytes(authority.key_pem)
    (path / "ca.key").chmod(0o600)
    for name in clients:
        (path / f"{name}.crt").write_bytes(authority.client(name, "user").cert)
    return path


def signer_of(authority: Authority) -> Signer:
    """Who signs lists."""
    return open_ca(Issued(authority.pem, authority.key_pem))


def serial_of(path: Path) -> int:
    """The serial number of the certificate in a file."""
    return x509.load_pem_x509_certificate(path.read_bytes()).serial_number


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What a command prints with --json."""
    capsys.readouterr()
    assert run(["certs", *arguments, "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


@pytest.mark.threat("D32")
def test_a_list_is_what_rfc_5280_demands(certs: Path, authority: Authority) -> None:
    """Version 2, signed by the CA, with number and key identifier, an end, and the reason only where there is one."""
    made = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    revoke_certificate(certs, "ann", reason=x509.ReasonFlags.key_compromise, now=made)
    revoke_certificate(certs, "bob", reason=UNSPECIFIED, now=made + timedelta(hours=1))
    (crl,) = lists_of(certs / "ca.crl")
    public = x509.load_pem_x509_certificate(authority.pem).public_key()
    assert crl.is_signature_valid(public)  # type: ignore[arg-type]  # of the kinds that certificates can have
    assert crl.issuer == x509.load_pem_x509_certificate(authority.pem).subject
    assert isinstance(crl.signature_hash_algorithm, hashes.SHA256)
    assert crl.last_update_utc == made + timedelta(hours=1)
    assert crl.next_update_utc == made + timedelta(hours=1, days=CRL_DAYS)
    assert {each.oid: each.critical for each in crl.extensions} == {
        x509.CRLNumber.oid: False,
        x509.AuthorityKeyIdentifier.oid: False,
    }
    assert number_of(crl) == 2
    found = {each.serial_number: (each.revocation_date_utc, reason_of(each), len(each.extensions)) for each in crl}
    assert found == {
        serial_of(certs / "ann.crt"): (made, "keyCompromise", 1),
        serial_of(certs / "bob.crt"): (made + timedelta(hours=1), "unspecified", 0),
    }
    assert stat.S_IMODE((certs / "ca.crl").stat().st_mode) == 0o644
    assert not [path.name for path in certs.iterdir() if path.name.startswith(".")]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_openssl_reads_it(certs: Path) -> None:
    """An independent reader accepts the list, refuses who is on it and nobody else."""
    revoke_certificate(certs, "ann", reason=UNSPECIFIED)

    def verdict(name: str) -> int:
        command = ["openssl", "verify", "-crl_check", "-CAfile", "ca.crt", "-CRLfile", "ca.crl", name]
        return subprocess.run(command, cwd=certs, capture_output=True, check=False).returncode

    assert (verdict("ann.crt"), verdict("bob.crt")) == (2, 0)


def test_revoking_twice_changes_nothing(certs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither date nor reason nor a byte of the file; the exit code is 0, and it is said."""
    at = ["--dir", str(certs)]
    assert run(["certs", "revoke", "ann", "--reason", "superseded", *at]) == 0
    assert "revoked" in capsys.readouterr().out
    before = (certs / "ca.crl").read_bytes()
    assert run(["certs", "revoke", str(certs / "ann.crt"), "--reason", "keyCompromise", *at]) == 0
    assert "was revoked already" in capsys.readouterr().out
    assert (certs / "ca.crl").read_bytes() == before
    told = shown(capsys, "revoke", "--serial", f"{serial_of(certs / 'ann.crt'):X}", *at)
    assert (told["number"], told["added"]) == (1, [])
    assert told["serials"] == [f"{serial_of(certs / 'ann.crt'):x}"]


def test_a_name_a_file_and_a_serial_mean_the_same(
    certs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name goes before a file of that name at hand; any file does; the serial may have colons."""
    at = ["--dir", str(certs)]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ann").write_bytes((certs / "bob.crt").read_bytes())
    assert shown(capsys, "revoke", "ann", *at)["added"] == [f"{serial_of(certs / 'ann.crt'):x}"]
    assert shown(capsys, "revoke", "./ann", *at)["added"] == [f"{serial_of(certs / 'bob.crt'):x}"]
    told = shown(capsys, "revoke", "--serial", "0A:Bc:01", "--reason", "cessationofoperation", *at)
    assert (told["added"], told["number"]) == (["abc01"], 3)
    (listed,) = shown(capsys, "revoke", "--list", *at)["lists"]
    assert [each["serial"] for each in listed["revoked"]][2] == "abc01"
    assert listed == shown(capsys, "show", str(certs / "ca.crl"))["lists"][0]
    assert listed["revoked"][2]["reason"] == "cessationOfOperation"
    assert (listed["number"], listed["days_left"]) == (3, 29)


def test_show_looks_a_certificate_up_in_the_list_beside_it(
    certs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Revoked, not revoked, unknown without a list, and a list that is named."""
    (before,) = shown(capsys, "show", str(certs / "ann.crt"))["certificates"]
    assert before["revoked"] is None
    revoke_certificate(certs, "ann", reason=x509.ReasonFlags.superseded)
    (ann,) = shown(capsys, "show", str(certs / "ann.crt"))["certificates"]
    (bob,) = shown(capsys, "show", str(certs / "bob.crt"))["certificates"]
    assert (ann["revoked"], ann["reason"], bob["revoked"], bob["reason"]) == (True, "superseded", False, "")
    away = tmp_path / "ann.crt"
    shutil.copy(certs / "ann.crt", away)
    (told,) = shown(capsys, "show", str(away), "--crl", str(certs / "ca.crl"))["certificates"]
    assert told["revoked_at"] == ann["revoked_at"] != ""
    assert run(["certs", "show", str(certs / "ann.crt")]) == 0
    assert f"since {ann['revoked_at']} (superseded)" in capsys.readouterr().out
    assert run(["certs", "show", str(away), "--crl", str(tmp_path / "none")]) == 2


def test_show_reads_a_bundle(certs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every certificate of it, and lists in the same file."""
    other = Authority("other authority")
    bundle = certs / "bundle.pem"
    refresh(certs)
    bundle.write_bytes(b"a note\n" + (certs / "ca.crt").read_bytes() + other.pem + (certs / "ca.crl").read_bytes())
    document = shown(capsys, "show", str(bundle))
    assert [each["subject"] for each in document["certificates"]] == ["CN=test authority", "CN=other authority"]
    assert [each["authority"] for each in document["certificates"]] == [True, True]
    assert len(document["lists"]) == 1
    assert run(["certs", "show", str(bundle)]) == 0
    paragraphs = capsys.readouterr().out.split("\n\n")
    assert len(paragraphs) == 3
    assert "certificate authority" in paragraphs[1]


def test_refresh_keeps_what_is_on_the_list(certs: Path) -> None:
    """It makes an empty one, too; the number grows, the dates move."""
    first = datetime(2026, 1, 1, tzinfo=UTC)
    assert refresh(certs, now=first).number == 1
    revoke_serial(certs, 77, reason=UNSPECIFIED, now=first)
    done = refresh(certs, days=3, now=first + timedelta(days=60))
    (crl,) = lists_of(certs / "ca.crl")
    assert (done.number, number_of(crl)) == (3, 3)
    assert [each.serial_number for each in crl] == [77]
    assert crl.next_update_utc == first + timedelta(days=63)


def test_two_at_once_lose_nothing(certs: Path) -> None:
    """Each takes the other's entry over: the directory is locked meanwhile."""
    serials = range(100, 116)
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(revoke_serial, certs, serial, reason=UNSPECIFIED) for serial in serials]:
            done.result()
    (crl,) = lists_of(certs / "ca.crl")
    assert {each.serial_number for each in crl} == set(serials)
    assert number_of(crl) == len(serials)


@pytest.mark.threat("D02")
def test_only_its_own_ca_revokes_a_certificate(certs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of another CA, even of the same name, is refused, and so is the CA's own; no list is made."""
    for name in ("other authority", "test authority"):
        file = tmp_path / "foreign.crt"
        file.write_bytes(Authority(name).client("ann", "user").cert)
        with pytest.raises(JobletError, match="another CA signed") as caught:
            revoke_certificate(certs, str(file), reason=UNSPECIFIED)
        assert caught.value.reason is Reason.PRECONDITION
    assert run(["certs", "revoke", "ca", "--dir", str(certs)]) == 2
    assert "a CA's own certificate" in capsys.readouterr().err
    assert not (certs / "ca.crl").exists()


@pytest.mark.threat("D32")
def test_a_list_that_the_ca_did_not_sign_is_never_extended(certs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Signing what somebody else wrote would make it ours. Nor is a broken one, or one of a special kind replaced."""
    forged = revoke(signer_of(Authority()), [], 1, now=datetime.now(UTC)).pem
    special = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(signer_of(Authority()).certificate.subject)
        .last_update(datetime.now(UTC))
        .next_update(datetime.now(UTC) + timedelta(days=1))
        .add_extension(x509.DeltaCRLIndicator(1), critical=True)
        .sign(open_ca(Issued((certs / "ca.crt").read_bytes(), (certs / "ca.key").read_bytes())).key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    broken = b"-----BEGIN X509 CRL-----\nAA==\n-----END X509 CRL-----\n"
    for content, words in (
        (forged, "this CA did not sign it"),
        (special, "of a special kind: extension 2.5.29.27"),
        (broken, "is no revocation list"),
        ((certs / "ann.crt").read_bytes(), "holds no revocation list"),
        (b"", "holds no PEM block"),
    ):
        (certs / "ca.crl").write_bytes(content)
        for arguments in (["ann"], ["--serial", "1"], ["--refresh"]):
            assert run(["certs", "revoke", *arguments, "--dir", str(certs)]) in {2, 4}
            assert words in capsys.readouterr().err
        assert (certs / "ca.crl").read_bytes() == content


def test_lists_of_other_authorities_stay_in_the_file(certs: Path) -> None:
    """While a CA is rolled over there are two lists: ours is extended, the other stays as it is, byte for byte."""
    theirs = revoke(signer_of(Authority("other authority")), [], 5, now=datetime.now(UTC)).pem
    (certs / "ca.crl").write_bytes(theirs)
    revoke_serial(certs, 6, reason=UNSPECIFIED)
    revoke_serial(certs, 5, reason=UNSPECIFIED)
    kept, ours = lists_of(certs / "ca.crl")
    assert kept.public_bytes(serialization.Encoding.PEM) == theirs
    assert {each.serial_number for each in ours} == {5, 6}
    assert number_of(ours) == 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["ann", "--serial", "1"], 2),
        (["ann", "--list"], 2),
        (["ann", "--reason", "boredom"], 2),
        (["ann", "--reason", "certificateHold"], 2),
        (["ann", "--days", "0"], 2),
        (["--serial", ""], 2),
        (["--serial", "0"], 2),
        (["--serial", "xyz"], 2),
        (["--serial", "1" * 42], 2),
        (["nobody"], 3),
        (["no/such.crt"], 3),
        (["../ann"], 3),
        (["--list"], 3),
    ],
)
def test_wrong_use_is_told(certs: Path, arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, and no list."""
    assert run(["certs", "revoke", *arguments, "--dir", str(certs)]) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert not (certs / "ca.crl").exists()


def test_without_a_ca_nothing_is_revoked(tmp_path: Path, certs: Path) -> None:
    """No directory, no CA in it, and a key that others can read."""
    with pytest.raises(JobletError, match="no CA at"):
        revoke_serial(tmp_path / "none", 1, reason=UNSPECIFIED)
    (tmp_path / "empty").mkdir()
    with pytest.raises(JobletError, match="no CA certificate"):
        revoke_serial(tmp_path / "empty", 1, reason=UNSPECIFIED)
    (certs / "ca.key").chmod(0o640)
    with pytest.raises(JobletError, match="others can read"):
        revoke_serial(certs, 1, reason=UNSPECIFIED)


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_is_kept(authority: Authority, reason: str) -> None:
    """In the words of RFC 5280."""
    outcome = revoke(signer_of(authority), [], 9, reason=REASONS[reason], now=datetime.now(UTC))
    (entry,) = x509.load_pem_x509_crl(outcome.pem)
    assert reason_of(entry) == reason


@pytest.mark.parametrize(("text", "serial"), [("1", 1), ("0x0a", 10), ("00:FF", 255), ("f" * 40, 16**40 - 1)])
def test_serials_as_programs_print_them(text: str, serial: int) -> None:
    """Ours, openssl's and browsers'."""
    assert parse_serial(text) == serial
