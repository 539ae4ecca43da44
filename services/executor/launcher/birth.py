"""How a monitor makes the job's first process: pipes, handshake sockets, clone3 into namespaces and a v2 group.

References: pipe(7), unix(7), clone(2), cgroups(7). The process puts itself into the v1 groups before it forks the main
process: no instruction of the job runs outside them.

It is cloned before the monitor does anything else, for two reasons: the sandbox is built while the monitor makes the
job's files; and a page that the monitor wrote to before would be init's own, too, once the monitor writes to it again.
"""

import contextlib
import fcntl
import os
import socket
from typing import Final, NamedTuple

from services.executor.launcher.handshake import StepFailed, failure_of
from services.executor.launcher.initial import Ends, run_init
from services.executor.launcher.task import Places, Watch
from services.executor.linux import namespaces

PIPE_BYTES: Final = 2**20
_NAMESPACES: Final = (
    namespaces.CLONE_NEWNS
    | namespaces.CLONE_NEWPID
    | namespaces.CLONE_NEWIPC
    | namespaces.CLONE_NEWUTS
    | namespaces.CLONE_NEWNET
)


class Born(NamedTuple):
    """The job's init and the monitor's ends."""

    init: namespaces.Child
    channel: socket.socket
    report: socket.socket
    stdout: int
    stderr: int


def give_birth(places: Places, encoded: bytes) -> Born:
    """Start init. The main process waits for GO before it executes. `encoded` is the whole task. Raises StepFailed."""
    channel, init_channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    report, init_report = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stdout, init_stdout = os.pipe2(os.O_CLOEXEC)
    stderr, init_stderr = os.pipe2(os.O_CLOEXEC)
    child = _clone(places.clone_into)
    if child is None:
        run_init(encoded, Ends(init_channel, init_report, init_stdout, init_stderr), places.join)
    report.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    init_channel.close()
    init_report.close()
    os.close(init_stdout)
    os.close(init_stderr)
    return Born(child, channel, report, stdout, stderr)


def prepare_pipes(born: Born, watch: Watch) -> None:
    """Make the pipes what the job needs; both of a pipe's ends are one file. Before GO."""
    for reader in (born.stdout, born.stderr):
        os.set_blocking(reader, False)
        # Over /proc/sys/fs/pipe-user-pages-soft a smaller pipe must do, with more switches.
        with contextlib.suppress(PermissionError):
            fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        # The job may open its own output once more: /dev/stdout, /proc/self/fd/1.
        os.fchown(reader, watch.uid, watch.gid)


def _clone(clone_into: str) -> namespaces.Child | None:
    try:
        if not clone_into:
            return namespaces.clone3(_NAMESPACES)
        group = os.open(clone_into, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return namespaces.clone3(_NAMESPACES, cgroup=group)
        finally:
            os.close(group)
    except OSError as cause:
        raise StepFailed(failure_of("clone", cause, path=clone_into)) from cause
