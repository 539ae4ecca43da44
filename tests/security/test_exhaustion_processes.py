"""Processes and processor time: a job that takes all it can get, and one that will not go. C01, C10, C11, C26, C27.

The limits themselves are measured in tests/linux/test_cgroups_enforcement.py and the kernel lane. Here a real node
stands in between: it answers, other jobs run, and nothing is left.
"""

import time
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.node import Node
from tests.leaks import own_groups
from tests.security.attack import in_job, python_unprotected
from tests.soak.holding import HOLD, alive, holding, probe
from tests.soak.host import job_ids, processes_in_groups, unharmed
from tests.waiting import SLOWNESS, wait_for

ANSWER_S_MAX: Final = 10.0
"""For one rnx call, whose interpreter alone takes half a second of a busy machine."""

BOMB: Final = """
said = False
while True:
    try:
        if os.fork() == 0:
            said = True  # only the first process speaks
    except OSError as error:
        if not said:
            say(error=errno.errorcode[error.errno])
            said = True
"""


def counter(job: str, file: str) -> str:
    """A file of the job's group in whichever hierarchy has it."""
    found = [Path(group, file) for group in own_groups() if Path(group).name == job]
    return next(path.read_text() for path in found if path.exists())


@pytest.mark.threat("C01")
def test_a_fork_bomb_is_held_and_ends_at_a_stop(node: Node) -> None:
    """Fork fails with EAGAIN, the node answers and runs another owner's job meanwhile, and a stop leaves no process."""
    with unharmed(node):
        with holding(node, BOMB, options=("--pids", "40")) as bomb:
            assert bomb.said["error"] == "EAGAIN"
            assert int(counter(bomb.job, "pids.current")) <= 40
            assert int(counter(bomb.job, "pids.events").split()[1]) >= 1
            began = time.monotonic()
            assert node.status(bomb.job)["state"] == "running"
            assert time.monotonic() - began < ANSWER_S_MAX * SLOWNESS
            assert alive(node)
        record = node.status(bomb.job)
        assert (record["state"], record["signal"]) == ("stopped", 9)
        assert not processes_in_groups(bomb.job)


COUNT: Final = """
import threading
def child(number):
    pid = os.fork()
    if pid == 0:
        signal.pause()
    return pid
def thread(number):
    try:
        threading.Thread(target=until.wait, daemon=True).start()
    except RuntimeError:  # Python's word for EAGAIN of clone(2)
        raise OSError(errno.EAGAIN, "")
kept, error = refusals(child, 100)
for pid in kept:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
until = threading.Event()
threads, refused = refusals(thread, 100)
say(processes=len(kept), error=error, threads=len(threads), refused=refused)
until.set()
"""


@pytest.mark.threat("C01")
def test_the_limit_of_processes_counts_threads_and_is_exact(node: Node) -> None:
    """With 20 there are init, the job and 18 more, be they processes or threads; unprotected there are 100."""
    seen = probe(node, COUNT, options=("--pids", "20")).seen
    assert (seen["processes"], seen["error"]) == (18, "EAGAIN")
    assert (seen["threads"], seen["refused"]) == (18, "EAGAIN")
    control = python_unprotected(HOLD.replace('os.environ["JOBLET_JOB_ID"]', "''") + COUNT).seen
    assert (control["processes"], control["threads"]) == (100, 100)


ORPHANS: Final = """
for number in range(2000):
    pid = os.fork()
    if pid == 0:
        os.setsid()
        if os.fork() == 0:
            os._exit(0)  # an orphan, and a zombie until somebody reaps it
        os._exit(0)
    os.waitpid(pid, 0)
until = time.monotonic() + 30
while time.monotonic() < until:
    there = [name for name in os.listdir("/proc") if name.isdigit()]
    if there == ["1", "2"]:
        break
say(there=there)
"""


@pytest.mark.threat("C26")
def test_orphans_are_reaped(node: Node) -> None:
    """After 2,000 double forks, with less than 100 processes allowed at once, only init and the job are there."""
    with unharmed(node):
        assert probe(node, ORPHANS, options=("--pids", "100")).seen["there"] == ["1", "2"]


