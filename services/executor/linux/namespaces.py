"""Namespaces and the processes that begin in them: clone(2), unshare(2), namespaces(7), sethostname(2).

Headers: linux/sched.h, unistd.h.
"""

import ctypes
import signal
from typing import Final, NamedTuple

from services.executor.linux.libc import PYLIBC, declare, declare_syscall

CLONE_PIDFD: Final = 0x0000_1000
CLONE_NEWNS: Final = 0x0002_0000
CLONE_NEWCGROUP: Final = 0x0200_0000
CLONE_NEWUTS: Final = 0x0400_0000
CLONE_NEWIPC: Final = 0x0800_0000
CLONE_NEWPID: Final = 0x2000_0000
CLONE_NEWNET: Final = 0x4000_0000
CLONE_INTO_CGROUP: Final = 0x2_0000_0000

_unshare = declare("unshare", ctypes.c_int)
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
