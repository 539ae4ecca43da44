"""What a job finds in its root: the steps that build it, and the generated files of its /etc. Pure.

Here: policy: which devices, which masks, which flags. Not here: how a step is done (`launcher/operations.py`), which
programs there are (`rootfs.py`), and everything about the job's process (`plan.py`).
"""

from typing import Final, NamedTuple

from services.executor.identity import JOB_UID, JobIdentity
from services.executor.launcher import devices
from services.executor.launcher import operations as steps

USER: Final = "job"
HOME: Final = "/work"
ROOT_BYTES: Final = 1024 * 1024
ROOT_INODES: Final = 1024
TERMINALS_MAX: Final = 64
VOLUMES_BYTES: Final = 64 * 1024
VOLUMES_INODES: Final = 64
"""Of /volumes itself, where each volume needs an empty directory."""

DEVICES: Final = (
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
)
DEVICE_LINKS: Final = (
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
)
MASKED: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/bus",
    "/proc/cmdline",
    "/proc/config.gz",
    "/proc/fs",
    "/proc/interrupts",
    "/proc/iomem",
    "/proc/ioports",
    "/proc/irq",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/keys",
    "/proc/key-users",
    "/proc/kmsg",
    "/proc/latency_stats",
    "/proc/locks",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/vmallocinfo",
)


class Shape(NamedTuple):
    """What differs from job to job, but can be known before there is one."""

    hostname: str
    rootfs: tuple[steps.Operation, ...]
    own_network: bool  # an empty one, of which only the loopback interface is brought up
    resolv_conf: str


class Contents(NamedTuple):
    """Whose the job's own places are, and their sizes."""

    identity: JobIdentity
    tmp_bytes: int
    work_bytes: int
    work_entries: int  # files and directories that are unpacked into /work


def preparation(shape: Shape) -> tuple[steps.Operation, ...]:
    """Everything between the clone of init and the job's own places, in order."""
    return (
        steps.UnshareCgroups(),
        steps.SetHostname(shape.hostname),
        *([steps.LoopbackUp()] if shape.own_network else []),
        steps.MakeMountsPrivate(),
        steps.MountRoot(ROOT_BYTES, ROOT_INODES),
        *(steps.MakeDirectory(path) for path in ("/etc", "/etc/ssl", "/dev", "/dev/pts", "/dev/shm", "/proc")),  # noqa: S108
        *(steps.MakeDirectory(path) for path in ("/tmp", "/work", "/volumes")),  # noqa: S108
        *shape.rootfs,
        *(steps.WriteFile(path, content) for path, content in _configuration(shape)),
        *(devices.BindDevice(*device) for device in DEVICES),
        *(steps.MakeSymlink(path, target) for path, target in DEVICE_LINKS),
        devices.MountProc("/proc"),
        devices.MaskPaths(MASKED, "/tmp"),  # noqa: S108
        steps.EnterRoot(),
    )


def completion(contents: Contents, shape: Shape) -> tuple[steps.Operation, ...]:
    """The job's own places, and then nothing in the root can be changed any more."""
    identity = contents.identity
    root, owner = (identity.mount_root,) * 2, identity.mount_owner
    give = () if identity.range_first is None else (steps.GiveToRoot(_made(shape), identity.range_first),)
    return (
        *give,
        devices.MountTerminals("/dev/pts", owner[1], TERMINALS_MAX),
        _tmpfs("/dev/shm", contents.tmp_bytes, 0o1777, root, executable=False),  # noqa: S108
        _tmpfs("/tmp", contents.tmp_bytes, 0o1777, root),  # noqa: S108
        _tmpfs("/work", contents.work_bytes, 0o755, owner, entries=contents.work_entries),
        # The root is read-only from its seal on: a volume that comes later finds its place on a mount of its own.
        steps.MountTmpfs("/volumes", VOLUMES_BYTES, VOLUMES_INODES, 0o755, *root, executable=False),
        steps.SealRoot(),
    )


def _made(shape: Shape) -> tuple[str, ...]:
    """What belongs to the process that made it, and is not behind a mount."""
    files = [path for path, _ in (*_configuration(shape), *DEVICE_LINKS)]
    return ("/", "/etc", "/etc/ssl", "/dev", *files)


def _tmpfs(
    path: str, size_bytes: int, mode: int, owner: tuple[int, int], *, entries: int = 0, executable: bool = True
) -> steps.MountTmpfs:
    # Inodes cost memory that `size` does not count: about one for each KiB is more than small files need.
    inodes_max = 1024 + size_bytes // 1024 + 2 * entries
    return steps.MountTmpfs(path, size_bytes, inodes_max, mode, *owner, executable)


def _configuration(shape: Shape) -> tuple[tuple[str, str], ...]:
    nobody = "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin"
    return (
        (
            "/etc/passwd",
            f"root:x:0:0:root:/:/usr/sbin/nologin\n{USER}:x:{JOB_UID}:{JOB_UID}:{USER}:{HOME}:/bin/sh\n{nobody}\n",
        ),
        ("/etc/group", f"root:x:0:\n{USER}:x:{JOB_UID}:\nnogroup:x:65534:\n"),
        ("/etc/hostname", f"{shape.hostname}\n"),
        ("/etc/hosts", f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {shape.hostname}\n"),
        ("/etc/resolv.conf", shape.resolv_conf),
        ("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
    )
