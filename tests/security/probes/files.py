"""Attacks on files: what /proc offers for writing, the root, devices, programs, masks.

Arguments: joblet's directory, and the paths that should be masked (JSON). A control only opens what it could write, and
takes away what it makes.
"""

import fcntl
import json
import os
import stat
import struct
import subprocess
import sys
from pathlib import Path

from tests.security.probes.prelude import Attack, in_child

BASE = sys.argv[2]
DANGEROUS = (
    "kernel/core_pattern",
    "kernel/modprobe",
    "kernel/hotplug",
    "kernel/poweroff_cmd",
    "kernel/core_pipe_limit",
    "kernel/randomize_va_space",
    "kernel/kptr_restrict",
    "kernel/pid_max",
    "kernel/panic",
    "kernel/sysrq",
    "kernel/ns_last_pid",
    "fs/binfmt_misc/register",
    "fs/file-max",
    "fs/protected_symlinks",
    "vm/drop_caches",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "user/max_user_namespaces",
    "net/ipv4/ip_forward",
)
OTHERS = (
    "sysrq-trigger",
    "irq/default_smp_affinity",
    "mtrr",
    "self/oom_score_adj",
    "1/oom_score_adj",
    "self/setgroups",
)
DEVICES = ("mem", "kmem", "kmsg", "port", "vda", "sda", "loop-control", "fuse", "kvm", "net/tun", "console", "tty0")
MORE_DEVICES = ("mapper/control", "vhost-net", "uinput", "userfaultfd", "snapshot", "hpet", "rtc0", "input/event0")


def write(path: str) -> Attack:
    """Open for writing only; nothing is written."""
    return lambda: os.close(os.open(path, os.O_WRONLY))


def make(directory: str) -> Attack:
    def attack() -> None:
        path = f"{directory}/joblet-probe"
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        os.unlink(path)

    return attack


def times(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_atime_ns, found.st_mtime_ns


def move(path: str) -> Attack:
    """Out of the way, in its own directory, so that a link could take its place."""
    return lambda: os.rename(path, f"{path}-moved")


def remove(path: str) -> Attack:
    return lambda: os.rmdir(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)


def set_user_id() -> None:
    """Another's program that is set-uid: of one's own copy, run by whoever is not root."""
    copy = "/tmp/joblet-id"
    Path(copy).write_bytes(Path("/usr/bin/id").read_bytes())
    os.chmod(copy, 0o6755)
    try:
        drop = (lambda: os.setuid(65534)) if os.geteuid() == 0 else None
        shown = subprocess.run([copy, "-u"], capture_output=True, check=True, preexec_fn=drop)
    finally:
        os.unlink(copy)
    if int(shown.stdout) != 0:
        raise PermissionError(1, shown.stdout)


def open_device(name: str) -> Attack:
    return lambda: os.open(f"/dev/{name}", os.O_RDONLY)


def link_program() -> None:
    os.link("/usr/bin/env", "/tmp/joblet-env")
    os.unlink("/tmp/joblet-env")


def entropy() -> None:
    """RNDADDENTROPY: tell the kernel what is random."""
    with open("/dev/random", "rb") as device:
        fcntl.ioctl(device, 0x40085203, struct.pack("iiI", 0, 4, 0))


def controlling_terminal() -> None:
    os.close(os.open("/dev/tty", os.O_RDWR))


def describe(path: str) -> str:
    """Kind and number of a device; where a link leads."""
    found = os.lstat(path)
    if stat.S_ISLNK(found.st_mode):
        return os.readlink(path)
    if stat.S_ISCHR(found.st_mode):
        return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    return "directory" if stat.S_ISDIR(found.st_mode) else oct(found.st_mode)


def read(path: str) -> int | str:
    """How much it tells; -1: it is not there."""
    try:
        if os.path.isdir(path):
            return len(os.listdir(path))
        with open(path, "rb") as stream:
            return len(stream.read(4096))
    except FileNotFoundError:
        return -1
    except OSError as error:
        return f"errno {error.errno}"


ATTACKS: dict[str, Attack] = {
    **{f"/proc/sys/{name}": write(f"/proc/sys/{name}") for name in DANGEROUS},
    **{f"/proc/{name}": write(f"/proc/{name}") for name in OTHERS},
    **{f"/dev/{name}": open_device(name) for name in (*DEVICES, *MORE_DEVICES)},
    **{f"make in {path}": make(path) for path in ("", "/usr", "/usr/bin", "/etc", "/dev", "/proc", "/volumes")},
    "open a program": write("/usr/bin/env"),
    "mode of a program": lambda: os.chmod("/usr/bin/env", os.stat("/usr/bin/env").st_mode & 0o7777),
    "time of a program": lambda: os.utime("/usr/bin/env", ns=times("/usr/bin/env")),
    "mode of a device": lambda: os.chmod("/dev/null", 0o666),
    "own interpreter": write("/proc/self/exe"),
    "link to a program": link_program,
    "set-uid": set_user_id,
    "entropy": entropy,
    "controlling terminal": controlling_terminal,
    "above the root": lambda: os.stat(f"/../../../..{BASE}"),
    "above by cwd": lambda: os.stat(f"/proc/self/cwd/../../../../..{BASE}"),
    "above by root": lambda: os.stat(f"/proc/self/root/../..{BASE}"),
    "the first process's root": lambda: os.stat(f"/proc/1/root{BASE}"),
    "joblet": lambda: os.stat(BASE),
    "groups": lambda: os.listdir("/sys/fs/cgroup"),
    "firmware": lambda: os.listdir("/sys/firmware"),
}
TARGETS = ("/work", "/tmp", "/proc", "/dev/null", "/dev/shm", "/proc/keys", "/etc/passwd", "/usr/bin/env", "/dev/fd")
PLACES: dict[str, Attack] = {
    **{f"move {path}": move(path) for path in TARGETS},
    **{f"remove {path}": remove(path) for path in TARGETS},
}
inside = os.getuid() != 0
tried = {name: in_child(attack) for name, attack in (ATTACKS | (PLACES if inside else {})).items()}
masked = {path: read(path) for path in json.loads(sys.argv[3])}
devices = {name: describe(f"/dev/{name}") for name in sorted(os.listdir("/dev"))} if inside else {}
mounts = Path("/proc/self/mountinfo").read_text()
print(json.dumps({"tried": tried, "masked": masked, "devices": devices, "mounts": mounts}))
