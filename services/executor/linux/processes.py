"""What a process may be and do: prctl(2), capset(2), capabilities(7), close_range(2), keyctl(2), sigaction(2).

And pidfd_send_signal(2). Headers: signal.h, linux/prctl.h, linux/capability.h, linux/close_range.h, linux/keyctl.h.
"""

import ctypes
import functools
from collections.abc import Iterable
from typing import Final

from common.linux.libc import declare, declare_syscall, failed

CAP_KILL: Final = 5
CAP_SETPCAP: Final = 8
CAP_SYS_ADMIN: Final = 21

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_KEEPCAPS: Final = 8
_PR_SET_NAME: Final = 15
_PR_CAPBSET_READ: Final = 23
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_CAPABILITY_VERSION_3: Final = 0x2008_0522
_CAPABILITIES_MAX: Final = 64
_CLOSE_RANGE_CLOEXEC: Final = 4
_KEYCTL_JOIN_SESSION_KEYRING: Final = 1
_EINVAL: Final = 22


class _CapHeader(ctypes.Structure):
    """struct __user_cap_header_struct."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    """struct __user_cap_data_struct; version 3 takes two of them."""

    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


_ulong = ctypes.c_ulong
_SIGNAL_SET_BYTES: Final = 8
_DEFAULT_ACTION: Final = bytes(32)  # struct kernel_sigaction: handler SIG_DFL, no flags, no restorer, empty mask
_rt_sigaction = declare_syscall("rt_sigaction", ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)
_prctl = declare("prctl", ctypes.c_int, _ulong, _ulong, _ulong, _ulong)
_prctl_name = declare("prctl", ctypes.c_int, ctypes.c_char_p, _ulong, _ulong, _ulong)
_capset = declare("capset", ctypes.POINTER(_CapHeader), ctypes.POINTER(_CapData))
_close_range = declare_syscall("close_range", ctypes.c_uint, ctypes.c_uint, ctypes.c_uint)
_keyctl = declare_syscall("keyctl", ctypes.c_int, ctypes.c_char_p, _ulong, _ulong, _ulong)
_pidfd_send_signal = declare_syscall("pidfd_send_signal", ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint)


def set_parent_death_signal(signal: int) -> None:
    """Get `signal` when the thread that made this process ends. A change of uid clears it."""
    _prctl(_PR_SET_PDEATHSIG, signal, 0, 0, 0)


def default_signal(number: int) -> None:
    """Give `number` its default disposition, sigaction(2).

    By the system call: the C library keeps 32 and 33 for itself and refuses to touch them, but whoever started us may
    have ignored them, and ignored they would stay over every exec.

    For a fresh fork: signal.signal() looks enum members up in Python, which writes to a hundred pages that were shared.
    """
    _rt_sigaction(number, _DEFAULT_ACTION, None, _SIGNAL_SET_BYTES)


def set_dumpable(*, dumpable: bool) -> None:
    """Whether this process can be traced and its /proc read by its own uid, until it executes a program."""
    _prctl(_PR_SET_DUMPABLE, int(dumpable), 0, 0, 0)


@functools.cache
def _arguments() -> tuple[int, int]:
    """Where the arguments lie in memory: the same in every process that this one forks."""
    with open("/proc/self/stat", "rb") as status:  # noqa: PTH123  # pathlib is not loaded in the launcher
        # proc(5): behind the name in brackets comes field 3; 48 and 49 bound the arguments.
        fields = status.read().rpartition(b") ")[2].split()
    return int(fields[45]), int(fields[46])


def set_title(title: str) -> None:
    """What ps(1) shows: the name of the thread, and over the arguments it was started with, as much as fits there."""
    text = title.encode()
    _prctl_name(_PR_SET_NAME, text[:15], 0, 0, 0)
    start, end = _arguments()
    if end > start:
        ctypes.memmove(start, text.ljust(end - start, b"\0")[: end - start - 1] + b"\0", end - start)


def set_no_new_privileges() -> None:
    """No program executed from here on gains a privilege: set-uid bits and file capabilities mean nothing."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def keep_capabilities() -> None:
    """Keep permitted capabilities when no uid is 0 any more; effective ones go all the same. Until the next exec."""
    _prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)


def drop_bounding_set() -> None:
    """Empty the capability bounding set. Needs CAP_SETPCAP."""
    for capability in range(_CAPABILITIES_MAX):
        try:
            present = _prctl(_PR_CAPBSET_READ, capability, 0, 0, 0)
        except OSError as cause:
            if cause.errno == _EINVAL:  # one behind the last capability of this kernel
                return
            raise
        if present:
            _prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


class CapabilitySet:
    """Capabilities in the form of the kernel. Made before a fork, so that nothing of it becomes the child's own."""

    def __init__(self, capabilities: Iterable[int] = ()) -> None:
        mask = sum(1 << capability for capability in capabilities)
        low, high = mask & 0xFFFF_FFFF, mask >> 32
        self._header = _CapHeader(version=_CAPABILITY_VERSION_3, pid=0)
        self._data = (_CapData * 2)(_CapData(low, low, 0), _CapData(high, high, 0))
        self._arguments = (ctypes.byref(self._header), self._data)

    def become(self) -> None:
        """Make exactly these effective and permitted, and leave nothing inheritable or ambient."""
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
        _capset(*self._arguments)


def mark_close_on_exec(first: int) -> None:
    """Close every descriptor from `first` on when a program is executed (Linux 5.11)."""
    _close_range(first, 0xFFFF_FFFF, _CLOSE_RANGE_CLOEXEC)


def close_from(first: int) -> None:
    """Close every descriptor from `first` on."""
    _close_range(first, 0xFFFF_FFFF, 0)


def join_new_session_keyring() -> None:
    """Leave the session keyring for a new and empty one."""
    _keyctl(_KEYCTL_JOIN_SESSION_KEYRING, None, 0, 0, 0)


def pidfd_send_signal(pidfd: int, signal: int) -> None:
    """Send `signal` to the process of the descriptor. OSError ESRCH: it has ended."""
    try:
        _pidfd_send_signal(pidfd, signal, None, 0)
    except OSError as cause:
        raise failed("pidfd_send_signal", cause.errno or 0) from cause
