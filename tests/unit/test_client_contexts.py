"""The client configuration: search, checks, and errors that name file and key."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.client.contexts import find_config, load_context, read_nodes
from common.errors import JobletError, Reason

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


def test_other_contexts_are_not_read(tmp_path: Path) -> None:
    """A context whose files are missing does not keep the others from working, nor from being listed."""
    nodes = {"default": entry(), "away": entry(cert="gone.crt")}
    path = written(tmp_path, {"nodes": nodes})
    assert load_context(path, "default").name == "default"
    assert set(read_nodes(path)) == {"default", "away"}
