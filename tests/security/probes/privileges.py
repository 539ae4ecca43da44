"""Attacks on the kernel's own interfaces, on ids and capabilities, on terminals and scheduling."""

import ctypes
import mmap
import os
import platform
import resource
import signal
import socket
import stat
import struct
from collections.abc import Callable
from typing import Any

from tests.security.probes.prelude import HIGH, LIBC, Attack, address, call, ioctl, report

BAD_ADDRESS = 8
PROCESS_KEYRING = -2
DISK = os.stat("/usr").st_dev
MEMORY = os.makedev(1, 1)
KERNEL_LOG = os.makedev(1, 11)
TIOCSTI = 0x5412
TIOCLINUX = 0x541C
ADDR_NO_RANDOMIZE = 0x0040000
READ_IMPLIES_EXEC = 0x0400000
PR_SET_SECUREBITS, PR_CAPBSET_DROP, PR_CAP_AMBIENT, PR_SET_MM = 28, 24, 47, 35


KEPT: list[Any] = []


def memory(content: bytes, length: int = 128) -> int:
    """The address of a buffer that stays."""
    KEPT.append(ctypes.create_string_buffer(content, length))
    return address(KEPT[-1])


def node(kind: int, number: int, *, opened: bool = False) -> Attack:
    """Make a device node, and open what it names."""

    def attack() -> None:
        path = f"/tmp/node-{kind}-{number}"
        os.mknod(path, kind | 0o600, number)
        try:
            if opened:
                os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        finally:
            os.unlink(path)

    return attack


def by_handle() -> None:
    """The "shocker": a file by its number, past every directory."""
    handle = memory(struct.pack("Ii", 128, 0), 256)
    mount_id = memory(b"", 8)
    call("name_to_handle_at", -100, b"/usr", handle, mount_id, 0)
    call("open_by_handle_at", os.open("/usr", os.O_RDONLY), handle, os.O_RDONLY)


def forge_handle() -> None:
    """Without asking: the root inode of ext4 is number 2."""
    handle = memory(struct.pack("Ii", 8, 1) + struct.pack("II", 2, 0), 64)
    call("open_by_handle_at", os.open("/usr", os.O_RDONLY), handle, os.O_RDONLY)


def perf() -> None:
    attributes = struct.pack("IIQ", 1, 128, 0)  # PERF_TYPE_SOFTWARE, PERF_COUNT_SW_CPU_CLOCK
    call("perf_event_open", memory(attributes, 128), 0, -1, -1, 0)


def bpf() -> None:
    call("bpf", 0, memory(struct.pack("IIII", 2, 4, 8, 1), 128), 128)  # BPF_MAP_CREATE of an array


def capabilities() -> None:
    """CAP_SYS_ADMIN alone."""
    wanted = struct.pack("III", 1 << 21, 1 << 21, 0) + bytes(12)
    call("capset", memory(struct.pack("II", 0x2008_0522, 0)), memory(wanted))


def terminal(request: int) -> Attack:
    """On a terminal of one's own that is the controlling one: what happens to one that is inherited."""

    def attack() -> None:
        _, slave = os.openpty()
        os.setsid()
        LIBC.ioctl(slave, 0x540E, None)  # TIOCSCTTY
        ioctl(slave, request, b"x")

    return attack


def real_time() -> None:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def real_time_by_attributes() -> None:
    call("sched_setattr", 0, memory(struct.pack("IIQiIQQQ", 48, 1, 0, 0, 1, 0, 0, 0)), 0)


def raised(kind: int) -> Attack:
    """Both limits one above the hard one."""

    def attack() -> None:
        hard = resource.getrlimit(kind)[1]
        wanted = 2**63 if hard == resource.RLIM_INFINITY else hard + 1
        call("prlimit64", 0, kind, memory(struct.pack("QQ", wanted, wanted)), None)

    return attack


def input_output_ports() -> None:
    if LIBC.iopl(3) == -1:
        raise OSError(ctypes.get_errno(), "iopl")


def forged_sender() -> None:
    """Tell a receiver that somebody else sends: SCM_CREDENTIALS with the ids of root."""
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    ours.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack("iII", 1, 0, 0))])


def foreign_call(code: bytes) -> Attack:
    """Run machine code that calls the kernel by another door."""

    def attack() -> None:
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(code)
        run = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
        if run() <= 0:
            raise OSError(38, "no pid")

    return attack


def supervised() -> None:
    """A filter of one's own cannot loosen the one above it."""
    allow = struct.pack("HBBI", 6, 0, 0, 0x7FFF_0000)
    call("prctl", 22, 2, memory(struct.pack("HxxxxxxQ", 1, memory(allow))), 0, 0)
    call("unshare", 0x0400_0000)


def with_file(act: Callable[[str], object]) -> Attack:
    """On a file that is there as long as the attack is."""

    def attack() -> None:
        path = "/tmp/joblet-file"
        open(path, "w").close()
        try:
            act(path)
        finally:
            os.unlink(path)

    return attack


