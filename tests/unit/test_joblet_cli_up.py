"""`joblet up` and `joblet down` with the real services: the one line, first files, restart, lock, end."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import yaml

from cli.joblet.firststart import client_config
from cli.joblet.main import run
from cli.joblet.uplock import UpLock, holder
from common.config.layout import layout_of
from common.config.settings import Joblet, Settings
from common.errors import JobletError
from tests.leaks import CGROUP_ROOT, OWN_MARK, children_of
from tests.waiting import wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

JOBLET: Final = (sys.executable, "-m", "cli.joblet.main")
START_TIMEOUT_S: Final = 60


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """`up` sets the umask of its process, which here and there is that of the tests."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    """A base directory that service users can reach; its configuration binds loopback only."""
    with tempfile.TemporaryDirectory(prefix="joblet-test-") as directory:
        path = Path(directory)
        path.chmod(0o755)
        (path / "joblet-config.yml").write_text(
            f'version: "3.0"\nserver: {{nodeId: test, address: 127.0.0.1}}\njoblet: {{cgroup_parent: {OWN_MARK}-up}}\n'
        )
        yield path
    for parent in CGROUP_ROOT.glob(f"*/{OWN_MARK}-up*"):
        parent.rmdir()


class Up:
    """A running `joblet up`."""

    def __init__(self, base: Path, *arguments: str) -> None:
        self._log = (base / "test-up.log").open("a+")
        self.process = subprocess.Popen(
            [*JOBLET, "up", "--base-dir", str(base), "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()

    def log(self) -> str:
        """What it wrote to stderr."""
        self._log.seek(0)
        return self._log.read()

    def service(self, name: str) -> int:
        """Pid of a service; 0 while there is none."""
        for pid in children_of(self.process.pid):
            try:
                if Path(f"/proc/{pid}/comm").read_text().strip() == f"joblet-{name}":
                    return pid
            except (FileNotFoundError, ProcessLookupError):
                continue
        return 0

    def end(self) -> tuple[int, str]:
        """SIGTERM; exit code, and what else it wrote to stdout."""
        self.process.terminate()
        assert self.process.stdout is not None
        rest = self.process.stdout.read()
        self._log.close()
        return self.process.wait(START_TIMEOUT_S), rest


def rnx(base: Path, *arguments: str) -> str:
    """What the user's program prints, as admin of this node."""
    command = [sys.executable, "-m", "cli.rnx", "--config", str(base / "rnx-config.yml"), *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True).stdout


@pytest.mark.requirement("S0.2")
@pytest.mark.requirement("S0.61")
def test_up_prints_one_line_keeps_services_running_and_ends_them(base: Path) -> None:
    """The whole life: first files, ready line, `ps` names, kill -9, a second up, SIGTERM."""
    up = Up(base)
    match = re.fullmatch(rf"joblet ready: 127\.0\.0\.1:(\d+) config={base}/rnx-config\.yml\n", up.line)
    assert match, (up.line, up.log())
    port = int(match[1])

    nodes = yaml.safe_load((base / "rnx-config.yml").read_text())["nodes"]
    assert list(nodes) == ["default", "writer", "user", "reader"]
    assert {node["address"] for node in nodes.values()} == {f"127.0.0.1:{port}"}
    for secret in [base / "rnx-config.yml", *(base / "certs").glob("*.key")]:
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600

    pids = {name: up.service(name) for name in ("volumes", "persist", "executor", "api")}
    assert all(pids.values()), pids
    uids = {name: Path(f"/proc/{pid}").stat().st_uid for name, pid in pids.items()}
    assert (uids["executor"], uids["volumes"]) == (0, 0)

    second = subprocess.run(
        [*JOBLET, "up", "--base-dir", str(base), "--port", "0"], capture_output=True, text=True, timeout=60, check=False
    )
    assert second.returncode == 4
    assert second.stdout == ""
    assert f"pid {up.process.pid}" in second.stderr.splitlines()[-1]

    os.kill(pids["persist"], signal.SIGKILL)
    wait_for(lambda: up.service("persist") not in {0, pids["persist"]}, timeout_s=20, what="persist to be restarted")
    assert {name: up.service(name) for name in ("volumes", "executor", "api")} == {
        name: pid for name, pid in pids.items() if name != "persist"
    }
    doctor = subprocess.run(
        [*JOBLET, "doctor", "--base-dir", str(base), "--json"], capture_output=True, timeout=60, check=False
    )
    assert json.loads(doctor.stdout)["node_id"] == "test"
    assert json.loads(doctor.stdout)["source"] == "node"
    assert doctor.returncode == (1 if json.loads(doctor.stdout)["unmet"] else 0)

    assert up.end() == (0, "")
    assert not [pid for pid in pids.values() if Path(f"/proc/{pid}").exists()]
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0, "nobody listens any more"
    assert holder(base) == 0


