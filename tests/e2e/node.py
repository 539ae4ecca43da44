"""A real node: `joblet up` on a directory of its own, and the programs that talk to it.

Belongs here: starting, killing and asking, each through the installed programs, so that nothing is tested that a user
does not have. Does not belong here: what should come out. A base directory lies directly below the temporary directory
and not below pytest's, because that one is closed to the users that api and persist become.
"""

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Final

import yaml

from common.linux.mounts import MNT_DETACH, umount2
from tests.leaks import OWN_MARK, children_of, command_of, descendants_of, mounts_below, own_parents
from tests.waiting import SLOWNESS, wait_for

PROGRAMS: Final = Path(sys.executable).parent
READY: Final = re.compile(rb"joblet ready: 127\.0\.0\.1:(\d+) config=(\S+)\n")
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 60.0
"""The supervisor gives each of its four services ten seconds before it kills it."""
UNAVAILABLE: Final = 5
"""What rnx exits with when nobody answers for longer than it asks again."""
GATE: Final = "trap go=1 USR1"
"""Shell: at the beginning of a job that is to wait until the test has prepared what comes then."""
AT_GATE: Final = "while [ -z $go ]; do sleep 0.05; done"
"""Shell: wait here for `Node.open_gate`. What the job printed before tells that the gate stands."""
SERVICES: Final = ("volumes", "persist", "executor", "api")
SETTINGS: Final[dict[str, Any]] = {
    "version": "3.0",
    "server": {"nodeId": "node-under-test", "address": "127.0.0.1"},
    "joblet": {"cgroup_parent": OWN_MARK},
}

_certificates: dict[str, bytes] = {}
"""Those of the first node that made its own. RSA keys take seconds to find, so the other nodes are given the same."""


class Node:
    """One base directory and, while it is up, the services on it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.port = 0
        self.config = base / "rnx-config.yml"
        self.log = base / "up.log"
        self._up: subprocess.Popen[bytes] | None = None
        self._groups: frozenset[Path] = frozenset()

    @property
    def up_pid(self) -> int:
        """Process id of `joblet up`."""
        assert self._up is not None, "the node is not up"
        return self._up.pid

    @property
    def running(self) -> bool:
        """Whether `joblet up` was started and not yet stopped."""
        return self._up is not None

    def start(self, *arguments: str) -> None:
        """Run `joblet up` until it is ready; AssertionError with its log when that does not happen."""
        assert self._up is None, "the node is up already"
        groups_of_others = own_parents()
        makes_certificates = not (self.base / "certs" / "ca.crt").exists()
        command = [str(PROGRAMS / "joblet"), "up", "--base-dir", str(self.base), "--port", str(self.port), *arguments]
        with self.log.open("ab") as log:
            self._up = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
        line = _first_line(self._up)
        ready = READY.fullmatch(line)
        if ready is None:
            self.stop()
            raise AssertionError(f"joblet up said {line!r}; its log:\n{self.log_text()[-5000:]}")
        self._groups |= own_parents() - groups_of_others
        for file in (self.base / "certs").iterdir() if makes_certificates else ():
            _certificates.setdefault(file.name, file.read_bytes())
        self.port = int(ready[1])  # kept for the next start, so that clients find the node again
        self.config = Path(ready[2].decode())

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End `joblet up` and wait for it; its exit status."""
        assert self._up is not None, "the node is not up"
        up, self._up = self._up, None
        up.send_signal(number)
        try:
            return up.wait(STOP_TIMEOUT_S * SLOWNESS)
        except subprocess.TimeoutExpired:
            up.kill()
            up.wait()
            raise
        finally:
            assert up.stdout is not None
            up.stdout.close()

    def remove(self) -> None:
        """Stop what runs, and take away everything of this node, also what a failed test left."""
        if self.running:
            self.stop()
        for parent in self._groups:
            _remove_groups(parent)
        mounts = [each for each in mounts_below(self.base) if each.startswith(f"{self.base}/")]
        for mounted in sorted(mounts, reverse=True):  # volumes of jobs that were just killed
            umount2(mounted, MNT_DETACH)
        shutil.rmtree(self.base)

    def log_text(self) -> str:
        """What `joblet up` and the services wrote so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def service(self, name: str) -> int:
        """Process id of a service; 0 while it is not there."""
        return next((pid for pid in children_of(self.up_pid) if f"joblet-{name}" in command_of(pid)), 0)

    def kill(self, name: str) -> int:
        """Kill -9 a service, wait until another one stands in its place, and give that one's pid.

        That it is ready is not waited for: clients have to bear the time between.
        """
        old = wait_for(lambda: self.service(name), what=f"joblet-{name} to exist")
        os.kill(old, signal.SIGKILL)
        return wait_for(
            lambda: (now := self.service(name)) != old and now, timeout_s=30, what=f"joblet-{name} to be restarted"
        )

    def processes(self) -> frozenset[int]:
        """Everything below `joblet up`."""
        return descendants_of(self.up_pid)

    def command(self, *arguments: str, node: str = "default") -> list[str]:
        """The argument vector of an rnx call."""
        return [str(PROGRAMS / "rnx"), "--config", str(self.config), "--node", node, *arguments]

    def rnx(
        self, *arguments: str, stdin: bytes = b"", node: str = "default", timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[bytes]:
        """Run rnx to its end, without a terminal."""
        return subprocess.run(
            self.command(*arguments, node=node),
            input=stdin,
            capture_output=True,
            timeout=timeout_s * SLOWNESS,
            check=False,
        )

    def ok(self, *arguments: str, stdin: bytes = b"", node: str = "default", timeout_s: float = 60.0) -> bytes:
        """What rnx prints on stdout; AssertionError with its stderr when it fails."""
        done = self.rnx(*arguments, stdin=stdin, node=node, timeout_s=timeout_s)
        assert done.returncode == 0, f"rnx {' '.join(arguments)} exited {done.returncode}: {done.stderr.decode()}"
        return done.stdout

    def background(self, *arguments: str, node: str = "default") -> subprocess.Popen[bytes]:
        """Start rnx; the caller ends it."""
        return subprocess.Popen(
            self.command(*arguments, node=node),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def detached(self, *arguments: str, node: str = "default") -> str:
        """Start a job with `rnx job run --detach`; its id."""
        return self.ok("job", "run", "--detach", *arguments, node=node).decode().strip()

    def status(self, job: str, *, node: str = "default") -> dict[str, Any]:
        """`rnx --json job status`."""
        found: dict[str, Any] = json.loads(self.ok("--json", "job", "status", job, node=node))
        return found

    def jobs(self, *arguments: str, node: str = "default") -> list[dict[str, Any]]:
        """`rnx --json job list`, newest first."""
        found: list[dict[str, Any]] = json.loads(self.ok("--json", "job", "list", *arguments, node=node))
        return found

    def wait_for_state(self, job: str, *states: str, timeout_s: float = 30.0) -> dict[str, Any]:
        """The job's status when its state is one of `states`; a service may be away meanwhile, and come back slowly."""

        def reached() -> dict[str, Any] | None:
            done = self.rnx("--json", "job", "status", job)
            assert done.returncode in (0, UNAVAILABLE), done.stderr.decode()
            now: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
            return now if now.get("state") in states else None

        return wait_for(reached, timeout_s=timeout_s, what=f"job {job} to be {' or '.join(states)}")

    def open_gate(self, job: str) -> None:
        """Let a job go on that waits AT_GATE."""
        os.kill(self.status(job)["pid"], signal.SIGUSR1)

    def entries(self, job: str, *arguments: str) -> list[dict[str, Any]]:
        """The stored entries of `rnx --json job log`."""
        lines = self.ok("--json", "job", "log", job, "--no-follow", *arguments).splitlines()
        return [json.loads(line) for line in lines]