def file_capability(path: str) -> None:
    """CAP_SYS_ADMIN for whoever runs it, in form 2 of linux/capability.h."""
    os.setxattr(path, "security.capability", struct.pack("IIIII", 0x0200_0001, 1 << 21, 0, 0, 0))


KERNEL: dict[str, Attack] = {
    "io_uring": lambda: call("io_uring_setup", 1, memory(b"", 256)),
    "userfaultfd": lambda: call("userfaultfd", 0),
    "bpf": bpf,
    "perf_event_open": perf,
    "kernel log": lambda: call("syslog", 10, None, 0),
    "iopl": input_output_ports,
    "accounting": lambda: call("acct", b"/nonexistent"),
    "swap": lambda: call("swapon", b"/nonexistent", 0),
    "module": lambda: call("delete_module", b"nonexistent", 0),
    "module load": lambda: call("init_module", BAD_ADDRESS, 1, b""),
    "kexec": lambda: call("kexec_load", 0, 0, None, 0xFFFF),
    "reboot": lambda: call("reboot", 0, 0, 0, None),
    "clock": lambda: call("settimeofday", None, None),
    "host name": lambda: call("sethostname", b"mine", 4),
    "domain name": lambda: call("setdomainname", b"mine", 4),
    "fanotify": lambda: call("fanotify_init", 0, 0),
    "add_key": lambda: call("add_key", b"user", b"probe", b"x", 1, PROCESS_KEYRING),
    "keyctl": lambda: call("keyctl", 0, PROCESS_KEYRING, 1),
    "request_key": lambda: call("request_key", b"user", b"nobody-has-it", None, PROCESS_KEYRING),
    "open_by_handle_at": by_handle,
    "forged handle": forge_handle,
    "personality": lambda: call("personality", ADDR_NO_RANDOMIZE),
    "personality, high bits set": lambda: call("personality", ADDR_NO_RANDOMIZE | HIGH),
    "personality exec": lambda: call("personality", READ_IMPLIES_EXEC),
    "a looser filter": supervised,
}
IDS: dict[str, Attack] = {
    "setuid 0": lambda: os.setuid(0),
    "setresuid 0": lambda: os.setresuid(0, 0, 0),
    "setuid of a neighbour": lambda: os.setuid(1001),
    "setgid 0": lambda: os.setgid(0),
    "setgroups": lambda: os.setgroups([0]),
    "capset": capabilities,
    "securebits": lambda: call("prctl", PR_SET_SECUREBITS, 1, 0, 0, 0),
    "bounding set": lambda: call("prctl", PR_CAPBSET_DROP, 0, 0, 0, 0),
    "forged sender": forged_sender,
    "uid_map": lambda: open("/proc/self/uid_map", "w"),
    "oom_score_adj": lambda: open("/proc/self/oom_score_adj", "w").write("-1000"),
    "chown to root": with_file(lambda path: os.chown(path, 0, 0)),
    "file capability": with_file(file_capability),
    "block device": node(stat.S_IFBLK, DISK),
    "memory device": node(stat.S_IFCHR, MEMORY),
    "kernel log device": node(stat.S_IFCHR, KERNEL_LOG, opened=True),
}
SCHEDULING: dict[str, Attack] = {
    "real-time": real_time,
    "real-time by sched_setattr": real_time_by_attributes,
    "nice": lambda: os.setpriority(os.PRIO_PROCESS, 0, -5),
    "real-time disk": lambda: call("ioprio_set", 1, 0, 1 << 13),
    "processors of init": lambda: os.sched_setaffinity(1, {0}),
    "nice of init": lambda: os.setpriority(os.PRIO_PROCESS, 1, 5),
    "limits of init": lambda: resource.prlimit(1, resource.RLIMIT_CORE, (0, 0)),
}
TERMINALS: dict[str, Attack] = {
    "TIOCSTI": terminal(TIOCSTI),
    "TIOCSTI, high bits set": terminal(TIOCSTI | HIGH),
    "TIOCLINUX": terminal(TIOCLINUX),
    "TIOCLINUX, high bits set": terminal(TIOCLINUX | 0x7FFF << 32),
}
FOREIGN: dict[str, Attack] = (
    {
        # mov eax, 20 (getpid of i386); int 0x80; ret — and mov eax, 0x40000027 (getpid of x32); syscall; ret
        "int 0x80": foreign_call(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3"),
        "x32": foreign_call(b"\xb8\x27\x00\x00\x40\x0f\x05\xc3"),
    }
    if platform.machine() == "x86_64"
    else {}
)
LIMITS: dict[str, Attack] = {
    f"more {name}": raised(getattr(resource, f"RLIMIT_{name}"))
    for name in ("NOFILE", "CORE", "MEMLOCK", "MSGQUEUE", "RTPRIO", "NICE", "SIGPENDING")
}


signal.signal(signal.SIGHUP, signal.SIG_IGN)  # of the terminals that go
report(KERNEL | IDS | SCHEDULING | TERMINALS | FOREIGN | LIMITS)
