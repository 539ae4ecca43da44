"""What the tests of kills do to a node: arming places, finding the launcher, letting time pass, and its seed.

Not here: what must hold afterwards (`invariants.py`).
"""

import contextlib
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from common.failpoints import VARIABLE
from tests.e2e.node import Node, make_base
from tests.fault.invariants import alive
from tests.leaks import OWN_MARK, children_of, command_of
from tests.waiting import wait_for

LAUNCHER_TITLE: Final = "joblet-launcher"
ROUNDS_S: Final = float(os.environ.get("JOBLET_TEST_ROUNDS_S", "45"))
"""How long each test goes on that kills at random."""


def seeded() -> random.Random:
    """The chance of this run; its seed is printed, and JOBLET_TEST_SEED repeats it."""
    seed = int(os.environ.get("JOBLET_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
    print(f"JOBLET_TEST_SEED={seed}")  # noqa: T201  # pytest shows it with a failure
    return random.Random(seed)  # noqa: S311  # reproducible on purpose


def rest(seconds: float) -> None:
    """Let the node work for so long: time itself is what a round is made of."""
    until = time.monotonic() + seconds
    wait_for(lambda: time.monotonic() >= until, timeout_s=seconds + 10, what="the moment of the next kill")


class Failpoints:
    """Arms the places of common/failpoints.py for the nodes that were started by `node`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def arm(self, place: str, number: int = 1) -> None:
        """The `number`-th passing of the place kills the process."""
        waiting = self._directory / f".{place}"  # a half-written file would be read as not armed
        waiting.write_text(str(number))
        waiting.chmod(0o666)  # persist counts down as its own user
        waiting.rename(self._directory / place)

    def armed(self, place: str) -> bool:
        """Whether nobody has died there yet."""
        return (self._directory / place).exists()

    def disarm(self) -> None:
        """Nobody dies any more."""
        for each in self._directory.iterdir():
            each.unlink(missing_ok=True)


@contextlib.contextmanager
def failpoints() -> Iterator[Failpoints]:
    """A directory that services of every user can change, named in the environment of nodes started inside."""
    directory = Path(tempfile.mkdtemp(prefix=f"{OWN_MARK}-points-"))
    directory.chmod(0o777)
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(directory)
    try:
        yield Failpoints(directory)
    finally:
        del os.environ[VARIABLE]
        if before is not None:
            os.environ[VARIABLE] = before
        shutil.rmtree(directory)


@contextlib.contextmanager
def started(name: str, settings: dict[str, Any] | None = None) -> Iterator[Node]:
    """A node of its own, started; afterwards nothing of it is there.

    Its handshakes may take their time: on a machine that does ten things at once five seconds can pass in one.
    """
    settings = settings or {}
    joblet = {**settings.get("joblet", {}), "grpc": {"handshake_timeout_ms": 60_000}}
    node = Node(make_base(name, {**settings, "joblet": joblet}))
    try:
        node.start()
        yield node
    finally:
        node.remove()


def launcher_of(node: Node) -> int:
    """Process id of the executor's launcher; 0 while there is none."""
    executor = node.service("executor")
    launchers = [pid for pid in children_of(executor) if command_of(pid) == LAUNCHER_TITLE] if executor else []
    return launchers[0] if launchers else 0


def ends_told(node: Node, name: str) -> list[str]:
    """What the supervisor says about each end of the service."""
    lines = [line.split("| ", 1) for line in node.log_text().splitlines() if "| ended with " in line]
    return [text.removeprefix("ended with ") for head, text in lines if name in head.split()]


def kill_now(pid: int, number: signal.Signals = signal.SIGKILL) -> bool:
    """Send a signal to a process of the node; False: it was not there."""
    if not pid:
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def kill_up(node: Node) -> None:
    """Kill -9 `joblet up`; returns when the services have ended too, as it promises."""
    services = children_of(node.up_pid)
    node.stop(signal.SIGKILL)
    wait_for(lambda: not any(alive(pid) for pid in services), timeout_s=30, what="the services to end with joblet up")


@contextlib.contextmanager
def still(pid: int) -> Iterator[None]:
    """The process is stopped inside the with-block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def monitor_of(job: str) -> int:
    """Process id of the job's monitor; 0: there is none."""
    title = f"joblet-monitor {job}"
    pids = [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit()]
    return next((pid for pid in pids if command_of(pid) == title and alive(pid)), 0)