STUBBORN: Final = """
ignored = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGTSTP]
for number in ignored:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
for kind in range(6):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        if kind % 2:
            os.kill(os.getpid(), signal.SIGSTOP)
        while True:
            time.sleep(1000)
while True:
    try:
        if os.waitpid(-1, 0)[0] == 0:
            break
    except ChildProcessError:
        break
say()
os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.mark.threat("C27")
def test_a_job_cannot_keep_itself_from_being_stopped(node: Node) -> None:
    """Every signal ignored and blocked, orphans in sessions of their own, all of it stopped: grace, then SIGKILL."""
    with unharmed(node):
        with holding(node, STUBBORN) as held:
            before = len(processes_in_groups())
            began = time.monotonic()
            node.ok("job", "stop", held.job, "--grace", "500ms")
            node.rnx("job", "wait", held.job)
            assert time.monotonic() - began < ANSWER_S_MAX * SLOWNESS
            assert before >= 8
        record = node.status(held.job)
        assert (record["state"], record["signal"]) == ("stopped", 9)
        wait_for(lambda: held.job not in job_ids(node), what="the job's groups to be gone")


@pytest.mark.threat("C27")
def test_a_plain_program_ends_at_sigterm(node: Node) -> None:
    """It is no init, to which the kernel delivers no signal that it has no handler for."""
    job = node.detached("--", "sleep", "1000")
    node.wait_for_state(job, "running")
    node.ok("job", "stop", job)
    assert node.rnx("job", "wait", job).returncode == 143


BURN: Final = """
began, used = time.monotonic(), time.process_time()
while time.monotonic() - began < 2:
    pass
hold(share=(time.process_time() - used) / (time.monotonic() - began))
"""


def throttled(job: str) -> int:
    """How often the kernel kept the job's group from running because its share was used up."""
    files = [Path(group, "cpu.stat") for group in own_groups() if Path(group).name == job]
    lines = "".join(file.read_text() for file in files if file.exists()).splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("nr_throttled "))


@pytest.mark.threat("C10")
def test_processor_time_is_held(node: Node) -> None:
    """Two seconds of burning at 20 % of a core use about that; without the limit nothing is held back."""
    with holding(node, BURN, options=("--max-cpu", "20")) as limited:
        assert limited.said["share"] < 0.3
        assert throttled(limited.job) > 0
    with holding(node, BURN) as free:
        assert throttled(free.job) == 0


PRIORITIES: Final = """
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    answer = libc.syscall(number, *arguments)
    return errno.errorcode[ctypes.get_errno()] if answer < 0 else "ok"
one = struct.pack("i", 1)
deadline = struct.pack("IIQiIQQQ", 48, 6, 0, 0, 0, 10**6, 10**7, 10**7)
say(fifo=call(144, 0, 1, one), rr=call(144, 0, 2, one), attr=call(314, 0, deadline, 0), nice=call(141, 0, 0, -5),
    ioprio=call(251, 1, 0, 1 << 13), init=call(141, 0, 1, 19), cores=call(203, 0, 8, struct.pack("Q", 2)))
"""


@pytest.mark.threat("C11")
def test_priorities_cannot_be_raised(node: Node) -> None:
    """Real-time policies, deadlines, negative nice values, real-time input and output and other cores are refused."""
    seen = probe(node, PRIORITIES, options=("--cpu-cores", "0")).seen
    assert {seen[name] for name in ("fifo", "rr", "attr", "ioprio", "init")} == {"EPERM"}
    assert seen["nice"] in {"EACCES", "EPERM"}
    assert seen["cores"] == "EINVAL", "core 1 is not among its own"
    control = python_unprotected(HOLD.replace('os.environ["JOBLET_JOB_ID"]', "''") + PRIORITIES).seen
    assert (control["fifo"], control["ioprio"]) == ("ok", "ok")


@pytest.mark.threat("C01")
def test_jobs_of_one_owner_leave_the_others_their_processes(node: Node) -> None:
    """A bomb of an ordinary user, at his own limit, takes nothing from the administrator's next job."""
    with holding(node, BOMB, options=("--pids", "40"), user="user"):
        assert in_job(node, "sh", "-c", "true | true | echo piped").stdout == b"piped\n"
