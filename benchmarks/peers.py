"""The programs we are compared with, run as their manuals say. Each may be missing.

Belongs here: making a runc bundle of the same root, and running each peer. Does not belong here: our own side.
See runc(8), multilog(8), s6-log's documentation, conmon(8).
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from services.executor.seccomp.profile import load_profile

SYSTEM_DIRECTORIES = ("/usr", "/bin", "/lib", "/lib64", "/sbin")
FIRST_ID = 100_000
IDS = 65_536


class Bundle(NamedTuple):
    """A runc bundle that is isolated as a job is.

    Its root shows the host's system directories read-only; it has a user namespace, a process limit, no capability, no
    new privileges, and a filter that allows the calls that a job's does.
    """

    directory: Path

    def run(self) -> tuple[float, float, bytes]:
        """`runc run`: wall clock before it (Unix seconds), seconds it took, and the container's output."""
        name = f"bench-{uuid.uuid4().hex[:12]}"
        began, clock = time.time(), time.perf_counter()
        done = subprocess.run(
            ["runc", "run", "--bundle", str(self.directory), name],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
        )
        return began, time.perf_counter() - clock, done.stdout


@contextmanager
def bundle(*command: str) -> Iterator[Bundle]:
    """A bundle that runs `command`, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="joblet-bench-") as name:
        directory = Path(name)
        directory.chmod(0o711)  # what is root in the container's user namespace must get to its root
        (directory / "rootfs").mkdir()
        os.chown(directory / "rootfs", FIRST_ID, FIRST_ID)
        subprocess.run(["runc", "spec", "--bundle", name], check=True, capture_output=True)
        file = directory / "config.json"
        spec: dict[str, Any] = json.loads(file.read_text())
        none: dict[str, list[str]] = {kind: [] for kind in spec["process"]["capabilities"]}
        spec["process"] |= {"terminal": False, "args": list(command), "capabilities": none, "noNewPrivileges": True}
        spec["process"]["user"] = {"uid": 1000, "gid": 1000}
        mapping = [{"containerID": 0, "hostID": FIRST_ID, "size": IDS}]
        spec["linux"] |= {"uidMappings": mapping, "gidMappings": mapping, "seccomp": _seccomp()}
        spec["linux"]["namespaces"].append({"type": "user"})
        spec["linux"]["resources"]["pids"] = {"limit": 4096}
        spec["mounts"] += [
            {"destination": path, "type": "bind", "source": str(Path(path).resolve()), "options": ["rbind", "ro"]}
            for path in SYSTEM_DIRECTORIES
            if Path(path).exists()
        ]
        file.write_text(json.dumps(spec))
        yield Bundle(directory)


def _seccomp() -> dict[str, Any]:
    """Calls that joblet's profile allows, in runc's form; those that depend on their arguments it allows altogether."""
    profile = load_profile()
    names = [name for group in profile.allow for name in group.calls] + [rule.call for rule in profile.check]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}],
    }


def installed(name: str) -> bool:
    """Whether the program is there."""
    return shutil.which(name) is not None


def logger_seconds(command: tuple[str, ...], lines: int, line: str) -> float:
    """How long `yes LINE | head -n LINES | command DIRECTORY` takes; the directory is on the same disk as ours."""
    with tempfile.TemporaryDirectory(prefix="joblet-bench-") as directory:
        began = time.perf_counter()
        source = subprocess.Popen(["sh", "-c", f"yes '{line}' | head -n {lines}"], stdout=subprocess.PIPE)
        subprocess.run([*command, f"{directory}/log"], stdin=source.stdout, check=True, stderr=subprocess.DEVNULL)
        assert source.stdout is not None
        source.stdout.close()
        source.wait()
        return time.perf_counter() - began


def conmon_memory_bytes(count: int) -> float | None:
    """PSS of one conmon that keeps a sleeping container, averaged over `count`; None when it cannot be run."""
    if not (installed("conmon") and installed("runc")):
        return None
    with ExitStack() as stack:
        keepers = [
            stack.enter_context(_kept_by_conmon(stack.enter_context(bundle("sleep", "60")))) for _ in range(count)
        ]
        return sum(pss_bytes(keeper) for keeper in keepers) / count


@contextmanager
def _kept_by_conmon(made: Bundle) -> Iterator[int]:
    """A running container under a conmon, whose process id is given; both are gone afterwards."""
    name, directory = f"bench-{uuid.uuid4().hex[:12]}", made.directory
    for each in ("sockets", "exits", "persist"):
        (directory / each).mkdir()
    # conmon fails without a word when it is not told every one of these places.
    places = [
        "--socket-dir-path",
        f"{directory}/sockets",
        "--exit-dir",
        f"{directory}/exits",
        "-0",
        f"{directory}/persist",
    ]
    files = ["-l", f"k8s-file:{directory}/log", "-p", f"{directory}/pid", "-P", f"{directory}/conmon-pid"]
    runtime = ["-r", str(shutil.which("runc")), "-b", str(directory), "-c", name, "-u", name, "-n", name, "--sync"]
    conmon = subprocess.Popen(
        ["conmon", *runtime, *files, *places], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 10
        while subprocess.run(["runc", "start", name], check=False, capture_output=True).returncode != 0:
            if time.monotonic() > deadline:
                raise TimeoutError(f"conmon did not create {name}")
            time.sleep(0.02)
        yield conmon.pid
    finally:
        subprocess.run(["runc", "delete", "--force", name], check=False, capture_output=True)
        conmon.wait(timeout=10)


def pss_bytes(pid: int) -> int:
    """Proportional set size of a process: its own pages, and its share of those that it shares (proc(5))."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))
