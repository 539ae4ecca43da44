"""The system call filter against the kernel, call by call, each with what the kernel says without it."""

import ctypes
import errno
import mmap
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from services.executor.linux.processes import set_no_new_privileges
from services.executor.linux.seccomp import Filter
from services.executor.seccomp.compile import compile_filter
from services.executor.seccomp.profile import load_profile
from tests.linux.sandboxes import fields
from tests.linux.seccomp_probes import ALL_BITS, BAD, REFUSED, call, in_child, number_of, results

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
only_x86_64 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="needs x86_64")

TIOCSTI: Final = 0x5412
TIOCLINUX: Final = 0x541C
TCGETS: Final = 0x5401
FS_IOC_FSSETXATTR: Final = 0x401C_5820
CLONE_NEWUSER: Final = 0x1000_0000
HIGH: Final = 0xDEAD_BEEF << 32
"""Bits of a register that the kernel does not look at when the argument is an int."""


@pytest.fixture(scope="module")
def program() -> bytes:
    """The installed profile, compiled for this machine."""
    return compile_filter()


def both(action: Callable[[], object], program: bytes) -> tuple[object, object]:
    """What `action` answers without the filter and with it."""
    return in_child(action).answer, in_child(action, program).answer


@pytest.mark.threat("A14")
def test_the_kernel_says_that_a_filter_is_on(program: bytes) -> None:
    """/proc tells mode 2, filter, and no_new_privs."""

    def action() -> list[str]:
        status = fields(Path("/proc/self/status").read_bytes())
        return [status["Seccomp"], status["NoNewPrivs"]]

    assert both(action, program) == (["0", "1"], ["2", "1"])


@pytest.mark.threat("A12")
@pytest.mark.threat("A17")
@pytest.mark.threat("A19")
@pytest.mark.threat("A20")
@pytest.mark.threat("A21")
def test_every_refused_call_fails_with_eperm(program: bytes) -> None:
    """One by one, by number; the same call with the same arguments meets something else without the filter."""
    with_filter, without = results(REFUSED, program), results(REFUSED)
    assert with_filter == dict.fromkeys(REFUSED, -errno.EPERM)
    assert [name for name, result in without.items() if result == -errno.EPERM] == []


def test_the_list_of_refused_calls_is_complete() -> None:
    """No call that the profile refuses with EPERM is missing above, but those this libseccomp has no number for."""
    named = {name for group in load_profile().refuse if group.errno == "EPERM" for name in group.calls}
    newer = {"file_setattr", "lsm_get_self_attr", "lsm_list_modules", "lsm_set_self_attr", "open_tree_attr"}
    assert named - newer <= set(REFUSED) <= named


@pytest.mark.threat("A12")
@pytest.mark.threat("C08")
def test_unknown_and_newer_calls_do_not_exist(program: bytes) -> None:
    """clone3, and calls that no libseccomp here knows: file_setattr, open_tree_attr, a number without a call."""
    numbers = (number_of("clone3"), 467, 469, 999)
    without, with_filter = both(lambda: [call(number, 0, 0, 0, 0, 0) for number in numbers], program)
    assert isinstance(without, list)
    assert without[0] == -errno.EINVAL
    assert with_filter == [-errno.ENOSYS] * 4


@pytest.mark.threat("A12")
@pytest.mark.parametrize("high", [0, HIGH])
def test_clone_makes_no_namespaces(program: bytes, high: int) -> None:
    """CLONE_NEWUSER makes a child without the filter only; a plain clone makes one with it as well."""
    number = number_of("clone")

    def clone(flags: int) -> str:
        result = call(number, flags | signal.SIGCHLD, 0, 0, 0, 0)
        if result == 0:
            os._exit(0)
        if result > 0:
            os.waitpid(result, 0)
        return "child" if result > 0 else errno.errorcode[-result]

    without, with_filter = both(lambda: [clone(high | CLONE_NEWUSER), clone(high)], program)
    assert (without, with_filter) == (["child", "child"], ["EPERM", "child"])


@pytest.mark.threat("A12")
def test_unshare_makes_no_user_namespace(program: bytes) -> None:
    """The program of util-linux fails for want of permission."""
    assert run(["unshare", "-Ur", "true"], None).returncode == 0
    refused = run(["unshare", "-Ur", "true"], program)
    assert refused.returncode != 0
    assert "Operation not permitted" in refused.stderr


