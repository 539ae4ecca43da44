"""What a crowd is told and what it answers, and the process that does it, seen from a test.

Belongs here: the structs that both sides share, and starting, hearing and ending a crowd. Does not belong here: gRPC
(`crowd.py`), which a test process must not hold.
"""

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from tests.e2e.node import end
from tests.waiting import SLOWNESS


class Group(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`count` followers of one kind; the fields after `pause_ms` are those of StreamLogsRequest.

    `reads`: False for one that takes its first message and then no more. `join_at`: it begins when the first follower
    of the plan has got so many entries; 0: at once. `pause_ms`: rest after each message.
    """

    job: str
    count: int = 1
    reads: bool = True
    join_at: int = 0
    pause_ms: int = 0
    from_sequence: int = 0
    tail: int | None = None
    filter: str = ""
    regex: str = ""
    limit: int = 0
    stream: str = ""
    follow: bool = True


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all followers of a crowd do."""

    groups: tuple[Group, ...]


class Opened(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """So many streams are open: each had its first message, or has ended without one."""

    streams: int


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """What one follower got: SHA-256 of all data in the order it came, and of each stream's.

    `jumps`: how often a chunk did not follow the one before; `gaps`: reasons that were told; `ended`: state of the job
    in the last message, status code and words, or "cut off" when the stream ended without either.
    """

    group: int
    entries: int
    first: int
    last: int
    jumps: int
    gaps: tuple[str, ...]
    merged: str
    stdout: str
    stderr: str
    ended: str


class Told(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What those got who read to the end, in the order of the plan, and the node's counters then."""

    heard: tuple[Heard, ...]
    counters: dict[str, int]


Line = TypeVar("Line", Opened, Told)


class RunningCrowd:
    """A crowd's process. `opened` and `told` wait for its two lines, each once."""

    def __init__(self, config: Path, plan: Plan) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fault.crowd", str(config)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(plan) + b"\n")
        self.process.stdin.flush()
        assert self.process.stdout is not None
        self._output = self.process.stdout
        self._pending = b""

    def opened(self, *, timeout_s: float = 60.0) -> int:
        """How many streams are open, when all of them are that begin at once."""
        return self._next(Opened, timeout_s).streams

    def told(self, *, timeout_s: float = 100.0) -> Told:
        """What the followers got, when all that read have ended."""
        return self._next(Told, timeout_s)

    def ready(self) -> bool:
        """Whether the next line has come, or the process has ended."""
        return bool(select.select([self._output], [], [], 0)[0])

    def _next(self, kind: type[Line], timeout_s: float) -> Line:
        deadline = time.monotonic() + timeout_s * SLOWNESS
        while b"\n" not in self._pending:
            left_s = deadline - time.monotonic()
            assert select.select([self._output], [], [], max(left_s, 0))[0], f"no {kind.__name__} in time"
            data = os.read(self._output.fileno(), 1 << 20)
            assert data, f"the crowd ended with {self.process.wait()} instead of saying {kind.__name__}"
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return msgspec.json.decode(line, type=kind)


@contextmanager
def crowd(config: Path, *groups: Group) -> Iterator[RunningCrowd]:
    """These followers, killed at the end of the block if they are still there."""
    running = RunningCrowd(config, Plan(groups=groups))
    try:
        yield running
    finally:
        end(running.process)
