"""What every probe begins with: system calls by name, and trying a table of attacks one by one.

A probe is a program that runs inside a job, where nothing of this repository can be imported: `loading.py` puts this
file's text before the probe's. The first argument is a JSON object: name of a system call → its number. Each attack
runs in a child of its own, so that none spoils the next; its outcome is `ok`, the name of an errno, or of the signal
that killed it.
"""

import ctypes
import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Final

NUMBERS: Final[dict[str, int]] = json.loads(sys.argv[1])
LIBC: Final = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
LIBC.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
CHILD_S_MAX: Final = 10
HIGH: Final = 1 << 32
"""A bit that the kernel throws away where it takes an int; a filter that compares 64 bits would not."""

Attack = Callable[[], object]


def call(name: str, *arguments: int | bytes | None) -> int:
    """The system call; OSError when it fails. Numbers are passed as 64 bits."""
    wide = [ctypes.c_long(given) if isinstance(given, int) else given for given in arguments]
    result: int = LIBC.syscall(ctypes.c_long(NUMBERS[name]), *wide)
    if result == -1:
        raise OSError(ctypes.get_errno(), name)
    return result


def ioctl(descriptor: int, request: int, argument: bytes) -> None:
    """Ask a driver, with all 64 bits of `request`; OSError when it fails."""
    if LIBC.ioctl(descriptor, request, ctypes.create_string_buffer(argument, 256)) == -1:
        raise OSError(ctypes.get_errno(), "ioctl")


def address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    """Where a buffer lies."""
    return ctypes.addressof(buffer)


def word(error: OSError) -> str:
    """The name of its errno."""
    return errno.errorcode.get(error.errno or 0, str(error))


def outcome(attack: Attack) -> str:
    """What comes of it in this process."""
    try:
        attack()
    except OSError as error:
        return word(error)
    return "ok"


def in_child(attack: Attack) -> str:
    """What comes of it in a child."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(CHILD_S_MAX)
        try:
            os.write(writing, outcome(attack).encode())
        except BaseException as error:  # noqa: BLE001  # a probe that is wrong must be seen, not taken for a refusal
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    said = os.read(reading, 4096).decode()
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else said


def report(attacks: Mapping[str, Attack]) -> None:
    """Try them all and print what came of each."""
    print(json.dumps({name: in_child(attack) for name, attack in attacks.items()}), flush=True)