@pytest.mark.threat("A23")
def test_sockets_of_other_families_cannot_be_made(program: bytes) -> None:
    """Packet sockets and netlink for other than routes open without the filter; with it the family is unknown."""
    unix, ip, ip6, netlink, packet = (
        int(family) for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET)
    )
    datagram, raw, generic = int(socket.SOCK_DGRAM), int(socket.SOCK_RAW), 16
    make, pair = number_of("socket"), number_of("socketpair")

    def action() -> dict[str, list[bool | int]]:
        ends = ctypes.create_string_buffer(8)
        return {
            "others": [min(call(make, packet, raw, 0), 0), min(call(make, netlink, raw, generic), 0)],
            "high": [min(call(make, HIGH | packet, raw, 0), 0), min(call(make, netlink, raw, HIGH | generic), 0)],
            "usual": [call(make, family, datagram, 0) >= 0 for family in (unix, ip, ip6, netlink)],
            "pairs": [call(pair, family, datagram, 0, ctypes.addressof(ends)) for family in (unix, ip)],
        }

    without, with_filter = both(action, program)
    usual = [True] * 4
    absent = -errno.EAFNOSUPPORT
    assert without == {"others": [0, 0], "high": [0, 0], "usual": usual, "pairs": [0, -errno.EOPNOTSUPP]}
    assert with_filter == {"others": [absent] * 2, "high": [absent] * 2, "usual": usual, "pairs": [0, absent]}


@pytest.mark.threat("A23")
def test_the_families_of_the_catalogue_are_unknown(program: bytes) -> None:
    """Not one number but those of UNIX, INET, INET6 and NETLINK; tried with the filter only, for it loads modules."""
    number = number_of("socket")
    answers = in_child(lambda: {family: call(number, family, 3, 1) for family in range(64)}, program).answer
    made = {int(family) for family, result in answers.items() if result != -errno.EAFNOSUPPORT}
    assert made <= {1, 2, 10}
    assert {socket.AF_ALG, socket.AF_VSOCK, socket.AF_PACKET, socket.AF_RDS, socket.AF_TIPC}.isdisjoint(made)


@pytest.mark.threat("A18")
@pytest.mark.threat("C08")
@pytest.mark.parametrize("high", [0, HIGH])
def test_ioctls_that_are_refused(program: bytes, tmp_path: Path, high: int) -> None:
    """Typing into the own terminal works without the filter; the kernel reads 32 bits of the command, and so do we."""
    number = number_of("ioctl")
    file = tmp_path / "file"
    file.touch()

    def action() -> list[int]:
        _, name = pty.openpty()
        terminal = os.open(os.ttyname(name), os.O_RDWR)  # without O_NOCTTY: it becomes ours
        opened = os.open(file, os.O_RDONLY)
        letter = ctypes.create_string_buffer(b"x" * 64)
        return [
            call(number, terminal, high | TIOCSTI, ctypes.addressof(letter)),
            call(number, terminal, high | TIOCLINUX, BAD),
            call(number, opened, high | FS_IOC_FSSETXATTR, BAD),
            call(number, terminal, high | TCGETS, ctypes.addressof(letter)),
        ]

    without, with_filter = both(action, program)
    assert isinstance(without, list)
    assert without[0] == without[3] == 0
    assert without[1] == -errno.ENOTTY
    assert without[2] in (-errno.EFAULT, -errno.ENOTTY)
    assert with_filter == [-errno.EPERM, -errno.EPERM, -errno.EPERM, 0]


@pytest.mark.threat("C11")
def test_real_time_policies_are_refused(program: bytes) -> None:
    """FIFO, RR and DEADLINE, also with SCHED_RESET_ON_FORK or high bits; the kernel alone minds the priority 0 only."""
    number = number_of("sched_setscheduler")
    policies = (os.SCHED_FIFO, os.SCHED_RR, 6, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, HIGH | os.SCHED_RR)

    def action() -> list[list[int]]:
        parameter = ctypes.c_int(0)
        usual = (os.SCHED_BATCH, os.SCHED_OTHER, os.SCHED_IDLE | os.SCHED_RESET_ON_FORK)
        return [
            [call(number, 0, policy, ctypes.addressof(parameter)) for policy in chosen] for chosen in (policies, usual)
        ]

    without, with_filter = both(action, program)
    assert without == [[-errno.EINVAL] * 5, [0, 0, 0]]
    assert with_filter == [[-errno.EPERM] * 5, [0, 0, 0]]


@pytest.mark.threat("A21")
def test_personalities_that_are_refused(program: bytes) -> None:
    """Without address randomization, or with executable data: refused. Asking, and what Docker allows: not."""
    number = number_of("personality")
    asked = (0x4_0000, 0x40_0000, HIGH | 0x4_0000, 0x2_0008, 0x2_0000, 0x8, 0, ALL_BITS, HIGH | ALL_BITS)
    without, with_filter = both(lambda: [call(number, value) >= 0 for value in asked], program)
    assert without == [True] * 9
    assert with_filter == [False] * 3 + [True] * 6


