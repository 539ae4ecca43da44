"""Certificates: what is in them, which files there are, and what openssl says."""

import json
import os
import shutil
import stat
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cli.joblet.certfiles import FIRST_CLIENTS, init, issue, renew, write_whole
from cli.joblet.certificates import BACKDATED, Issued, make_ca, make_client
from cli.joblet.certroles import Scheme, grants_of
from cli.joblet.certs import renew_command
from cli.joblet.main import run
from common.errors import JobletError, Reason
from services.api.identity import principal_of, read_certificate
from tests.certificates import ADMIN_MARK, DAY, READER_MARK, ROLES_EXTENSION, Authority, utf8_der

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


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA whose key is quickly made, and a client, `keep`. It has less than 365 days left, whatever the second."""
    where = put_ca(tmp_path_factory.mktemp("small") / "certs", Authority(left=365 * DAY - timedelta(hours=1)))
    issue(where, cn="keep", roles=("user",))
    return where


def put_ca(directory: Path, authority: Authority, *, bundle: bytes = b"") -> Path:
    """The files of a CA; `bundle` is a second one that is trusted, too."""
    directory.mkdir()
    (directory / "ca.crt").write_bytes(bundle + authority.pem)
    (directory / "ca.key").write_bytes(authority.key_pem)
    (directory / "ca.key").chmod(0o600)
    return directory


def alternatives(certificate: x509.Certificate) -> list[str]:
    """The names of a server."""
    value = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(each.value) for each in value]


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
    """`issue` refuses to overwrite a certificate or a key; `renew` replaces both and keeps user and role."""
    arguments = ["--dir", str(directory)]
    assert run(["certs", "issue", "--cn", "alice", "--role", "writer", "--days", "7", *arguments]) == 0
    first = load(directory / "alice.crt")
    assert days(first) == 7
    assert run(["certs", "issue", "--cn", "alice", "--role", "admin", *arguments]) == 4
    assert "certs renew" in capsys.readouterr().err
    assert run(["certs", "renew", "alice", "--json", *arguments]) == 0
    second = load(directory / "alice.crt")
    (written,) = json.loads(capsys.readouterr().out)["written"]
    assert written["serial"] == f"{second.serial_number:x}"
    assert (written["certificate"], written["key"]) == (str(directory / "alice.crt"), str(directory / "alice.key"))
    assert second.subject == first.subject
    assert second.public_key() != first.public_key()
    assert days(second) == 45
    assert stat.S_IMODE((directory / "alice.key").stat().st_mode) == 0o600
    assert run(["certs", "show", str(directory / "alice.crt")]) == 0
    shown = capsys.readouterr().out
    assert "alice" in shown
    assert "clientAuth" in shown
    (directory / "alice.crt").unlink()
    key = (directory / "alice.key").read_bytes()
    assert run(["certs", "issue", "--cn", "alice", "--role", "writer", *arguments]) == 4
    assert (directory / "alice.key").read_bytes() == key


@pytest.mark.requirement("S2.24")
@pytest.mark.requirement("S3.25")
@pytest.mark.requirement("S4.19")
@pytest.mark.parametrize(
    ("scheme", "roles"),
    [("organization", ("writer", "user")), ("extension", ("writer", "reader")), ("mark", ("admin", "reader"))],
)
def test_roles_stand_where_they_are_wanted_and_stay_there(
    small: Path, scheme: str, roles: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Several roles, each scheme: the node reads them there, `show` tells them, and renewal changes none of it."""
    arguments = [each for role in roles for each in ("--role", role)]
    name = f"bob-{scheme}"
    assert run(["certs", "issue", "--cn", name, *arguments, "--role-in", scheme, "--dir", str(small)]) == 0
    certificate = small / f"{name}.crt"
    first = principal_of(certificate.read_bytes(), now_s=time.time())
    assert first.name == name
    assert {role.value for role in first.roles} == set(roles)
    assert first.scheme.removesuffix("s") == scheme
    assert run(["certs", "renew", name, "--dir", str(small)]) == 0
    second = principal_of(certificate.read_bytes(), now_s=time.time())
    assert (second.name, second.roles, second.scheme) == (first.name, first.roles, first.scheme)
    assert second.serial != first.serial
    capsys.readouterr()
    assert run(["certs", "show", "--json", str(certificate)]) == 0
    (shown,) = json.loads(capsys.readouterr().out)["certificates"]
    assert shown["roles"] == [{"role": role, "scheme": scheme} for role in roles]


