"""What the host looks like from outside: its settings, files, mounts, and the processes of a job.

Belongs here: reading. Does not belong here: what should be seen. References: proc(5), cgroups(7).
"""

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from tests.leaks import OWN_MARK
from tests.waiting import wait_for

ROOT: Final = Path(__file__).resolve().parents[3]
PROGRAMS: Final = ("/usr/bin/python3", "/usr/bin/env", "/usr/bin/id", "/bin/sh", sys.executable)
SETTINGS: Final = (
    *("kernel/core_pattern", "kernel/core_pipe_limit", "kernel/modprobe", "kernel/poweroff_cmd", "kernel/sysrq"),
    *("kernel/randomize_va_space", "kernel/kptr_restrict", "kernel/pid_max", "kernel/hostname", "kernel/panic"),
    *("fs/protected_symlinks", "fs/protected_hardlinks", "fs/suid_dumpable", "vm/overcommit_memory"),
    *("net/ipv4/ip_forward", "user/max_user_namespaces"),
)
DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")


class HostState(NamedTuple):
    """What no job may change."""

    settings: dict[str, str]
    files: dict[str, str]
    devices: dict[str, tuple[int, int, int]]
    mounts: frozenset[str]
    segments: int  # System V objects


def host_state() -> HostState:
    """As it is now."""
    return HostState(
        settings={name: _text(Path("/proc/sys", name)) for name in SETTINGS},
        files={str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in _installed()},
        devices={name: _device(Path("/dev", name)) for name in DEVICES},
        mounts=host_mounts(),
        segments=sum(len(_text(Path("/proc/sysvipc", name)).splitlines()) for name in ("shm", "sem", "msg")),
    )


@contextmanager
def unchanged_host() -> Iterator[None]:
    """The host is afterwards what it was, and no process of a job is left."""
    before = host_state()
    yield
    wait_for(lambda: not strangers(), what="the jobs' processes to be gone")
    after = host_state()
    assert after.settings == before.settings
    assert after.mounts == before.mounts
    assert after.devices == before.devices
    assert after.segments == before.segments
    assert {path for path, content in after.files.items() if before.files.get(path) != content} == set()


def host_mounts() -> frozenset[str]:
    """Mounts of the host, but those of other test runs: lines of mountinfo(5) behind the numbers that only count."""
    lines = (line.split(" ", 2)[2] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    elsewhere = f" {tempfile.gettempdir()}/"
    return frozenset(line for line in lines if elsewhere not in line or OWN_MARK in line)


def processes_of(mark: str) -> frozenset[int]:
    """Pids of all processes in a control group whose path contains `mark`, such as a job's id."""
    return frozenset(pid for pid in _pids() if mark in _text(Path(f"/proc/{pid}/cgroup")))


def strangers() -> frozenset[int]:
    """Those of all jobs of this test run that are not root; root are the inits, of spare sandboxes as well."""
    return frozenset(pid for pid in processes_of(OWN_MARK) if status_of(pid).get("Uid", "0").split()[0] != "0")


def status_of(pid: int) -> dict[str, str]:
    """/proc/…/status."""
    lines = (line.partition(":") for line in _text(Path(f"/proc/{pid}/status")).splitlines())
    return {key: value.strip() for key, _, value in lines}


def parent_of(pid: int) -> int:
    """Process id of the parent."""
    return int(status_of(pid)["PPid"])


def files_of(pid: int) -> frozenset[str]:
    """Everything that the process has mapped from files."""
    lines = (line.split(None, 5) for line in _text(Path(f"/proc/{pid}/maps")).splitlines())
    return frozenset(fields[5] for fields in lines if len(fields) > 5 and fields[5].startswith("/"))


def descriptors_of(pid: int) -> dict[int, str]:
    """Descriptor → what it is."""
    return {int(name): os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _text(path: Path) -> str:
    """The content; "" when it is not there, or no longer."""
    with suppress(OSError):
        return path.read_text(errors="replace")
    return ""


def _device(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_mode, found.st_rdev, found.st_uid


def _installed() -> Iterator[Path]:
    """The programs that jobs or joblet run, and joblet's own files."""
    yield from (Path(program).resolve() for program in PROGRAMS)
    for folder in ("services", "common"):
        yield from (path for path in sorted((ROOT / folder).rglob("*.py")))
