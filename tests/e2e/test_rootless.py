"""A node of an ordinary user: `joblet up` without root, on a host that delegates nothing to him.

The test itself is root, so it becomes somebody: a uid without a name, without groups and capabilities. Interpreter and
checkout may lie below a directory that is closed to him (/root); in a mount namespace of his own they are put where
they are, behind empty directories that are open. Nothing else of the host is changed for him.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.e2e import node as nodes
from tests.e2e.node import PROGRAMS, READY, SERVICES, START_TIMEOUT_S, Node, make_base, numbers
from tests.leaks import CGROUP_ROOT, OWN_MARK, SPARE_TITLE
from tests.waiting import SLOWNESS, wait_for

ROOT: Final = Path(__file__).resolve().parents[2]
UID: Final = 61_000 + os.getpid() % 3_000
"""Of nobody. Two test runs on one host have two."""

BECOME: Final = """
import os, sys
from common.linux import mounts
from services.executor.linux import namespaces
uid, kept, group, command = int(sys.argv[1]), sys.argv[2].split(":"), sys.argv[3], sys.argv[4:]
def closed(path):
    above = [path[:end] for end in range(1, len(path) + 1) if path[end:end + 1] in ("/", "")]
    return next((each for each in above if not os.stat(each).st_mode & 1), None)
namespaces.unshare(namespaces.CLONE_NEWNS)
mounts.mount("none", "/", None, mounts.MS_REC | mounts.MS_PRIVATE)
hidden = [(path, closed(path), mounts.open_tree(path, recursive=True)) for path in kept if closed(path)]
os.umask(0o022)
for top in {top for _, top, _ in hidden}:
    mounts.mount("tmpfs", top, "tmpfs", 0, "mode=0755")
for path, _, tree in hidden:
    os.makedirs(path, exist_ok=True)
    mounts.move_mount(tree, os.open(path, os.O_PATH))
if group:
    with open(f"{group}/cgroup.procs", "w") as members:
        members.write("0")
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
os.execv(command[0], command)
"""


def as_user(*command: str, group: str = "") -> list[str]:
    """The argument vector that runs `command` as the user, in a v2 group if one is given."""
    kept = dict.fromkeys(str(Path(path).resolve()) for path in (sys.base_prefix, sys.prefix, ROOT))
    return [sys.executable, "-c", BECOME, str(UID), ":".join(kept), group, *command]


class RootlessNode(Node):
    """A node that the user starts. `group` is a control group that was delegated to him; "": none was."""

    def __init__(self, base: Path, group: str = "") -> None:
        super().__init__(base)
        self.group = group

    def start(self, *arguments: str) -> None:
        """Run `joblet up` until it is ready; AssertionError with its log when that does not happen."""
        command = as_user(
            *(str(PROGRAMS / "joblet"), "up", "--base-dir", str(self.base), "--port", str(self.port)), group=self.group
        )
        with self.log.open("ab") as log:
            self._up = subprocess.Popen(
                [*command, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, cwd=ROOT
            )
        assert self._up.stdout is not None
        ready, _, _ = select.select([self._up.stdout], [], [], START_TIMEOUT_S * SLOWNESS)
        match = READY.fullmatch(self._up.stdout.readline() if ready else b"")
        assert match, self.log_text()[-5000:]
        self.port = int(match[1])
        for file in (self.base / "certs").iterdir():
            nodes._certificates.setdefault(file.name, file.read_bytes())

    def doctor(self) -> subprocess.CompletedProcess[bytes]:
        """What the doctor says to the user."""
        command = as_user(str(PROGRAMS / "joblet"), "doctor", "--json", "--base-dir", str(self.base))
        return subprocess.run(command, capture_output=True, timeout=60 * SLOWNESS, check=False, cwd=ROOT)


def processes_of_user() -> list[str]:
    """Command lines of everything that runs as the user, on the whole host."""
    found = []
    for directory in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it has ended, or is no process
            if directory.name.isdigit() and f"\nUid:\t{UID}\t" in (directory / "status").read_text():
                found.append((directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found


@contextlib.contextmanager
def started(name: str, group: str = "") -> Iterator[RootlessNode]:
    """A node of the user's; at the end nothing of him is left on the host."""
    node = RootlessNode(make_base(name), group)
    for path in (node.base, *node.base.rglob("*")):
        os.chown(path, UID, UID)
    others = set(processes_of_user())
    try:
        node.start()
        yield node
    finally:
        node.remove()
    wait_for(
        lambda: all(is_spare(each) for each in set(processes_of_user()) - others), what="everything of the user to end"
    )