def test_a_mark_is_for_admins_and_readers_only() -> None:
    """The others have none; told before a key is made."""
    with pytest.raises(JobletError, match="no mark for the role writer"):
        make_client(Issued(b"", b""), cn="bob", roles=("admin", "writer"), scheme=Scheme.MARK, now=NOW)


@pytest.mark.parametrize(
    ("organizations", "extensions"),
    [
        (("admin", "ACME"), ()),
        ((), ((ROLES_EXTENSION, utf8_der("reader, writer ,king")),)),
        (("user",), ((ADMIN_MARK, b"\x05\x00"), (ROLES_EXTENSION, utf8_der("reader")))),
        ((), ((READER_MARK, utf8_der("whatever")),)),
        (("Admin",), ()),
        ((), ((ROLES_EXTENSION, utf8_der("")),)),
    ],
)
def test_show_tells_the_roles_that_the_node_sees(
    organizations: tuple[str, ...], extensions: tuple[tuple[x509.ObjectIdentifier, bytes], ...]
) -> None:
    """For every scheme and mixture, two independent readers agree."""
    pem = Authority().issue(["ann"], organizations, extensions=extensions).cert
    told = {grant.role for grant in grants_of(x509.load_pem_x509_certificate(pem))}
    assert told == {role.value for role in read_certificate(pem).principal.roles}


@pytest.mark.parametrize("der", [b"", b"\x0c\x05admi", b"\x13\x05admin", b"\x0c\x81\x05admin", b"\x0c\x02\xff\xfe"])
def test_a_malformed_role_extension_is_shown_as_no_role(der: bytes) -> None:
    """The node refuses the whole certificate; `show` must not fail on it."""
    pem = Authority().issue(["ann"], extensions=[(ROLES_EXTENSION, der)]).cert
    assert grants_of(x509.load_pem_x509_certificate(pem)) == ()