def test_after_a_killed_supervisor_up_just_starts_again_detached_until_down(base: Path) -> None:
    """Services do not outlive it; --detach prints the same line and returns; `down` ends it all, with --stop-jobs."""
    up = Up(base)
    assert up.line, up.log()
    authority = (base / "certs" / "ca.crt").read_bytes()
    pids = [up.service(name) for name in ("volumes", "persist", "executor", "api")]
    up.process.kill()
    up.process.wait()
    wait_for(
        lambda: not [pid for pid in pids if Path(f"/proc/{pid}").exists()], timeout_s=20, what="the services to end"
    )
    result = subprocess.run(
        [*JOBLET, "up", "--detach", "--stop-jobs", "--base-dir", str(base), "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        timeout=START_TIMEOUT_S,
        check=False,
    )
    pid = holder(base)
    try:
        assert result.returncode == 0
        assert result.stdout.startswith("joblet ready: ")
        assert pid
        assert (base / "certs" / "ca.crt").read_bytes() == authority, "certificates are made once"
        job = rnx(base, "job", "run", "--detach", "--", "sleep", "300").strip()
        job_pid = wait_for(lambda: json.loads(rnx(base, "--json", "job", "status", job))["pid"], what="the job to run")
        assert Path(f"/proc/{job_pid}").exists()
    finally:
        assert run(["down", "--base-dir", str(base)]) == 0
    assert holder(base) == 0
    assert not Path(f"/proc/{job_pid}").exists(), "--stop-jobs ends them"
    assert run(["down", "--base-dir", str(base)]) == 5


@pytest.mark.threat("F25")
def test_a_service_that_cannot_start_fails_the_start_with_its_name(base: Path) -> None:
    """Exit 5, one line that names it, nothing on stdout, nothing left running."""
    taken = base / "run" / "persist-ipc.sock.lock"
    script = f"import fcntl, sys; f = open({str(taken)!r}, 'a'); fcntl.flock(f, 2); print('held', flush=True); input()"
    thief = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert thief.stdout is not None
    thief.stdout.readline()
    up = Up(base)
    assert up.process.wait(START_TIMEOUT_S) == 5
    assert up.line == ""
    assert up.log().splitlines()[-1].startswith("joblet: joblet-persist did not start: it ended 5 times")
    thief.communicate("\n", timeout=20)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["up", "--config", "/none.yml"], 3, "no configuration file"),
        (["up", "--port", "70000"], 2, "--port"),
        (["down", "--base-dir", "/none"], 5, "no joblet up runs"),
        (["frobnicate"], 2, "No such command"),
        (["config", "check", "/none.yml"], 3, "no configuration file"),
    ],
)
def test_errors_are_one_line_with_the_exit_code_of_the_contract(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What, then what to do; nothing on stdout."""
    assert run(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert words in captured.err


@pytest.mark.parametrize("command", [[], ["up"], ["down"], ["certs", "issue"], ["tap"], ["verify"], ["doctor"]])
def test_every_command_has_help_with_an_example(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """--help exits 0 and shows how it is used."""
    assert run([*command, "--help"]) == 0
    assert "Example: " in capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_program(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One for each shell of the contract."""
    assert run(["completion", shell]) == 0
    assert "_JOBLET_COMPLETE" in capsys.readouterr().out


def test_config_check_and_show(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A valid file passes; what holds is printed as YAML with everything filled in."""
    assert run(["config", "check", str(base / "joblet-config.yml")]) == 0
    capsys.readouterr()
    assert run(["config", "show", "--base-dir", str(base)]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["joblet"]["base_dir"] == str(base)
    assert shown["persist"]["storage"]["local"]["logs"]["directory"] == f"{base}/logs"


def test_the_client_configuration_follows_the_port_and_keeps_what_is_not_ours(tmp_path: Path) -> None:
    """Other addresses and contexts stay as they are; without any certificate there is no file."""
    settings = Settings(joblet=Joblet(base_dir=str(tmp_path)))
    layout = layout_of(settings)
    assert client_config(settings, layout, 1) is None
    layout.certs.mkdir()
    (layout.certs / "default.crt").touch()
    file = client_config(settings, layout, 1)
    assert file is not None
    document = yaml.safe_load(file.read_text())
    assert document["nodes"]["default"]["address"] == "127.0.0.1:1"
    document["nodes"]["far"] = {"address": "127.0.0.1:9", "cert": "a", "key": "b", "ca": "c"}
    document["nodes"]["writer"] = {"address": "10.0.0.1:9", "cert": "a", "key": "b", "ca": "c"}
    file.write_text(yaml.safe_dump(document))
    client_config(settings, layout, 2)
    addresses = {name: node["address"] for name, node in yaml.safe_load(file.read_text())["nodes"].items()}
    assert addresses == {"default": "127.0.0.1:2", "far": "127.0.0.1:9", "writer": "10.0.0.1:9"}
    file.write_text("nodes: [")
    with pytest.raises(JobletError, match="cannot be read"):
        client_config(settings, layout, 3)


def test_the_lock_tells_its_holder_and_goes_with_it(tmp_path: Path) -> None:
    """POSIX locks are per process: the second holder is another process."""
    script = f"from pathlib import Path; from cli.joblet.uplock import UpLock; l = UpLock(Path({str(tmp_path)!r}));"
    other = subprocess.Popen(
        [sys.executable, "-c", script + "print('held', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    other.stdout.readline()
    assert holder(tmp_path) == other.pid
    with pytest.raises(JobletError, match=f"pid {other.pid}"):
        UpLock(tmp_path)
    other.kill()
    other.communicate()
    assert holder(tmp_path) == 0
    lock = UpLock(tmp_path)
    assert (tmp_path / "joblet.pid").read_text() == f"{os.getpid()}\n"
    lock.close()


def test_without_root_a_base_directory_of_root_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is made in it, with the way out. What works without root: tests/e2e/test_rootless.py."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert run(["up", "--base-dir", str(tmp_path)]) == 4
    assert "name one of your own" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


STAY: Final = """
import sys, time
while any(word.endswith(("joblet-executor", "services.executor")) for word in sys.orig_argv[1:3]):
    time.sleep(1)
"""
"""As sitecustomize (see the module site): the executor begins and never comes to its first line."""


def test_sigterm_while_starting_ends_it_without_a_line(base: Path, tmp_path: Path) -> None:
    """Whoever gives up waiting leaves no half-started node behind."""
    (tmp_path / "sitecustomize.py").write_text(STAY)
    with (base / "test-up.log").open("w+") as log:
        process = subprocess.Popen(
            [*JOBLET, "up", "--base-dir", str(base), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
        )
        wait_for(
            lambda: "persist  | started" in (base / "test-up.log").read_text(),
            timeout_s=START_TIMEOUT_S,
            what="persist to be started",
        )
        children = children_of(process.pid)
        process.terminate()
        output, _ = process.communicate(timeout=START_TIMEOUT_S)
    assert (process.returncode, output) == (0, "")
    assert children
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
