"""Running a probe twice: inside a job of a real node, where it must fail, and unprotected, where it must succeed.

Belongs here: the two ways to run one, and what the host looks like. Does not belong here: any one attack.

An attack that fails in the job proves something only when the same probe succeeds elsewhere: `unprotected` runs it as
root in mount, pid, uts and ipc namespaces of its own (what it breaks dies with it), and without anything that joblet
adds. A probe that would harm the host even so must only try to open what it would write, or is judged by the mechanism
(mount entry, filter, capability set) that refuses it.
"""

import json
import subprocess
from typing import Any, Final, NamedTuple

from tests.e2e.node import Node
from tests.waiting import SLOWNESS

PYTHON: Final = "/usr/bin/python3"
"""The system's: ours may lie where no job can reach."""
PROBE_S_MAX: Final = 60.0


class Attempt(NamedTuple):
    """What a probe did."""

    code: int
    stdout: bytes
    stderr: bytes

    @property
    def seen(self) -> Any:
        """The JSON value that the probe printed."""
        return json.loads(self.stdout)


def in_job(node: Node, *command: str, options: tuple[str, ...] = (), user: str = "default") -> Attempt:
    """Run a command as a job, attached, with options of `rnx job run`."""
    done = node.rnx("job", "run", *options, "--", *command, node=user, timeout_s=PROBE_S_MAX)
    return Attempt(done.returncode, done.stdout, done.stderr)


def python_in_job(node: Node, program: str, *arguments: str, options: tuple[str, ...] = ()) -> Attempt:
    """Run a Python program as a job."""
    return in_job(node, PYTHON, "-I", "-c", program, *arguments, options=options)


def unprotected(*command: str) -> Attempt:
    """Run a command as root, in namespaces of its own, without any protection."""
    namespaces = ("--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts", "--ipc")
    wrapped = ["unshare", *namespaces, "--", *command]
    done = subprocess.run(wrapped, capture_output=True, check=False, timeout=PROBE_S_MAX * SLOWNESS)
    return Attempt(done.returncode, done.stdout, done.stderr)


def python_unprotected(program: str, *arguments: str) -> Attempt:
    """Run a Python program likewise."""
    return unprotected(PYTHON, "-I", "-c", program, *arguments)
