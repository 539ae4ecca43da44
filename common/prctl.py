"""What a process tells the kernel about itself: its name, whose death it dies, and which rights it keeps.

Here: prctl(2), capget(2) and capset(2), and nothing but the standard library: small processes of ours import this
without any package. Not here: who gives up what, and when (`privileges.py`, `services/api/keeper_program.py`).
Sources: capabilities(7), Linux Documentation/userspace-api/no_new_privs.rst.
"""

import ctypes
import os
import struct
from typing import Final

CAP_DAC_READ_SEARCH: Final = 2
"""Read any file and search any directory, and write none. linux/capability.h."""

# linux/prctl.h
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_KEEPCAPS: Final = 8
_PR_SET_NAME: Final = 15
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_EINVAL: Final = 22
_STATUS_BYTES_MAX: Final = 65_536

# linux/capability.h: header {version, pid}, then two times {effective, permitted, inheritable}
_CAPABILITY_VERSION_3: Final = 0x20080522
_CAP_HEADER: Final = struct.Struct("=Ii")
_CAP_DATA: Final = struct.Struct("=6I")

_libc = ctypes.CDLL(None, use_errno=True)


def name_process(name: str) -> None:
    """Show `name` (15 bytes at most) as this process's name in ps(1) and /proc/PID/comm."""
    _prctl(_PR_SET_NAME, name.encode()[:15])


def forbid_dumping() -> None:
    """No core dump, and no ptrace(2) or /proc/PID access by other processes of the same user."""
    _prctl(_PR_SET_DUMPABLE, 0)


def die_with(parent_pid: int, signal_number: int) -> bool:
    """Get `signal_number` when the parent process ends. False: it has ended already.

    setuid(2) clears this: ask again after dropping privileges.
    """
    _prctl(_PR_SET_PDEATHSIG, signal_number)
    return os.getppid() == parent_pid


def forbid_new_privileges() -> None:
    """No exec of this thread or of threads it makes gains privileges, by set-uid bits or file capabilities."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def renounce_new_privileges() -> None:
    """No exec of this thread or of threads it makes can gain privileges: no_new_privs and an empty bounding set.

    Both are per thread, so this comes before the first thread (ZeroMQ, gRPC) is made; uids follow in `drop`.
    """
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    for capability in range(64):
        if not _drop_from_bounding_set(capability):
            break
    effective, permitted = _capabilities()
    _set_capabilities(effective=effective, permitted=permitted)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def become_with(uid: int, gid: int, capability: int) -> None:
    """Become `uid` and `gid` for good, and keep `capability` alone of root's rights. For a process of one thread.

    Comes after `renounce_new_privileges`. OSError(EPERM) when the process does not have that capability itself.
    """
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    _prctl(_PR_SET_KEEPCAPS, 1)  # or the next line would empty the permitted set
    os.setresuid(uid, uid, uid)
    _prctl(_PR_SET_KEEPCAPS, 0)
    _set_capabilities(effective=1 << capability, permitted=1 << capability)


def capability_sets() -> dict[str, int]:
    """The five sets of this process as bits, by their names in proc(5): CapInh, CapPrm, CapEff, CapBnd, CapAmb."""
    descriptor = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
    try:
        lines = os.read(descriptor, _STATUS_BYTES_MAX).decode("ascii", "replace").splitlines()
    finally:
        os.close(descriptor)
    return {line[:6]: int(line[7:], 16) for line in lines if line.startswith("Cap")}


def _capabilities() -> tuple[int, int]:
    header = ctypes.create_string_buffer(_CAP_HEADER.pack(_CAPABILITY_VERSION_3, 0))
    data = ctypes.create_string_buffer(_CAP_DATA.size)
    _check(_libc.capget(header, data), "capget")
    effective_0, permitted_0, _, effective_1, permitted_1, _ = _CAP_DATA.unpack(data.raw[: _CAP_DATA.size])
    return effective_0 | effective_1 << 32, permitted_0 | permitted_1 << 32


def _set_capabilities(*, effective: int, permitted: int) -> None:
    """These, and an empty inheritable set."""
    header = ctypes.create_string_buffer(_CAP_HEADER.pack(_CAPABILITY_VERSION_3, 0))
    low = 0xFFFFFFFF
    data = ctypes.create_string_buffer(
        _CAP_DATA.pack(effective & low, permitted & low, 0, effective >> 32, permitted >> 32, 0)
    )
    _check(_libc.capset(header, data), "capset")


def _drop_from_bounding_set(capability: int) -> bool:
    """False: this kernel knows no capability of that number."""
    if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        return True
    error = ctypes.get_errno()
    if error == _EINVAL:
        return False
    raise OSError(error, f"prctl(PR_CAPBSET_DROP, {capability}): {os.strerror(error)}")


def _prctl(option: int, value: int | bytes) -> None:
    argument = ctypes.c_char_p(value) if isinstance(value, bytes) else ctypes.c_ulong(value)
    zero = ctypes.c_ulong(0)
    _check(_libc.prctl(option, argument, zero, zero, zero), f"prctl({option}, {value!r})")


def _check(result: int, call: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{call}: {os.strerror(error)}")
