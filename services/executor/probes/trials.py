"""What is tried: each thing that launching a job, or a promise to it, rests on. Every trial is one attempt.

A trial does what a launch does, by the same wrappers and steps, and looks whether it worked: a kernel that takes a
request and does not do it counts as one that cannot. Not here: what a failure means (`capabilities.py`, `repairs.py`).
Only the standard library is imported: see `program.py`.
"""

import errno
import os
import resource
import signal
import socket
from collections.abc import Callable
from typing import Final, NamedTuple

from common.linux import mounts
from services.executor.identity import JOB_UID, RANGE_IDS
from services.executor.launcher import operations as steps
from services.executor.launcher.devices import BindDevice, MountProc
from services.executor.launcher.newroot import NewRoot
from services.executor.linux import namespaces, network, processes
from services.executor.linux.seccomp import Filter
from services.executor.probes.attempts import Failure, Refused, attempt

SCRATCH: Final = "/tmp"  # noqa: S108  # only covered by a mount of the attempt's own
ROOT_BYTES: Final = 2**16
OPEN_FILES: Final = 32
FILE_BYTES: Final = 4096

Trial = Callable[[], Failure | None]


class Request(NamedTuple):
    """Where to try. Plain values: it is an argument of the program."""

    directory: str  # on the file system of the base directory
    range_first: int  # of an owner's ids
    clone_into: str  # a v2 group; "": this host has none


def trials(request: Request, seccomp: Filter | None) -> dict[str, Trial]:
    """Name of the capability → trial."""
    user = 0 if os.geteuid() == 0 else namespaces.CLONE_NEWUSER
    root = user == 0
    found: dict[str, Trial] = {
        "namespace.mount": lambda: attempt(_build_root, user | namespaces.CLONE_NEWNS),
        "namespace.pid": lambda: attempt(_see_only_itself, user | namespaces.CLONE_NEWNS | namespaces.CLONE_NEWPID),
        "namespace.ipc": lambda: attempt(_nothing, user | namespaces.CLONE_NEWIPC),
        "namespace.uts": lambda: attempt(_rename_host, user | namespaces.CLONE_NEWUTS),
        "namespace.cgroup": lambda: attempt(_hide_groups, user),
        "namespace.net": lambda: attempt(network.loopback_up, user | namespaces.CLONE_NEWNET),
        "namespace.user": lambda: (
            attempt(lambda: _become_nobody(request.range_first)) if root else attempt(_be_job, user)
        ),
        "mount.own_inodes": lambda: attempt(_own_inodes, user | namespaces.CLONE_NEWNS),
        "limit.open_files": lambda: attempt(_open_too_many),
        "limit.file_size": lambda: attempt(_write_too_much),
        "kernel.pidfd": lambda: attempt(_kill_by_descriptor),
    }
    if root:
        found["mount.idmap"] = lambda: attempt(lambda: _map_owners(request), namespaces.CLONE_NEWNS)
    if seccomp is not None:
        found["seccomp"] = lambda: attempt(lambda: _filter_calls(seccomp))
    if request.clone_into:
        found["cgroup.clone_into"] = lambda: attempt(lambda: _clone_into(request.clone_into))
        found["cgroup.kill"] = lambda: attempt(lambda: _kill_group(request.clone_into))
    return found


def _nothing() -> None:
    """To be there is enough."""


def _build_root() -> None:
    """A root like a job's, in small: nothing of the host can be written to, and nothing else is there."""
    _enter_root(
        steps.MakeDirectory("/dev"),
        BindDevice("/dev/null", 1, 3),
        steps.BindReadOnly("/usr", "/usr", "/", None),
    )
    for path in ("/probe", "/usr/probe"):
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
        except OSError as cause:
            if cause.errno in (errno.EROFS, errno.ENOENT):
                continue
            raise
        raise Refused(f"{path} can be written to in a root that was made read-only")
    if set(os.listdir("/")) - {"dev", "usr"}:  # noqa: PTH208  # pathlib is not loaded here
        raise Refused("the old root can still be seen after pivot_root")


def _own_inodes() -> None:
    before = os.stat("/usr").st_dev  # noqa: PTH116
    _enter_root(
        steps.MakeDirectory("/empty"),
        steps.BindReadOnly("/usr", "/usr", "/", None),
        steps.GiveOwnInodes("/usr", "/empty"),
    )
    if os.stat("/usr").st_dev == before:  # noqa: PTH116
        raise Refused("the kernel mounts no overlay here")


