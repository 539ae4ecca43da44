"""What a job can see of the host in /proc, /etc, its mount table and its control groups. Issue 3, B07 and B08.

`VISIBLE` is the list that docs/security.md cites: nothing else of the host can be read in /proc. What is masked is the
executor's list (services/executor/sandbox.py).
"""

import contextlib
import json
import platform
import socket
from pathlib import Path
from typing import Any, Final

import pytest

from services.executor.sandbox import MASKED
from tests.e2e.node import Node
from tests.security.attack import PYTHON, in_job, python_in_job, python_unprotected

VISIBLE: Final[dict[str, str]] = {
    "buddyinfo": "free memory by block size",
    "cgroups": "controllers of the kernel and how many groups each has",
    "consoles": "names of the consoles",
    "cpuinfo": "model, features and bugs of the processors",
    "crypto": "ciphers of the kernel",
    "devices": "drivers and their numbers",
    "diskstats": "counters of every disk",
    "dma": "DMA channels",
    "execdomains": "kinds of programs",
    "fb": "frame buffers",
    "filesystems": "kinds of file systems",
    "loadavg": "load, and how many processes the host has",
    "mdstat": "state of software RAID",
    "meminfo": "memory of the host: size and use",
    "misc": "drivers and their numbers",
    "modules": "loaded modules, with all addresses as zero",
    "mtrr": "memory types",
    "pagetypeinfo": "free memory by kind; for root only where the kernel says so",
    "partitions": "names and sizes of the disks",
    "pressure": "waiting times of the host",
    "slabinfo": "caches of the kernel; for root only",
    "softirqs": "counters by processor",
    "stat": "processor times of the host, interrupts, when it was booted, forks since then",
    "swaps": "swap areas: size and use",
    "sys": "settings of the kernel, boot_id and counters (files, inodes, terminals) among them",
    "sysvipc": "of its own IPC namespace",
    "tty": "drivers and line disciplines",
    "uptime": "how long the host is up",
    "version": "release and build of the kernel",
    "vmstat": "memory counters of the host",
    "zoneinfo": "memory zones and their counters",
}
"""First name below /proc → what of the host it tells."""

OWN: Final = frozenset({"mounts", "net", "self", "thread-self"})
"""Of the job's own namespaces."""
PROGRAMS_NEED: Final = frozenset({"cpuinfo", "meminfo", "loadavg", "stat", "uptime", "version"})
SETTINGS: Final = frozenset({"abi", "crypto", "debug", "dev", "fs", "kernel", "net", "sunrpc", "user", "vm"})
"""Folders of /proc/sys that may be read."""

READ = r"""
import json, os, sys
needles = json.loads(sys.argv[1])
def read(path):
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(descriptor, 65536)
    finally:
        os.close(descriptor)
def files(top):
    for directory, below, names in os.walk(top):
        if directory == "/proc":  # of processes only the first two, by their names
            below[:] = [name for name in below if not name.isdigit()] + ["1", "2"]
        below[:] = [name for name in below if name not in ("task", "map_files", "certs")]
        yield from (os.path.join(directory, name) for name in names)
readable, found, writable = [], [], []
for top in ("/proc", "/etc", "/dev"):
    for path in files(top):
        if path in ("/proc/2/cmdline", "/dev/tty", "/dev/stdin") or path.startswith(("/dev/pts", "/dev/fd")):
            continue  # the needles themselves, and what waits for somebody to type
        try:
            content = read(path)
        except OSError:
            continue
        if content and path.startswith("/proc"):
            readable.append(path)
        found += [[path, needle] for needle in needles if needle.encode() in content]
print(json.dumps({"readable": readable, "found": found, "host": os.uname().nodename}))
"""


def needles(node: Node) -> list[str]:
    """What tells this host from others, as far as it has it, and this node's paths."""
    host = [socket.gethostname(), platform.node()]
    host += [Path(file).read_text().strip() for file in ("/etc/machine-id", "/proc/cmdline") if Path(file).exists()]
    for file in Path("/sys/class/net").glob("*/address"):
        with contextlib.suppress(OSError):  # an interface that has gone meanwhile
            host.append(file.read_text().strip())
    host += [str(node.base), node.base.name]
    return sorted({each for each in host if len(each) >= 8 and set(each) - set("0:")})


@pytest.fixture(scope="module")
def seen(node: Node) -> dict[str, Any]:
    """What a job could read."""
    found: dict[str, Any] = python_in_job(node, READ, json.dumps(needles(node))).seen
    return found


@pytest.mark.threat("B07")
def test_exactly_the_documented_part_of_proc_is_readable(seen: dict[str, Any]) -> None:
    """Nothing in /proc tells of the host but what is on the list, and what programs need is there."""
    names = {path.split("/")[2] for path in seen["readable"]}
    of_processes = {name for name in names if name.isdigit()}
    assert names - of_processes - OWN - VISIBLE.keys() == set(), "readable and not documented"
    assert of_processes <= {"1", "2"}
    assert names >= PROGRAMS_NEED
    settings = {path.split("/")[3] for path in seen["readable"] if path.startswith("/proc/sys/")}
    assert settings <= SETTINGS


