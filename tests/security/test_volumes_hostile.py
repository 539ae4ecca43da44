"""What a hostile job leaves on a volume harms neither the next job, nor the service, nor the host.

Not here: limits and owners (tests/e2e/test_volumes.py), and the kernel's side of the race for mount points
(tests/linux/test_sandbox_volumes.py).
"""

import os
from pathlib import Path

import pytest

from tests.e2e.node import Node
from tests.e2e.volumes import create, free, inspect, names, remove, run, running, stop
from tests.security.attack import PYTHON, python_in_job
from tests.security.probes.host import host_mounts
from tests.waiting import wait_for

pytestmark = pytest.mark.skipif(not Path(PYTHON).exists(), reason=f"needs {PYTHON} for the probes")

LEAVE = r"""
import fcntl, os, socket, stat
os.chdir("/volumes/trap")
made = []
def tried(what, call, *arguments):
    try:
        call(*arguments)
        made.append(what)
    except OSError:
        pass
for name, target in (("etc", "/etc"), ("root", "/"), ("up", "../../../../.."), ("proc", "/proc/1/root"), ("me", "me"),
                     ("null", "/dev/null"), ("host", "/proc/self/fd/0"), ("out", "../../image")):
    tried(f"link {name}", os.symlink, target, name)
for kind, device in ((stat.S_IFCHR, (1, 1)), (stat.S_IFBLK, (7, 0)), (stat.S_IFCHR, (1, 3))):
    tried("device", os.mknod, f"node{device}", kind | 0o666, os.makedev(*device))
tried("fifo", os.mkfifo, "fifo", 0o666)
tried("socket", lambda: socket.socket(socket.AF_UNIX).bind("socket"))
with open("s", "wb") as program:
    program.write(open("/usr/bin/id", "rb").read())
os.chmod("s", 0o6755)
os.mkdir("deep"); here = os.open("deep", os.O_RDONLY)
for _ in range(2000):
    os.mkdir("d", dir_fd=here); there = os.open("d", os.O_RDONLY, dir_fd=here); os.close(here); here = there
for name in (b"\xff\xfe", b"-rf", b"new\nline", b"\x1b[31m", b"x" * 255, b"lost+found"):
    tried("name", lambda: os.close(os.open(name, os.O_CREAT | os.O_WRONLY)))
program = os.open("s", os.O_RDONLY)
tried("immutable", fcntl.ioctl, program, 0x40086602, b"\x10" + bytes(7))  # FS_IOC_SETFLAGS, FS_IMMUTABLE_FL
tried("project", fcntl.ioctl, program, 0x401C5820, bytes(12) + b"\x07" + bytes(15))  # FS_IOC_FSSETXATTR
tried("capability", os.setxattr, "s", "security.capability", bytes.fromhex("0100000200040000" + "00" * 12))
os.chmod(".", 0)
print(sorted(set(made)))
"""


@pytest.mark.requirement("S1.38")
@pytest.mark.threat("A03")
@pytest.mark.threat("A11")
def test_leftovers(node: Node) -> None:
    """Links, nodes, sockets, set-id programs, 2,000 directories deep, odd names, a root nobody may enter."""
    before = host_mounts()
    create(node, "trap", "16MB")
    done = python_in_job(node, LEAVE, options=("--volume", "trap"))
    assert done.code == 0, done.stderr
    assert b"device" not in done.stdout  # mknod(2) is refused
    assert b"immutable" not in done.stdout
    assert b"link etc" in done.stdout
    free(node, "trap")
    # The owner's next job has it as it was left, may repair it, and gains nothing by what is there.
    script = "chmod 755 /t && cd /t && ./s -u; cat etc/shadow host 2>&1 | head -2; ls etc/passwd; rm -rf /t/*; ls -A /t"
    out = run(node, "trap:/t", script)
    assert out.startswith(b"1000\n")
    assert b"root:" not in out
    # Snapshot, clone and export go through it without following anything.
    python_in_job(node, LEAVE, options=("--volume", "trap"))
    free(node, "trap")
    run(node, "trap", "chmod 755 /volumes/trap")
    free(node, "trap")
    node.ok("volume", "snapshot", "create", "trap", "--as", "bad")
    node.ok("volume", "clone", "trap@bad", "trap-copy")
    exported = node.ok("volume", "export", "trap", "-", timeout_s=120)
    assert b"root:x:0" not in exported
    assert len(exported) < 64 << 20
    remove(node, "trap", "trap-copy")
    wait_for(lambda: host_mounts() == before, timeout_s=90, what="the host's mounts to be as before")


