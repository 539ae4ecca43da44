"""Attacks of one job on another.

Arguments: the word that names the victim's things, pids (JSON), paths of sockets (JSON).
With "in the same place" as fifth argument, and the victim's program as sixth, the victim is started here: the control.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress

from tests.security.probes.prelude import LIBC, NUMBERS, Attack, call, report

NAME = sys.argv[2]
PIDS: list[int] = json.loads(sys.argv[3])
SOCKETS: list[str] = json.loads(sys.argv[4])
TOGETHER = len(sys.argv) > 5
USER_KEYRING, SEARCH, REVOKE = -4, 10, 3
NUMBERS_TRIED = 70_000
LISTED = ("environ", "cmdline", "status", "root", "cwd", "fd", "mem")


def with_each(act: Callable[[int], object]) -> Attack:
    """One success is one; else the last refusal."""

    def attack() -> None:
        refusal: OSError = ProcessLookupError(3, "nobody")
        for pid in PIDS:
            try:
                act(pid)
            except OSError as error:
                refusal = error
                continue
            return
        raise refusal

    return attack


def sweep() -> None:
    """SIGKILL by number, whoever it is. A control would harm the host: there only the victim's numbers are tried."""
    tried = PIDS if TOGETHER else [*PIDS, *range(2, NUMBERS_TRIED)]
    reached = 0
    for pid in tried:
        if pid in (OWN, os.getpid()):
            continue
        with suppress(OSError):
            os.kill(pid, 0 if TOGETHER else signal.SIGKILL)
            reached += 1
    if not reached:
        raise ProcessLookupError(3, "nobody")


def find_key() -> None:
    key = call("keyctl", SEARCH, USER_KEYRING, b"user", NAME.encode(), 0)
    call("keyctl", REVOKE, key)


def find_segment() -> None:
    if LIBC.shmget(int(NAME, 16), 0, 0) == -1:
        raise OSError(ctypes.get_errno(), "shmget")


def find_queue() -> None:
    if LIBC.mq_open(f"/{NAME}".encode(), os.O_RDONLY) == -1:
        raise OSError(ctypes.get_errno(), "mq_open")


def connect(path: str) -> Attack:
    return lambda: socket.socket(socket.AF_UNIX).connect(path)


def look(name: str) -> Attack:
    """Through /proc, by the host's number."""

    def see(pid: int) -> None:
        path = f"/proc/{pid}/{name}"
        if os.path.isdir(path):
            os.listdir(path)
        else:
            os.close(os.open(path, os.O_RDONLY))

    return with_each(see)


OWN = os.getpid()
victim = None
if TOGETHER:
    command = [sys.executable, "-I", "-c", sys.argv[6], json.dumps(NUMBERS), NAME, "60"]
    victim = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert victim.stdout is not None
    victim.stdout.readline()
    PIDS = [victim.pid]
report(
    {
        "by number": sweep,
        "memory": with_each(lambda pid: os.open(f"/proc/{pid}/mem", os.O_RDWR)),
        "trace": with_each(lambda pid: call("ptrace", 0x4206, pid, None, None)),
        "pidfd": with_each(os.pidfd_open),
        "descriptor": with_each(lambda pid: call("pidfd_getfd", os.pidfd_open(pid), 1, 0)),
        "limits": with_each(lambda pid: call("prlimit64", pid, 7, None, None)),
        "priority": with_each(lambda pid: os.setpriority(os.PRIO_PROCESS, pid, 19)),
        **{f"/proc {name}": look(name) for name in LISTED},
        "key": find_key,
        "segment": find_segment,
        "queue": find_queue,
        "abstract socket": connect(f"\0{NAME}"),
        "file in /dev/shm": lambda: os.open(f"/dev/shm/{NAME}", os.O_RDONLY),
        "file in /tmp": lambda: os.open(f"/tmp/{NAME}", os.O_RDWR),
        **{f"socket {path}": connect(path) for path in SOCKETS},
    }
)
if victim is not None:
    victim.kill()
    victim.wait()
    for path in (f"/dev/shm/{NAME}", f"/tmp/{NAME}"):
        os.unlink(path)
