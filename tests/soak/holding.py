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
import json, os, signal, sys, time
def say(**found):
    print(json.dumps({"job": os.environ["JOBLET_JOB_ID"], **found}), flush=True)
def hold(**found):
    say(**found)
    while True:
        signal.pause()
def refusals(attempt, most):
    # How often it succeeded, and the name of the error that ended it; None when it went on to the end.
    import errno
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

    def __init__(self, job: str, said: dict[str, Any]) -> None:
        self.job = job
        self.said = said


@contextmanager
def holding(node: Node, program: str, *, options: tuple[str, ...] = (), user: str = "default") -> Iterator[Held]:
    """Run a Python program, which calls `hold` or `say`, as a job; it is killed at the end of the block."""
    command = ("job", "run", *options, "--", PYTHON, "-I", "-c", HOLD + program)
    process = node.background(*command, node=user)
    held = None
    try:
        held = _first_words(process)
        yield held
    finally:
        if held is not None:
            node.rnx("job", "stop", held.job, "--grace", "0s", node=user)
            process.wait(HELD_S_MAX)
        end(process)


def probe(node: Node, program: str, *, options: tuple[str, ...] = (), user: str = "default") -> Attempt:
    """Run a Python program, which calls `say`, as a job to its end."""
    return in_job(node, PYTHON, "-I", "-c", HOLD + program, options=options, user=user)


def alive(node: Node, user: str = "user") -> bool:
    """Whether a job of another owner runs now."""
    return in_job(node, "echo", "alive", user=user).stdout == b"alive\n"


def _first_words(process: subprocess.Popen[bytes]) -> Held:
    assert process.stdout is not None
    assert process.stderr is not None
    select.select([process.stdout], [], [], HELD_S_MAX * SLOWNESS)
    os.set_blocking(process.stdout.fileno(), False)
    line = process.stdout.readline()
    if not line:
        process.kill()
        raise AssertionError(f"it held nothing: {process.stderr.read()!r}")
    said = json.loads(line)
    return Held(said["job"], said)
