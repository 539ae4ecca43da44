"""A job that does all it can not to be stopped, says so, and goes on. With an argument it does not go on."""

import os
import signal
import sys
import time
from collections.abc import Callable

from tests.security.probes.prelude import call

CLONE_PARENT, CLONE_UNTRACED = 0x8000, 0x80_0000
PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 36, 1, 4


def ignore_everything() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())


def endure() -> None:
    """What every process does here."""
    while True:
        time.sleep(1000)


def fork(then: Callable[[], object]) -> None:
    if os.fork() == 0:
        try:
            then()
        finally:
            os._exit(0)


def leader() -> None:
    os.setsid()
    endure()


def orphan() -> None:
    """A session of its own, and no parent."""
    os.setsid()
    fork(leader)


def without_death_signal() -> None:
    call("prctl", PR_SET_PDEATHSIG, 0, 0, 0, 0)
    endure()


def stopper() -> None:
    """All of the main process's group, the main process included."""
    time.sleep(0.2)
    os.killpg(2, signal.SIGSTOP)


def stopped() -> None:
    """SIGTERM waits for SIGCONT."""
    os.setpgid(0, 0)
    os.kill(0, signal.SIGSTOP)
    endure()


def brother() -> None:
    """A child of init."""
    pid = call("clone", CLONE_PARENT | CLONE_UNTRACED, None, None, None, 0)
    if pid == 0:
        os.setsid()
        endure()


def phoenix() -> None:
    """Each generation leaves another one behind and ends."""
    for _ in range(20):
        if os.fork():
            os._exit(0)
        os.setsid()
    endure()


def main() -> None:
    ignore_everything()
    call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
    for _ in range(3):
        fork(orphan)
        fork(without_death_signal)
        fork(stopped)
        fork(phoenix)
        brother()
    print("entrenched", flush=True)
    if len(sys.argv) > 2:
        return
    fork(stopper)
    endure()


main()