def _see_only_itself() -> None:
    _enter_root(steps.MakeDirectory("/proc"), MountProc("/proc"))
    seen = [name for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208
    if seen != ["1"]:
        raise Refused(f"/proc shows {len(seen)} processes in a new pid namespace")


def _enter_root(*built: steps.Operation) -> None:
    os.umask(0)
    root = NewRoot(SCRATCH)
    begin: list[steps.Operation] = [steps.MakeMountsPrivate(), steps.MountRoot(ROOT_BYTES, 64)]
    for step in [*begin, *built, steps.EnterRoot(), steps.SealRoot()]:
        step.execute(root)


def _rename_host() -> None:
    namespaces.sethostname("probe")
    if os.uname().nodename != "probe":
        raise Refused("the host name of a new uts namespace stays as it was")


def _hide_groups() -> None:
    namespaces.unshare(namespaces.CLONE_NEWCGROUP)
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as groups:  # noqa: PTH123
        if any(line.rstrip("\n").split(":", 2)[2] != "/" for line in groups):
            raise Refused("a new cgroup namespace shows groups of the host")


def _be_job() -> None:
    if os.getresuid() != (JOB_UID,) * 3:
        raise Refused("an id that was mapped into a user namespace is not in use there")


def _become_nobody(first: int) -> None:
    """As a job does it: give root up for the least id of the range, then a namespace, which root maps."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()  # else the end of the parent would not be the end of the stream, and it would wait for ever
        os._exit(_be_mapped(theirs, first))
    with ours:
        theirs.close()
        if ours.recv(1):
            namespaces.map_ids(pid, first=first, count=RANGE_IDS)
            ours.sendall(b"mapped")
    _, status = os.waitpid(pid, 0)
    number = os.waitstatus_to_exitcode(status)
    if number:
        raise OSError(number, f"unshare: {os.strerror(number)}")


def _be_mapped(parent: socket.socket, first: int) -> int:
    """The errno that ended it; 0: it is a job's uid now."""
    try:
        os.setgroups(())
        os.setresgid(first, first, first)
        processes.keep_capabilities()
        os.setresuid(first, first, first)
        processes.CapabilitySet((processes.CAP_SYS_ADMIN,)).become()
        namespaces.unshare(namespaces.CLONE_NEWUSER)
        parent.sendall(b"made")
        parent.recv(16)
        os.setresgid(JOB_UID, JOB_UID, JOB_UID)
        os.setresuid(JOB_UID, JOB_UID, JOB_UID)
    except OSError as cause:
        return cause.errno or errno.EIO
    return 0


def _map_owners(request: Request) -> None:
    tree = mounts.open_tree(request.directory, recursive=False)
    user = namespaces.user_namespace(request.range_first, RANGE_IDS)
    mounts.map_owners(tree, user)


def _filter_calls(seccomp: Filter) -> None:
    namespaces.unshare(0)  # nothing is asked for: always granted, but not behind the filter
    processes.set_no_new_privileges()
    seccomp.load()
    try:
        namespaces.unshare(0)
    except PermissionError:
        return
    raise Refused("a system call that the filter refuses is granted")


def _open_too_many() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    try:
        for _ in range(OPEN_FILES):
            os.dup(0)
    except OSError as cause:
        if cause.errno == errno.EMFILE:
            return
        raise
    raise Refused(f"more than {OPEN_FILES} files can be open")


def _write_too_much() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    file = os.memfd_create("probe")
    os.write(file, bytes(FILE_BYTES))
    try:
        os.write(file, b"x")
    except OSError as cause:
        if cause.errno == errno.EFBIG:
            return
        raise
    raise Refused(f"a file can grow beyond {FILE_BYTES} bytes")


def _kill_by_descriptor() -> None:
    _end(_sleeper())


def _clone_into(group: str) -> None:
    child = _sleeper(group)
    try:
        with open(f"{group}/cgroup.procs", encoding="ascii") as members:  # noqa: PTH123
            if str(child.pid) not in members.read().split():
                raise Refused(f"a process that was cloned into {group} is not there")
    finally:
        _end(child)


def _kill_group(group: str) -> None:
    child = _sleeper(group)
    try:
        descriptor = os.open(f"{group}/cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)
        os.write(descriptor, b"1")
        # Until it has ended, which is soon; the attempt's own time bounds it.
        os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
    finally:
        _end(child)


def _sleeper(group: str = "") -> namespaces.Child:
    """A process that does nothing; begun in the v2 group where one is given."""
    directory = os.open(group, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) if group else None
    child = namespaces.clone3(0, cgroup=directory)
    if child is not None:
        return child
    processes.set_parent_death_signal(signal.SIGKILL)
    while True:
        signal.pause()


def _end(child: namespaces.Child) -> None:
    processes.pidfd_send_signal(child.pidfd, signal.SIGKILL)
    os.waitpid(child.pid, 0)
