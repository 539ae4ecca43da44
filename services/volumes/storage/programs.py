"""Running a program of e2fsprogs: found in fixed places, with nothing of our environment, and not for ever.

Not here: what they are told (`ext4.py`).
"""

import os
import subprocess
from collections.abc import Mapping
from typing import Final

from common.errors import JobletError, Reason, precondition

DIRECTORIES: Final = ("/usr/sbin", "/sbin", "/usr/bin", "/bin")
TIMEOUT_S: Final = 900.0
"""For the largest volume on a slow disk."""

_TOLD_BYTES_MAX: Final = 500


def find(name: str) -> str:
    """The path of a program. PRECONDITION, with the repair."""
    for directory in DIRECTORIES:
        path = f"{directory}/{name}"
        if os.access(path, os.X_OK):
            return path
    raise precondition(
        f"there is no {name} in {', '.join(DIRECTORIES)}, which volumes of the kind image need", "install e2fsprogs"
    )


def run(
    name: str, *arguments: str, environment: Mapping[str, str] | None = None, good: frozenset[int] = frozenset({0})
) -> int:
    """The exit status, one of `good`. INTERNAL, with what it told last; DEADLINE when it does not end."""
    path = find(name)
    try:
        ended = subprocess.run(  # a fixed path and no shell
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=dict(environment or {}),
            cwd="/",
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as cause:
        raise JobletError(
            Reason.DEADLINE, f"{name} {arguments[-1]} did not end in {TIMEOUT_S:.0f} s", detail="look at the disk"
        ) from cause
    if ended.returncode not in good:
        told = (ended.stderr or ended.stdout)[-_TOLD_BYTES_MAX:].decode(errors="replace").strip()
        raise ProgramFailed(name, ended.returncode, told)
    return ended.returncode


class ProgramFailed(JobletError):
    """A program of the host said no."""

    def __init__(self, name: str, status: int, told: str) -> None:
        super().__init__(Reason.INTERNAL, f"{name} ended with {status}: {told}", detail="look at the disk and the log")
        self.status = status