def is_spare(command: str) -> bool:
    """Whether it is a spare sandbox of a node that is still there, which prepares them when it likes."""
    job = command.removeprefix(SPARE_TITLE).strip()
    return job != command.strip() and any(Path(tempfile.gettempdir()).glob(f"{OWN_MARK}-*/jobs/{job}"))


@pytest.fixture(scope="module")
def rootless() -> Iterator[RootlessNode]:
    """The node that the tests share which stop none."""
    with started("rootless") as node:
        yield node


@pytest.fixture
def restarted() -> Iterator[RootlessNode]:
    """A node for one test."""
    with started("restarted") as node:
        yield node


@pytest.fixture
def group() -> Iterator[Path]:
    """A group of the v2 hierarchy that belongs to the user, as systemd makes one."""
    tree = next((each for each in (CGROUP_ROOT, CGROUP_ROOT / "unified") if _is_v2(each)), None)
    if tree is None:
        pytest.skip("needs cgroups v2")
    directory = tree / f"{OWN_MARK}-rootless"
    directory.mkdir()
    for name in ("", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"):
        os.chown(directory / name, UID, UID)
    yield directory
    for each in (*(each for each in directory.iterdir() if each.is_dir()), directory):
        wait_for(lambda each=each: not _removed(each), what=f"{each} to be empty")  # type: ignore[misc]


def _is_v2(directory: Path) -> bool:
    return (directory / "cgroup.controllers").exists()


def _removed(group: Path) -> str:
    """Why not; "": it is."""
    try:
        group.rmdir()
    except FileNotFoundError:
        return ""  # whoever was in it has removed it, a moment ago
    except OSError as cause:
        return str(cause)
    return ""


def levels(document: dict[str, Any]) -> dict[str, str]:
    """Name → level."""
    return {each["name"]: each["level"] for each in document["capabilities"]}


def test_all_of_it_is_the_users(rootless: RootlessNode) -> None:
    """Every service runs as him, without a capability or a way to get one, and nobody else can reach its sockets."""
    for name in SERVICES:
        told = Path(f"/proc/{rootless.service(name)}/status").read_text()
        status = dict(line.split(":\t", 1) for line in told.splitlines() if ":\t" in line)
        assert status["Uid"].split() == [str(UID)] * 4
        assert (status["CapEff"], status["CapPrm"], status["NoNewPrivs"]) == ("0" * 16, "0" * 16, "1")
    assert rootless.base.stat().st_mode & 0o777 == 0o700
    assert (rootless.base / "run").stat().st_mode & 0o777 == 0o700


@pytest.mark.threat("A13")
@pytest.mark.threat("A14")
def test_a_job_is_confined(rootless: RootlessNode) -> None:
    """It is uid 1000, sees no process but its own, has no capability, and can write to nothing of the host."""
    script = (
        "id -u; touch mine; ls -ln mine; ls /proc | grep '^[0-9]' | sort -n | head -2; cat /proc/self/uid_map;"
        " grep -E 'CapBnd|NoNewPrivs|Seccomp:' /proc/self/status; cat /proc/1/environ; kill -9 1; cd /; ls;"
        f" ls {rootless.base}; for path in /x /usr/x /etc/x; do echo >$path; done; ls /sys; unshare -U true; true"
    )
    done = rootless.rnx("job", "run", "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    assert lines[0] == "1000"
    assert lines[1].split()[2:4] == ["1000", "1000"]
    assert lines[2:4] == ["1", "2"]
    assert lines[4].split() == ["1000", str(UID), "1"]
    assert [line.split()[1] for line in lines[5:8]] == ["0" * 16, "1", "2"]
    assert lines[8:] == ["bin", "dev", "etc", *([] if "lib32" not in lines else ["lib32"]), "lib", *lines[12:]]
    assert {"proc", "tmp", "usr", "volumes", "work"} <= set(lines[8:])
    errors = done.stderr.decode()
    assert errors.count("Read-only file system") + errors.count("Permission denied") >= 3
    assert str(rootless.base) in errors, "the base directory is not there"
    assert "/sys" in errors
    assert "unshare" in errors


def test_limits_that_are_not_delegated_are_refused_by_name(rootless: RootlessNode) -> None:
    """With the repair; and what needs no control group holds."""
    for option, value, name in (
        ("--max-memory", "64", "memory_bytes"),
        ("--max-cpu", "50", "cpu_percent"),
        ("--pids", "100", "pids"),
        ("--cpu-weight", "100", "cpu_weight"),
        ("--cpu-cores", "0", "cpu_cores"),
    ):
        done = rootless.rnx("job", "run", option, value, "--", "true")
        assert done.returncode == 4
        assert name in done.stderr.decode()
        assert "no control group is delegated to this user" in done.stderr.decode()
    refused = rootless.rnx("job", "run", "--network", "bridge", "--", "true")
    assert refused.returncode == 4
    assert "network bridge needs root" in refused.stderr.decode()
    timed = rootless.rnx("job", "run", "--timeout", "200ms", "--", "sleep", "60")
    assert timed.returncode != 0
    assert rootless.jobs()[0]["state"] == "timed_out"


def test_the_doctor_asks_the_node_and_clients_see_the_same(rootless: RootlessNode) -> None:
    """What cannot be had without root is told; nothing that a job needs is missing."""
    done = rootless.doctor()
    found = json.loads(done.stdout)
    assert (done.returncode, found["source"], found["unmet"]) == (0, "node", [])
    assert levels(found) == levels(json.loads(rootless.ok("--json", "node", "info")))
    assert found["cgroup_version"] == "none"
    assert {name for name, level in levels(found).items() if level == "missing"} >= {
        *("owner.range", "limit.memory", "limit.cpu", "limit.pids", "network.bridge", "cgroup.kill"),
    }
    enforced = {name for name, level in levels(found).items() if level == "enforced"}
    assert {"seccomp", "namespace.user", "namespace.net", "network.none", "limit.open_files"} <= enforced


@pytest.mark.requirement("S1.15")
def test_volumes_are_advisory(rootless: RootlessNode) -> None:
    """A size that nobody can enforce must be asked for as that; files stay from job to job; nothing is mounted."""
    refused = rootless.rnx("volume", "create", "data", "--size=1MB")
    assert refused.returncode == 4
    assert b"--advisory" in refused.stderr
    assert rootless.rnx("volume", "create", "quick", "--size=1MB", "--type=memory").returncode == 4
    assert rootless.rnx("volume", "create", "secret", "--size=1MB", "--advisory", "--encrypt").returncode == 4
    rootless.ok("volume", "create", "data", "--size=1MB", "--advisory")
    write = ("sh", "-c", "echo kept > /volumes/data/file; head -c 2000000 /dev/zero > /volumes/data/large")
    rootless.ok("job", "run", "--volume", "data", "--", *write)
    assert rootless.ok("job", "run", "--volume", "data:/in:ro", "--", "cat", "/in/file") == b"kept\n"

    def shown() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(rootless.ok("--json", "volume", "inspect", "data"))
        return found

    assert shown()["enforcement"] == "advisory"
    wait_for(lambda: shown()["used_bytes"] > 2_000_000, timeout_s=60, what="the next round to measure it")
    assert "nothing enforces its size" in shown()["reason"]
    rootless.ok("volume", "remove", "data", "--force")
    assert not list((rootless.base / "volumes").iterdir())


def test_a_job_is_stopped_with_all_its_processes(rootless: RootlessNode) -> None:
    """Nobody holds its processes in a group; the end of its pid namespace takes them, those that ignore signals too."""
    mark = f"{UID}.25"
    script = f"trap '' TERM; sleep {mark} & (setsid sleep {mark} &) ; sleep {mark}"
    job = rootless.detached("--", "sh", "-c", script)
    wait_for(lambda: sum(mark in each for each in processes_of_user()) >= 3, what="the job's processes to run")
    rootless.ok("job", "stop", "--grace", "200ms", job)
    assert rootless.wait_for_state(job, "stopped", "failed")["state"] == "stopped"
    wait_for(lambda: not any(mark in each for each in processes_of_user()), what="the job's processes to end")


def test_a_running_job_outlives_the_node(restarted: RootlessNode) -> None:
    """Stopped and started again, the node has all that the job printed meanwhile, and can stop it."""
    job = restarted.detached("--", "sh", "-c", "i=0; while :; do i=$((i + 1)); echo $i; sleep 0.05; done")
    wait_for(lambda: len(restarted.entries(job)) > 3, what="output")
    assert restarted.stop() == 0
    assert sum(f"joblet-monitor {job}" in each for each in processes_of_user()) == 1
    restarted.start()
    assert restarted.status(job)["state"] == "running"
    last = numbers(restarted.entries(job))[-1]
    wait_for(lambda: numbers(restarted.entries(job))[-1] > last + 3, what="more output")
    restarted.ok("job", "stop", job)
    restarted.wait_for_state(job, "stopped", "failed")
    seen = numbers(restarted.entries(job))
    assert seen == list(range(1, len(seen) + 1))
    assert not list((restarted.base / "jobs" / job).glob("root"))


def test_a_delegated_group_is_used_by_the_ordinary_driver(group: Path) -> None:
    """Jobs are born in it and killed in it; nobody is left in its root, and what the host delegated is enforced."""
    with started("delegated", str(group)) as node:
        found = json.loads(node.ok("--json", "node", "info"))
        assert found["cgroup_version"] == "v2"
        assert {levels(found)[name] for name in ("cgroup.clone_into", "cgroup.kill")} == {"enforced"}
        controllers = set((group / "cgroup.controllers").read_text().split())
        for name, controller in (("limit.cpu", "cpu"), ("limit.memory", "memory"), ("limit.pids", "pids")):
            assert levels(found)[name] == ("enforced" if controller in controllers else "missing")
        job = node.detached("--", "sleep", "300")
        node.wait_for_state(job, "running")
        (leaf,) = group.glob(f"*/{job}")
        assert len((leaf / "cgroup.procs").read_text().split()) == 2
        assert (group / "cgroup.procs").read_text() == ""
        node.ok("job", "stop", job)
        node.wait_for_state(job, "stopped", "failed")
        wait_for(lambda: not leaf.exists(), what="the job's group to be removed")


def test_a_probe_without_a_node_finds_the_same(rootless: RootlessNode) -> None:
    """The doctor on an empty base directory tries by itself, as whoever runs it, and says so."""
    asked = json.loads(rootless.doctor().stdout)
    elsewhere = RootlessNode(Path(f"{rootless.base}-elsewhere"))
    done = elsewhere.doctor()
    found = json.loads(done.stdout)
    assert (done.returncode, found["source"]) == (0, "probe")
    assert levels(found) == levels(asked)
    assert not elsewhere.base.exists(), "it made nothing"
