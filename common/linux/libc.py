"""How this folder calls the C library: signature and error check declared once, at import.

Here: the libraries, `declare` and the system call numbers. Not here: any call by itself; each has its module, with
the header it comes from. Every wrapper raises OSError whose text begins with the name of the call, and holds no policy.

Only the standard library is imported: the launcher runs without site-packages.
"""

import ctypes
import os
from collections.abc import Callable
from typing import Any, Final

LIBC: Final = ctypes.CDLL(None, use_errno=True)
PYLIBC: Final = ctypes.PyDLL(None, use_errno=True)
"""The same library, called without letting go of the interpreter lock: for calls after which two processes return."""

# asm/unistd_64.h and asm-generic/unistd.h; from 424 on the numbers are the same everywhere.
_OLD_NUMBERS: Final = {
    "x86_64": {"rt_sigaction": 13, "pivot_root": 155, "keyctl": 250, "statx": 332},
    "aarch64": {"rt_sigaction": 134, "pivot_root": 41, "keyctl": 219, "statx": 291},
}
_MACHINE: Final = os.uname().machine
NUMBERS: Final[dict[str, int]] = {
    **_OLD_NUMBERS.get(_MACHINE, {}),
    "pidfd_send_signal": 424,
    "open_tree": 428,
    "move_mount": 429,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "mount_setattr": 442,
    "quotactl_fd": 443,
}


def failed(call: str, number: int, path: str = "") -> OSError:
    """The OSError of a failed call: `errno` as given, `filename` the path where there is one."""
    text = f"{call}: {os.strerror(number)}"
    return OSError(number, text, path) if path else OSError(number, text)


def _check(name: str) -> Callable[[Any, Any, tuple[Any, ...]], Any]:
    def check(result: Any, _function: Any, _arguments: tuple[Any, ...]) -> Any:
        if result == -1:
            raise failed(name, ctypes.get_errno())
        return result

    return check


def declare(name: str, *argtypes: type) -> Callable[..., int]:
    """The C function `name`, which returns an int that is -1 when it failed."""
    function = LIBC[name]
    function.restype = ctypes.c_int
    function.argtypes = list(argtypes)
    function.errcheck = _check(name)
    return function


def declare_syscall(name: str, *argtypes: type, keeps_interpreter_lock: bool = False) -> Callable[..., int]:
    """The system call `name`, for which the C library has no function everywhere (syscall(2))."""
    number = NUMBERS.get(name)
    if number is None:

        def unknown(*_arguments: object) -> int:
            raise OSError(38, f"{name}: no system call number is known for {_MACHINE}")

        return unknown
    function = (PYLIBC if keeps_interpreter_lock else LIBC)["syscall"]
    function.restype = ctypes.c_long
    function.argtypes = [ctypes.c_long, *argtypes]
    function.errcheck = _check(name)

    def call(*arguments: object) -> int:
        result: int = function(number, *arguments)
        return result

    return call
