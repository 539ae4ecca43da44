"""Namespaces and the processes that begin in them: clone(2), unshare(2), namespaces(7), sethostname(2).

Headers: linux/sched.h, unistd.h.
"""

import ctypes
import os
import signal
import socket
from typing import Final, NamedTuple

from common.linux.files import write_once
from common.linux.libc import PYLIBC, declare, declare_syscall

CLONE_PIDFD: Final = 0x0000_1000
CLONE_NEWNS: Final = 0x0002_0000
CLONE_NEWCGROUP: Final = 0x0200_0000
CLONE_NEWUTS: Final = 0x0400_0000
CLONE_NEWIPC: Final = 0x0800_0000
CLONE_NEWUSER: Final = 0x1000_0000
CLONE_NEWPID: Final = 0x2000_0000
CLONE_NEWNET: Final = 0x4000_0000
CLONE_INTO_CGROUP: Final = 0x2_0000_0000

_unshare = declare("unshare", ctypes.c_int)
_setns = declare("setns", ctypes.c_int, ctypes.c_int)
_sethostname = declare("sethostname", ctypes.c_char_p, ctypes.c_size_t)


class _CloneArgs(ctypes.Structure):
    """struct clone_args of linux/sched.h, as of Linux 5.7 (88 bytes)."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "flags",
            "pidfd",
            "child_tid",
            "parent_tid",
            "exit_signal",
            "stack",
            "stack_size",
            "tls",
            "set_tid",
            "set_tid_size",
            "cgroup",
        )
    )


# Looked up here, once: ctypes makes a type and an object of each at its first use, and every child would keep its own.
_before_fork = PYLIBC.PyOS_BeforeFork
_after_fork_parent = PYLIBC.PyOS_AfterFork_Parent
_after_fork_child = PYLIBC.PyOS_AfterFork_Child
_clone3 = declare_syscall("clone3", ctypes.POINTER(_CloneArgs), ctypes.c_size_t, keeps_interpreter_lock=True)


class Child(NamedTuple):
    """A new process, as its parent sees it. The caller closes `pidfd`, which is close-on-exec."""

    pid: int
    pidfd: int


def unshare(flags: int) -> None:
    """Leave the namespaces in `flags` (CLONE_NEW…) for new ones."""
    _unshare(flags)


def setns(descriptor: int, flags: int) -> None:
    """Enter the namespace of the descriptor, which must be of the kind that `flags` (one CLONE_NEW…) names."""
    _setns(descriptor, flags)


def map_ids(pid: int, *, first: int, count: int) -> None:
    """Let the ids 0 to `count` - 1 of a new user namespace be those of the host from `first` on. user_namespaces(7).

    `pid` is a process in it; the caller holds CAP_SETUID and CAP_SETGID in the namespace around it. Once only.
    """
    for kind in ("gid_map", "uid_map"):
        write_once(f"/proc/{pid}/{kind}", f"0 {first} {count}")


def user_namespace(first: int, count: int) -> int:
    """A descriptor of a new user namespace, mapped as `map_ids` does it. The caller closes it.

    A namespace begins with a process, so one is made for it and ends at once.
    """
    ours, theirs = socket.socketpair()
    with ours:
        child = clone3(CLONE_NEWUSER)
        if child is None:
            # Who reads /proc may be in another pid namespace than it: this is its own name there.
            theirs.sendall(os.fsencode(os.readlink("/proc/self")))  # noqa: PTH115  # pathlib is not loaded here
            ours.close()
            theirs.recv(1)
            os._exit(0)
        theirs.close()
        try:
            pid = int(ours.recv(16))
            map_ids(pid, first=first, count=count)
            return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            ours.close()
            os.waitpid(child.pid, 0)
            os.close(child.pidfd)


def map_self(inside: int, *, uid: int, gid: int) -> None:
    """In a user namespace that this process began: its own uid and gid are `inside` there, and nobody else exists.

    `uid` and `gid` are what it had around the namespace. Needs no privilege; setgroups(2) is refused from then on.
    """
    write_once("/proc/self/setgroups", "deny")
    write_once("/proc/self/gid_map", f"{inside} {gid} 1")
    write_once("/proc/self/uid_map", f"{inside} {uid} 1")


def clone3(flags: int, *, cgroup: int | None = None) -> Child | None:
    """Fork into new namespaces. None in the child.

    `cgroup` is a descriptor of a v2 group directory in which the child begins. The process must have one thread:
    the interpreter is told as os.fork() tells it, but the C library's own fork handlers do not run.
    """
    pidfd = ctypes.c_int(-1)
    arguments = _CloneArgs(flags=flags | CLONE_PIDFD, pidfd=ctypes.addressof(pidfd), exit_signal=signal.SIGCHLD)
    if cgroup is not None:
        arguments.flags |= CLONE_INTO_CGROUP
        arguments.cgroup = cgroup
    _before_fork()
    try:
        pid = _clone3(ctypes.byref(arguments), ctypes.sizeof(arguments))
    except OSError:
        _after_fork_parent()
        raise
    if pid == 0:
        _after_fork_child()
        return None
    _after_fork_parent()
    return Child(pid, pidfd.value)


def sethostname(name: str) -> None:
    """Set the host name of this UTS namespace."""
    raw = name.encode()
    _sethostname(raw, len(raw))
