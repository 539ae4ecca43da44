"""What a job finds in its root: the steps that build it, and the generated files of its /etc. Pure.

Here: policy: which devices, which masks, which flags. Not here: how a step is done (`launcher/operations.py`), which
programs there are (`rootfs.py`), and everything about the job's process (`plan.py`).
"""

from typing import Final, NamedTuple

from common.messages.jobs import VolumeMount
from common.messages.volumes import PreparedVolume
from services.executor.identity import JOB_UID, JobIdentity
from services.executor.launcher import devices
from services.executor.launcher import operations as steps
from services.executor.launcher import volumes as volume_steps
from services.executor.mount_points import is_at_or_below

USER: Final = "job"
HOME: Final = "/work"
TEMPORARY: Final = "/tmp"  # noqa: S108  # the job's own
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


def preparation(shape: Shape, volumes: tuple[PreparedVolume, ...]) -> tuple[steps.Operation, ...]:
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
        *(volume_steps.OpenVolume(each.mount.name, each.source, each.root, each.mount.read_only) for each in volumes),
        steps.EnterRoot(),
    )


def completion(contents: Contents, shape: Shape, volumes: tuple[PreparedVolume, ...]) -> tuple[steps.Operation, ...]:
    """The job's own places, and then nothing in the root can be changed any more.

    `volumes`: who holds another's mount point comes before it. One at /work or /tmp takes the place of the tmpfs.
    """
    identity = contents.identity
    root, owner = (identity.mount_root,) * 2, identity.mount_owner
    give = () if identity.range_first is None else (steps.GiveToRoot(_made(shape), identity.range_first),)
    return (
        *give,
        devices.MountTerminals("/dev/pts", owner[1], TERMINALS_MAX),
        _tmpfs("/dev/shm", contents.tmp_bytes, 0o1777, root, executable=False),  # noqa: S108
        # The root is read-only from its seal on: a volume that comes later finds its place on a mount of its own.
        steps.MountTmpfs("/volumes", VOLUMES_BYTES, VOLUMES_INODES, 0o755, *root, executable=False),
        *(step for step in _places(contents) if step.path not in {each.mount.path for each in volumes}),
        *_placed(contents.identity, tuple(each.mount for each in volumes)),
        steps.SealRoot(),
    )


def _places(contents: Contents) -> tuple[steps.MountTmpfs, ...]:
    identity = contents.identity
    return (
        _tmpfs(TEMPORARY, contents.tmp_bytes, 0o1777, (identity.mount_root,) * 2),
        _tmpfs(HOME, contents.work_bytes, 0o755, identity.mount_owner, entries=contents.work_entries),
    )


def _placed(identity: JobIdentity, mounts: tuple[VolumeMount, ...]) -> list[volume_steps.PlaceVolume]:
    steps_of_all = []
    for mount in mounts:
        inside = any(other is not mount and is_at_or_below(mount.path, other.path) for other in mounts)
        own = any(is_at_or_below(mount.path, place) for place in (HOME, TEMPORARY))
        owner = identity.mount_owner if own else (identity.mount_root,) * 2
        steps_of_all.append(volume_steps.PlaceVolume(mount.name, mount.path, *owner, inside))
    return steps_of_all


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
