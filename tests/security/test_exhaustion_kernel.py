"""Objects of the kernel that no group counts: IPC, signals, timers, keys, locks, asynchronous input. C15, C30.

Each is taken until it is refused. What counts is that the refusal is the job's own: the host and another owner's jobs
still get theirs.
"""

import ctypes
import errno
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.node import Node
from tests.leaks import own_groups
from tests.soak.holding import alive, holding, probe
from tests.soak.host import unharmed, until

LIBC: Final = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def checked(answer):
    if answer < 0:
        raise OSError(ctypes.get_errno(), "")
    return answer
"""

OBJECTS: Final = (
    LIBC
    + r"""
class Value(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("pointer", ctypes.c_void_p)]
libc.sigqueue.argtypes = [ctypes.c_int, ctypes.c_int, Value]
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
def queued(number):
    checked(libc.sigqueue(os.getpid(), signal.SIGRTMIN, Value(number=1)))
def timer(number):
    checked(libc.timer_create(1, None, ctypes.byref(ctypes.c_void_p())))
def segment(number):
    return checked(libc.shmget(0, 4096, 0o1600))
def semaphore(number):
    return checked(libc.semget(0, 1, 0o1600))
def queue(number):
    return checked(libc.msgget(0, 0o1600))
def posix(number):
    return checked(libc.mq_open(b"/%d" % number, os.O_CREAT | os.O_RDWR, 0o600, None))
def key(number):
    return checked(libc.syscall(248, b"user", b"%d" % number, b"x", 1, -3))
found = {}
for attempt in (timer, queued, segment, semaphore, queue, posix, key):
    kept, error = refusals(attempt, 10**5)
    found[attempt.__name__] = [len(kept), error]
hold(found=found)
"""
)


def tables() -> str:
    """The host's System V objects, and its keys by user."""
    files = ("/proc/sysvipc/shm", "/proc/sysvipc/sem", "/proc/sysvipc/msg")
    return "".join(Path(file).read_text() for file in files if Path(file).exists())


@pytest.mark.threat("C15")
@pytest.mark.threat("A19")
def test_ipc_signals_timers_and_keys_are_bounded_and_ones_own(node: Node) -> None:
    """Every kind ends at a limit, none is seen on the host, another owner gets as many, and all go with the job."""
    before = tables()
    with unharmed(node):
        with holding(node, OBJECTS) as held:
            found = held.said["found"]
            assert found["timer"] == [1024, "EAGAIN"]
            assert found["queued"] == [0, "EAGAIN"], "timers and signals have one limit"
            assert all(error in {"ENOSPC", "ENOMEM"} for _, error in map(found.get, ("segment", "semaphore", "queue")))
            assert 0 < found["posix"][0] < 64
            assert found["posix"][1] == "EMFILE"
            assert found["key"] == [0, "EPERM"]
            assert tables() == before
            with holding(node, OBJECTS, user="user") as other:
                assert other.said["found"] == found
        assert tables() == before
        assert alive(node, "default")


EVENTS: Final = """
import select
nested = [select.epoll()]
def nest(number):
    upper = select.epoll()
    upper.register(nested[-1].fileno(), select.EPOLLIN)
    nested.append(upper)
_, depth_error = refusals(nest, 100)
def execute(number):
    pid = os.fork()
    if pid == 0:
        try:
            os.execve("/bin/true", ["true"] + ["x" * 131071] * number, {})
        except OSError as error:
            os._exit(error.errno)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
say(depth=len(nested), depth_error=depth_error, small=execute(8), large=execute(100))
"""


@pytest.mark.threat("C13")
def test_nesting_and_arguments_end_at_the_kernels_own_bounds(node: Node) -> None:
    """Nested epoll ends after a few, arguments at some megabytes."""
    seen = probe(node, EVENTS).seen
    assert seen["depth"] <= 6
    assert seen["depth_error"] == "ELOOP"
    assert (seen["small"], seen["large"]) == (0, errno.E2BIG)


LOCKS: Final = """
import fcntl
def lock(number):
    fcntl.lockf(file, fcntl.LOCK_EX, 1, number * 2)
file = os.open("/tmp/locked", os.O_CREAT | os.O_RDWR)
kept, error = refusals(lock, 5000)
hold(locks=len(kept), error=error)
"""


def host_locks() -> int:
    """How many file locks the host has."""
    return len(Path("/proc/locks").read_text().splitlines())


@pytest.mark.threat("C16")
def test_a_flood_of_locks_is_nobody_elses(node: Node) -> None:
    """5,000 record locks of one job: others lock on, and with the job they are gone."""
    with unharmed(node), holding(node, LOCKS) as held:
        assert (held.said["locks"], host_locks() >= 5000) == (5000, True)
        with holding(node, LOCKS, user="user") as other:
            assert other.said["locks"] == 5000
    until(lambda: host_locks() < 5000, lambda: f"{host_locks()} locks")


AIO: Final = (
    LIBC
    + """
def context(number):
    checked(libc.syscall(206, 1000, ctypes.byref(ctypes.c_ulong(0))))  # io_setup
kept, error = refusals(context, 10**4)
small, _ = refusals(lambda number: checked(libc.syscall(206, 1, ctypes.byref(ctypes.c_ulong(0)))), 10**5)
say(contexts=len(kept), error=error, small=len(small))
if HELD:
    hold()
"""
)


@pytest.mark.threat("C16")
def test_asynchronous_input_of_the_host_is_not_taken(node: Node) -> None:
    """fs.aio-max-nr is one number for the whole host: a job gets none of it, and the host all."""
    with holding(node, "HELD = True" + AIO) as held:
        assert (held.said["contexts"], held.said["error"]) == (0, "ENOSYS")
        libc, context = ctypes.CDLL(None, use_errno=True), ctypes.c_ulong(0)
        assert libc.syscall(206, 128, ctypes.byref(context)) == 0, ctypes.get_errno()
        assert libc.syscall(207, context) == 0


ESCAPE: Final = (
    LIBC
    + r"""
found = {}
found["mounted"] = [line.split()[2] for line in open("/proc/mounts") if line.split()[2].startswith("cgroup")]
for kind in (b"cgroup", b"cgroup2"):
    ctypes.set_errno(0)
    libc.mount(b"x", b"/tmp", kind, 0, None)
    found[kind.decode()] = errno.errorcode[ctypes.get_errno()]
found["unshare"] = libc.unshare(0x02000000) < 0
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.setpgid(0, 0)
        while True:
            signal.pause()
    os.wait()
found["groups"] = sorted({open("/proc/%s/cgroup" % each).read() for each in os.listdir("/proc") if each.isdigit()})
hold(**found)
"""
)


@pytest.mark.threat("C30")
def test_there_is_no_way_out_of_the_control_groups(node: Node) -> None:
    """No cgroup file system is there or can be mounted, no group can be made below, and orphans stay in the job's."""
    with unharmed(node), holding(node, ESCAPE) as held:
        assert held.said["mounted"] == []
        assert (held.said["cgroup"], held.said["cgroup2"], held.said["unshare"]) == ("EPERM", "EPERM", True)
        assert len(held.said["groups"]) == 1
        groups = [Path(group) for group in own_groups() if Path(group).name == held.job]
        assert groups
        members = {frozenset((group / "cgroup.procs").read_text().split()) for group in groups}
        assert len(members) == 1, "every hierarchy has the same processes"
        assert len(members.pop()) == 5, "init, the job and three orphans"
        below = [each / "cgroup.max.descendants" for each in groups]
        assert [each.read_text() for each in below if each.exists()] == ["0\n"]
