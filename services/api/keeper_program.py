"""The keeper: a small process that reads the certificate files for api, which has given that right up.

    api (still root)               keeper
      socketpair, exec ──────────▶ root, for some milliseconds
      drop to its user             becomes api's user with CAP_DAC_READ_SEARCH alone, and proves it
                     ◀──── look ── at first, and whenever a file is another one than before
      SIGHUP: "l" ───────────────▶ looks now
      ends ──────── end of stream, and SIGKILL by the kernel: it ends with it

Run as `python -I -S -c "import sys; sys.path.insert(0, ROOT); from services.api.keeper_program import main; main()"`
with the arguments that `keeper.py` gives, and nothing but the standard library: it must stay small, and everything that
it would load could go wrong with a right that api has not. Once it has begun it takes no path and no other word from
api, and it understands nothing of what it reads: that is judged on the other side (`material.py`).

Not here: starting it, and reading its looks (`keeper.py`). docs/adr/0021-rotation.md.
"""

import errno
import os
import select
import signal
import socket
import stat
import sys
import time
from collections.abc import Sequence
from typing import Final

from common.prctl import (
    CAP_DAC_READ_SEARCH,
    become_with,
    capability_sets,
    die_with,
    forbid_dumping,
    forbid_new_privileges,
    name_process,
    renounce_new_privileges,
)
from services.api.looks import FILE_BYTES_MAX, LENGTH, Look, Reading, packed

SETTLE_S: Final = 0.1
"""A file is read when it was the same for so long: who writes one in two steps is mostly done by then."""
SETTLE_LOOKS_MAX: Final = 20
YOUNG_S: Final = 2.0
"""A file that changed so lately is read again at the next look: times of files are not finer than a tick of the kernel,
so a second change within it may show in nothing but the content."""

EXIT_NO_RIGHT: Final = 3

_Signature = tuple[int, ...]


def main() -> None:
    """Entry point. Arguments: descriptor, pid of api, uid and gid (0: stay who you are), interval in ms, four paths."""
    descriptor, parent, uid, gid, interval_ms, *paths = sys.argv[1:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # sent to a whole group they mean api, and this ends with it
    name_process("joblet-keeper")
    os.umask(0o777)
    with socket.socket(fileno=int(descriptor)) as channel:
        _give_up(int(uid), int(gid))
        if die_with(int(parent), signal.SIGKILL):
            watch(channel, paths, int(interval_ms) / 1000)


def _give_up(uid: int, gid: int) -> None:
    """Keep the one right. Ends the process with words on stderr when this host does not give it, or gives more."""
    if uid == 0:
        forbid_new_privileges()
        forbid_dumping()
        return
    renounce_new_privileges()
    kept = 1 << CAP_DAC_READ_SEARCH
    try:
        become_with(uid, gid, CAP_DAC_READ_SEARCH)
    except PermissionError:
        print("the keeper has no CAP_DAC_READ_SEARCH here: certificate files cannot be watched", file=sys.stderr)  # noqa: T201  # it has no log
        raise SystemExit(EXIT_NO_RIGHT) from None
    forbid_dumping()
    expected = {"CapInh": 0, "CapPrm": kept, "CapEff": kept, "CapBnd": 0, "CapAmb": 0}
    if capability_sets() != expected or os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid):
        print(f"the keeper's rights are not what they must be: {capability_sets()}", file=sys.stderr)  # noqa: T201  # as above
        raise SystemExit(EXIT_NO_RIGHT)


def watch(channel: socket.socket, paths: Sequence[str], interval_s: float) -> None:
    """Send a look at first and after each change, until the other side is gone. An empty path is not watched."""
    seen: tuple[_Signature, ...] = ()
    sent = b""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    try:
        while True:
            now = _signatures(paths)
            if now != seen:
                now = _settled(now, paths)
            if now != seen or _young(now):
                # The signature is older than the content: what changes between is a change for the next look.
                frame = packed(Look(*(_read(path) for path in paths)))
                if frame != sent:
                    channel.sendall(LENGTH.pack(len(frame)) + frame)
                seen, sent = now, frame
            if poll.poll(interval_s * 1000) and not channel.recv(4096):
                return
    except (BrokenPipeError, ConnectionResetError):
        return


def _settled(now: tuple[_Signature, ...], paths: Sequence[str]) -> tuple[_Signature, ...]:
    for _ in range(SETTLE_LOOKS_MAX):
        before = now
        time.sleep(SETTLE_S)
        now = _signatures(paths)
        if now == before:
            break
    return now


def _signatures(paths: Sequence[str]) -> tuple[_Signature, ...]:
    return tuple(_signature(path) if path else () for path in paths)


def _signature(path: str) -> _Signature:
    """What tells one content of a path from another: file, size, both times (in ns, last). Links are followed."""
    try:
        status = os.stat(path)  # noqa: PTH116  # as in _read
    except OSError as cause:
        return (cause.errno or 0,)
    return (status.st_dev, status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _young(signatures: tuple[_Signature, ...]) -> bool:
    now_ns, young_ns = time.time_ns(), YOUNG_S * 1e9
    return any(abs(now_ns - changed_ns) < young_ns for one in signatures for changed_ns in one[4:])


def _read(path: str) -> Reading | None:
    """What stands at a path now. Not pathlib, not open(): they would cost a part of this small process's memory."""
    if not path:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as cause:
        return Reading(b"", error=cause.errno or errno.EIO)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return Reading(b"", error=errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL)
        content = b""
        while len(content) <= FILE_BYTES_MAX:
            more = os.read(descriptor, FILE_BYTES_MAX + 1 - len(content))
            if not more:
                break
            content += more
        return Reading(content, mode=stat.S_IMODE(status.st_mode))
    except OSError as cause:
        return Reading(b"", error=cause.errno or errno.EIO)
    finally:
        os.close(descriptor)
