"""A job that takes something, says so, and holds it until the test has looked.

Belongs here: running such a job, and asking another one whether it lives. Does not belong here: what is taken.
"""

import json
import os
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from tests.e2e.node import Node, end
from tests.security.attack import PYTHON, Attempt, in_job
from tests.waiting import SLOWNESS

HELD_S_MAX: Final = 60.0

HOLD: Final = """
import errno, json, os, signal, sys, time
def say(**found):
    print(json.dumps({"job": os.environ["JOBLET_JOB_ID"], **found}), flush=True)
def hold(**found):
    say(**found)
    while True:
        signal.pause()
def refusals(attempt, most):
    # How often it succeeded, and the name of the error that ended it; None when it went on to the end.
    kept = []
    for number in range(most):
        try:
            kept.append(attempt(number))
        except OSError as error:
            return kept, errno.errorcode[error.errno]
    return kept, None
"""
"""Before every program: `say(**found)` prints a line, `hold(**found)` prints it and waits for the end."""


class Held:
    """A running job, and what it said first."""

    def __init__(self, run: subprocess.Popen[bytes]) -> None:
        self._run = run
        self._unread = b""
        self.said = self.next()
        self.job: str = self.said["job"]

    def next(self) -> dict[str, Any]:
        """What it says next; AssertionError when it says nothing more."""
        assert self._run.stdout is not None
        assert self._run.stderr is not None
        while b"\n" not in self._unread:
            readable, _, _ = select.select([self._run.stdout], [], [], HELD_S_MAX * SLOWNESS)
            more = os.read(self._run.stdout.fileno(), 65536) if readable else b""
            if not more:
                self._run.kill()
                raise AssertionError(f"it said nothing: {self._run.stderr.read()!r}")
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        return said


@contextmanager
def holding(node: Node, program: str, *, options: tuple[str, ...] = (), user: str = "default") -> Iterator[Held]:
    """Run a Python program, which calls `hold` or `say`, as a job; it is killed at the end of the block."""
    command = ("job", "run", *options, "--", PYTHON, "-I", "-c", HOLD + program)
    process = node.background(*command, node=user)
    held = None
    try:
        held = Held(process)
        yield held
    finally:
        if held is not None:
            node.rnx("job", "stop", held.job, "--grace", "0s", node=user)
            process.wait(HELD_S_MAX * SLOWNESS)
        end(process)


def probe(node: Node, program: str, *, options: tuple[str, ...] = (), user: str = "default") -> Attempt:
    """Run a Python program, which calls `say`, as a job to its end."""
    return in_job(node, PYTHON, "-I", "-c", HOLD + program, options=options, user=user)


def alive(node: Node, user: str = "user") -> bool:
    """Whether a job of another owner runs now."""
    return in_job(node, "echo", "alive", user=user).stdout == b"alive\n"
