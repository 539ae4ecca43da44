"""Certificates made by the openssl program, as docs/certificates.md prints it, at a node that really runs.

The .cnf files and the commands are taken from the document itself: what it says is what is tested.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.e2e.node import PROGRAMS, Node, make_base

DOCUMENT = Path(__file__).parents[2] / "docs" / "certificates.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ROLLED_BY = "/root/ca-2"
CERTS = "/opt/joblet/certs"
ENVIRONMENT = os.environ | {"PATH": f"{PROGRAMS}:{os.environ['PATH']}"}

pytestmark = [
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl"),
    pytest.mark.timeout(400),  # a dozen RSA keys
]


class Who(NamedTuple):
    """A certificate of the document: its file, its user, where its role stands, and what it may do."""

    file: str
    user: str
    role: str
    scheme: str
    may_run: bool
    may_see: bool
    may_stop: bool


EVERYBODY = (
    Who("default", "ada", "admin", "organization", may_run=True, may_see=True, may_stop=True),
    Who("admin", "grace", "admin", "mark", may_run=True, may_see=True, may_stop=True),
    Who("user", "alan", "reader", "mark", may_run=False, may_see=True, may_stop=False),
    Who("writer", "edsger", "writer", "extension", may_run=True, may_see=True, may_stop=True),
)


def section(heading: str) -> str:
    """The part of the document below a heading."""
    _, _, rest = DOCUMENT.read_text().partition(f"\n## {heading}\n")
    assert rest, f"docs/certificates.md has no section {heading!r}"
    return rest.partition("\n## ")[0]


def shell(commands: str, directory: Path) -> None:
    """Run commands of the document; the first that fails fails the test."""
    done = subprocess.run(
        ["sh", "-eu"], input=commands.encode(), cwd=directory, env=ENVIRONMENT, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


def joblet(*arguments: str) -> str:
    """What `joblet certs` prints."""
    done = subprocess.run([PROGRAMS / "joblet", "certs", *arguments], capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def shown(file: Path) -> dict[str, Any]:
    """The one certificate in a file, as `joblet certs show --json` tells it."""
    document: dict[str, Any] = json.loads(joblet("show", "--json", str(file)))
    (certificate,) = document["certificates"]
    found: dict[str, Any] = certificate
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that the section "With openssl" makes, by its own commands, in order."""
    directory = tmp_path_factory.mktemp("openssl")
    commands = []
    for language, text in BLOCK.findall(section("With openssl")):
        if language == "ini":
            name = text.partition("\n")[0].removeprefix("# ")
            (directory / name).write_text(text)
        else:
            assert language == "sh"
            commands.append(text)
    shell("".join(commands), directory)
    return directory


def put(made: Path, certs: Path, *names: str) -> None:
    """Files of the document as the only ones in a node's directory of certificates."""
    shutil.rmtree(certs, ignore_errors=True)
    certs.mkdir(mode=0o700)
    for name in names:
        shutil.copy(made / name, certs / name)


@pytest.fixture(scope="module")
def node(made: Path) -> Iterator[Node]:
    """A node with these certificates in their usual places."""
    own = Node(make_base("openssl"))
    put(made, own.base / "certs", "ca.crt", "server.crt", "server.key", "default.crt", "default.key")
    own.start()
    yield own
    own.remove()


