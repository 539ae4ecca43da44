"""The job's init, the first process of its namespaces: starts the main process, reaps, forwards signals.

It ends when the main process has ended, and then the kernel kills everything else in the namespace, see
pid_namespaces(7). It stays root without any capability but CAP_KILL, and is not dumpable: the job can neither signal
nor trace it nor look through /proc/1.
"""

import contextlib
import fcntl
import os
import signal
import socket
from collections.abc import Iterator
from typing import Final, NamedTuple, NoReturn

from common.linux.files import write_once
from services.executor.launcher.execution import Inherited, become_job
from services.executor.launcher.handshake import (
    MESSAGE_BYTES_MAX,
    Kind,
    StepFailed,
    failure_of,
    parse,
    send,
)
from services.executor.launcher.task import Beginning, Places
from services.executor.linux import namespaces, processes
from services.executor.linux.seccomp import Filter

_FORWARDED: Final = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCONT,
    signal.SIGWINCH,
)
_WAITED: Final = frozenset((signal.SIGCHLD, signal.SIGIO, *_FORWARDED))
_CAPABILITIES: Final = processes.CapabilitySet((processes.CAP_KILL,))
_OOM_SCORE_ADJUSTMENT: Final = "500"
"""Jobs go before the node's services when the host itself runs out of memory."""


class Entry(NamedTuple):
    """How init enters its places. `network`: descriptor of the one it is given; -1: it has its own already.

    `uid` and `gid` are the launcher's, which init cannot ask for any more when it begins in a user namespace.
    """

    network: int
    uid: int
    gid: int


class Ends(NamedTuple):
    """init's ends of what the monitor made: channel, report and briefing, and the pipes that the job writes to."""

    channel: socket.socket
    report: socket.socket
    briefing: socket.socket
    stdout: int
    stderr: int


def run_init(beginning: Beginning, ends: Ends, entry: Entry, seccomp: Filter) -> NoReturn:
    """Everything that PID 1 does, to its exit. `seccomp` is for the main process."""
    try:
        processes.set_parent_death_signal(signal.SIGKILL)
        processes.set_title("init")  # the job sees it, and the arguments tell the node's paths
        _enter(beginning.places, entry)
        _close_all_but(ends)
        write_once("/proc/self/oom_score_adj", _OOM_SCORE_ADJUSTMENT)
        processes.set_dumpable(dumpable=False)
        _signal_input(ends.channel)
        main = _fork_main(beginning, ends, seccomp)
        status = _watch(main, ends.channel)
        send(ends.channel, Kind.ENDED, number=status)
    except StepFailed as failed:
        send(ends.channel, Kind.FAILED, failure=failed.failure)
    except Exception as cause:  # noqa: BLE001  # process entry: a bug here must reach the client as well
        send(ends.channel, Kind.FAILED, failure=failure_of("init", cause))
    finally:
        os._exit(0)


def _close_all_but(ends: Ends) -> None:
    # What the monitor holds (lock, journal, control, its ends of the pipes) is not for this process.
    previous = 2
    sockets = (ends.channel.fileno(), ends.report.fileno(), ends.briefing.fileno())
    for keep in sorted((*sockets, ends.stdout, ends.stderr)):
        os.closerange(previous + 1, keep)
        previous = keep
    processes.close_from(previous + 1)


def _signal_input(channel: socket.socket) -> None:
    # From here on a message of the monitor brings SIGIO: one sigwaitinfo(2) waits for everything, without a handler.
    fcntl.fcntl(channel, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(channel, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)


def _enter(places: Places, entry: Entry) -> None:
    with _step("user namespace"):
        if places.own_user:
            # /proc/self of who is not dumpable belongs to the host's root.
            processes.set_dumpable(dumpable=True)
            namespaces.map_self(int(places.own_user), uid=entry.uid, gid=entry.gid)
    with _step("network namespace"):
        if entry.network >= 0:
            namespaces.setns(entry.network, namespaces.CLONE_NEWNET)
    # It moves itself, by "0", while it has one thread: moving another process waits for an RCU grace period, some ms.
    for path in places.join:
        with _step("cgroup"):
            write_once(path, "0")


@contextlib.contextmanager
def _step(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as cause:
        raise StepFailed(failure_of(name, cause)) from cause


def _fork_main(beginning: Beginning, ends: Ends, seccomp: Filter) -> int:
    try:
        main = os.fork()
    except OSError as cause:
        raise StepFailed(failure_of("fork", cause)) from cause
    if main == 0:
        ends.channel.close()
        become_job(beginning, Inherited(ends.report, ends.briefing, ends.stdout, ends.stderr, seccomp))
    ends.report.close()
    ends.briefing.close()
    os.close(ends.stdout)
    os.close(ends.stderr)
    _CAPABILITIES.become()
    return main


def _watch(main: int, channel: socket.socket) -> int:
    """Reap children and pass signals on until `main` has ended; its wait status.

    Every signal is blocked since before this process was made, so none is lost and no handler runs in between.
    """
    while True:
        number = signal.sigwaitinfo(_WAITED).si_signo
        if number == signal.SIGCHLD:
            status = _reap(main)
            if status is not None:
                return status
        elif number == signal.SIGIO:
            _take_messages(main, channel)
        else:
            _signal_group(main, number)


def _take_messages(main: int, channel: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):  # one SIGIO may stand for several messages
        while True:
            packet = channel.recv(MESSAGE_BYTES_MAX)
            if not packet:
                os._exit(1)
            message = parse(packet)
            if message.kind is Kind.SIGNAL:
                _signal_group(main, message.number)


def _signal_group(main: int, number: int) -> None:
    # `main` is not reaped yet, so its number cannot belong to anybody else. It may not have made its group yet.
    try:
        os.killpg(main, number)
    except ProcessLookupError:
        os.kill(main, number)


def _reap(main: int) -> int | None:
    """Collect every ended child, orphans included. The wait status of `main` when it is among them."""
    status = None
    while True:
        try:
            pid, ended = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if pid == 0:
            return status
        if pid == main:
            status = ended
