"""The client configuration: search, checks, and errors that name file and key."""

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.client.contexts import find_config, load_context, read_nodes
from cli.client.renewal import advice, ending
from common.errors import JobletError, Reason
from tests.certificates import DAY, Authority

PEM = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"


def entry(**changes: Any) -> dict[str, Any]:
    """A whole context, with some keys changed; None removes one."""
    fields = {"address": "127.0.0.1:50051", "cert": PEM, "key": PEM, "ca": PEM, "nodeId": "n1"} | changes
    return {key: value for key, value in fields.items() if value is not None}


def written(directory: Path, document: object) -> Path:
    """The document as a private file."""
    path = directory / "rnx-config.yml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    path.chmod(0o600)
    return path


def test_pem_text_and_paths_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """cert, key and ca hold text or a path that is relative to the file, wherever rnx is called."""
    (tmp_path / "certs").mkdir()
    key = tmp_path / "certs" / "a.key"
    key.write_text(PEM)
    key.chmod(0o600)
    path = written(tmp_path, {"version": "3.0", "nodes": {"default": entry(key="certs/a.key")}})
    monkeypatch.chdir("/")
    context = load_context(path, "default")
    assert context.key == PEM.encode()
    assert context.cert.strip() == PEM.strip().encode()
    assert (context.address, context.node_id, context.warnings) == ("127.0.0.1:50051", "n1", ())


@pytest.mark.parametrize("inline", [True, False])
def test_a_key_that_everyone_can_read_is_warned_about(tmp_path: Path, inline: bool) -> None:  # noqa: FBT001  # of pytest
    """It works, and says which file and what to do."""
    key = tmp_path / "a.key"
    key.write_text(PEM)
    path = written(tmp_path, {"nodes": {"default": entry(key=PEM if inline else "a.key")}})
    open_file = path if inline else key
    open_file.chmod(0o644)
    (warning,) = load_context(path, "default").warnings
    assert f"chmod o= {open_file}" in warning


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ("nodes: [", "no valid YAML at line"),
        ("", "holds no settings"),
        ({"version": "2.0", "nodes": {"default": entry()}}, "version is '2.0'"),
        ({"nodes": {}}, "nodes is missing or empty"),
        ({"node": {}}, "unknown key 'node': did you mean nodes?"),
        ({"nodes": {"default": "x"}}, "nodes.default is no mapping"),
        ({"nodes": {"default": entry(adress="x")}}, "nodes.default: unknown key 'adress': did you mean address?"),
        ({"nodes": {"default": entry(key=None)}}, "nodes.default.key is missing"),
        ({"nodes": {"default": entry(address="here")}}, "nodes.default.address 'here' is malformed"),
        ({"nodes": {"default": entry(address="h:70000")}}, "nodes.default.address 'h:70000' is malformed"),
        ({"nodes": {"default": entry(ca="no-such.pem")}}, "nodes.default.ca: cannot read"),
        ({"nodes": {"default": entry(ca="rnx-config.yml", cert="x", key="x")}}, "nodes.default.cert: cannot read"),
        (
            {"nodes": {"default": entry(cert="~no-such-user/a.crt")}},
            "nodes.default.cert: cannot read ~no-such-user/a.crt",
        ),
        ({"nodes": {"default": entry(cert="a\0b")}}, "nodes.default.cert: 'a\\x00b' is no path"),
        ("version: 2026-13-45", "is no valid YAML"),
        ("[" * 10_000, "is no valid YAML"),
        ({"nodes": {"other": entry()}}, "has no context 'default': it has other"),
    ],
)
def test_each_mistake_is_named(tmp_path: Path, document: object, told: str) -> None:
    """The error names the file, the key and what is wrong with it."""
    path = written(tmp_path, document)
    with pytest.raises(JobletError) as caught:
        load_context(path, "default")
    assert caught.value.reason is Reason.INVALID
    assert str(path) in str(caught.value)
    assert told in str(caught.value)


def test_a_file_that_is_no_pem_is_refused(tmp_path: Path) -> None:
    """A path to something else is told here, not by the TLS library."""
    (tmp_path / "a.crt").write_text("hello")
    path = written(tmp_path, {"nodes": {"default": entry(cert="a.crt")}})
    with pytest.raises(JobletError, match=r"a\.crt is no PEM file"):
        load_context(path, "default")