def make_base(name: str, settings: dict[str, Any] | None = None) -> Path:
    """A fresh base directory with a configuration whose jobs' groups carry OWN_MARK."""
    base = Path(tempfile.mkdtemp(prefix=f"{OWN_MARK}-{name}-"))
    base.chmod(0o755)
    merged = _merged(SETTINGS, settings or {})
    (base / "joblet-config.yml").write_text(yaml.safe_dump(merged))
    if _certificates:
        (base / "certs").mkdir(mode=0o700)
    for file, content in _certificates.items():
        (base / "certs" / file).write_bytes(content)
        (base / "certs" / file).chmod(0o600)
    return base


def read_all(stream: IO[bytes] | None) -> "Reader":
    """Read a pipe in a thread from now on."""
    assert stream is not None
    return Reader(stream)


class Reader:
    """Collects what comes out of a pipe while the test does something else.

    It reads a descriptor of its own: whoever closes the stream does not close what is read at this moment, whose number
    something else may have by then.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._chunks: list[bytes] = []
        self._stream = stream
        self._descriptor = os.dup(stream.fileno())
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def data(self) -> bytes:
        """All of it so far."""
        return b"".join(self._chunks)

    def finished(self, timeout_s: float = 60.0) -> bytes:
        """All of it, when the pipe has ended."""
        self._thread.join(timeout_s * SLOWNESS)
        assert not self._thread.is_alive(), f"the pipe did not end within {timeout_s * SLOWNESS} s"
        self._stream.close()
        return self.data

    def _run(self) -> None:
        try:
            while chunk := os.read(self._descriptor, 1 << 20):
                self._chunks.append(chunk)
        finally:
            os.close(self._descriptor)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that the test started, if it still runs, and let go of its pipes."""
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _remove_groups(parent: Path) -> None:
    """Kill what is in the groups below `parent`, and remove them and it."""

    def gone() -> bool:
        for directory, _, files in os.walk(parent, topdown=False):
            if "cgroup.procs" in files:
                for pid in Path(directory, "cgroup.procs").read_text().split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
            with contextlib.suppress(OSError):  # EBUSY until the last one has died
                Path(directory).rmdir()
        return not parent.exists()

    wait_for(gone, what=f"{parent} to be removed")


def _first_line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], START_TIMEOUT_S * SLOWNESS)
    return process.stdout.readline() if ready else b""


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = below.keys() & above.keys()
    deeper = {key: _merged(below[key], above[key]) for key in both if isinstance(below[key], dict)}
    return {**below, **above, **deeper}


def numbers(data: bytes | Sequence[dict[str, Any]]) -> list[int]:
    """The numbers that a counting job printed, from raw output or from stored entries."""
    if isinstance(data, bytes):
        return [int(line) for line in data.split()]
    return [int(entry["content"]) for entry in data]