MASKS = r"""
import json, os, sys
answers = {}
for path in json.loads(sys.argv[1]):
    try:
        answers[path] = len(os.listdir(path)) if os.path.isdir(path) else len(open(path, "rb").read(4096))
    except FileNotFoundError:
        continue
    except OSError as error:
        answers[path] = -error.errno
print(json.dumps(answers))
"""


@pytest.mark.threat("B07")
def test_what_is_masked_is_empty(node: Node) -> None:
    """Every masked path that this kernel has is an empty file or directory; without the mask some are not."""
    paths = json.dumps([path for path in MASKED if path != "/proc/kmsg"])  # whose reader would wait
    masked = python_in_job(node, MASKS, paths).seen
    assert set(masked.values()) == {0}
    assert not {path.split("/")[2] for path in MASKED} & VISIBLE.keys()
    control = python_unprotected(MASKS, paths).seen
    assert control.keys() == masked.keys()
    assert {path for path, size in control.items() if size > 0} >= {"/proc/cmdline", "/proc/interrupts"}


@pytest.mark.threat("B07")
@pytest.mark.threat("B08")
def test_nothing_tells_this_host_from_others_but_what_is_documented(node: Node, seen: dict[str, Any]) -> None:
    """Host name, machine id, boot parameters, link addresses and the node's paths stand in no file of /proc or /etc."""
    assert len(needles(node)) >= 3
    assert seen["found"] == []
    assert seen["host"] not in {socket.gethostname(), platform.node()}
    control = python_unprotected(READ, json.dumps(needles(node))).seen
    assert control["found"], "unprotected the same search finds some"


@pytest.mark.threat("B07")
def test_there_is_no_sys_no_kernel_log_and_no_machine_id(node: Node) -> None:
    """/sys, /run, /boot, /var and /root do not exist; the kernel's log is refused."""
    program = """
import ctypes, errno, json, os
libc = ctypes.CDLL(None, use_errno=True)
there = [p for p in ("/sys", "/run", "/boot", "/var", "/root", "/home", "/etc/machine-id", "/dev/kmsg", "/dev/mem")
         if os.path.lexists(p)]
size = libc.klogctl(10, None, 0)
print(json.dumps({"there": there, "klogctl": size, "errno": errno.errorcode.get(ctypes.get_errno())}))
"""
    assert python_in_job(node, program).seen == {"there": [], "klogctl": -1, "errno": "EPERM"}
    assert python_unprotected(program).seen["klogctl"] > 0


@pytest.mark.threat("B08")
def test_control_groups_and_mounts_show_no_host_path(node: Node) -> None:
    """Every hierarchy looks like its root; mounts come from the system's directories and tmpfs; none is cgroupfs."""
    job = in_job(node, "cat", "/proc/self/cgroup", "/proc/self/mountinfo").stdout.decode().splitlines()
    groups = [line.split(":", 2)[2] for line in job if line.count(":") >= 2 and " - " not in line]
    assert set(groups) == {"/"}
    mounts = [line for line in job if " - " in line]
    assert len(mounts) > 10
    for line in mounts:
        before, after = line.split(" - ")
        root, point = before.split()[3:5]
        kind = after.split()[0]
        assert not kind.startswith("cgroup"), line
        covers = root in ("/", "/file", "/directory") or (kind == "devtmpfs" and point == f"/dev{root}")
        assert covers or root == point, line
        assert str(node.base) not in line


@pytest.mark.threat("B05")
@pytest.mark.threat("B06")
def test_without_network_nothing_of_the_host_answers(node: Node) -> None:
    """Metadata services are unreachable at once, and the node's own port is not on the job's loopback."""
    program = """
import errno, json, socket, sys
def connect(family, address, port):
    with socket.socket(family) as client:
        client.settimeout(5)
        return errno.errorcode.get(client.connect_ex((address, port)), "connected")
print(json.dumps([connect(socket.AF_INET, "169.254.169.254", 80), connect(socket.AF_INET6, "fd00:ec2::254", 80),
                  connect(socket.AF_INET, "127.0.0.1", int(sys.argv[1]))]))
"""
    assert python_in_job(node, program, str(node.port)).seen == ["ENETUNREACH", "ENETUNREACH", "ECONNREFUSED"]
    assert python_unprotected(program, str(node.port)).seen[2] == "connected"


@pytest.mark.threat("B07")
def test_the_first_process_tells_nothing(node: Node) -> None:
    """Of init, which stays the host's, a job can read its name and state only."""
    program = """
import errno, json, os
ways = {name: (lambda name=name: open("/proc/1/" + name, "rb").read(1)) for name in
        ("environ", "maps", "mem", "auxv", "stack", "syscall", "io", "pagemap", "smaps", "numa_maps", "timers")}
ways |= {name: (lambda name=name: os.readlink("/proc/1/" + name)) for name in ("exe", "cwd", "root", "ns/net")}
ways |= {name: (lambda name=name: os.listdir("/proc/1/" + name)) for name in ("fd", "fdinfo", "map_files")}
open_ways = []
for name, way in ways.items():
    try:
        if way():
            open_ways.append(name)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.ENOENT):
            open_ways.append(name)  # such as EIO: page 0 is not mapped, but the rest could be read
print(json.dumps(open_ways))
"""
    assert in_job(node, PYTHON, "-I", "-c", program).seen == []
    assert set(python_unprotected(program).seen) >= {"environ", "exe", "root", "fd"}