def test_a_server_is_renewed_with_its_names_and_more(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything that was said stays, `--name` adds, key and serial are new; a second server is issued likewise."""
    at = ["--dir", str(small)]
    names = ["--name", "node-2.example.com", "--name", "10.0.0.2", "--name", "::1"]
    assert run(["certs", "issue", "--server", "--cn", "server", *names, *at]) == 0
    first = load(small / "server.crt")
    key = (small / "server.key").read_bytes()
    assert run(["certs", "renew", "server", *at]) == 0
    second = load(small / "server.crt")
    assert days(first) == days(second) == 364  # with its CA
    assert alternatives(first) == alternatives(second) == ["node-2.example.com", "10.0.0.2", "::1"]
    assert second.subject == first.subject
    assert (small / "server.key").read_bytes() != key
    assert run(["certs", "renew", "server", "--name", "Other.example.com", "--name", "::1", *at]) == 0
    assert alternatives(load(small / "server.crt")) == [*alternatives(first), "other.example.com"]
    usage = load(small / "server.crt").extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert run(["certs", "issue", "--server", "--cn", "node-3.example.com", *at]) == 0
    assert alternatives(load(small / "node-3.example.com.crt")) == ["node-3.example.com"]
    capsys.readouterr()
    assert run(["certs", "issue", "--server", "--cn", "server", *at]) == 4


def test_nobody_sees_a_mixed_pair_for_long(tmp_path: Path, small: Path) -> None:
    """Both are written beside before the first is renamed: while the certificate cannot be written, the key stays."""
    for name in ("ca.crt", "ca.key", "keep.crt", "keep.key"):
        shutil.copy(small / name, tmp_path / name)
    before = (tmp_path / "keep.crt").read_bytes(), (tmp_path / "keep.key").read_bytes()
    obstacle = tmp_path / f".keep.crt.{os.getpid()}"
    obstacle.mkdir()  # where the new certificate would be written first
    with pytest.raises(JobletError, match=r"cannot write .*keep\.key"):
        renew(tmp_path, "keep")
    assert ((tmp_path / "keep.crt").read_bytes(), (tmp_path / "keep.key").read_bytes()) == before
    assert sorted(path.name for path in tmp_path.iterdir() if path != obstacle) == [
        "ca.crt",
        "ca.key",
        "keep.crt",
        "keep.key",
    ]


def test_what_is_not_renewed(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The CA, with the way; what another CA signed; names for a client; what is not there. Nothing is changed."""
    before = {path.name: path.read_bytes() for path in small.iterdir()}
    assert run(["certs", "renew", "ca", "--dir", str(small)]) == 4
    told = capsys.readouterr().err
    assert "never replaced" in told
    assert "trust both in ca.crt" in told
    assert run(["certs", "renew", "keep", "--name", "x.example.com", "--dir", str(small)]) == 2
    assert "has no names" in capsys.readouterr().err
    assert run(["certs", "renew", "nobody", "--dir", str(small)]) == 3
    assert run(["certs", "renew", "../keep", "--dir", str(small)]) == 2
    assert run(["certs", "renew", "keep", "--dir", str(tmp_path / "none")]) == 3
    assert {path.name: path.read_bytes() for path in small.iterdir()} == before
    foreign = put_ca(tmp_path / "foreign", Authority("stranger"))
    shutil.copy(small / "keep.crt", foreign / "keep.crt")
    with pytest.raises(JobletError, match=r"no CA in .* signed"):
        renew(foreign, "keep")


def test_a_ca_of_two_signs_with_the_one_whose_key_is_there(tmp_path: Path, small: Path) -> None:
    """While it is rolled over: what the old one signed is renewed by the new one; a key of neither is refused."""
    new = Authority("next authority")
    both = put_ca(tmp_path / "both", new, bundle=(small / "ca.crt").read_bytes())
    shutil.copy(small / "keep.crt", both / "keep.crt")
    renew(both, "keep")
    renewed = load(both / "keep.crt")
    renewed.verify_directly_issued_by(x509.load_pem_x509_certificate(new.pem))
    assert renewed.subject == load(small / "keep.crt").subject
    (both / "ca.key").write_bytes(Authority().key_pem)
    with pytest.raises(JobletError, match="does not belong"):
        renew(both, "keep")


def test_nothing_is_valid_longer_than_its_ca(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It ends with it, and that is said on stderr; an ended CA signs nothing."""
    assert run(["certs", "issue", "--cn", "late", "--role", "user", "--dev", "--dir", str(small)]) == 0
    told = capsys.readouterr()
    assert "ends with its CA" in told.err
    assert len(told.out.splitlines()) == 2
    assert load(small / "late.crt").not_valid_after_utc == load(small / "ca.crt").not_valid_after_utc
    ca = Issued((small / "ca.crt").read_bytes(), (small / "ca.key").read_bytes())
    with pytest.raises(JobletError, match="the CA expired at") as caught:
        make_client(ca, cn="ann", roles=("user",), now=datetime.now(UTC) + timedelta(days=400))
    assert "roll over" in caught.value.detail


def test_init_takes_names_and_days(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names beyond those of this host, and validity; a malformed name is refused before anything is made."""
    where = tmp_path / "ca"
    assert run(["certs", "init", str(where), "--name", "bad name"]) == 2
    assert "malformed server name" in capsys.readouterr().err
    assert not where.exists()
    options = ["--name", "n.example.com", "--name", "10.1.1.1", "--days", "9", "--ca-days", "99", "--json"]
    assert run(["certs", "init", str(where), *options]) == 0
    written = json.loads(capsys.readouterr().out)["written"]
    assert [each["name"] for each in written] == ["ca", "server", "default", "writer", "user", "reader"]
    assert {"n.example.com", "10.1.1.1", "localhost"} <= set(alternatives(load(where / "server.crt")))
    assert [days(load(where / f"{name}.crt")) for name in ("ca", "server", "user")] == [99, 99, 9]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--cn", "x"],
        ["--cn", "x", "--server", "--role", "user"],
        ["--cn", "x", "--server", "--role-in", "mark"],
        ["--cn", "x", "--role", "user", "--name", "a.example.com"],
        ["--cn", "x", "--role", "king"],
        ["--cn", "x", "--role", "user", "--role-in", "subject"],
        ["--cn", "x", "--role", "user", "--days", "0"],
        ["--role", "user"],
        ["--cn", "ann@example.com", "--role", "user"],
        ["--cn", "x", "--role", "user", "--file", "../x"],
        ["--cn", "ca", "--server"],
    ],
)
def test_wrong_words_are_told_as_usage(small: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, one line, and nothing is written."""
    before = sorted(small.iterdir())
    assert run(["certs", "issue", *arguments, "--dir", str(small)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert sorted(small.iterdir()) == before


def test_a_user_may_be_called_what_no_file_is(small: Path) -> None:
    """`--file` names the files of a user with an @."""
    assert run(["certs", "issue", "--cn", "eve@x.org", "--role", "user", "--file", "eve", "--dir", str(small)]) == 0
    assert names(load(small / "eve.crt"), NameOID.COMMON_NAME) == ["eve@x.org"]


@pytest.mark.parametrize("form", [serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL])
def test_an_encrypted_ca_key_is_told_of(tmp_path: Path, form: serialization.PrivateFormat) -> None:
    """In both forms, with what to do; so are a broken one, and one of a kind that signs otherwise."""
    authority = Authority()
    where = put_ca(tmp_path / "ca", authority)
    key = load_pem_private_key(authority.key_pem, None)
    secret = serialization.BestAvailableEncryption(b"secret")
    (where / "ca.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, secret))
    with pytest.raises(JobletError, match="CA key is encrypted") as caught:
        issue(where, cn="alice", roles=("user",))
    assert "openssl pkey" in caught.value.detail
    (where / "ca.key").write_text("-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n")
    with pytest.raises(JobletError, match="CA key cannot be read"):
        issue(where, cn="alice", roles=("user",))
    other = ed25519.Ed25519PrivateKey.generate()
    (where / "ca.key").write_bytes(
        other.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    with pytest.raises(JobletError, match="neither RSA nor ECDSA"):
        issue(where, cn="alice", roles=("user",))


def test_a_leaf_is_no_ca(tmp_path: Path) -> None:
    """Even when its key is at hand."""
    where = tmp_path / "leaf"
    where.mkdir()
    leaf = Authority().client("ann", "admin")
    (where / "ca.crt").write_bytes(leaf.cert)
    (where / "ca.key").write_bytes(leaf.key)
    (where / "ca.key").chmod(0o600)
    with pytest.raises(JobletError, match="no authority's"):
        issue(where, cn="alice", roles=("user",))


def test_names_are_completed(small: Path) -> None:
    """Of what can be renewed: what lies beside the CA, but for the CA."""
    context = click.Context(renew_command, info_name="renew")
    context.params["directory"] = small
    (argument,) = (each for each in renew_command.params if each.name == "name")
    assert [item.value for item in argument.shell_complete(context, "ke")] == ["keep"]
    assert "ca" not in [item.value for item in argument.shell_complete(context, "")]
    assert [item.type for item in argument.shell_complete(context, "/etc/x")] == ["file"]


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