def rnx(config: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run rnx with a configuration of the test."""
    command = [str(PROGRAMS / "rnx"), "--config", str(config), "--timeout", "30s", *arguments]
    return subprocess.run(command, capture_output=True, timeout=90, check=False)


@pytest.fixture
def configured(tmp_path: Path) -> Callable[..., Path]:
    """Makes a client configuration from files: `text` puts the PEM itself into it, else their paths."""

    def make(node: Node, files: Path, name: str, *, text: bool, ca: Path | None = None) -> Path:
        sources = {"cert": files / f"{name}.crt", "key": files / f"{name}.key", "ca": ca or files / "ca.crt"}
        material = {key: path.read_text() if text else str(path) for key, path in sources.items()}
        config = tmp_path / f"{name}-{'text' if text else 'paths'}.yml"
        context = {"address": f"127.0.0.1:{node.port}"} | material
        config.write_text(yaml.safe_dump({"version": "3.0", "nodes": {"default": context}}))
        config.chmod(0o600)
        return config

    return make


@pytest.mark.requirement("S2.22")
@pytest.mark.requirement("S4.15")
def test_show_tells_user_role_and_scheme_of_each(made: Path) -> None:
    """And that the keys are closed to others, as openssl makes them."""
    for who in EVERYBODY:
        certificate = shown(made / f"{who.file}.crt")
        assert certificate["users"] == [who.user]
        assert certificate["roles"] == [{"role": who.role, "scheme": who.scheme}]
        assert certificate["purposes"] == ["clientAuth"]
        assert (made / f"{who.file}.key").stat().st_mode & 0o077 == 0
    assert shown(made / "ca.crt")["authority"]
    assert shown(made / "server.crt")["names"] == ["localhost", "127.0.0.1", "::1", "node-1.example.com"]


@pytest.mark.requirement("S2.22")
@pytest.mark.requirement("S2.23")
@pytest.mark.requirement("S2.24")
@pytest.mark.requirement("S2.25")
@pytest.mark.requirement("S3.25")
@pytest.mark.requirement("S4.17")
@pytest.mark.requirement("S4.19")
@pytest.mark.requirement("S0.37")
@pytest.mark.parametrize("who", EVERYBODY, ids=lambda who: who.file)
def test_each_role_may_do_what_it_should(node: Node, made: Path, configured: Callable[..., Path], who: Who) -> None:
    """With somebody else's job. `joblet up` has made a configuration for default.crt itself, and checked its health."""
    config = configured(node, made, who.file, text=who.scheme == "mark")
    job = node.detached("--", "sleep", "1000")
    node.wait_for_state(job, "running")
    try:
        assert (rnx(config, "job", "run", "--", "true").returncode == 0) is who.may_run
        assert (rnx(config, "job", "status", job).returncode == 0) is who.may_see
        assert (job in rnx(config, "job", "list").stdout.decode()) is who.may_see
        assert (rnx(config, "job", "log", job, "--no-follow").returncode == 0) is who.may_see
        assert (rnx(config, "job", "stop", job, "--grace", "0s").returncode == 0) is who.may_stop
    finally:
        node.rnx("job", "stop", job, "--grace", "0s")
        node.rnx("job", "wait", job)
    assert node.status(job)["owner"] == "ada"


@pytest.mark.threat("D32")
def test_the_list_that_openssl_made_is_shown(made: Path) -> None:
    """Who is on it, why, and that the others are not."""
    (crl,) = json.loads(joblet("show", "--json", str(made / "ca.crl")))["lists"]
    serial = shown(made / "user.crt")["serial"]
    assert [(each["serial"], each["reason"]) for each in crl["revoked"]] == [(serial, "superseded")]
    assert (crl["number"], crl["days_left"]) == (1, 29)
    assert shown(made / "user.crt")["revoked"]
    assert not shown(made / "writer.crt")["revoked"]
    assert serial in joblet("revoke", "--list", "--dir", str(made))


def test_our_program_renews_and_revokes_what_openssl_made(
    node: Node, made: Path, tmp_path: Path, configured: Callable[..., Path]
) -> None:
    """The role stays where it stood, the node takes it; our list keeps the entry of theirs; openssl accepts it."""
    own = tmp_path / "own"
    shutil.copytree(made, own)
    before = shown(own / "writer.crt")
    joblet("renew", "writer", "--dir", str(own))
    after = shown(own / "writer.crt")
    assert (after["users"], after["roles"]) == (before["users"], before["roles"])
    assert after["serial"] != before["serial"]
    assert rnx(configured(node, own, "writer", text=False), "job", "list").returncode == 0
    joblet("revoke", "writer", "--dir", str(own), "--reason", "keycompromise")
    (crl,) = json.loads(joblet("show", "--json", str(own / "ca.crl")))["lists"]
    assert crl["number"] == 2
    assert {each["serial"] for each in crl["revoked"]} == {shown(own / "user.crt")["serial"], after["serial"]}

    def verdict(name: str) -> int:
        command = ["openssl", "verify", "-x509_strict", "-crl_check", "-CAfile", "ca.crt", "-CRLfile", "ca.crl", name]
        return subprocess.run(command, cwd=own, capture_output=True, check=False).returncode

    assert [verdict(f"{name}.crt") for name in ("writer", "user", "admin", "default")] == [2, 2, 0, 0]


@pytest.mark.requirement("S0.37")
def test_certificates_as_text_in_both_configurations(made: Path, configured: Callable[..., Path]) -> None:
    """The node's own and the client's: nothing lies in the usual place; a restart takes them as paths instead."""
    names = {"serverCert": "server.crt", "serverKey": "server.key", "caCert": "ca.crt"}
    own = Node(make_base("texts", {"security": {key: (made / name).read_text() for key, name in names.items()}}))
    try:
        put(made, own.base / "certs")
        for text in (True, False):
            if not text:
                security = {"security": {key: str(made / name) for key, name in names.items()}}
                file = own.base / "joblet-config.yml"
                file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | security))
            own.start()
            assert list((own.base / "certs").iterdir()) == [], "nothing was made beside them"
            for config in (configured(own, made, "admin", text=True), configured(own, made, "writer", text=False)):
                done = rnx(config, "job", "run", "--", "echo", "hello")
                assert (done.returncode, done.stdout, done.stderr) == (0, b"hello\n", b"")
            own.stop()
    finally:
        own.remove()


@pytest.mark.threat("D02")
def test_a_ca_is_rolled_over_as_documented(made: Path, tmp_path: Path, configured: Callable[..., Path]) -> None:
    """While both are trusted the clients of both come in, whichever signed the server; in the end only the new one's.

    The node is restarted between the steps; that it would find the files by itself is proved elsewhere.
    """
    commands = next(text for _, text in BLOCK.findall(section("Rolling the CA over")))
    own = Node(make_base("rollover"))
    certs = own.base / "certs"
    put(made, certs, *(f"{name}.{ending}" for name in ("ca", "server", "default") for ending in ("crt", "key")))
    old = tmp_path / "old"
    shutil.copytree(certs, old)
    steps = commands.replace(ROLLED_BY, str(tmp_path / "new")).replace(CERTS, str(certs)).splitlines(keepends=True)
    both, end = "".join(steps[:4]), "".join(steps[4:])
    try:
        shell(both, certs)
        joblet("issue", "--cn", "late", "--role", "reader", "--dir", str(certs))
        own.start()
        for files, name in ((old, "default"), (certs, "late")):
            done = rnx(configured(own, files, name, text=False, ca=certs / "ca.crt"), "job", "list")
            assert done.returncode == 0, done.stderr
        own.stop()
        shell(f"cd {certs}\n{end}", certs)
        own.start()
        assert shown(certs / "default.crt")["issuer"] == shown(certs / "ca.crt")["subject"]
        assert own.rnx("job", "list").returncode == 0
        refused = rnx(configured(own, old, "default", text=False, ca=certs / "ca.crt"), "job", "list")
        assert refused.returncode == 5
        assert b"refuses this certificate" in refused.stderr
    finally:
        own.remove()
