"""Attacks on processes: PID 1 and what /proc tells of it, one's own children, namespaces by descriptor."""

import ctypes
import fcntl
import os
import signal
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.security.probes.prelude import Attack, address, call, ioctl, report

PTRACE_TRACEME, PTRACE_SEIZE = 0, 0x4206
NS_GET_USERNS, NS_GET_MNTNS_ID = 0xB701, 0x8008B705
NS_MNT_GET_NEXT, NS_MNT_GET_PREV = 0x8010B70B, 0x8010B70C
PIDFD_GET_MNT_NAMESPACE, PIDFD_GET_USER_NAMESPACE = 0xFF03, 0xFF09
F_SETSIG = 10
CLONE_NEWNS = 0x2_0000
NUMBERS_AROUND = 200
SECRETS = ("auxv", "environ", "fd", "io", "map_files", "maps", "mem", "mountstats", "pagemap", "personality", "stack")


@contextmanager
def child() -> Iterator[int]:
    """A process of one's own that waits."""
    pid = os.fork()
    if pid == 0:
        time.sleep(10)
        os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def with_child(attack: str, *arguments: int | bytes | None) -> Attack:
    """A call whose first argument is a child's pid."""

    def attempt() -> None:
        with child() as pid:
            call(attack, pid, *arguments)

    return attempt


def seize(pid: int) -> None:
    call("ptrace", PTRACE_SEIZE, pid, None, None)


def seize_child() -> None:
    with child() as pid:
        seize(pid)


def read_memory(pid: int) -> None:
    """From a place that both have, being forks of one program."""
    here = ctypes.create_string_buffer(8)
    vector = ctypes.create_string_buffer(struct.pack("QQ", address(here), 8))
    call("process_vm_readv", pid, address(vector), 1, address(vector), 1, 0)


def write_memory(pid: int) -> None:
    here = ctypes.create_string_buffer(8)
    vector = ctypes.create_string_buffer(struct.pack("QQ", address(here), 8))
    call("process_vm_writev", pid, address(vector), 1, address(vector), 1, 0)


def read_child() -> None:
    with child() as pid:
        read_memory(pid)


def write_child() -> None:
    with child() as pid:
        write_memory(pid)


def take_descriptor(pid: int) -> None:
    call("pidfd_getfd", os.pidfd_open(pid), 1, 0)


def take_from_child() -> None:
    with child() as pid:
        take_descriptor(pid)


def signals(pid: int) -> Attack:
    """All that have no handler in a control; one that gets through is a success."""

    def attempt() -> None:
        refused: list[OSError] = []
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGCONT, signal.SIGSTOP, signal.SIGRTMAX, 0):
            try:
                os.kill(pid, number)
            except OSError as error:
                refused.append(error)
                continue
            return
        raise refused[0]

    return attempt


def queue_signal(pid: int) -> None:
    information = ctypes.create_string_buffer(struct.pack("iii", 15, 0, -1), 128)  # SI_QUEUE
    call("rt_sigqueueinfo", pid, 15, address(information))


def signal_by_owner() -> None:
    """Let the kernel send it: SIGKILL to the owner of a pipe that becomes readable."""
    reading, writing = os.pipe()
    fcntl.fcntl(reading, fcntl.F_SETOWN, 1)
    fcntl.fcntl(reading, F_SETSIG, signal.SIGTERM)
    fcntl.fcntl(reading, fcntl.F_SETFL, os.O_ASYNC)
    os.write(writing, b"x")
    os.kill(1, 0)


def namespace_of(pid: int, request: int) -> Attack:
    return lambda: fcntl.ioctl(os.pidfd_open(pid), request)


def owner_of_namespace() -> None:
    fcntl.ioctl(os.open("/proc/self/ns/net", os.O_RDONLY), NS_GET_USERNS)


