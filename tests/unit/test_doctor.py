"""What `joblet doctor` says of a node, or of a host without one, and when it is content."""

import json
import os
import socket
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
import yaml

from cli.joblet.certificates import Issued, open_ca
from cli.joblet.doctor import CONFINEMENT, LIMITS, OWNER_RANGE, Source, json_of, text_of, unmet
from cli.joblet.doctorcerts import CertificateRow, certificate_rows, unusable
from cli.joblet.doctorvolumes import volume_rows
from cli.joblet.main import run
from cli.joblet.revocations import revoke
from common.config.settings import Joblet, Security, Settings
from common.messages.jobs import Capability, NodeFacts
from common.privileges import default_base_dir
from proto.joblet.v1 import node_pb2
from tests.certificates import DAY, SERVER, Authority

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


def test_volumes_have_rows_and_make_no_default_unmet() -> None:
    """Beside what the node told, never among it; what a volume lacks is no reason against jobs."""
    rows = (
        Capability(name="volume.image", level="enforced"),
        Capability(name="volume.encryption", level="missing", detail="modprobe\ndm_crypt"),
    )
    lines = text_of(facts(), ASKED, volumes=rows).splitlines()
    assert lines[-1] == "jobs with default settings can run here"
    assert [line.split(maxsplit=2) for line in lines if line.startswith("volume")] == [
        ["volume.image", "enforced"],
        ["volume.encryption", "missing", "modprobe dm_crypt"],
    ]
    found = json.loads(json_of(facts(), ASKED, volumes=rows))
    assert [each["name"] for each in found["volumes"]] == ["volume.image", "volume.encryption"]
    assert not [each for each in found["capabilities"] if each["name"].startswith("volume")]


def test_a_program_that_tells_nothing_of_volumes_is_a_row(tmp_path: Path) -> None:
    """With what it said on its last line; the doctor goes on."""
    (tmp_path / "config.yml").write_text("colour: red")
    (row,) = volume_rows(tmp_path, tmp_path / "config.yml")
    assert (row.name, row.level) == ("volumes", "unknown")
    assert row.detail


def test_without_a_node_this_host_is_probed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """By the executor's program; the exit code says whether it would do, and nothing is made."""
    base = tmp_path / "none"
    code = run(["doctor", "--base-dir", str(base), "--json"])
    found = json.loads(capfd.readouterr().out)
    assert found["source"] == "probe"
    assert "rnx-config.yml" in found["source_detail"]
    assert code == (1 if found["unmet"] else 0)
    assert found["volumes"]
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


def node_files(
    base: Path, authority: Authority, *, server_left: timedelta, crl_left: timedelta | None = None
) -> Settings:
    """A base directory with certificates, and settings that mean it."""
    certs = base / "certs"
    certs.mkdir(parents=True)
    (certs / "ca.crt").write_bytes(authority.pem)
    server = authority.issue(["joblet"], usages=[SERVER], not_before=-400 * DAY, not_after=server_left)
    (certs / "server.crt").write_bytes(server.cert)
    if crl_left is not None:
        signer = open_ca(Issued(authority.pem, authority.key_pem))
        made = datetime.now(UTC) + crl_left - timedelta(days=30)
        (certs / "ca.crl").write_bytes(revoke(signer, [], 17, now=made, days=30).pem)
    return Settings(joblet=Joblet(base_dir=str(base)))


def levels(rows: tuple[CertificateRow, ...]) -> list[tuple[str, str]]:
    """Names and levels."""
    return [(row.name, row.level) for row in rows]


