"""The small process of one tar stream: it reads or writes a volume with its owner's rights, and can do nothing else.

    volumes service (root)          stream program
      connects to api's socket
      exec ───────────────────────▶ root, for some milliseconds: no mount but the volume is left to it, and that is "/"
                                    becomes the owner of the volume's files, without any capability
                                    tar ◀──▶ api's socket
                    ◀──── outcome ─ one JSON object, and the end
      ends ────── SIGKILL by the kernel: it ends with it

Run as `python -I -S -c "import sys; sys.path[:0] = [ROOT]; from services.volumes.stream_program import main; main()"`
with an empty environment and the arguments that `streams.py` gives: descriptors of the stream, of the answer and of the
directory, the direction, the service's pid, uid and gid (0: stay who you are; then the directory's descriptor alone is
where it walks), and how many milliseconds the other end may stand still. Only the standard library is loaded, and all
of it before the volume is "/": behind that nothing may be found by a path, and so no traceback is ever written.

Not here: starting it (`streams.py`), tar (`tarwriter.py`, `tarreader.py`).
"""

import errno
import json
import os
import resource
import signal
import socket
import sys
from typing import Final

from common.errors import JobletError, Reason, exhausted, precondition
from common.linux import mounts
from common.linux.files import synchronize_file_system
from common.prctl import die_with, forbid_dumping, forbid_new_privileges, name_process, renounce_new_privileges
from services.volumes.descent import Moved, walk
from services.volumes.tarreader import Reader
from services.volumes.tarstream import Incoming, Outgoing
from services.volumes.tarwriter import Writer

EXPORT: Final = "export"
OUTCOME_BYTES_MAX: Final = 16_384
_MEMORY_BYTES_MAX: Final = 2**30
"""Of address space. Names of directories that are still to be visited are all that can become many."""
_OPEN_FILES_MAX: Final = 512
_SOCKET_BYTES: Final = 1024 * 1024


def main() -> None:
    """Entry point."""
    stream, answer, directory, direction, parent, uid, gid, stall_ms = sys.argv[1:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # sent to a whole group they mean the service, and this ends with it
    name_process("joblet-stream")
    with socket.socket(fileno=int(stream)) as connection, os.fdopen(int(answer), "wb") as outcome:
        for places in (sys.path, sys.meta_path, sys.path_hooks):
            places.clear()  # what the volume has where modules were is not loaded
        try:
            root = confine(int(directory), int(uid), int(gid), read_only=direction == EXPORT)
            if not die_with(int(parent), signal.SIGKILL):
                return
            said = run(connection, root, direction, int(stall_ms) / 1000)
        except JobletError as error:
            said = _failure(error)
        except MemoryError:
            said = _failure(exhausted("the volume has more directories than memory holds names", "remove some"))
        except Exception as error:  # noqa: BLE001  # the entry of a process that has no log
            said = _failure(JobletError(Reason.INTERNAL, f"the stream failed: {type(error).__name__}: {error}"[:500]))
        outcome.write(json.dumps(said).encode()[:OUTCOME_BYTES_MAX])


def _failure(error: JobletError) -> dict[str, object]:
    return {"reason": error.reason, "message": error.message, "detail": error.detail}


def confine(directory: int, uid: int, gid: int, *, read_only: bool) -> int:
    """Give everything up but the directory, whose descriptor is the answer. Proves it, or raises."""
    os.umask(0)
    for limit, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES_MAX),
        (resource.RLIMIT_AS, _MEMORY_BYTES_MAX),
    ):
        resource.setrlimit(limit, (most, most))
    if uid == 0:
        forbid_new_privileges()
        forbid_dumping()
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    renounce_new_privileges()
    _leave_the_host(directory, read_only=read_only)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)  # the kernel empties the capability sets with it
    forbid_dumping()
    try:
        os.setresuid(0, 0, 0)
    except PermissionError:
        return os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    raise JobletError(Reason.INTERNAL, "rights of root are left to the stream")


def _leave_the_host(directory: int, *, read_only: bool) -> None:
    """Make the directory the root of mounts of its own, with no other mount: none is kept from going, either."""
    attributes = mounts.MOUNT_ATTR_NOSUID | mounts.MOUNT_ATTR_NODEV | mounts.MOUNT_ATTR_NOEXEC
    tree = mounts.open_tree("", recursive=False, directory=directory)
    mounts.mount_setattr(tree, attributes | (mounts.MOUNT_ATTR_RDONLY if read_only else 0), recursive=False)
    mounts.unshare_mounts()
    mounts.mount("none", "/", None, mounts.MS_REC | mounts.MS_PRIVATE)
    anywhere = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    mounts.move_mount(tree, anywhere)
    os.close(anywhere)
    os.fchdir(tree)
    mounts.pivot_root(".", ".")
    mounts.umount2(".", mounts.MNT_DETACH)
    os.chdir("/")
    os.close(tree)
    os.close(directory)


def run(connection: socket.socket, root: int, direction: str, stall_s: float) -> dict[str, object]:
    """Export or import; what came of it, in numbers. Raises JobletError, or OSError for a file system that fails."""
    if direction == EXPORT:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
        return _export(Outgoing(connection, stall_s=stall_s), root)
    return _import(Incoming(connection, stall_s=stall_s), root)


def _export(outgoing: Outgoing, root: int) -> dict[str, object]:
    writer = Writer(outgoing, uid=os.geteuid(), gid=os.getegid())
    try:
        walk(root, writer)
    except Moved as cause:
        raise precondition(
            "a directory was moved during the export", "try again, or stop the job that moves it"
        ) from cause
    writer.finish()
    return {
        "entries": writer.entries,
        "bytes": writer.bytes,
        "left_out": writer.left_out,
        "changed": writer.changed,
    }


def _import(incoming: Incoming, root: int) -> dict[str, object]:
    reader = Reader(incoming, root)
    reader.run()
    try:
        synchronize_file_system(root)
    except OSError as cause:
        if cause.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise exhausted("no space left in the volume", "make it larger (rnx volume resize)") from cause
        raise
    return {"entries": reader.entries, "bytes": reader.bytes}