def execute(code: bytes) -> int:
    """Run machine code that returns an int."""
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        page.write(code)
        start = ctypes.c_char.from_buffer(page)
        result = int(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(start))())
        del start
    return result


@only_x86_64
@pytest.mark.threat("A22")
def test_the_32_bit_door_kills(program: bytes) -> None:
    """The getpid of i386 answers without the filter, or the kernel has no such door and says so by SIGSEGV."""
    code = bytes.fromhex("b814000000 cd80 c3")  # mov eax, 20; int 0x80; ret
    without = in_child(lambda: execute(code) == os.getpid())
    assert without.answer is True or without.signal == signal.SIGSEGV
    assert in_child(lambda: execute(code), program) == (None, signal.SIGSYS)


@only_x86_64
@pytest.mark.threat("A22")
def test_x32_kills(program: bytes) -> None:
    """The getpid of x32 answers without the filter, or fails and lets the process go on."""
    code = bytes.fromhex("b827000040 0f05 c3")  # mov eax, 0x40000027; syscall; ret
    without = in_child(lambda: execute(code) in (os.getpid(), -errno.ENOSYS))
    assert without.answer is True
    assert in_child(lambda: execute(code), program) == (None, signal.SIGSYS)


def test_the_launcher_can_do_the_rest(program: bytes) -> None:
    """A message on a unix socket, signals, lstat and exec, as the launcher does between the filter and the job."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def action() -> None:
        ours.sendmsg([b"exec"])
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.lstat("/")
        os.execv("/bin/true", ["true"])  # noqa: S606  # that is what a launcher does

    with ours, theirs:
        assert in_child(action, program) == (None, 0)
        assert theirs.recv(100) == b"exec"


def test_no_program_no_filter(program: bytes) -> None:
    """What is no array of instructions is refused at once, what the kernel refuses is an OSError with the call."""
    for bytes_ in (b"", b"x" * 9, bytes(8 * 4097)):
        with pytest.raises(ValueError, match="no seccomp program"):
            Filter(bytes_)
    answer = in_child(lambda: "loaded", program[:8]).answer  # it ends without a verdict
    assert answer == f"failed: {OSError(errno.EINVAL, 'prctl: Invalid argument')!r}"


def run(command: list[str], program: bytes | None, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """A program as an ordinary child, under the filter when there is one."""
    loader = None if program is None else Filter(program)

    def confine() -> None:
        set_no_new_privileges()
        if loader is not None:
            loader.load()

    return subprocess.run(command, preexec_fn=confine, capture_output=True, text=True, timeout=60, check=False, cwd=cwd)


THREADS_AND_PROCESSES: Final = """
import asyncio, concurrent.futures, multiprocessing, socket, subprocess, tempfile, threading
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert sum(pool.map(len, ["x"] * 100)) == 100
assert subprocess.run(["echo", "hello"], capture_output=True).stdout == b"hello\\n"
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(abs, [-1, -2]) == [1, 2]
async def spawned():
    process = await asyncio.create_subprocess_exec("true")
    return await process.wait()
assert asyncio.run(spawned()) == 0
assert "lo" in [name for _, name in socket.if_nameindex()]
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
with tempfile.TemporaryFile() as file:
    file.write(b"x")
print("done")
"""


@pytest.mark.parametrize(
    ("command", "output"),
    [
        ([sys.executable, "-c", THREADS_AND_PROCESSES], "done\n"),
        (
            ["sh", "-c", "seq 100000 | sort -rn | head -n 1; (sleep 0 &); wait; ls / >/dev/null && echo ok"],
            "100000\nok\n",
        ),
        (["sh", "-c", "seq 20000 -1 1 | sort -n --parallel=2 -S 1M -T . | tail -n 1"], "20000\n"),
    ],
    ids=["python", "shell", "sort"],
)
def test_usual_programs_run(program: bytes, tmp_path: Path, command: list[str], output: str) -> None:
    """Python with threads and processes, shells with pipelines, a sort that spills to files."""
    done = run(command, program, tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == (output, "", 0)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_a_compiler_runs(program: bytes, tmp_path: Path) -> None:
    """A compiler with its chain of programs, and what it makes."""
    (tmp_path / "hello.c").write_text('#include <stdio.h>\nint main(void) { return puts("hello") < 0; }\n')
    done = run(["sh", "-c", "gcc -O1 -o hello hello.c && ./hello"], program, tmp_path)
    assert (done.stdout, done.stderr) == ("hello\n", "")
