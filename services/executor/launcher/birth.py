"""How a monitor makes the job's first process: pipes, handshake sockets, clone3 into namespaces and a v2 group.

References: pipe(7), unix(7), clone(2), cgroups(7). The process puts itself into the v1 groups before it forks the main
process: no instruction of the job runs outside them.

Its user namespace is made last, by the main process, when the sandbox is built: so everything in the sandbox belongs to
the host's root, and not even a job that had all capabilities of its own namespace could change a mount or an interface
(docs/adr/0013-user-namespaces.md). Only a launcher that is not root has init begin in a user namespace.

It is cloned before the monitor does anything else, for two reasons: the sandbox is built while the monitor makes the
job's files; and a page that the monitor wrote to before would be init's own, too, once the monitor writes to it again.
"""

import contextlib
import fcntl
import os
import socket
from typing import Final, NamedTuple

from services.executor.launcher.handshake import StepFailed, failure_of
from services.executor.launcher.initial import Ends, Entry, run_init
from services.executor.launcher.task import LENGTH_BYTES, NEW_NETWORK, Beginning, Places, Watch
from services.executor.launcher.uploads import open_archives
from services.executor.linux import namespaces
from services.executor.linux.seccomp import Filter

PIPE_BYTES: Final = 2**20
_NAMESPACES: Final = (
    namespaces.CLONE_NEWNS | namespaces.CLONE_NEWPID | namespaces.CLONE_NEWIPC | namespaces.CLONE_NEWUTS
)


class Legacy(NamedTuple):
    """What comes to a job's processes beside the task."""

    seccomp: Filter
    network: int  # the namespace of GIVEN_NETWORK, else -1


class Born(NamedTuple):
    """The job's init and the monitor's ends."""

    init: namespaces.Child
    channel: socket.socket
    report: socket.socket
    briefing: socket.socket
    stdout: int
    stderr: int


def give_birth(beginning: Beginning, legacy: Legacy) -> Born:
    """Start init. The main process prepares the sandbox and waits to be briefed. Raises StepFailed."""
    uid, gid = os.geteuid(), os.getegid()
    channel, init_channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    report, init_report = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    briefing, init_briefing = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    stdout, init_stdout = os.pipe2(os.O_CLOEXEC)
    stderr, init_stderr = os.pipe2(os.O_CLOEXEC)
    child = _clone(beginning.places)
    if child is None:
        ends = Ends(init_channel, init_report, init_briefing, init_stdout, init_stderr)
        run_init(beginning, ends, Entry(legacy.network, uid, gid), legacy.seccomp)
    report.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    init_channel.close()
    init_report.close()
    init_briefing.close()
    os.close(init_stdout)
    os.close(init_stderr)
    return Born(child, channel, report, briefing, stdout, stderr)


def brief(born: Born, watch: Watch, encoded_task: bytes) -> None:
    """Tell the main process which job it is to become, and hand it the uploads. Raises StepFailed.

    They are opened here: it has left the host's root already.
    """
    archives = open_archives(watch.uploads)
    try:
        with born.briefing, contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it failed, and reported that
            socket.send_fds(born.briefing, [len(encoded_task).to_bytes(LENGTH_BYTES, "little")], archives)
            born.briefing.sendall(encoded_task)
    finally:
        for archive in archives:
            os.close(archive)


def prepare_pipes(born: Born, watch: Watch) -> None:
    """Make the pipes what the job needs; both of a pipe's ends are one file. Before GO."""
    for reader in (born.stdout, born.stderr):
        os.set_blocking(reader, False)
        # Over /proc/sys/fs/pipe-user-pages-soft a smaller pipe must do, with more switches.
        with contextlib.suppress(PermissionError):
            fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        # The job may open its own output once more: /dev/stdout, /proc/self/fd/1.
        os.fchown(reader, watch.host_uid, watch.host_gid)


def _clone(places: Places) -> namespaces.Child | None:
    flags = _NAMESPACES
    if places.network == NEW_NETWORK:
        flags |= namespaces.CLONE_NEWNET
    if places.own_user:
        flags |= namespaces.CLONE_NEWUSER
    try:
        if not places.clone_into:
            return namespaces.clone3(flags)
        group = os.open(places.clone_into, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return namespaces.clone3(flags, cgroup=group)
        finally:
            os.close(group)
    except OSError as cause:
        raise StepFailed(failure_of("clone", cause)) from cause
