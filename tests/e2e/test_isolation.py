"""What a user sees of the isolation: a machine of his own, limits that hold, and clear words about what cannot be had.

Not here: attacks on it (tests/security).
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.node import Node

PROBE = r"""
import json, os, socket, sys
def text(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read(100000)
    except OSError as error:
        return f"errno {error.errno}"
try:
    client = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 2)
    loopback = "connected"
except OSError as error:
    loopback = f"errno {error.errno}"
print(json.dumps({
    "pid": os.getpid(), "ppid": os.getppid(), "sid": os.getsid(0),
    "pids": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
    "cwd": os.getcwd(), "uid": os.getresuid(), "gid": os.getresgid(), "groups": os.getgroups(),
    "host": socket.gethostname(), "root": sorted(os.listdir("/")), "env": dict(os.environ),
    "base": os.path.exists(sys.argv[2]), "cgroup": text("/proc/self/cgroup"), "shadow": text("/etc/shadow"),
    "interfaces": [name for _, name in socket.if_nameindex()], "loopback": loopback,
    "owners": {path: os.stat(path).st_uid for path in ("/", "/etc", "/tmp", "/work")},
    "write": {path: os.access(path, os.W_OK) for path in ("/", "/usr", "/usr/bin", "/etc", "/tmp", "/work")},
    "work": os.statvfs("/work").f_blocks * os.statvfs("/work").f_frsize,
    "passwd": text("/etc/passwd"), "hosts": text("/etc/hosts"), "nsswitch": text("/etc/nsswitch.conf"),
}))
"""


@pytest.fixture(scope="module")
def seen(node: Node) -> dict[str, Any]:
    """What a job saw. The interpreter must be the system's: ours may lie where no job can reach."""
    if not Path("/usr/bin/python3").exists():
        pytest.skip("needs /usr/bin/python3 for the probe")
    command = ("job", "run", "--env", "ASKED=yes", "--", "/usr/bin/python3", "-I", "-c", PROBE)
    found: dict[str, Any] = json.loads(node.ok(*command, str(node.port), str(node.base)))
    return found


@pytest.mark.requirement("T.5")
def test_processes(seen: dict[str, Any]) -> None:
    """PID 2 in a session of its own, child of PID 1, and nobody else."""
    assert (seen["pid"], seen["ppid"], seen["sid"], seen["pids"]) == (2, 1, 2, [1, 2])


def test_user(seen: dict[str, Any]) -> None:
    """The user `job`, uid and gid 1000, in a place whose root is root."""
    assert set(seen["uid"] + seen["gid"]) == {1000}
    assert set(seen["groups"]) <= {1000}
    assert "\njob:x:1000:1000:" in seen["passwd"]
    assert seen["owners"] == {"/": 0, "/etc": 0, "/tmp": 0, "/work": 1000}


@pytest.mark.threat("B02")
def test_environment(seen: dict[str, Any]) -> None:
    """What was asked for and a fixed few; nothing of the services'."""
    assert seen["cwd"] == "/work"
    fixed = {"PATH", "HOME", "USER", "LOGNAME", "LANG", "TMPDIR", "JOBLET_JOB_ID"}
    assert seen["env"].pop("ASKED") == "yes"
    assert seen["env"].keys() - {"LC_CTYPE"} == fixed  # which Python sets itself


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


@pytest.mark.threat("B07")
@pytest.mark.threat("B08")
def test_names(seen: dict[str, Any]) -> None:
    """A host name and an /etc of its own; control groups that look like the root."""
    assert seen["host"] != os.uname().nodename
    assert seen["host"] in seen["hosts"]
    assert "hosts: files dns" in seen["nsswitch"]
    assert all(line.rsplit(":", 1)[1] == "/" for line in seen["cgroup"].split())


@pytest.mark.threat("B06")
def test_network_is_an_empty_one(seen: dict[str, Any]) -> None:
    """Loopback only, and it is not the host's: the node's own port is not there."""
    assert seen["interfaces"] == ["lo"]
    assert seen["loopback"] == "errno 111", "refused by its own loopback, which is up"


@pytest.mark.requirement("S1.14")
def test_work_is_one_mebibyte(seen: dict[str, Any]) -> None:
    """By default; --work-size changes it."""
    assert seen["work"] == 2**20


@pytest.mark.threat("A07")
def test_owners_have_ranges_of_their_own(node: Node) -> None:
    """All jobs of an owner have the same range of the host's ids, far above its own; two owners share none."""
    users = ("default", "user", "user")
    maps = [node.ok("job", "run", "--", "cat", "/proc/self/uid_map", node=user).split() for user in users]
    assert all((first, count) == (b"0", b"65536") for first, _, count in maps)
    ranges = [int(begin) for _, begin, _ in maps]
    assert ranges[1] == ranges[2]
    assert abs(ranges[0] - ranges[1]) >= 65_536
    assert min(ranges) >= 100_000


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
    bomb = "b() { b | b & }; b & exec sleep 600"  # the shell itself must not need a fork any more
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


def test_what_cannot_be_had_is_refused_by_name(node: Node) -> None:
    """A limit that no kernel has is an error that names it, and nothing is started."""
    before = len(node.jobs("--all"))
    done = node.rnx("job", "run", "--max-iobps", "1MB", "--", "true")
    assert done.returncode == 4, done
    assert b"--max-iobps" in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert len(node.jobs("--all")) == before
