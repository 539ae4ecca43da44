"""Installing a system call filter: prctl(2), seccomp(2). Headers: linux/prctl.h, linux/seccomp.h, linux/filter.h.

Not here: what the filter says and how it is compiled (`services/executor/seccomp`); a program arrives as bytes.
"""

import ctypes
from typing import Final

from common.linux.libc import declare

INSTRUCTION_BYTES: Final = 8  # struct sock_filter
INSTRUCTIONS_MAX: Final = 4096  # BPF_MAXINSNS of linux/bpf_common.h

_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2


class _SockFprog(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


_ulong = ctypes.c_ulong
_prctl = declare("prctl", ctypes.c_int, _ulong, ctypes.POINTER(_SockFprog), _ulong, _ulong)


class Filter:
    """A filter in the form of the kernel. Made before a fork, so that nothing of it becomes the child's own.

    `program` is an array of struct sock_filter. Raises ValueError when it cannot be one.
    """

    def __init__(self, program: bytes) -> None:
        count, rest = divmod(len(program), INSTRUCTION_BYTES)
        if rest or not 1 <= count <= INSTRUCTIONS_MAX:
            raise ValueError(f"{len(program)} bytes are no seccomp program of 1 to {INSTRUCTIONS_MAX} instructions")
        self._instructions = ctypes.create_string_buffer(program, len(program))
        self._program = _SockFprog(count, ctypes.addressof(self._instructions))
        self._arguments = (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(self._program), 0, 0)

    def load(self) -> None:
        """Filter every system call of this thread and of what it forks or executes, for good.

        The thread has no_new_privs (else EACCES). EINVAL: the kernel has no filters, or this is no valid program.
        """
        _prctl(*self._arguments)
