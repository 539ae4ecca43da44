"""The launcher: a small interpreter that forks one process per request, so that nobody forks one with threads.

Run as `python -I -S -c "import sys; sys.path.insert(0, ROOT); from services.executor.launcher.main import main; main()"
FD` with an empty environment and, as standard input, the system call filter of all jobs (struct sock_filter[]). FD is a
SOCK_SEQPACKET socket; each message on it is a word and brings by SCM_RIGHTS one stream socket and one descriptor more:

    launch  the namespace of a network that was made for the job, if there is one. On the stream a monitor reads one
            task (`task.py`'s three parts) and answers `{"pid": n}` when the job's files exist and its lock is held
    attach  a pidfd of one of the job's processes. Who is forked reads one change (`attach.py`), answers `{}` when it is
            done, and ends
    detach  likewise

Or the answer is `{"failure": [step, path, errno, message]}`. The end of the stream without an answer means that the
process died. The launcher reads no task: its memory stays as it was at its start, which keeps forks cheap and monitors
small. It ends when its socket does; monitors stay.

Only the standard library, common.records and this room are imported, all of it before the first request.
"""

import gc
import json
import os
import signal
import socket
import sys
from typing import Final, NoReturn

from services.executor.launcher import attach
from services.executor.launcher.birth import Born, Legacy, brief, give_birth, prepare_pipes
from services.executor.launcher.handshake import Failure, StepFailed, failure_of
from services.executor.launcher.jobfiles import JobFiles, create_job_files
from services.executor.launcher.monitor import Monitor
from services.executor.launcher.task import (
    LAUNCH,
    LENGTH_BYTES,
    TASK_BYTES_MAX,
    Beginning,
    Watch,
    decode_places,
    decode_watch,
)
from services.executor.linux.processes import (
    default_signal,
    drop_bounding_set,
    pidfd_send_signal,
    set_dumpable,
    set_no_new_privileges,
    set_title,
)
from services.executor.linux.seccomp import Filter

READ_TASK_S_MAX: Final = 10.0
DESCRIPTORS_MAX: Final = 2
FILTER_BYTES_MAX: Final = 4096 * 8
"""BPF_MAXINSNS of include/uapi/linux/bpf_common.h."""
_CRASH_FILE: Final = "monitor.crash"
_KEPT_BY_LIBC: Final = (32, 33)
"""Signals that signal.signal() cannot reach, nptl(7)."""


def main() -> None:
    """Fork a process per request until the socket ends."""
    requests = socket.socket(fileno=int(sys.argv[1]))
    seccomp = _read_filter()
    _begin_clean()
    gc.collect()
    gc.freeze()
    gc.disable()
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 64, DESCRIPTORS_MAX)
        if not message:
            return
        more = descriptors[1] if len(descriptors) > 1 else -1
        with socket.socket(fileno=descriptors[0]) as caller:
            if _fork(caller) == 0:
                requests.close()
                if message == LAUNCH:
                    _become_monitor(caller, Legacy(seccomp, more))
                _become_changer(message, caller, more)
        if more >= 0:
            os.close(more)


def _read_filter() -> Filter:
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    program = os.read(0, FILTER_BYTES_MAX)
    os.dup2(null, 0)
    os.close(null)
    return Filter(program)


def _begin_clean() -> None:
    """What every monitor and job inherits is set once: it does not depend on how the executor was started."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}:
        signal.signal(number, signal.SIG_DFL)
    for kept in _KEPT_BY_LIBC:
        default_signal(kept)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the monitors
    # At shutdown everybody gets SIGTERM: the job ends by its own, and its true end is still written. Blocked once here
    # and not ignored in each monitor: that is shared memory, and init takes its signals with sigwaitinfo(2).
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    os.chdir("/")
    os.umask(0o077)
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1):
        os.dup2(null, standard)
    os.close(null)
    set_dumpable(dumpable=False)
    set_no_new_privileges()
    if os.geteuid() == 0:  # who is not root holds none, and may not drop them
        drop_bounding_set()  # what is held is kept, but no program executed from here on gets any
    set_title("joblet-launcher")


def _fork(caller: socket.socket) -> int | None:
    """0 in the child. None: there is none, and the caller is told."""
    try:
        return os.fork()
    except OSError as cause:
        _answer(caller, _told(failure_of("fork", cause)))
        return None


def _become_monitor(caller: socket.socket, legacy: Legacy) -> NoReturn:
    status = 1
    trace = _Trace()
    try:
        _detach()
        _monitor(caller, legacy, trace)
        status = 0
    except StepFailed as failed:
        _answer(caller, _told(failed.failure))
    except BaseException:  # noqa: BLE001  # process entry: the executor sees LOST, an operator finds this file
        trace.leave()
    finally:
        os._exit(status)


def _become_changer(verb: bytes, caller: socket.socket, process: int) -> NoReturn:
    status = 1
    try:
        _detach()
        set_title(f"joblet-{verb.decode()}")
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGALRM,))
        signal.alarm(attach.DEADLINE_S)
        caller.settimeout(attach.DEADLINE_S)
        attach.carry_out(verb, attach.decode(_receive_part(caller)), process, lambda: _is_there(caller))
        _answer(caller, b"{}")
        status = 0
    except StepFailed as failed:
        _answer(caller, _told(failed.failure))
    except BaseException as cause:  # noqa: BLE001  # process entry: a bug here must reach the client as well
        _answer(caller, _told(failure_of(verb.decode(), cause)))
    finally:
        os._exit(status)


def _is_there(caller: socket.socket) -> bool:
    """Whether the other end is open still; nothing more comes from it."""
    caller.settimeout(0)  # an answer finds room all the same
    try:
        return bool(caller.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    except OSError:
        return False


def _detach() -> None:
    """A session of its own, and nothing of the executor's. The rest is as `_begin_clean` left it."""
    os.setsid()
    os.dup2(1, 2)  # standard error was the executor's, for the launcher alone
    default_signal(signal.SIGCHLD)


