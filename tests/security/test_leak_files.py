"""What of the host's files a job can find: keys, records, configuration and sockets of the node. Issue 3, B01, B04.

A file is known by its device and inode, so that no name, bind mount or link can hide that a job reaches it.
"""

import contextlib
import errno
import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.node import Node
from tests.leaks import paths_below
from tests.security.attack import python_in_job, python_unprotected
from tests.soak.holding import holding

JOB_USER = 101_000
"""Of the first owner's jobs on the host."""

FIND = r"""
import json, os, sys
device, wanted, start = int(sys.argv[1]), set(map(int, sys.argv[2].split(","))), sys.argv[3]
found, seen, names = [], 0, []
pending = [start]
# /proc/N/root, cwd and fd are links to directories: ways out, if there are any. A process's threads have the same.
for number in filter(str.isdigit, os.listdir("/proc")):
    for way in ("root", "cwd", "fd"):
        path = "/proc/%s/%s" % (number, way)
        if start == "/" and os.access(path, os.R_OK) and (way == "fd" or not os.path.samefile(path, "/")):
            pending.append(path)
while pending:
    top = pending.pop()
    try:
        entries = list(os.scandir(top))
    except OSError:
        continue
    for entry in entries:
        if entry.path == "/proc":
            continue
        seen += 1
        if any(word in entry.name for word in ("joblet", "rnx-config", ".key")) and not entry.path.startswith("/usr/"):
            names.append(entry.path)
        if entry.inode() in wanted and os.stat(entry.path, follow_symlinks=False).st_dev == device:
            found.append(entry.path)
        if entry.is_dir(follow_symlinks=False):
            pending.append(entry.path)
print(json.dumps({"seen": seen, "found": found, "names": names}))
"""


def files_of(node: Node) -> tuple[int, dict[int, Path]]:
    """The device of the base directory, and every file and directory in it by its inode."""
    found = {}
    for path in (node.base, *paths_below(node.base)):
        with contextlib.suppress(FileNotFoundError):  # the journal of a job that has ended
            found[path.lstat().st_ino] = path
    return node.base.stat().st_dev, found


@pytest.mark.threat("B01")
@pytest.mark.threat("B04")
def test_no_file_of_the_node_can_be_found(node: Node) -> None:
    """Of the node's keys, certificates, records, logs, sockets and journals none is in the job's tree, by any name."""
    device, files = files_of(node)
    names = {path.name for path in files.values()}
    assert {"ca.key", "server.key", "jobs.db", "joblet-config.yml", "executor-commands.sock"} <= names
    inodes = ",".join(map(str, files))
    control = python_unprotected(FIND, str(device), inodes, str(node.base)).seen
    assert len(control["found"]) >= len(files) // 2, "unprotected the same search finds them"
    seen = python_in_job(node, FIND, str(device), inodes, "/").seen
    assert seen["seen"] > 1000
    assert seen["found"] == []
    assert seen["names"] == []


@pytest.mark.threat("B01")
def test_the_nodes_secrets_are_closed_to_every_other_user_of_the_host(node: Node) -> None:
    """Keys are for their owner only, and directories with secrets cannot be entered by others."""
    for key in (path for path in paths_below(node.base) if path.suffix == ".key"):
        assert stat.S_IMODE(key.stat().st_mode) & 0o077 == 0, key
    for name in ("certs", "jobs", "state", "uploads", "logs", "metrics", "audit"):
        directory = node.base / name
        assert stat.S_IMODE(directory.stat().st_mode) & 0o077 == 0, directory
    assert stat.S_IMODE((node.base / "run").stat().st_mode) & 0o007 == 0


CONNECT = """
import json, os, socket, sys
directory, user = int(sys.argv[1]), int(sys.argv[2])
names = [name for name in os.listdir(directory) if name.endswith(".sock")]
os.setgroups([]); os.setresgid(user, user, user); os.setresuid(user, user, user)
answers = {}
for name in names:
    # Through the descriptor the modes of the directories above it do not count.
    with socket.socket(socket.AF_UNIX) as client:
        answers[name] = client.connect_ex("/proc/self/fd/%d/%s" % (directory, name))
print(json.dumps(answers))
"""


@pytest.mark.threat("B04")
def test_a_socket_made_reachable_refuses_a_jobs_user(node: Node) -> None:
    """Even with the directory of the sockets in hand no job's user, nor nobody, can connect to one; root can."""
    directory = os.open(node.base / "run", os.O_RDONLY | os.O_DIRECTORY)
    try:
        reached = {0, errno.EPROTOTYPE}  # notify.sock takes datagrams only
        for user, expected in ((JOB_USER, {errno.EACCES}), (65_534, {errno.EACCES}), (0, reached)):
            command = [sys.executable, "-I", "-S", "-c", CONNECT, str(directory), str(user)]
            done = subprocess.run(command, pass_fds=(directory,), capture_output=True, check=True)
            answers = json.loads(done.stdout)
            assert len(answers) >= 5
            assert set(answers.values()) <= expected, (user, answers)
    finally:
        os.close(directory)


ABSTRACT = """
import json, socket, sys
with socket.socket(socket.AF_UNIX) as client:
    print(json.dumps(client.connect_ex("\\0" + sys.argv[1])))
"""


@pytest.mark.threat("B03")
def test_abstract_sockets_of_the_host_and_of_other_jobs(node: Node) -> None:
    """A listener with an abstract name, on the host or in another job, is not there for a job."""
    name = f"joblet-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{name}")
        server.listen()
        assert python_unprotected(ABSTRACT, name).seen == 0
        assert python_in_job(node, ABSTRACT, name).seen == errno.ECONNREFUSED
    listen = f"import socket; s = socket.socket(socket.AF_UNIX); s.bind('\\0{name}'); s.listen(); hold()"
    with holding(node, listen):
        assert python_in_job(node, ABSTRACT, name).seen == errno.ECONNREFUSED
        assert python_unprotected(ABSTRACT, name).seen == errno.ECONNREFUSED


@pytest.mark.threat("B03")
def test_no_service_listens_on_an_abstract_name(node: Node) -> None:
    """Abstract names have no permissions: none of the node's sockets has one."""
    inodes = {line.split()[6] for line in Path("/proc/net/unix").read_text().splitlines() if " @" in line}
    for pid in node.processes():
        targets: set[str] = set()
        with contextlib.suppress(FileNotFoundError):  # a sandbox that is prepared ahead comes and goes
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    targets.add(str(entry.readlink()))
        assert not targets & {f"socket:[{inode}]" for inode in inodes}, pid
