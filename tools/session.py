"""A shell session that is shown and checked while it runs: what the demo is made of.

Here: running commands, showing them as typed, and failing when one does not behave. Not here: which commands
(`demo.py`). Standard library only.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

COMMAND_TIMEOUT_S: Final = 180
"""Of all waiting here: nothing takes long, but nobody knows how busy the machine is."""
SHOWN_LINES: Final = 12


class Misbehaved(Exception):
    """A step did not do what it is there to show."""


class Result(NamedTuple):
    """What a command printed."""

    stdout: str
    stderr: str


class Session:
    """Runs programs of `bin_dir` with fixed options, and shows them without these."""

    def __init__(self, bin_dir: Path, options: Mapping[str, tuple[str, ...]]) -> None:
        self._bin_dir = bin_dir
        self._options = options
        self._colour = sys.stdout.isatty()

    def title(self, text: str) -> None:
        """Begin a part of the session."""
        self._show(f"\n── {text} " + "─" * max(3, 96 - len(text)), style="1")

    def say(self, text: str) -> None:
        """A remark."""
        self._show(f"# {text}", style="2")

    def run(self, *words: str, exits: int = 0, show: bool = True) -> Result:
        """Run to the end; Misbehaved when it exits otherwise than said."""
        self.typed(*words)
        done = subprocess.run(
            self.command(*words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        if show:
            self.output(done.stdout)
            self.output(done.stderr)
        check(done.returncode == exits, f"{words[0]} exits {exits}, not {done.returncode}: {done.stderr.strip()}")
        if exits:
            self.say(f"exit code {exits}")
        return Result(done.stdout, done.stderr)

    def start(self, *words: str) -> "subprocess.Popen[str]":
        """Start it, output piped, and go on."""
        self.typed(*words)
        return subprocess.Popen(
            self.command(*words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def typed(self, *words: str) -> None:
        """Show a command as somebody would type it."""
        self.show_typed(shlex.join(words))

    def show_typed(self, text: str) -> None:
        """The same for a line that is not just words."""
        self._show(f"$ {text}", style="36")

    def output(self, text: str) -> None:
        """Show what a program printed, at most so many lines of it."""
        lines = text.splitlines()
        for line in lines[:SHOWN_LINES]:
            self._show(line)
        if len(lines) > SHOWN_LINES:
            self.say(f"… and {len(lines) - SHOWN_LINES} more lines")

    def command(self, *words: str) -> list[str]:
        """The command line that is really run."""
        program, *rest = words
        own = self._bin_dir / program
        head = [str(own)] if own.exists() else [program]
        if program == "rnx":
            return [*head, *self._options.get(program, ()), *rest]
        return [*head, *rest, *self._options.get(program, ())]

    def _show(self, text: str, *, style: str = "") -> None:
        coloured = f"\033[{style}m{text}\033[0m" if self._colour and style else text
        sys.stdout.write(coloured + "\n")
        sys.stdout.flush()


def check(holds: bool, what: str) -> None:  # noqa: FBT001  # reads as assert does
    """Misbehaved unless it holds."""
    if not holds:
        raise Misbehaved(what)


def wait_until(condition: Callable[[], bool], *, what: str, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
    """Misbehaved when `condition` is not true within the time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        check(time.monotonic() < deadline, f"within {timeout_s:g} s: {what}")
        time.sleep(0.05)


def children_named(parent_pid: int, name: str) -> list[int]:
    """Pids of the children of a process that have this name in /proc/PID/comm."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            comm = (entry / "comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == parent_pid and comm == name and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def alive(pid: int) -> bool:
    """Whether a process with this pid exists and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def mentions(base: Path) -> list[str]:
    """Processes, mounts and control groups that still have to do with the node in `base`."""
    left = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if str(base) in command:
                left.append(f"process {entry.name}: {command}")
    left += [f"mount: {line}" for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(base) in line]
    return left
