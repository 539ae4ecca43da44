"""One attempt: a short-lived child does something, and its parent learns whether it could. fork(2), clone(2), pipe(7).

    parent                              child, in new namespaces where asked for
      │ clone3 ──────────────────────────▶│ maps itself (without root), acts, in all of its processes
      │◀────────────── "" or "errno text" ┤ ends
      │ waits, kills it when the time is up

Whatever was made ends with the child: namespaces, mounts, loopback interfaces. Here: the child. Not here: what is tried
(`trials.py`). Only the standard library is imported: see `program.py`.
"""

import os
import select
import signal
from collections.abc import Callable
from typing import Final, NamedTuple, NoReturn

from services.executor.identity import JOB_UID
from services.executor.linux import namespaces, processes

ATTEMPT_S_MAX: Final = 5.0
_ANSWER_BYTES_MAX: Final = 4096  # PIPE_BUF: one write, one read


class Failure(NamedTuple):
    """Why it could not. `number` is the errno; 0: nothing of the kernel's."""

    number: int
    text: str


class Refused(Exception):
    """The kernel did what it was asked, and not what it must do."""


def attempt(action: Callable[[], None], flags: int = 0) -> Failure | None:
    """Do `action` in a child in new namespaces (CLONE_NEW… `flags`). None: it could.

    With CLONE_NEWUSER the child is the caller, mapped to the id that a job has. The process must have one thread.
    """
    uid, gid = os.geteuid(), os.getegid()
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        child = namespaces.clone3(flags)
        if child is None:
            os.close(reading)
            _act(writing, action, (uid, gid) if flags & namespaces.CLONE_NEWUSER else None)
    except OSError as cause:
        os.close(writing)
        os.close(reading)
        return _failure_of(cause)
    os.close(writing)
    try:
        return _outcome(child, reading)
    finally:
        os.close(reading)
        os.close(child.pidfd)


def _act(writing: int, action: Callable[[], None], mapped: tuple[int, int] | None) -> NoReturn:
    answer = b""
    try:
        processes.set_parent_death_signal(signal.SIGKILL)
        if mapped is not None:
            namespaces.map_self(JOB_UID, uid=mapped[0], gid=mapped[1])
        action()
    except OSError as cause:
        answer = "{} {}".format(*_failure_of(cause)).encode()
    except Exception as cause:  # noqa: BLE001  # process entry: whoever asked must learn of it
        answer = f"0 {cause}".encode()
    finally:
        os.write(writing, answer[:_ANSWER_BYTES_MAX] or b"ok")
        os._exit(0)


def _outcome(child: namespaces.Child, reading: int) -> Failure | None:
    ready, _, _ = select.select([reading], [], [], ATTEMPT_S_MAX)
    answer = os.read(reading, _ANSWER_BYTES_MAX) if ready else b""
    if not ready:
        processes.pidfd_send_signal(child.pidfd, signal.SIGKILL)
    _, status = os.waitpid(child.pid, 0)
    if not ready:
        return Failure(0, f"no answer within {ATTEMPT_S_MAX:g} s")
    if not answer:
        return Failure(0, f"the attempt was killed by signal {os.WTERMSIG(status)}")
    if answer == b"ok":
        return None
    number, _, text = answer.decode("utf-8", "replace").partition(" ")
    return Failure(int(number), text)


def _failure_of(cause: OSError) -> Failure:
    where = f": {cause.filename}" if cause.filename else ""
    return Failure(cause.errno or 0, f"{cause.strerror or cause}{where}")
