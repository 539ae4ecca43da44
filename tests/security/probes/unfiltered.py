"""Attacks by a job whose system call filter is gone: with all capabilities of a user namespace of its own."""

import ctypes
import fcntl
import os
import signal
import socket
import stat
import struct

from tests.security.probes.prelude import Attack, address, call, report

AT_FDCWD = -100
MS_REMOUNT_BIND = 0x1020
MNT_DETACH = 2
NEW_USER, NEW_MOUNT, NEW_PID, NEW_CGROUP = 0x1000_0000, 0x2_0000, 0x2000_0000, 0x200_0000
SIOCSIFFLAGS = 0x8914


def rooted(attack: Attack, namespaces: int = NEW_USER | NEW_MOUNT) -> Attack:
    """As the root of a new user namespace. That it cannot be made is a success: the attack must fail by itself."""

    def attempt() -> None:
        try:
            call("unshare", namespaces)
        except OSError:
            return
        attack()

    return attempt


def clear_read_only(target: int = AT_FDCWD, path: bytes = b"/", flags: int = 0) -> None:
    change = ctypes.create_string_buffer(bytes(8) + (1).to_bytes(8, "little") + bytes(16), 32)
    call("mount_setattr", target, path, flags, address(change), 32)


def writable_copy() -> None:
    clear_read_only(call("open_tree", AT_FDCWD, b"/usr", 1), b"", 0x1000)


def new_proc() -> None:
    """A /proc of a PID namespace of one's own, without masks."""
    pid = os.fork()
    if pid == 0:
        try:
            call("mount", b"proc", b"/tmp", b"proc", 0, None)
        except OSError as error:
            os._exit(error.errno or 255)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, "mount")


def own_group() -> None:
    """Mount the control groups, and make one below."""
    call("mount", b"none", b"/tmp", b"cgroup2", 0, None)
    os.mkdir("/tmp/mine")


def interface_down() -> None:
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", 0))


def by_handle() -> None:
    handle = ctypes.create_string_buffer(struct.pack("Ii", 8, 1) + struct.pack("II", 2, 0), 64)
    call("open_by_handle_at", os.open("/usr", os.O_RDONLY), address(handle), os.O_RDONLY)


report(
    {
        "clear read-only": rooted(clear_read_only),
        "remount": rooted(lambda: call("mount", None, b"/usr", None, MS_REMOUNT_BIND, None)),
        "writable copy": rooted(writable_copy),
        "unmask": rooted(lambda: call("umount2", b"/proc/keys", MNT_DETACH)),
        "unmount proc": rooted(lambda: call("umount2", b"/proc", MNT_DETACH)),
        "unmount the root": rooted(lambda: call("umount2", b"/", MNT_DETACH)),
        "mount proc": rooted(lambda: call("mount", b"proc", b"/tmp", b"proc", 0, None)),
        "mount a new proc": rooted(new_proc, NEW_USER | NEW_MOUNT | NEW_PID),
        "mount v1 groups": rooted(
            lambda: call("mount", b"none", b"/tmp", b"cgroup", 0, b"none,name=mine"), NEW_USER | NEW_MOUNT | NEW_CGROUP
        ),
        "own group": rooted(own_group, NEW_USER | NEW_MOUNT | NEW_CGROUP),
        "mount a disk": rooted(lambda: call("mount", b"/dev/root", b"/tmp", b"ext4", 1, None)),
        "host name": rooted(lambda: call("sethostname", b"mine", 4)),
        "interface": rooted(interface_down),
        "raw socket": rooted(lambda: call("socket", 17, 3, 0)),
        "device node": rooted(lambda: os.mknod("/tmp/node", stat.S_IFBLK | 0o600, os.stat("/usr").st_dev)),
        "by handle": rooted(by_handle),
        "root": rooted(lambda: os.setuid(0)),
        "signal to init": rooted(lambda: os.kill(1, signal.SIGTERM)),
        "trace init": rooted(lambda: call("ptrace", 0x4206, 1, None, None)),
        "namespace of init": rooted(lambda: call("setns", os.open("/proc/1/ns/mnt", os.O_RDONLY), 0)),
        "root of init": rooted(lambda: os.listdir("/proc/1/root/")),
        "kernel setting": rooted(lambda: os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY)),
        "kernel log": rooted(lambda: call("syslog", 5, None, 0)),
    }
)
