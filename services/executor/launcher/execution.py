"""The job's main process (PID 2) from its fork to its exec: builds the sandbox, waits for a job, then becomes it.

Here: the plan's operations, session, descriptors, limits, signals, user namespace, credentials, uploads, directory,
system call filter, exec. Behind the change of root no Python module can be found any more: everything is imported
before. Not here: PID 1, which does none of this so that it stays small: it lives as long as the job. References:
execve(2), credentials(7), capabilities(7), signal(7), close_range(2).
"""

import errno
import os
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple, NoReturn

from common.linux.paths import RESOLVE_NO_MAGICLINKS, openat2
from services.executor.launcher import uploads
from services.executor.launcher.handshake import (
    GO_MS_MAX,
    GO_PACKET,
    MESSAGE_BYTES_MAX,
    Failure,
    Kind,
    StepFailed,
    failure_of,
    send,
)
from services.executor.launcher.jobfiles import ROOT, make_directories
from services.executor.launcher.newroot import NewRoot
from services.executor.launcher.operations import Operation
from services.executor.launcher.task import LENGTH_BYTES, Beginning, Task, decode_preparation, decode_task
from services.executor.linux import namespaces, processes
from services.executor.linux.seccomp import Filter

UPLOAD_DIRECTORY: Final = "/work"
_NOT_EXECUTED: Final = 127
_TASK_READ_BYTES: Final = 2**16
_SCRIPTS_DEEP_MAX: Final = 6  # one more than the kernel follows, exec_binprm in fs/exec.c
_SCRIPT_HEAD_BYTES: Final = 256  # BINPRM_BUF_SIZE
_NO_CAPABILITIES: Final = processes.CapabilitySet()
_TO_UNSHARE: Final = processes.CapabilitySet((processes.CAP_SYS_ADMIN,))
_CHANGED_SIGNALS: Final = (signal.SIGPIPE, signal.SIGXFSZ)
"""What Python ignores; the launcher and the monitor gave every other signal its default."""


class Inherited(NamedTuple):
    """What the main process is born with."""

    report: socket.socket
    briefing: socket.socket
    stdout: int
    stderr: int
    seccomp: Filter


def become_job(beginning: Beginning, inherited: Inherited) -> NoReturn:
    """Prepare, wait for a task, execute its command. Whatever fails is reported, and the process ends."""
    try:
        root = _prepare(beginning, inherited)
        task, archives = _receive_task(inherited.briefing)
        _complete(task, root)
        send(inherited.report, Kind.READY)
        _await_go(inherited.report)
        _become_user(task, archives)
        with _step("seccomp"):
            inherited.seccomp.load()
        send(inherited.report, Kind.EXEC)
        failure = _execute(task)
    except StepFailed as failed:
        failure = failed.failure
    except Exception as cause:  # noqa: BLE001  # process entry: a bug here must reach the client as well
        failure = failure_of("prepare", cause)
    try:
        send(inherited.report, Kind.FAILED, failure=failure)
    finally:
        os._exit(_NOT_EXECUTED)


def _prepare(beginning: Beginning, inherited: Inherited) -> NewRoot:
    """All that is the same for every job, and may be done before there is one."""
    places = beginning.places
    if places.uploads:
        uploads.load_unpacker()
    with _step("job directory"):
        make_directories(places.job_dir)
    os.umask(0)
    root = NewRoot(f"{places.job_dir}/{ROOT}")
    _carry_out(decode_preparation(beginning.preparation), root)
    with _step("session"):
        os.setsid()
        _standard_descriptors(inherited)
    with _step("signals"):
        _reset_signals()
    return root


def _receive_task(briefing: socket.socket) -> tuple[Task, list[int]]:
    with briefing, _step("task"):
        head, archives, _, _ = socket.recv_fds(briefing, LENGTH_BYTES, uploads.ARCHIVES_MAX)
        encoded = bytearray()
        while len(encoded) < int.from_bytes(head, "little"):
            part = briefing.recv(_TASK_READ_BYTES)
            if not part:
                break
            encoded += part
    if not encoded:
        os._exit(_NOT_EXECUTED)  # there is no job for this sandbox
    return decode_task(encoded), archives


def _carry_out(operations: tuple[Operation, ...], root: NewRoot) -> None:
    """The first step that fails is the failure."""
    for operation in operations:
        try:
            operation.execute(root)
        except OSError as cause:
            path = getattr(operation, "path", "")
            raise StepFailed(failure_of(operation.describe(), cause, path=path)) from cause


def _complete(task: Task, root: NewRoot) -> None:
    """What is this job's own, and still needs the host's root."""
    _carry_out(task.operations, root)
    os.umask(0o022)
    with _step("limits"):
        for limit in task.resources:
            resource.setrlimit(getattr(resource, limit.name), (limit.soft, limit.hard))
    if task.range_first is not None:
        with _step("user namespace"):
            _leave_root(task.range_first)


def _become_user(task: Task, archives: list[int]) -> None:
    """All that is done with the job's own rights; its user namespace is mapped now."""
    with _step("credentials"):
        _drop_privileges(task.uid, task.gid)
    with _step(uploads.STEP):
        for archive in archives:
            uploads.unpack(archive, UPLOAD_DIRECTORY)
    with _step("workdir", task.workdir):
        directory = openat2(-100, task.workdir, os.O_PATH | os.O_DIRECTORY, resolve=RESOLVE_NO_MAGICLINKS)
        os.fchdir(directory)
    with _step("descriptors"):
        processes.mark_close_on_exec(3)


