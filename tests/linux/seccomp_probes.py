"""What tests of the system call filter share: the filter in a child, calls by raw number, and a small BPF machine.

Belongs here: how to try something with and without the filter, and harmless arguments for each call that is refused.
Does not belong here: what must come out. The machine follows linux/bpf_common.h and Documentation/networking/filter;
it knows the instructions that libseccomp writes and raises at any other.
"""

import ctypes
import errno
import json
import os
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import pyseccomp

from common.linux.libc import LIBC
from services.executor.linux.processes import set_no_new_privileges
from services.executor.linux.seccomp import INSTRUCTION_BYTES, Filter

ALLOW: Final = 0x7FFF_0000
KILL_PROCESS: Final = 0x8000_0000
X86_64: Final = 0xC000_003E
I386: Final = 0x4000_0003
AARCH64: Final = 0xC000_00B7
ARM: Final = 0x4000_0028
BAD: Final = 1
"""An address at which nothing is: a call that looks there fails with EFAULT."""
NONE: Final = -1
"""No descriptor, no process."""
ALL_BITS: Final = 0xFFFF_FFFF


def failing(name: str) -> int:
    """The action that makes a call fail with the errno of that name."""
    return 0x0005_0000 | int(getattr(errno, name))


def evaluate(program: bytes, number: int, arguments: Sequence[int] = (), *, architecture: int = X86_64) -> int:
    """The action that `program` gives for one system call."""
    given = [argument & 2**64 - 1 for argument in arguments]
    data = struct.pack("=IIQ6Q", number & ALL_BITS, architecture, 0, *given, *[0] * (6 - len(given)))
    accumulator = position = 0
    while True:
        code, on_true, on_false, k = struct.unpack_from("=HBBI", program, position * INSTRUCTION_BYTES)
        position += 1
        match code:
            case 0x06:  # ret
                return int(k)
            case 0x20:  # ld [k]
                (accumulator,) = struct.unpack_from("=I", data, k)
            case 0x54:  # and
                accumulator &= k
            case 0x05:  # ja
                position += k
            case 0x15 | 0x25 | 0x35 | 0x45:  # jeq, jgt, jge, jset
                holds = {
                    0x15: accumulator == k,
                    0x25: accumulator > k,
                    0x35: accumulator >= k,
                    0x45: accumulator & k != 0,
                }
                position += on_true if holds[code] else on_false
            case _:
                raise AssertionError(f"instruction {code:#x} at {position - 1}")


def number_of(name: str) -> int:
    """The number that the call has on this machine."""
    number: int = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
    assert number >= 0, f"{name} is not known to this libseccomp"
    return number


def call(number: int, *arguments: int) -> int:
    """What the system call returns, or -errno."""
    function = LIBC["syscall"]
    function.restype = ctypes.c_long
    ctypes.set_errno(0)
    result = int(function(ctypes.c_long(number), *(ctypes.c_ulong(argument & 2**64 - 1) for argument in arguments)))
    return -ctypes.get_errno() if result == -1 else result


class Ended(NamedTuple):
    """How a child ended: what `action` answered, or the signal that killed it."""

    answer: Any
    signal: int


def in_child(action: Callable[[], Any], program: bytes | None = None) -> Ended:
    """Run `action` in a forked process of its own session, under the filter when there is one. It answers JSON."""
    loader = None if program is None else Filter(program)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            set_no_new_privileges()
            if loader is not None:
                loader.load()
            answer = action()
        except BaseException as cause:  # noqa: BLE001  # the child's entry: the parent tells
            answer = f"failed: {cause!r}"
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as told:
        text = told.read()
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return Ended(json.loads(text) if text else None, -code if code < 0 else 0)


def results(calls: dict[str, tuple[int, ...]], program: bytes | None = None) -> dict[str, int]:
    """What each of the named calls returns in one child."""
    numbers = {name: number_of(name) for name in calls}
    answer = in_child(lambda: {name: call(numbers[name], *calls[name]) for name in calls}, program).answer
    assert isinstance(answer, dict), answer
    return answer


