"""The wrappers of system calls, against the kernel; in a child where they change the caller."""

import ctypes
import errno
import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from common.linux import files, mounts, paths
from common.linux.libc import LIBC, NUMBERS
from services.executor.linux import namespaces, network, processes
from tests.linux.sandboxes import fields

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def in_child(action: Callable[[], str | None]) -> str:
    """What `action` answers in a forked process."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = action() or ""
        except BaseException as cause:  # noqa: BLE001  # the child's entry: the parent tells
            answer = f"failed: {cause!r}"
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    told = os.read(reader, 4096).decode()
    os.close(reader)
    os.waitpid(pid, 0)
    return told


def test_errors_name_call_and_path() -> None:
    """A failed call is an OSError with errno, the name of the call, and the path."""
    with pytest.raises(OSError, match="mount: No such file") as raised:
        mounts.mount("tmpfs", "/no-such-dir", "tmpfs", 0)
    assert (raised.value.errno, raised.value.filename) == (errno.ENOENT, "/no-such-dir")
    with pytest.raises(OSError, match="open_tree: No such file"):
        mounts.open_tree("/no-such-dir", recursive=True)
    with pytest.raises(OSError, match="umount2: "):
        mounts.umount2("/no-such-dir", 0)


def test_openat2_does_not_leave_its_root(tmp_path: Path) -> None:
    """An absolute link leads to the root given, '..' stops there, beneath refuses, magic links are refused."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").write_text("inside")
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "magic").symlink_to("/proc/self/cwd")
    root = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    try:
        for path in ("link", "/etc/passwd", "../../etc/passwd"):
            descriptor = paths.openat2(root, path, os.O_RDONLY, resolve=paths.RESOLVE_IN_ROOT)
            assert os.read(descriptor, 100) == b"inside"
            os.close(descriptor)
        for path in ("link", "../x"):
            with pytest.raises(OSError, match="openat2") as raised:
                paths.openat2(root, path, os.O_RDONLY, resolve=paths.RESOLVE_BENEATH)
            assert raised.value.errno == errno.EXDEV
        with pytest.raises(OSError, match="openat2") as raised:
            paths.openat2(root, "/proc/self/cwd", os.O_PATH, resolve=paths.RESOLVE_NO_MAGICLINKS)
        assert raised.value.errno == errno.ELOOP
    finally:
        os.close(root)


def test_clone3_makes_a_child_in_new_namespaces() -> None:
    """The child is PID 1 of its namespace, Python works in it, and the pidfd is the child's."""

    def action() -> str:
        reader, writer = os.pipe()
        child = namespaces.clone3(namespaces.CLONE_NEWPID | namespaces.CLONE_NEWUTS)
        if child is None:
            namespaces.sethostname("inside")
            os.write(writer, f"{os.getpid()} {os.uname().nodename}".encode())
            os._exit(3)
        told = os.read(reader, 100).decode()
        _, status = os.waitpid(child.pid, 0)
        return f"{told} {os.waitstatus_to_exitcode(status)} {os.uname().nodename == 'inside'} {child.pidfd > 2}"

    assert in_child(action) == "1 inside 3 False True"


def test_clone3_fails_cleanly() -> None:
    """Refused flags leave one process, which can fork again."""
    with pytest.raises(OSError, match="clone3") as raised:
        namespaces.clone3(namespaces.CLONE_NEWNS | 0x200)  # CLONE_FS with a mount namespace: EINVAL
    assert raised.value.errno == errno.EINVAL
    assert in_child(lambda: "still here") == "still here"


def test_a_bind_is_read_only_to_its_depth(tmp_path: Path) -> None:
    """A recursive bind made read-only refuses writes in mounts below as well; MS_RDONLY in one call would not."""
    (tmp_path / "source").mkdir()
    (tmp_path / "target").mkdir()

    def action() -> str:
        namespaces.unshare(namespaces.CLONE_NEWNS)
        mounts.mount("none", "/", None, mounts.MS_REC | mounts.MS_PRIVATE)
        mounts.mount("tmpfs", str(tmp_path / "source"), "tmpfs", 0)
        (tmp_path / "source" / "below").mkdir()
        mounts.mount("tmpfs", str(tmp_path / "source" / "below"), "tmpfs", 0)
        tree = mounts.open_tree(str(tmp_path / "source"), recursive=True)
        mounts.mount_setattr(tree, mounts.MOUNT_ATTR_RDONLY, recursive=True)
        target = os.open(tmp_path / "target", os.O_PATH)
        mounts.move_mount(tree, target)
        answers = []
        for place in ("source", "source/below", "target", "target/below"):
            try:
                (tmp_path / place / "file").write_text("x")
                answers.append("written")
            except OSError as cause:
                answers.append(errno.errorcode[cause.errno or 0])
        return " ".join(answers)

    assert in_child(action) == "written written EROFS EROFS"


