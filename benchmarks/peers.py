"""The programs we are compared with, run as their manuals say. Each may be missing.

Belongs here: making a runc bundle of the same root, and running each peer. Does not belong here: our own side.
See runc(8), multilog(8), s6-log's documentation, conmon(8).
"""

import json
import os
import shlex
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from services.executor.seccomp.profile import load_profile

SYSTEM_DIRECTORIES = ("/usr", "/bin", "/lib", "/lib64", "/sbin")
CONMON_TIMEOUT_S = 300.0
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
def bundle(*command: str, shown: tuple[Path, str] | None = None) -> Iterator[Bundle]:
    """A bundle that runs `command`, removed afterwards. `shown`: a directory of the host, and where it sees that."""
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
        if shown is not None:
            source, path = str(shown[0]), shown[1]
            spec["mounts"].append({"destination": path, "type": "bind", "source": source, "options": ["rbind", "ro"]})
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


def _logger_seconds(program: str, file: Path) -> float | None:
    """How long `cat FILE | PROGRAM` takes until all of it is in files, on the same disk; None without the program.

    Both rotate at 16 MiB and keep 100 files. By default they keep 1 MB and throw the rest away, which is less work.
    """
    if not installed(program):
        return None
    with tempfile.TemporaryDirectory(prefix="joblet-bench-") as directory:
        began = time.perf_counter()
        source = subprocess.Popen(["cat", str(file)], stdout=subprocess.PIPE)
        keeping = ("t", "s16777215", "n100", f"{directory}/log")
        subprocess.run([program, *keeping], stdin=source.stdout, check=True, stderr=subprocess.DEVNULL)
        assert source.stdout is not None
        source.stdout.close()
        source.wait()
        return time.perf_counter() - began


def _conmon_seconds(file: Path) -> float | None:
    """How long a container that prints the file takes, from its start until conmon has written its k8s-file and ended.

    conmon keeps a container of a runtime and nothing else, so it is given one of runc's; None without either program.
    """
    if not (installed("conmon") and installed("runc")):
        return None
    with bundle("cat", f"/bench/{file.name}", shown=(file.parent, "/bench")) as made, _kept_by_conmon(made) as kept:
        kept.conmon.wait(timeout=CONMON_TIMEOUT_S)
        seconds = time.perf_counter() - kept.started_at
        with (made.directory / "log").open("rb") as log:
            kept_bytes = sum(len(line.split(b" ", 3)[3]) for line in log)
        assert kept_bytes >= file.stat().st_size, "conmon has not kept all of it"
        return seconds


LOGGERS: Final[dict[str, Callable[[Path], float | None]]] = {
    "multilog t": lambda file: _logger_seconds("multilog", file),
    "s6-log t": lambda file: _logger_seconds("s6-log", file),
    "conmon k8s-file": _conmon_seconds,
}


def gzipped_bytes(file: Path) -> int:
    """What `gzip -1` makes of a file, bytes."""
    with tempfile.TemporaryFile() as out:
        subprocess.run(["gzip", "-1", "-c", str(file)], stdout=out, check=True)
        return out.seek(0, os.SEEK_END)


def counted(command: str, file: Path) -> tuple[int, float]:
    """The number that a command like "zcat | wc -l" prints of a file, and its seconds; bytes, not characters."""
    first, *rest = command.split(" | ")
    began = time.perf_counter()
    script = " | ".join((f"{first} {shlex.quote(str(file))}", *rest))
    done = subprocess.run(["sh", "-c", script], env=os.environ | {"LC_ALL": "C"}, check=True, capture_output=True)
    return int(done.stdout), time.perf_counter() - began


def conmon_memory_bytes(count: int) -> float | None:
    """PSS of one conmon that keeps a sleeping container, averaged over `count`; None when it cannot be run."""
    if not (installed("conmon") and installed("runc")):
        return None
    with ExitStack() as stack:
        keepers = [
            stack.enter_context(_kept_by_conmon(stack.enter_context(bundle("sleep", "60")))) for _ in range(count)
        ]
        return sum(pss_bytes(keeper.conmon.pid) for keeper in keepers) / count


class Kept(NamedTuple):
    """A conmon whose container was started at that time of the performance counter."""

    conmon: subprocess.Popen[bytes]
    started_at: float


@contextmanager
def _kept_by_conmon(made: Bundle) -> Iterator[Kept]:
    """A running container under a conmon; both are gone afterwards."""
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
        began = time.perf_counter()
        while subprocess.run(["runc", "start", name], check=False, capture_output=True).returncode != 0:
            if time.monotonic() > deadline:
                raise TimeoutError(f"conmon did not create {name}")
            time.sleep(0.02)
            began = time.perf_counter()
        yield Kept(conmon, began)
    finally:
        subprocess.run(["runc", "delete", "--force", name], check=False, capture_output=True)
        conmon.wait(timeout=10)


def pss_bytes(pid: int) -> int:
    """Proportional set size of a process: its own pages, and its share of those that it shares (proc(5))."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))
