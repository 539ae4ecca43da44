"""What `joblet doctor` says of a node, or of a host without one, and when it is content."""

import json
import os
import socket
from pathlib import Path

import msgspec
import pytest
import yaml

from cli.joblet.doctor import CONFINEMENT, LIMITS, OWNER_RANGE, Source, json_of, text_of, unmet
from cli.joblet.main import run
from common.messages.jobs import Capability, NodeFacts
from common.privileges import default_base_dir
from tests.certificates import Authority

ASKED = Source(asked=True, why="")
PROBED = Source(asked=False, why="there is no /x, so no node to ask")


def facts(*lacking: str, level: str = "missing", detail: str = "") -> NodeFacts:
    """A node that has all but what is `lacking`."""
    names = sorted({*CONFINEMENT, *LIMITS, OWNER_RANGE, *lacking})
    found = tuple(
        Capability(name=name, level=level if name in lacking else "enforced", detail=detail if name in lacking else "")
        for name in names
    )
    return NodeFacts(
        node_id="n1",
        version="1.0",
        kernel="6.1",
        cgroup_version="v2",
        cpus=2,
        memory_bytes=2**30,
        running_jobs=3,
        capabilities=found,
    )


def test_a_node_that_has_all_is_content() -> None:
    """Whatever is not needed may be missing."""
    assert unmet(facts()) == ()
    assert unmet(facts("limit.io_weight", "network.bridge", "pressure")) == ()
    assert unmet(facts("limit.memory", level="degraded")) == ()


@pytest.mark.parametrize("name", ["namespace.user", "seccomp", "kernel.openat2", "limit.pids", "network.none"])
def test_what_default_jobs_need_is_unmet_when_it_is_missing(name: str) -> None:
    """Confinement and the limits of the defaults."""
    assert unmet(facts(name)) == (name,)


def test_a_rootless_node_promises_no_limits() -> None:
    """But all of the confinement."""
    assert unmet(facts(OWNER_RANGE, *LIMITS)) == ()
    assert unmet(facts(OWNER_RANGE, "limit.memory", "seccomp")) == ("seccomp",)


def test_the_text_tells_where_it_comes_from_and_what_is_wrong() -> None:
    """First line, last line, and a line for each capability with its repair."""
    lines = text_of(facts("seccomp", detail="install libseccomp"), ASKED).splitlines()
    assert lines[0] == "asked the running node n1, which runs 3 jobs"
    assert [line.split(maxsplit=2) for line in lines if line.startswith("seccomp")] == [
        ["seccomp", "missing", "install libseccomp"]
    ]
    assert lines[-1] == "jobs with default settings cannot run here, for want of seccomp"
    probed = text_of(facts(), PROBED).splitlines()
    assert probed[0] == "probed this host itself: there is no /x, so no node to ask"
    assert probed[-1] == "jobs with default settings can run here"


@pytest.mark.threat("C20")
def test_nothing_that_a_node_says_reaches_the_terminal() -> None:
    """Control characters are shown, and no line can be forged."""
    hostile = "\x1b]0;owned\x07\r\n\u202egnp"
    document = msgspec.structs.replace(facts(hostile, detail=hostile), node_id=hostile, kernel=hostile)
    text = text_of(document, Source(asked=False, why=hostile))
    assert len(text.splitlines()) == len(document.capabilities) + 3
    assert not {character for character in text if character != "\n"} & set("\x1b\x07\r\u202e")


def test_json_says_the_same() -> None:
    """One object, with the source and what is unmet."""
    found = json.loads(json_of(facts("seccomp"), PROBED))
    assert (found["source"], found["source_detail"], found["unmet"]) == ("probe", PROBED.why, ["seccomp"])
    assert {"name": "seccomp", "level": "missing", "detail": ""} in found["capabilities"]
    assert json.loads(json_of(facts(), ASKED))["source"] == "node"


def test_without_a_node_this_host_is_probed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """By the executor's program; the exit code says whether it would do, and nothing is made."""
    base = tmp_path / "none"
    code = run(["doctor", "--base-dir", str(base), "--json"])
    found = json.loads(capfd.readouterr().out)
    assert found["source"] == "probe"
    assert "rnx-config.yml" in found["source_detail"]
    assert code == (1 if found["unmet"] else 0)
    assert found["kernel"] == os.uname().release
    assert not base.exists()


def test_a_node_that_does_not_answer_is_told_of(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its client configuration is there, and nobody listens: the host is probed in its place."""
    authority = Authority()
    client = authority.client("ann", "admin")
    for name, content in {"ca": authority.pem, "cert": client.cert, "key": client.key}.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o600)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        node = {"address": address, **{name: str(tmp_path / name) for name in ("ca", "cert", "key")}}
        file = tmp_path / "rnx-config.yml"
        file.write_text(yaml.safe_dump({"version": "3.0", "nodes": {"default": node}}))
        file.chmod(0o600)
        run(["doctor", "--base-dir", str(tmp_path)])
    first = capfd.readouterr().out.splitlines()[0]
    assert first.startswith(f"probed this host itself: nothing answers at {address}")


def test_a_configuration_that_is_wrong_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What the executor says about it, on one line."""
    (tmp_path / "config.yml").write_text("colour: red")
    assert run(["doctor", "--base-dir", str(tmp_path), "--config", str(tmp_path / "config.yml")]) == 4
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "unknown key" in captured.err
    assert len(captured.err.splitlines()) == 1


def test_the_default_base_directory_is_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root's is fixed; an ordinary user's is in his data directory, and a relative one does not count."""
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_base_dir() == Path("/opt/joblet")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert default_base_dir() == Path("/data/joblet")
    monkeypatch.setenv("HOME", "/home/ann")
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_DATA_HOME", unset)
        assert default_base_dir() == Path("/home/ann/.local/share/joblet")