def test_privileges_go_for_good() -> None:
    """Capabilities, bounding set, new privileges and dumpability are what was set, and cannot be had back."""

    def action() -> str:
        processes.set_dumpable(dumpable=False)
        processes.drop_bounding_set()
        processes.CapabilitySet((processes.CAP_KILL,)).become()
        processes.set_no_new_privileges()
        processes.set_title("short")
        processes.join_new_session_keyring()
        status = fields(Path("/proc/self/status").read_bytes())
        names = [status[key] for key in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb", "NoNewPrivs", "Name")]
        try:
            os.setgroups([5])
            names.append("regained")
        except PermissionError:
            names.append("refused")
        return " ".join(names)

    zero = "0" * 16
    kill = f"{1 << processes.CAP_KILL:016x}"
    assert in_child(action) == f"{kill} {kill} {zero} {zero} {zero} 1 short refused"


def ignored_signals() -> str:
    """The mask of this process, hexadecimal."""
    return fields(Path("/proc/self/status").read_bytes())["SigIgn"]


def test_every_ignored_signal_can_be_reset() -> None:
    """Those that the C library keeps for itself as well: an ignored one would reach the job over every exec."""

    def action() -> str:
        ignore = struct.pack("<QQQQ", signal.SIG_IGN, 0, 0, 0)  # struct kernel_sigaction
        for number in (signal.SIGUSR1, 32, 33):
            assert LIBC.syscall(NUMBERS["rt_sigaction"], number, ignore, None, 8) == 0
        ignored = ignored_signals()
        for number in (signal.SIGUSR1, 32, 33, signal.SIGPIPE, signal.SIGXFSZ):
            processes.default_signal(number)
        return f"{ignored} {ignored_signals()}"

    before, after = in_child(action).split()
    assert int(before, 16) & 0x180000200 == 0x180000200
    assert int(after, 16) & 0x181001200 == 0  # others may be ignored by who has started the tests


def test_loopback_comes_up() -> None:
    """In a new network namespace lo is down, and up afterwards."""

    def action() -> str:
        namespaces.unshare(namespaces.CLONE_NEWNET)
        network.loopback_up()
        network.loopback_up()
        return hex(int(Path("/proc/net/if_inet6").exists())) + str(len(Path("/proc/net/dev").read_text().splitlines()))

    assert in_child(action) == "0x13"


def test_the_parents_death_is_told() -> None:
    """A child with a death signal dies with its parent."""

    def action() -> str:
        reader, writer = os.pipe()
        middle = os.fork()
        if middle == 0:
            ready, tell = os.pipe()
            if os.fork() == 0:
                processes.set_parent_death_signal(9)
                os.write(tell, b"x")
                os.read(os.pipe()[0], 1)
            os.read(ready, 1)
            os._exit(0)
        os.close(writer)
        os.waitpid(middle, 0)
        return f"ended {os.read(reader, 1)!r}"  # end of file: every copy of the writing end is gone

    assert in_child(action) == "ended b''"


def test_a_hole_gives_space_back(tmp_path: Path) -> None:
    """Punching keeps size and offsets, and frees blocks."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 2**20)
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
        before = os.fstat(descriptor).st_blocks
        files.punch_hole(descriptor, 0, 2**19)
        after = os.fstat(descriptor)
        assert (after.st_size, after.st_blocks < before) == (2**20, True)
        assert os.pread(descriptor, 1, 0) == b"\0"
        assert os.pread(descriptor, 1, 2**19) == b"x"
    finally:
        os.close(descriptor)


def test_close_on_exec_covers_every_descriptor() -> None:
    """Marked descriptors do not survive an exec, whatever they were before."""

    def action() -> str:
        extra = os.open("/dev/null", os.O_RDONLY)
        os.set_inheritable(extra, True)  # noqa: FBT003  # its only signature
        processes.mark_close_on_exec(3)
        return str(os.get_inheritable(extra))

    assert in_child(action) == "False"
    assert ctypes.sizeof(ctypes.c_void_p) == 8