def test_the_directory_at_hand_comes_before_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """./rnx-config.yml, then ~/.rnx; --config wins over both."""
    home, here = tmp_path / "home", tmp_path / "here"
    (home / ".rnx").mkdir(parents=True)
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    (home / ".rnx" / "rnx-config.yml").write_text("x")
    assert find_config(None) == home / ".rnx" / "rnx-config.yml"
    (here / "rnx-config.yml").write_text("x")
    assert find_config(None) == Path("rnx-config.yml")
    assert find_config(Path("/else")) == Path("/else")


def test_a_user_without_a_home_has_the_other_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container the user may have neither an entry in passwd(5) nor a HOME."""

    def nobody(_: int) -> None:
        raise KeyError

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rnx-config.yml").write_text("x")
    assert find_config(None) == Path("rnx-config.yml")


def test_other_contexts_are_not_read(tmp_path: Path) -> None:
    """A context whose files are missing does not keep the others from working, nor from being listed."""
    nodes = {"default": entry(), "away": entry(cert="gone.crt")}
    path = written(tmp_path, {"nodes": nodes})
    assert load_context(path, "default").name == "default"
    assert set(read_nodes(path)) == {"default", "away"}


@pytest.mark.parametrize(
    ("left", "told"),
    [
        (timedelta(days=14, minutes=5), ""),
        (timedelta(days=13, hours=12), "ends in 13 days"),
        (timedelta(days=1, hours=12), "ends in 1 day:"),
        (timedelta(hours=12), "ends today"),
        (-timedelta(minutes=5), ""),
    ],
)
def test_a_certificate_that_ends_soon_is_warned_about(tmp_path: Path, left: timedelta, told: str) -> None:
    """In one sentence with the command that renews it; one that has ended is left to the node's refusal."""
    authority = Authority()
    client = authority.issue(["ann"], ["user"], not_before=-30 * DAY, not_after=left)
    file = tmp_path / "ann-2.crt"
    file.write_bytes(client.cert)
    path = written(tmp_path, {"nodes": {"default": entry(cert="ann-2.crt")}})
    warnings = load_context(path, "default").warnings
    if not told:
        assert warnings == ()
        return
    (warning,) = warnings
    assert told in warning
    assert "certificate ann-2 " in warning
    assert warning.endswith("joblet certs renew ann-2")
    path = written(tmp_path, {"nodes": {"default": entry(cert=client.cert.decode())}})
    (warning,) = load_context(path, "default").warnings
    assert warning.endswith("joblet certs renew ann"), "of a text the user's name is told"


def test_only_the_clients_own_certificate_counts() -> None:
    """Not that of the CA behind it, and a certificate that cannot be read is nobody's warning."""
    authority = Authority()
    good, bad = authority.client("ann", "user").cert, authority.issue(["bob"], not_after=DAY).cert
    now_ns = time.time_ns()
    assert ending(good + bad, "ann", now_ns=now_ns) == ""
    assert "ends" in ending(bad + good, "bob", now_ns=now_ns)
    assert ending(PEM.encode(), "ann", now_ns=now_ns) == ""
    nameless = authority.issue([], not_after=DAY).cert
    assert "renew NAME" in ending(nameless, "", now_ns=now_ns)
    assert advice("alice", b"") == "renew it where its CA is: joblet certs renew alice"


@pytest.mark.parametrize(
    "encrypted",
    [
        PEM.replace("CERTIFICATE", "ENCRYPTED PRIVATE KEY"),
        PEM.replace("CERTIFICATE", "RSA PRIVATE KEY").replace("AA==", "Proc-Type: 4,ENCRYPTED\n\nAA=="),
    ],
)
def test_an_encrypted_key_is_refused_with_the_repair(tmp_path: Path, encrypted: str) -> None:
    """As text and as a file: gRPC would only fail."""
    key = tmp_path / "a.key"
    key.write_text(encrypted)
    key.chmod(0o600)
    for value in (encrypted, "a.key"):
        path = written(tmp_path, {"nodes": {"default": entry(key=value)}})
        with pytest.raises(JobletError, match=r"nodes\.default\.key: the private key is encrypted") as caught:
            load_context(path, "default")
        assert "openssl pkey" in caught.value.detail
