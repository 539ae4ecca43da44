"""The launcher: a small interpreter that forks one monitor per request, so that nobody forks a process with threads.

Run as `python -I -S -c "import sys; sys.path.insert(0, ROOT); from services.executor.launcher.main import main; main()"
FD` with an empty environment. FD is a SOCK_SEQPACKET socket; each message on it brings one stream socket by SCM_RIGHTS.
On that a monitor reads one task (`task.py`'s two parts) and answers one JSON object:
`{"pid": n}` when the job's files exist and its lock is held, or `{"failure": [step, path, errno, message]}`. The end of
the stream without an answer means that the monitor died. The launcher reads no task: its memory stays as it was at its
start, which keeps forks cheap and monitors small. It ends when its socket does; monitors stay.

Only the standard library, common.records and this room are imported, all of it before the first request.
"""

import gc
import json
import os
import signal
import socket
import sys
import traceback
from typing import Final, NoReturn

from services.executor.launcher.birth import give_birth
from services.executor.launcher.handshake import Failure, StepFailed, failure_of
from services.executor.launcher.jobfiles import JobFiles, create_job_files
from services.executor.launcher.monitor import Monitor
from services.executor.launcher.task import LENGTH_BYTES, TASK_BYTES_MAX, Watch, decode_watch
from services.executor.linux.processes import drop_bounding_set, set_dumpable, set_title

READ_TASK_S_MAX: Final = 10.0
_CRASH_FILE: Final = "monitor.crash"


def main() -> None:
    """Fork a monitor per request until the socket ends."""
    requests = socket.socket(fileno=int(sys.argv[1]))
    _begin_clean()
    gc.collect()
    gc.freeze()
    gc.disable()
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 64, 4)
        if not message:
            return
        for descriptor in descriptors:
            with socket.socket(fileno=descriptor) as caller:
                _fork_monitor(requests, caller)


def _begin_clean() -> None:
    """What every monitor and job inherits is set once: it does not depend on how the executor was started."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the monitors
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    drop_bounding_set()  # what is held is kept, but no program executed from here on gets any
    set_title("joblet-launcher")


def _fork_monitor(requests: socket.socket, caller: socket.socket) -> None:
    try:
        pid = os.fork()
    except OSError as cause:
        _answer(caller, {"failure": failure_of("fork", cause)})
        return
    if pid == 0:
        requests.close()
        _become_monitor(caller)


def _become_monitor(caller: socket.socket) -> NoReturn:
    status = 1
    job_dir = ""
    try:
        _detach()
        watch, encoded = _receive_task(caller)
        job_dir = watch.job_dir
        set_title(f"joblet-monitor {watch.job_id}")
        _run(watch, encoded, caller)
        status = 0
    except StepFailed as failed:
        _answer(caller, {"failure": failed.failure})
    except BaseException:  # noqa: BLE001  # process entry: the executor sees LOST, an operator finds this file
        _leave_trace(job_dir)
    finally:
        os._exit(status)


def _detach() -> None:
    """A session of its own, no terminal, no directory, no name of the executor's; what stops services stops no job."""
    os.setsid()
    os.chdir("/")
    os.umask(0o077)
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    set_dumpable(dumpable=False)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        # At shutdown everybody gets SIGTERM: the job ends by its own, and its true end is still written.
        signal.signal(number, signal.SIG_IGN)


def _receive_task(caller: socket.socket) -> tuple[Watch, bytes]:
    caller.settimeout(READ_TASK_S_MAX)
    try:
        return decode_watch(_receive_part(caller)), _receive_part(caller)
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise StepFailed(failure_of("task", cause)) from cause


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


def _arm(watch: Watch) -> JobFiles:
    try:
        return create_job_files(watch.job_dir)
    except OSError as cause:
        raise StepFailed(failure_of("job directory", cause)) from cause


def _run(watch: Watch, encoded: bytes, caller: socket.socket) -> None:
    monitor = Monitor(watch, _arm(watch))
    if not _answer(caller, {"pid": os.getpid()}):
        # Whoever asked has given up, and told so its client: the job must not start behind its back.
        monitor.fail(Failure("start", "", 0, "the executor did not wait for the launch"))
        return
    caller.close()
    try:
        born = give_birth(watch, encoded)
    except StepFailed as failed:
        monitor.fail(failed.failure)
    else:
        monitor.run(born)


def _answer(caller: socket.socket, answer: dict[str, int | Failure]) -> bool:
    """Whether somebody is there to read it."""
    try:
        caller.sendall(json.dumps(answer).encode())
    except OSError:
        return False
    return True


def _leave_trace(job_dir: str) -> None:
    if not job_dir:
        return
    descriptor = os.open(f"{job_dir}/{_CRASH_FILE}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.write(descriptor, traceback.format_exc().encode())
