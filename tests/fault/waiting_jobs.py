"""Jobs that print when they are told to: what a crowd needs that wants to be there before the first line.

Belongs here: such jobs, and what they print. Does not belong here: who follows them.
"""

import os
import signal
from typing import NamedTuple

from tests.e2e.node import Node

LINE = "%08d this line is long enough to fill what stands between a client that does not read and the job"
"""99 characters and a line end."""
READY = b"ready\n"


class WaitingJob(NamedTuple):
    """A job that has printed READY and waits."""

    id: str
    pid: int

    def go(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGUSR1)


def start_waiting(node: Node, script: str) -> WaitingJob:
    """A job that runs the shell `script` when it is told to go."""
    wait = 'trap go=1 USR1; echo ready; while [ -z "$go" ]; do sleep 0.05; done; '
    job = node.detached("--", "sh", "-c", wait + script)
    return WaitingJob(job, node.wait_for_state(job, "running")["pid"])


def rounds_of_lines(rounds: int, lines: int, pause_s: float, *, between: str = ":") -> str:
    """A shell script: LINE for each number from 1 on, `lines` of them in each round, then `between` and a pause."""
    printed = f"seq -f '{LINE.replace('%08d', '%08.0f')}' $((i * {lines} + 1)) $((i * {lines} + {lines}))"
    return f"i=0; while [ $i -lt {rounds} ]; do {printed}; {between}; i=$((i + 1)); sleep {pause_s}; done"


def lines_of(count: int) -> list[bytes]:
    """What `rounds_of_lines` prints, with line ends."""
    return [(LINE % number + "\n").encode() for number in range(1, count + 1)]