def _monitor(caller: socket.socket, legacy: Legacy, trace: "_Trace") -> None:
    beginning = _receive_beginning(caller)
    set_title(f"joblet-spare {beginning.places.job_dir.rpartition('/')[2]}")
    born = _give_birth(beginning, legacy)
    try:
        watch, encoded_task = _receive_rest(caller)
        trace.job_dir = watch.job_dir
        set_title(f"joblet-monitor {watch.job_id}")
        if isinstance(born, Born):
            born = _brief(born, watch, encoded_task)
        del encoded_task
        monitor = Monitor(watch, _create_job_files(watch))
    except StepFailed:
        _abandon(born)
        raise
    if not _answer(caller, b'{"pid":%d}' % os.getpid()):
        # Whoever asked has given up, and told so its client: the job must not start behind its back.
        _abandon(born)
        born = Failure("start", "", 0, "the executor did not wait for the launch")
    caller.close()
    if isinstance(born, Failure):
        monitor.fail(born)
    else:
        prepare_pipes(born, watch)
        monitor.run(born)


def _receive_beginning(caller: socket.socket) -> Beginning:
    caller.settimeout(READ_TASK_S_MAX)
    try:
        return Beginning(decode_places(_receive_part(caller)), _receive_part(caller))
    except (OSError, ValueError) as cause:
        raise StepFailed(failure_of("task", cause)) from cause


def _receive_rest(caller: socket.socket) -> tuple[Watch, bytes]:
    """It may take its time: a spare sandbox waits for a job. Its end means that there will be none."""
    caller.settimeout(None)
    try:
        return decode_watch(_receive_part(caller)), _receive_part(caller)
    except (OSError, ValueError, TypeError) as cause:
        raise StepFailed(failure_of("task", cause)) from cause


def _give_birth(beginning: Beginning, legacy: Legacy) -> Born | Failure:
    try:
        return give_birth(beginning, legacy)
    except StepFailed as failed:
        return failed.failure  # the executor finds it in the journal, as every failure of a job


def _brief(born: Born, watch: Watch, encoded_task: bytes) -> Born | Failure:
    try:
        brief(born, watch, encoded_task)
    except StepFailed as failed:
        _abandon(born)
        return failed.failure
    return born


def _abandon(born: Born | Failure) -> None:
    """No GO comes: when this returns the job's processes have ended, and its groups are empty."""
    if isinstance(born, Born):
        pidfd_send_signal(born.init.pidfd, signal.SIGKILL)
        os.waitpid(born.init.pid, 0)


def _receive_part(caller: socket.socket) -> bytes:
    length = int.from_bytes(_receive(caller, LENGTH_BYTES), "little")
    if length > TASK_BYTES_MAX:
        raise ValueError(f"task of {length} bytes, at most {TASK_BYTES_MAX}")
    return _receive(caller, length)


def _receive(caller: socket.socket, length: int) -> bytes:
    received = bytearray()
    while len(received) < length:
        part = caller.recv(min(length - len(received), 2**16))
        if not part:
            raise ValueError(f"task ends after {len(received)} of {length} bytes")
        received += part
    return bytes(received)


def _create_job_files(watch: Watch) -> JobFiles:
    try:
        return create_job_files(watch.job_dir)
    except OSError as cause:
        raise StepFailed(failure_of("job directory", cause)) from cause


def _answer(caller: socket.socket, answer: bytes) -> bool:
    """Whether somebody is there to read it."""
    try:
        caller.sendall(answer)
    except OSError:
        return False
    return True


def _told(failure: Failure) -> bytes:
    return json.dumps({"failure": failure}).encode()


class _Trace:
    """Where the traceback of a bug goes, as soon as the job's directory is known."""

    def __init__(self) -> None:
        self.job_dir = ""

    def leave(self) -> None:
        """Write down the exception that is being handled."""
        if not self.job_dir:
            return
        import traceback  # noqa: PLC0415  # rarely needed, and every fork pays for what the launcher has loaded

        descriptor = os.open(f"{self.job_dir}/{_CRASH_FILE}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.write(descriptor, traceback.format_exc().encode())