def _await_go(report: socket.socket) -> None:
    # Everything before is built while the monitor makes the job's files; nothing of the job runs without them.
    with _step("go"):
        report.settimeout(GO_MS_MAX / 1000)
        packet = report.recv(MESSAGE_BYTES_MAX)
        report.settimeout(None)
    if not packet:
        os._exit(_NOT_EXECUTED)  # the monitor is gone, perhaps before init had its death signal
    if packet != GO_PACKET:
        raise ValueError(f"expected GO, received {packet[:1]!r}")


@contextmanager
def _step(name: str, path: str = "") -> Iterator[None]:
    """Whatever the operating system refuses in here is a failure of this step."""
    try:
        yield
    except OSError as cause:
        raise StepFailed(failure_of(name, cause, path=path)) from cause


def _standard_descriptors(inherited: Inherited) -> None:
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(inherited.stdout, 1)
    os.dup2(inherited.stderr, 2)


def _reset_signals() -> None:
    # An ignored signal stays ignored over an exec.
    for number in _CHANGED_SIGNALS:
        processes.default_signal(number)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _leave_root(first: int) -> None:
    """Become root of a new user namespace that belongs to host id `first`, the least id of the job's range.

    The kernel charges what is counted by user (inotify, user namespaces) to the namespace's owner as well: made by
    uid 0, a job could use up what the host's root has.
    """
    os.setgroups(())
    os.setresgid(first, first, first)
    processes.keep_capabilities()
    os.setresuid(first, first, first)
    # setresuid(2) takes 2**32-1 for "leave it as it is".
    if os.getresuid() != (first, first, first) or os.getresgid() != (first, first, first) or first == 0:
        raise PermissionError(errno.EPERM, "root was not given up")
    _TO_UNSHARE.become()  # some kernels let only CAP_SYS_ADMIN make user namespaces
    namespaces.unshare(namespaces.CLONE_NEWUSER)


def _drop_privileges(uid: int, gid: int) -> None:
    processes.drop_bounding_set()  # it is full again in a new user namespace
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid) or uid == 0:
        raise PermissionError(errno.EPERM, "root was not given up")
    _NO_CAPABILITIES.become()
    try:
        processes.join_new_session_keyring()
    except OSError as cause:
        if cause.errno != errno.ENOSYS:  # a kernel without keyrings has none to share
            raise


def _execute(task: Task) -> Failure:
    """Execute the command, looked up along the job's PATH as execvp(3) does. Returns only when that failed."""
    environment = dict(task.environment)
    command, argv = task.command, (task.command, *task.args)
    if "/" in command:
        return _explain(task, _execve(command, argv, environment), command)
    refused: OSError | None = None
    for directory in environment.get("PATH", "").split(":"):
        candidate = f"{directory or '.'}/{command}"
        cause = _execve(candidate, argv, environment)
        if cause.errno in (errno.ENOENT, errno.ENOTDIR) and not os.path.lexists(candidate):
            continue
        if cause.errno != errno.EACCES:
            return _explain(task, cause, candidate)
        refused = cause
    if refused is not None:
        return _explain(task, refused, command)
    text = f"command {command!r} not found in PATH ({environment.get('PATH', '')})"
    return Failure("exec", command, errno.ENOENT, text)


def _execve(path: str, argv: tuple[str, ...], environment: dict[str, str]) -> OSError:
    try:
        _refuse_magic_links(path)
        os.execve(path, argv, environment)  # noqa: S606  # that there is no shell is the point
    except OSError as cause:
        return cause


def _refuse_magic_links(path: str) -> None:
    """/proc/self/exe is the interpreter that runs this, on the host: neither a command nor a script's may be it."""
    for _ in range(_SCRIPTS_DEEP_MAX):
        os.close(openat2(-100, path, os.O_PATH, resolve=RESOLVE_NO_MAGICLINKS))
        path = _interpreter_of(path)
        if not path:
            return


def _interpreter_of(path: str) -> str:
    """What the first line of a script names, execve(2), "Interpreter scripts"; "" where there is none to be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return ""  # a program may be executable for whom it is not readable
    try:
        head = os.read(descriptor, _SCRIPT_HEAD_BYTES)
    except OSError:
        return ""
    finally:
        os.close(descriptor)
    words = head[2:].split(b"\n", 1)[0].split() if head.startswith(b"#!") else []
    return os.fsdecode(words[0]) if words else ""


def _explain(task: Task, cause: OSError, path: str) -> Failure:
    """The failure of an execve in words: its errno alone is ambiguous."""
    command = repr(task.command)
    match cause.errno:
        case errno.ENOENT if os.path.lexists(path):
            text = f"command {command} cannot be executed: its interpreter or loader does not exist in the job's root"
        case errno.ENOENT | errno.ENOTDIR:
            text = f"command {command} not found"
        case errno.EACCES:
            text = f"command {command} is not executable: permission denied"
        case errno.ENOEXEC:
            text = f"command {command} is no program; a script needs a first line such as #!/bin/sh"
        case errno.ELOOP:
            text = f"command {command} leads through a link that is refused: name the program itself"
        case errno.E2BIG:
            text = f"command {command}: arguments and environment are too long"
        case _:
            text = f"command {command} cannot be executed: {cause.strerror}"
    return Failure("exec", path, cause.errno or 0, text)