def neighbour_namespaces() -> None:
    """Mount namespaces have an order, and a descriptor of one may lead to the next."""
    own = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    try:
        ioctl(own, NS_MNT_GET_PREV, struct.pack("IIQ", 16, 0, 0))
    except FileNotFoundError:
        ioctl(own, NS_MNT_GET_NEXT, struct.pack("IIQ", 16, 0, 0))


def foreign_mounts() -> None:
    """The mounts of another namespace by its number: one made for it, or else the numbers around one's own."""
    own = namespace_number()
    with elsewhere() as other:
        around = range(max(1, own - NUMBERS_AROUND), own + NUMBERS_AROUND)
        for number in [other] if other != own else [number for number in around if number != own]:
            try:
                listed(number)
            except OSError as error:
                refused = error
                continue
            return
    raise refused


def namespace_number() -> int:
    """That of one's own mount namespace."""
    number = ctypes.create_string_buffer(8)
    fcntl.ioctl(os.open("/proc/self/ns/mnt", os.O_RDONLY), NS_GET_MNTNS_ID, number)
    return int.from_bytes(number.raw, "little")


@contextmanager
def elsewhere() -> Iterator[int]:
    """The number of the mount namespace of a process that has one of its own, where one can be made."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        with suppress(OSError):
            call("unshare", CLONE_NEWNS)
        os.write(writing, str(namespace_number()).encode())
        time.sleep(10)
        os._exit(0)
    try:
        yield int(os.read(reading, 64))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def listed(namespace: int) -> int:
    """How many mounts are in the namespace of that number; 0 is one's own."""
    request = ctypes.create_string_buffer(struct.pack("IIQQQ", 32, 0, 2**64 - 1, 0, namespace))
    found = ctypes.create_string_buffer(8 * 512)
    return call("listmount", address(request), address(found), 512, 0)


def hidden_mounts() -> None:
    """More mounts than mountinfo tells."""
    if listed(0) <= len(Path("/proc/self/mountinfo").read_text().splitlines()):
        raise PermissionError(1, "no more")


def secret(name: str) -> Attack:
    """Open and read what /proc tells of PID 1."""

    def attempt() -> None:
        path = f"/proc/1/{name}"
        if os.path.isdir(path):
            os.listdir(path)
            return
        descriptor = os.open(path, os.O_RDONLY)
        if name not in ("mem", "ns/mnt"):
            os.read(descriptor, 64)

    return attempt


def read_link(name: str) -> Attack:
    """Where it leads."""
    return lambda: os.readlink(f"/proc/1/{name}")


report(
    {
        "signals to init": signals(1),
        "queued signal to init": lambda: queue_signal(1),
        "signal to init's thread": lambda: call("tgkill", 1, 1, 15),
        "signal to init by pidfd": lambda: call("pidfd_send_signal", os.pidfd_open(1), 15, None, 0),
        "signal to init by owner": signal_by_owner,
        "be traced": lambda: call("ptrace", PTRACE_TRACEME, 0, None, None),
        "trace init": lambda: seize(1),
        "trace a child": seize_child,
        "read init": lambda: read_memory(1),
        "read a child": read_child,
        "write init": lambda: write_memory(1),
        "write a child": write_child,
        "descriptor of init": lambda: take_descriptor(1),
        "descriptor of a child": take_from_child,
        "compare with init": lambda: call("kcmp", os.getpid(), 1, 0, 0, 0),
        "mount namespace of init": namespace_of(1, PIDFD_GET_MNT_NAMESPACE),
        "user namespace of init": namespace_of(1, PIDFD_GET_USER_NAMESPACE),
        "owner of the network namespace": owner_of_namespace,
        "neighbour mount namespaces": neighbour_namespaces,
        "mounts of another namespace": foreign_mounts,
        "hidden mounts": hidden_mounts,
        **{f"/proc/1/{name}, the link": read_link(name) for name in ("exe", "cwd", "root")},
        **{f"/proc/1/{name}": secret(name) for name in ("root/", "cwd/", "exe", "task/1/exe", "ns/mnt", *SECRETS)},
    }
)