@pytest.mark.parametrize(
    ("server_left", "crl_left", "expected", "bad"),
    [
        (100 * DAY, 29.5 * DAY, ["valid", "valid", "valid"], ()),
        (13 * DAY, 13 * DAY, ["soon", "valid", "soon"], ()),
        (-1 * DAY, -1 * DAY, ["expired", "valid", "overdue"], ("certificate.server",)),
    ],
)
def test_certificates_have_rows_with_the_repair(
    tmp_path: Path, server_left: timedelta, crl_left: timedelta, expected: list[str], bad: tuple[str, ...]
) -> None:
    """Server, CA and list; an ended server certificate is a want of the node, an overdue list is not."""
    settings = node_files(tmp_path, Authority(), server_left=server_left, crl_left=crl_left)
    rows = certificate_rows(None, settings, now_ns=time.time_ns())
    names = ["certificate.server", "certificate.ca", "certificate.crl"]
    assert levels(rows) == list(zip(names, expected, strict=True))
    repairs = {"certificate.server": "joblet certs renew server", "certificate.crl": "joblet certs revoke --refresh"}
    for row in rows:
        assert row.detail.endswith(repairs.get(row.name, "")) is (row.level != "valid" or row.name not in repairs)
    assert unusable(rows) == bad
    assert unmet(facts(), rows) == bad
    text = text_of(facts(), PROBED, rows)
    assert text.splitlines()[-1].startswith(f"jobs with default settings {'cannot' if bad else 'can'} run here")
    assert [each["level"] for each in json.loads(json_of(facts(), PROBED, rows))["certificates"]] == expected


def test_more_days_of_warning_are_heeded(tmp_path: Path) -> None:
    """`security.expiry_warning_days`; and a CA of two is fit while one of them is."""
    authority = Authority()
    settings = node_files(tmp_path, authority, server_left=20 * DAY)
    security = Security(expiry_warning_days=25)
    rows = certificate_rows(None, Settings(joblet=settings.joblet, security=security), now_ns=time.time_ns())
    assert levels(rows) == [("certificate.server", "soon"), ("certificate.ca", "valid")]
    ended = CertificateRow("certificate.ca", "expired", "")
    assert unusable((*rows, ended)) == ()
    assert unusable((ended,)) == ("certificate.ca",)


def test_a_running_node_knows_best(tmp_path: Path) -> None:
    """What it says of its certificates goes before the files; without an answer, or in an old one, files count."""
    settings = node_files(tmp_path, Authority(), server_left=100 * DAY)
    info = node_pb2.NodeInfo()
    assert levels(certificate_rows(info, settings, now_ns=0)) == [
        ("certificate.server", "valid"),
        ("certificate.ca", "valid"),
    ]
    info.certificates.add(name="server", subject="CN=x", not_after={"seconds": 86_400 * 3}, soon=True)
    (row,) = certificate_rows(info, settings, now_ns=0)
    assert row == CertificateRow("certificate.server", "soon", "CN=x ends in 3 days: joblet certs renew server")


def test_what_is_wrong_with_a_file_is_its_row(tmp_path: Path) -> None:
    """Nothing there yet is no finding; half of it is, and so is a file that is something else."""
    fresh = Settings(joblet=Joblet(base_dir=str(tmp_path / "fresh")))
    assert certificate_rows(None, fresh, now_ns=0) == ()
    settings = node_files(tmp_path / "half", Authority(), server_left=DAY)
    certs = tmp_path / "half" / "certs"
    (certs / "server.crt").unlink()
    (certs / "ca.crt").write_text("-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n")
    (certs / "ca.crl").write_text("no list")
    rows = certificate_rows(None, settings, now_ns=0)
    assert {row.level for row in rows} == {"missing"}
    assert [row.name for row in rows] == ["certificate.server", "certificate.ca", "certificate.crl"]
    assert unusable(rows) == ("certificate.server", "certificate.ca", "certificate.crl")
    named = Settings(joblet=settings.joblet, security=Security(crl=str(tmp_path / "no.crl")))
    assert certificate_rows(None, named, now_ns=0)[-1].level == "missing"


def test_files_that_are_closed_to_us_are_unknown(tmp_path: Path) -> None:
    """No finding against the node: whoever may read them knows."""
    settings = node_files(tmp_path, Authority(), server_left=DAY, crl_left=DAY)
    certs = tmp_path / "certs"
    certs.chmod(0)
    us = os.geteuid()
    try:
        if us == 0:
            os.seteuid(65534)
        rows = certificate_rows(None, settings, now_ns=time.time_ns())
    finally:
        os.seteuid(us)
        certs.chmod(0o700)
    assert {row.level for row in rows} == {"unknown"}
    assert len(rows) == 3
    assert all(row.detail.endswith("run it as root") for row in rows)
    assert unusable(rows) == ()