SWAP = r"""
import os, time
os.chdir("/volumes/shared"); os.makedirs("d/x", exist_ok=True)
open("ready", "w").close()
while not os.path.exists("stop"):
    try:
        os.rename("d", "d2"); os.symlink("/proc", "d"); os.unlink("d"); os.rename("d2", "d")
    except OSError:
        pass
"""


@pytest.mark.threat("A03")
def test_a_mount_point_that_is_swapped(node: Node) -> None:
    """One job swaps a directory of a shared volume for a link to /proc, others mount below it: never elsewhere."""
    before = host_mounts()
    create(node, "shared", "4MB", "--shared")
    create(node, "inner", "4MB", "--shared")
    swapper = node.detached("--volume", "shared", "--", PYTHON, "-I", "-c", SWAP)
    wait_for(lambda: run(node, "shared:/s:ro", "ls /s").find(b"ready") >= 0, timeout_s=30, what="the swapping to begin")
    placed = tries = 0
    while tries < 25 or (not placed and tries < 100):
        tries += 1
        script = (
            "grep -c ' /proc/x ' /proc/self/mountinfo; grep ' /volumes/shared/d' /proc/self/mountinfo | cut -d' ' -f5"
        )
        options = ("--volume", "shared", "--volume", "inner:/volumes/shared/d/x")
        done = node.rnx("job", "run", *options, "--", "/bin/sh", "-c", script)
        if done.stdout:
            lines = done.stdout.split()
            assert lines[0] == b"0"
            assert set(lines[1:]) <= {b"/volumes/shared/d/x", b"/volumes/shared/d2/x"}, lines
            placed += 1
        else:
            assert b"could not be started" in done.stderr, done.stderr
    assert placed, "none ever began: nothing was attacked"
    stop(node, swapper)
    remove(node, "inner", "shared")
    wait_for(lambda: host_mounts() == before, timeout_s=90, what="the host's mounts to be as before")


@pytest.mark.threat("C07")
def test_a_full_volume_harms_nobody_else(node: Node) -> None:
    """Full to the last byte while its job runs: other volumes take data, the service answers, space can be freed."""
    create(node, "stuffed", "4MB")
    create(node, "roomy", "4MB")
    job = running(node, "stuffed", "cat /dev/zero > /volumes/stuffed/fill; echo full; sleep 60")
    wait_for(lambda: [e["content"] for e in node.entries(job, "--stream", "stdout")] == ["full"], what="a full volume")
    assert run(node, "roomy", "head -c 3000000 /dev/zero > /volumes/roomy/f && echo fine") == b"fine\n"
    assert inspect(node, "stuffed")["status"] == "in use"
    stop(node, job)
    assert run(node, "stuffed", "rm /volumes/stuffed/fill && echo x > /volumes/stuffed/x && echo fine") == b"fine\n"
    remove(node, "stuffed", "roomy")


@pytest.mark.threat("A28")
def test_a_library_on_a_volume_is_not_loaded_by_the_launcher(node: Node) -> None:
    """LD_PRELOAD from a volume is the job's own affair: it reaches the job's program and nothing before it."""
    create(node, "preload", "4MB")
    run(node, "preload", "echo not-a-library > /volumes/preload/x.so")
    done = node.rnx(
        "job", "run", "--volume", "preload", "--env", "LD_PRELOAD=/volumes/preload/x.so", "--", "/bin/echo", "begun"
    )
    assert done.returncode == 0
    assert done.stdout == b"begun\n"
    remove(node, "preload")
    assert "preload" not in names(node)
    assert os.geteuid() == 0
