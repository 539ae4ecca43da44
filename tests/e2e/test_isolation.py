"""What a job can see of the host and of the other jobs, told by probes that run inside."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.node import Node

CANARY = "JOBLET_CANARY"
PROBE = r"""
import json, os, socket
def read(path):
    try:
        with open(path, "rb") as stream:
            return stream.read(100000).decode("utf-8", "replace")
    except OSError as error:
        return "errno %%d" %% error.errno
status = dict(line.split(":\t", 1) for line in read("/proc/self/status").splitlines() if ":\t" in line)
try:
    client = socket.create_connection(("127.0.0.1", %(port)d), 2)
    loopback = "connected"
except OSError as error:
    loopback = "errno %%d" %% (error.errno or 0)
print(json.dumps({
    "pid": os.getpid(), "ppid": os.getppid(), "sid": os.getsid(0),
    "pids": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
    "commands": [read("/proc/%%s/cmdline" %% name) for name in os.listdir("/proc") if name.isdigit()],
    "fds": sorted(int(name) for name in os.listdir("/proc/self/fd"))[:-1],
    "cwd": os.getcwd(), "uid": os.getresuid(), "gid": os.getresgid(), "groups": os.getgroups(),
    "host": socket.gethostname(), "root": sorted(os.listdir("/")), "env": dict(os.environ),
    "base": os.path.exists(%(base)r), "mountinfo": read("/proc/self/mountinfo"), "cgroup": read("/proc/self/cgroup"),
    "caps": [status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
    "no_new_privs": status["NoNewPrivs"], "interfaces": [name for _, name in socket.if_nameindex()],
    "loopback": loopback, "environ_of_1": read("/proc/1/environ"), "shadow": read("/etc/shadow"),
    "write": {path: os.access(path, os.W_OK) for path in ("/", "/usr", "/usr/bin", "/etc", "/tmp", "/work")},
    "sys": os.path.isdir("/sys") and sorted(os.listdir("/sys")),
    "devices": sorted(os.listdir("/dev")), "work": os.statvfs("/work").f_blocks * os.statvfs("/work").f_frsize,
    "core_pattern": os.access("/proc/sys/kernel/core_pattern", os.W_OK),
}))
"""


@pytest.fixture(scope="module")
def seen(node: Node) -> dict[str, Any]:
    """What a job saw. The interpreter must be the system's: ours may lie where no job can reach."""
    probe = PROBE % {"port": node.port, "base": str(node.base)}
    command = ("job", "run", "--env", "ASKED=yes", "--", "/usr/bin/python3", "-I", "-c", probe)
    if not Path("/usr/bin/python3").exists():
        pytest.skip("needs /usr/bin/python3 for the probe")
    found: dict[str, Any] = json.loads(node.ok(*command))
    return found


@pytest.mark.requirement("T.5")
def test_processes(seen: dict[str, Any]) -> None:
    """PID 2, child of PID 1, and nobody else."""
    assert (seen["pid"], seen["ppid"], seen["pids"]) == (2, 1, [1, 2])


@pytest.mark.threat("A01")
@pytest.mark.threat("A02")
def test_nothing_is_inherited(seen: dict[str, Any]) -> None:
    """Descriptors 0, 1 and 2, its own session, /work as directory, an environment of what was asked and a fixed few."""
    assert seen["fds"][:3] == [0, 1, 2]
    assert len(seen["fds"]) <= 3
    assert seen["cwd"] == "/work"
    assert seen["sid"] in (1, 2)
    assert seen["env"].pop("ASKED") == "yes"
    assert set(seen["env"]) <= {
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "TMPDIR",
        "PWD",
    } | {name for name in seen["env"] if name.startswith("JOBLET_")}


@pytest.mark.threat("B02")
def test_environment_of_the_services_does_not_leak(seen: dict[str, Any]) -> None:
    """What the operator's environment holds is seen neither in the job's nor in init's."""
    leaked = [
        name
        for name in os.environ
        if name in seen["env"] and name not in ("PATH", "HOME", "LANG", "SHELL", "PWD", "USER", "LOGNAME", "TMPDIR")
    ]
    assert not leaked
    assert CANARY not in seen["environ_of_1"]
    assert "PYTEST" not in seen["environ_of_1"]


@pytest.mark.requirement("S1.38")
@pytest.mark.requirement("S1.10")
@pytest.mark.requirement("S1.11")
@pytest.mark.threat("B01")
def test_files(seen: dict[str, Any]) -> None:
    """A root of its own with the system's directories, and nothing of the host's data or of joblet's."""
    expected = {"bin", "dev", "etc", "lib", "lib32", "lib64", "proc", "sbin", "tmp", "usr", "volumes", "work"}
    assert set(seen["root"]) <= expected
    assert {"bin", "dev", "etc", "proc", "tmp", "usr", "work"} <= set(seen["root"])
    assert not seen["base"]
    assert seen["shadow"].startswith("errno")
    assert seen["write"] == {"/": False, "/usr": False, "/usr/bin": False, "/etc": False, "/tmp": True, "/work": True}
    assert not seen["sys"]


@pytest.mark.threat("B04")
def test_sockets_of_the_services_are_out_of_reach(node: Node) -> None:
    """No socket file is anywhere in the job's tree."""
    assert (
        node.ok(
            "job",
            "run",
            "--",
            "sh",
            "-c",
            r"find / \( -path /usr -o -path /proc \) -prune -o -type s -print 2>/dev/null; true",
        )
        == b""
    )


@pytest.mark.threat("A26")
@pytest.mark.threat("B08")
def test_mounts_tell_nothing(node: Node, seen: dict[str, Any]) -> None:
    """No host path beyond the system directories, nothing shared with the host, and the cgroup looks like the root."""
    assert str(node.base) not in seen["mountinfo"]
    assert "shared:" not in seen["mountinfo"]
    assert "put_old" not in seen["mountinfo"]
    assert all(line.rsplit(":", 1)[1] == "/" for line in seen["cgroup"].split())


@pytest.mark.threat("A13")
@pytest.mark.threat("A14")
@pytest.mark.threat("A15")
def test_no_privileges(seen: dict[str, Any]) -> None:
    """All capability sets empty, no_new_privs, an unprivileged uid, no further groups."""
    assert {int(caps, 16) for caps in seen["caps"]} == {0}
    assert seen["no_new_privs"] == "1"
    assert 0 not in [*seen["uid"], *seen["gid"]]
    assert set(seen["groups"]) <= {seen["gid"][0]}
    assert not seen["core_pattern"]


@pytest.mark.threat("B06")
def test_network_is_an_empty_one(seen: dict[str, Any]) -> None:
    """Loopback only, and it is not the host's: the node's own port is not there."""
    assert seen["interfaces"] == ["lo"]
    assert seen["loopback"] == "errno 111", "refused by its own loopback, which is up"


@pytest.mark.threat("A09")
def test_devices(seen: dict[str, Any]) -> None:
    """Only harmless ones."""
    harmless = {
        "null",
        "zero",
        "full",
        "random",
        "urandom",
        "tty",
        "ptmx",
        "pts",
        "shm",
        "fd",
        "stdin",
        "stdout",
        "stderr",
    }
    assert {"null", "zero", "full", "random", "urandom"} <= set(seen["devices"]) <= harmless | {"mqueue", "console"}


@pytest.mark.requirement("S1.14")
def test_work_is_one_mebibyte(seen: dict[str, Any]) -> None:
    """By default; --work-size changes it."""
    assert seen["work"] == 2**20


@pytest.mark.threat("B07")
def test_host_name_is_not_the_hosts(seen: dict[str, Any]) -> None:
    """A UTS namespace of its own."""
    assert seen["host"] != os.uname().nodename


@pytest.mark.threat("A07")
def test_owners_have_ranges_of_their_own(node: Node) -> None:
    """Two owners' jobs run as different users, one owner's as the same, none of them a user of the host."""
    uids = [int(node.ok("job", "run", "--", "id", "-u", node=name)) for name in ("default", "user", "user")]
    host = Path("/proc/self/uid_map").read_text()
    assert uids[0] != uids[1] == uids[2]
    assert min(uids) >= 1000, host


@pytest.mark.threat("A27")
@pytest.mark.requirement("S1.9")
def test_no_mount_is_visible_on_the_host(node: Node) -> None:
    """The host's mount table does not change while a job runs."""

    def table() -> str:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return "\n".join(line for line in lines if str(node.base) in line)

    before = table()
    job = node.detached("--", "sleep", "60")
    node.wait_for_state(job, "running")
    assert table() == before == ""
    node.ok("job", "stop", job)
    node.rnx("job", "wait", job)


@pytest.mark.requirement("T.5")
@pytest.mark.requirement("S4.6")
def test_memory_limit(node: Node) -> None:
    """A job that takes more than its limit is killed, and its record says out of memory; the node goes on."""
    job = node.detached("--max-memory", "32", "--", "tail", "/dev/zero")
    record = node.wait_for_state(job, "failed", timeout_s=60)
    assert record["oom_killed"] is True
    assert record["signal"] == 9
    assert node.ok("job", "run", "echo", "alive") == b"alive\n"


@pytest.mark.threat("C01")
def test_fork_bomb(node: Node) -> None:
    """At the limit fork fails; the node answers meanwhile; stop leaves nothing."""
    bomb = "b() { b | b & }; b; while :; do sleep 1; done"
    job = node.detached("--pids", "30", "--", "sh", "-c", bomb)
    node.wait_for_state(job, "running")
    assert node.ok("job", "run", "echo", "alive") == b"alive\n"
    node.ok("job", "stop", job, "--grace", "0s")
    record = node.wait_for_state(job, "stopped")
    assert record["signal"] in (9, 15)


def test_limits_are_told(node: Node) -> None:
    """The record shows the limits that were asked for."""
    job = node.detached("--max-cpu", "50", "--max-memory", "64", "--pids", "20", "--timeout", "1m", "--", "true")
    limits = node.status(job)["limits"]
    assert (limits["cpu_percent"], limits["memory_bytes"], limits["pids"], limits["timeout_ms"]) == (
        50,
        64 * 2**20,
        20,
        60000,
    )
    node.ok("job", "wait", job)


@pytest.mark.parametrize(
    ("option", "named"),
    [
        (("--network", "bridge"), b"network"),
        (("--volume", "data"), b"volume"),
        (("--read-bps", "1MB"), b"read_bytes_per_s"),
        (("--schedule", "1h"), b"start_at"),
    ],
    ids=["network", "volume", "io", "schedule"],
)
def test_what_cannot_be_had_is_refused_by_name(node: Node, option: tuple[str, str], named: bytes) -> None:
    """A limit or feature that this node cannot enforce is an error that names it, and nothing is started."""
    before = len(node.jobs("--all"))
    done = node.rnx("job", "run", *option, "--", "true")
    assert done.returncode == 4, done
    assert named in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert len(node.jobs("--all")) == before
