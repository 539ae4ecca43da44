"""Attacks on namespaces, mounts and the root directory. See loading.py for how this runs."""

import contextlib
import ctypes
import os
import signal

from tests.security.probes.prelude import Attack, address, call, report

AT_FDCWD = -100
AT_RECURSIVE_CLONE = 0x8001  # AT_RECURSIVE | OPEN_TREE_CLONE
MS_REMOUNT_BIND = 0x1020
MS_BIND = 0x1000
MNT_DETACH = 2
NAMESPACES = {
    "mount": 0x0002_0000,
    "cgroup": 0x0200_0000,
    "uts": 0x0400_0000,
    "ipc": 0x0800_0000,
    "user": 0x1000_0000,
    "pid": 0x2000_0000,
    "net": 0x4000_0000,
    "time": 0x80,
}


def mount(source: bytes | None, target: bytes, kind: bytes | None, flags: int = 0, data: bytes | None = None) -> None:
    call("mount", source, target, kind, flags, data)


def mount_v1_group() -> None:
    """CVE-2022-0492 begins so: a hierarchy of one's own, whose release_agent the host's root would run."""
    lines = [line.split(":") for line in open("/proc/self/cgroup")]
    controllers = next((names for number, names, _ in lines if number != "0" and "=" not in names), "")
    if controllers:
        mount(b"none", b"/tmp", b"cgroup", 0, controllers.encode())
    else:
        mount(b"none", b"/tmp", b"cgroup2")


def new_mount() -> None:
    """All of the new mount API in one: a file system, a mount of it, its place."""
    made = call("fsopen", b"tmpfs", 0)
    call("fsconfig", made, 6, None, None, 0)  # FSCONFIG_CMD_CREATE
    mounted = call("fsmount", made, 0, 0)
    call("move_mount", mounted, b"", AT_FDCWD, b"/tmp", 4)  # MOVE_MOUNT_F_EMPTY_PATH


def writable_copy() -> None:
    """A copy of the root without its read-only flag."""
    tree = call("open_tree", AT_FDCWD, b"/", AT_RECURSIVE_CLONE)
    change = ctypes.create_string_buffer(bytes(8) + (1).to_bytes(8, "little") + bytes(16), 32)
    call("mount_setattr", tree, b"", 0x1000 | 0x8000, address(change), 32)  # AT_EMPTY_PATH | AT_RECURSIVE


def clear_read_only() -> None:
    change = ctypes.create_string_buffer(bytes(8) + (1).to_bytes(8, "little") + bytes(16), 32)
    call("mount_setattr", AT_FDCWD, b"/", 0, address(change), 32)


def unshare(flags: int) -> Attack:
    return lambda: call("unshare", flags)


def clone(flags: int) -> Attack:
    def attack() -> None:
        pid = call("clone", flags | signal.SIGCHLD, None, None, None, 0)
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)

    return attack


def clone3() -> None:
    arguments = ctypes.create_string_buffer(88)
    ctypes.memmove(arguments, NAMESPACES["user"].to_bytes(8, "little"), 8)
    ctypes.memmove(address(arguments) + 32, int(signal.SIGCHLD).to_bytes(8, "little"), 8)
    pid = call("clone3", address(arguments), 88)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def enter(path: str) -> Attack:
    return lambda: call("setns", os.open(path, os.O_RDONLY), 0)


def pivot() -> None:
    """Into a mount of one's own, as sandboxes do it; back would be the same call."""
    with contextlib.suppress(OSError):
        mount(b"none", b"/tmp", b"tmpfs")
    os.chdir("/tmp")
    call("pivot_root", b".", b".")


def leave_by_chroot() -> None:
    """The classic: a root below, and out of it by the directory that was left above."""
    outside = os.open("/", os.O_RDONLY)
    call("chroot", b"/usr")
    os.fchdir(outside)


def mask() -> str:
    """Something that hides what /proc tells."""
    points = [line.split()[4] for line in open("/proc/self/mountinfo")]
    return next((point for point in points if point.startswith("/proc/")), "/proc")


def apart(attack: Attack) -> Attack:
    """In a mount namespace of its own where one can be had: what a control changes does not meet the next."""

    def attempt() -> None:
        with contextlib.suppress(OSError):
            call("unshare", NAMESPACES["mount"])
        attack()

    return attempt


MOUNTS: dict[str, Attack] = {
    "mount tmpfs": lambda: mount(b"none", b"/tmp", b"tmpfs"),
    "mount proc": lambda: mount(b"none", b"/tmp", b"proc"),
    "mount cgroup": mount_v1_group,
    "mount by the new interface": new_mount,
    "open_tree": writable_copy,
    "fspick": lambda: call("fspick", AT_FDCWD, b"/proc", 0),
    "pivot_root": pivot,
    "bind over": lambda: mount(b"/tmp", b"/usr", None, MS_BIND),
    "clear read-only": clear_read_only,
    "remount": lambda: mount(None, b"/", None, MS_REMOUNT_BIND),
    "make shared": lambda: mount(b"none", b"/", None, 1 << 20 | 1 << 14),
    "unmask": lambda: call("umount2", os.fsencode(mask()), MNT_DETACH),
    "chroot": leave_by_chroot,
}

report(
    {
        **{f"unshare {name}": unshare(flags) for name, flags in NAMESPACES.items()},
        "unshare user and mount": unshare(NAMESPACES["user"] | NAMESPACES["mount"]),
        **{f"clone {name}": clone(flags) for name, flags in NAMESPACES.items() if name != "time"},
        "clone user, high bits set": clone(NAMESPACES["user"] | 0x55 << 32),
        "clone3 user": clone3,
        "setns uts": enter("/proc/self/ns/uts"),
        **{name: apart(attack) for name, attack in MOUNTS.items()},
    }
)
