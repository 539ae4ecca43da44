"""What the tests of disks, content and floods share: a node for a block, jobs with known output, and measuring memory.

Belongs here: what several of these files need. Does not belong here: file systems (`disks_filesystems.py`), and what
should come out.
"""

import contextlib
import hashlib
import os
import signal
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from tests.e2e.node import PROGRAMS, SERVICES, Node, make_base
from tests.leaks import command_of, spare_ids
from tests.waiting import wait_for

MIB: Final = 2**20
needs_root: Final = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to run a node")
MONITOR_TITLE: Final = "joblet-monitor "
LINE_BYTES: Final = 100
_NOISE: Final = (
    "head -c {raw} /dev/zero | openssl enc -aes-128-ctr -nosalt -K {key:032x} -iv 0 2>/dev/null | base64 -w {width}"
)
LOG_CHARACTERS_SHOWN: Final = 6000


@contextlib.contextmanager
def started(node: Node, *arguments: str) -> Iterator[Node]:
    """The node, up. At the end its jobs are killed and it is stopped; `remove` it afterwards."""
    try:
        node.start(*arguments)
        yield node
    except BaseException:
        print(node.log_text()[-LOG_CHARACTERS_SHOWN:])  # noqa: T201  # pytest shows it with the failure
        raise
    finally:
        for name in SERVICES:  # a stopped one could not end
            if node.running and (pid := node.service(name)):
                os.kill(pid, signal.SIGCONT)
        kill_monitors(node)
        if node.running:
            node.stop()
        kill_monitors(node)


def kill_monitors(node: Node) -> None:
    """Kill the monitors of a node, and with them its jobs: one without room would wait for it to write the end."""
    try:
        own = {each.name for each in (node.base / "jobs").iterdir()}
    except FileNotFoundError:
        return
    for entry in Path("/proc").iterdir():
        title = command_of(int(entry.name)) if entry.name.isdigit() else ""
        if title.startswith(MONITOR_TITLE) and title.removeprefix(MONITOR_TITLE) in own:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(entry.name), signal.SIGKILL)


@contextlib.contextmanager
def based(name: str, settings: dict[str, Any] | None = None) -> Iterator[Node]:
    """A node that is not started yet, so that its directories can be prepared; removed at the end."""
    node = Node(make_base(name, settings))
    try:
        yield node
    finally:
        node.remove()


@contextlib.contextmanager
def fresh_node(name: str, settings: dict[str, Any] | None = None) -> Iterator[Node]:
    """A node of one test's own, up."""
    with based(name, settings) as node, started(node):
        yield node


def noise(key: int, lines: int) -> str:
    """A shell command that prints `lines` lines of LINE_BYTES that hardly compress, the same for the same `key`."""
    return _NOISE.format(raw=lines * (LINE_BYTES - 1) * 3 // 4, key=key, width=LINE_BYTES - 1)


def printed(script: str) -> bytes:
    """What `script` prints here."""
    return subprocess.run(["sh", "-c", script], capture_output=True, check=True).stdout


def sha256_of(data: bytes) -> str:
    """The digest, for what is too long to be shown with a failure."""
    return hashlib.sha256(data).hexdigest()


def assert_whole(node: Node, *jobs: str) -> None:
    """Every file of these jobs is whole gzip, and `joblet verify` finds every sequence once and in order."""
    files = [path for job in jobs for path in (node.base / "logs" / job).glob("*.gz")]
    done = subprocess.run(["gzip", "-t", *files], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    verified = verify(node)
    assert verified.returncode == 0, verified.stdout.decode()
    assert all(job in verified.stdout.decode() for job in jobs)


def verify(node: Node, *job: str) -> subprocess.CompletedProcess[bytes]:
    """`joblet verify` of all jobs, or of one."""
    command = [str(PROGRAMS / "joblet"), "verify", "--base-dir", str(node.base), *job]
    return subprocess.run(command, capture_output=True, check=False, timeout=60)


def wait_for_states(node: Node, jobs: Iterable[str], state: str, *, timeout_s: float = 30.0) -> None:
    """Wait until all of these jobs are in `state`; one question for all of them."""
    wanted = set(jobs)
    wait_for(
        lambda: wanted <= {job["id"] for job in node.jobs("--limit", "1000") if job["state"] == state},
        timeout_s=timeout_s,
        what=f"{len(wanted)} jobs to be {state}",
    )


UNENDED: Final = frozenset({"scheduled", "pending", "starting", "running"})


def wait_until_stored(node: Node, jobs: Sequence[str], *, timeout_s: float = 30.0) -> None:
    """Wait until these jobs have ended and persist has everything of them: their directories are gone then."""
    directory = node.base / "jobs"

    def stored() -> bool:
        if set(jobs) & {each.name for each in directory.iterdir()}:
            return False
        # One that was just started has no directory yet.
        return not set(jobs) & {each["id"] for each in node.jobs("--all") if each["state"] in UNENDED}

    wait_for(stored, timeout_s=timeout_s, what="all output to be stored")


def assert_nothing_of_jobs_left(node: Node) -> None:
    """No directory but those of spares, and no process that belongs to none of services, launcher and spares."""
    directory = node.base / "jobs"
    wait_for(
        lambda: not {each.name for each in directory.iterdir() if each.is_dir()} - spare_ids(),
        what="the jobs' directories to be gone",
    )


class Services:
    """Process ids of a node's services at one moment, and how much memory each has used since then."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.pids = {name: node.service(name) for name in SERVICES}
        assert all(self.pids.values()), self.pids
        for pid in self.pids.values():
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # resets VmHWM, proc(5)
        self.rest_bytes = {name: _status_bytes(pid, "VmRSS") for name, pid in self.pids.items()}

    def assert_same(self) -> None:
        """None of them died."""
        assert {name: self._node.service(name) for name in SERVICES} == self.pids

    def growth_bytes(self) -> dict[str, int]:
        """How much higher the peak of each was than its memory at the beginning."""
        return {name: _status_bytes(pid, "VmHWM") - self.rest_bytes[name] for name, pid in self.pids.items()}

    def assert_bounded(self, growth_bytes_max: int) -> None:
        """No service's peak was higher than that above its memory at the beginning."""
        growth = self.growth_bytes()
        print({name: f"{grown / MIB:.0f} MiB" for name, grown in growth.items()})  # noqa: T201  # with a failure
        assert max(growth.values()) <= growth_bytes_max, growth


def peak_bytes(pid: int) -> int:
    """The most memory that a process had at once since its start."""
    return _status_bytes(pid, "VmHWM")


def monitor_of(node: Node, job: str) -> int:
    """Process id of the monitor that watches a running job: the parent of its init."""
    pid = int(node.wait_for_state(job, "running")["pid"])
    return parent_of(parent_of(pid))


def parent_of(pid: int) -> int:
    """The parent's process id on the host."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def _status_bytes(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has no {field}: it is a zombie")