REFUSED: Final[dict[str, tuple[int, ...]]] = {
    "acct": (BAD,),
    "add_key": (BAD, BAD, 0, 0, 0),
    "adjtimex": (BAD,),
    "bpf": (NONE, 0, 0),
    "chroot": (BAD,),
    "clock_adjtime": (0, BAD),
    "clock_settime": (0, BAD),
    "delete_module": (BAD, 0),
    "fanotify_init": (ALL_BITS, 0),
    "fanotify_mark": (NONE, ALL_BITS, 0, NONE, BAD),
    "finit_module": (NONE, BAD, ALL_BITS),
    "fsconfig": (NONE, 0, BAD, BAD, 0),
    "fsmount": (NONE, 0, 0),
    "fsopen": (BAD, 0),
    "fspick": (NONE, BAD, 0),
    "get_mempolicy": (0, 0, 0, 0, ALL_BITS),
    "init_module": (0, 0, 0),
    "io_uring_enter": (NONE, 0, 0, 0, 0, 0),
    "io_uring_register": (NONE, 0, 0, 0),
    "io_uring_setup": (0, BAD),
    "ioperm": (0, ALL_BITS, 1),
    "iopl": (9,),
    "kcmp": (NONE, NONE, 0, 0, 0),
    "kexec_file_load": (NONE, NONE, 0, 0, ALL_BITS),
    "kexec_load": (0, 99, BAD, 0xFFFF),
    "keyctl": (9999, 0, 0, 0, 0),
    "lookup_dcookie": (0, BAD, 0),
    "mbind": (1, 1, 99, 0, 0, 0),
    "migrate_pages": (NONE, 0, 0, 0),
    "mount": (BAD, BAD, BAD, 0, 0),
    "mount_setattr": (NONE, BAD, 0, 0, 0),
    "move_mount": (NONE, BAD, NONE, BAD, 0),
    "move_pages": (NONE, 0, 0, 0, 0, ALL_BITS),
    "name_to_handle_at": (NONE, BAD, BAD, BAD, 0),
    "open_by_handle_at": (NONE, BAD, 0),
    "open_tree": (NONE, BAD, 0),
    "perf_event_open": (BAD, 0, NONE, NONE, 0),
    "pidfd_getfd": (NONE, 0, 0),
    "pivot_root": (BAD, BAD),
    "process_madvise": (NONE, 0, 0, 0, 0),
    "process_vm_readv": (NONE, 0, 0, 0, 0, 0),
    "process_vm_writev": (NONE, 0, 0, 0, 0, 0),
    "ptrace": (3, 0, 0, 0),  # PTRACE_PEEKUSER of nobody
    "quotactl": (ALL_BITS, BAD, 0, 0),
    "quotactl_fd": (NONE, ALL_BITS, 0, 0),
    "reboot": (0, 0, 0, 0),  # without its magic numbers it does nothing
    "request_key": (BAD, BAD, BAD, 0),
    "sched_setattr": (0, 0, 0),
    "set_mempolicy": (99, 0, 0),
    "set_mempolicy_home_node": (1, 1, 0, ALL_BITS),
    "setdomainname": (BAD, NONE),
    "sethostname": (BAD, NONE),
    "setns": (NONE, 0),
    "settimeofday": (BAD, 0),
    "swapoff": (BAD,),
    "swapon": (BAD, 0),
    "sysfs": (99, 0, 0),
    "syslog": (100, 0, 0),
    "umount2": (BAD, 0),
    "unshare": (0,),
    "uselib": (BAD,),
    "userfaultfd": (ALL_BITS,),
    "ustat": (0, BAD),
    "vhangup": (),  # the child has no terminal
}
"""Every call that fails with EPERM whatever its arguments, with arguments that do nothing even where it is allowed."""
