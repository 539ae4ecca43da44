"""What must be known of this host before a part is chosen: found once, into frozen facts.

Not here: choosing by them (`cgroups/select.py`), and what the chosen parts can do for jobs (`probes/`). References:
proc_pid_mountinfo(5), cgroups(7), namespaces(7).
"""

import errno
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from common.config.layout import layout_of
from common.config.settings import Settings
from common.linux import files, mounts, paths
from services.executor.cgroups import v1
from services.executor.linux import namespaces, processes

NAMESPACES: Final = {
    "mount": "mnt",
    "pid": "pid",
    "ipc": "ipc",
    "uts": "uts",
    "cgroup": "cgroup",
    "net": "net",
    "user": "user",
}
"""Our word → the file below /proc/self/ns."""

_CLONE_THREAD: Final = 0x0001_0000
_DESCRIPTOR_MAX: Final = 0xFFFF_FFFF
_OCTAL: Final = re.compile(r"\\([0-7]{3})")


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The host as found at start. Roots are absolute paths of groups that this process can write."""

    kernel: str
    cgroup_version: str  # "v2", "v1", "hybrid" or "none"
    cgroup_tree: str | None  # root in the v2 hierarchy
    cgroup_controllers: tuple[tuple[str, str], ...]  # v1 controller and its root
    cpus: frozenset[int]  # usable by this process
    memory_bytes: int
    root: bool
    syscalls: frozenset[str]  # those of SYSCALLS that the kernel has
    namespaces: frozenset[str]  # keys of NAMESPACES
    punch_hole_failure: str  # "": the file system of the jobs directory can give space back


class CgroupRoots(NamedTuple):
    """Where groups can be made: in the v2 hierarchy, and for each v1 controller."""

    tree: str | None
    controllers: tuple[tuple[str, str], ...]

    @property
    def version(self) -> str:
        """Return "v2", "v1", "hybrid" or "none"; a host is v1 when its main controllers are."""
        if {"cpu", "memory", "pids"} & {name for name, _ in self.controllers}:
            return "v1" if self.tree is None else "hybrid"
        return "none" if self.tree is None else "v2"


def probe_host(settings: Settings) -> HostFacts:
    """Find out. Changes nothing; a file that is made in the jobs directory is gone when this returns."""
    roots = cgroup_roots(
        Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape"),
        Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="surrogateescape"),
        writable=lambda path: os.access(path, os.W_OK | os.X_OK, effective_ids=True),
    )
    return HostFacts(
        kernel=os.uname().release,
        cgroup_version=roots.version,
        cgroup_tree=roots.tree,
        cgroup_controllers=roots.controllers,
        cpus=frozenset(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        root=os.geteuid() == 0,
        syscalls=frozenset(name for name, (attempt, _) in SYSCALLS.items() if _present(attempt)),
        namespaces=frozenset(word for word, file in NAMESPACES.items() if Path("/proc/self/ns", file).is_symlink()),
        punch_hole_failure=_try_punch_hole(layout_of(settings).jobs),
    )


def cgroup_roots(mountinfo: str, own_groups: str, *, writable: Callable[[str], bool]) -> CgroupRoots:
    """The groups below which jobs' groups can be made.

    `mountinfo` and `own_groups` are the texts of /proc/self/mountinfo and /proc/self/cgroup. Of each hierarchy it is
    what is mounted, when that is writable, and else this process's own group, which may have been delegated to it.
    """
    own = {hierarchy: group for _, hierarchy, group in (line.split(":", 2) for line in own_groups.splitlines())}
    tree: str | None = None
    controllers: dict[str, str] = {}
    for line in mountinfo.splitlines():
        fields, _, tail = line.partition(" - ")
        root, mount_point = (_unescape(word) for word in fields.split()[3:5])
        kind, _, options = tail.split(" ", 2)
        match kind:
            case "cgroup2":
                names = [""]
            case "cgroup":
                names = [name for name in options.split(",") if name in v1.CONTROLLERS]
            case _:
                continue
        group = next((own[hierarchy] for hierarchy in own if set(names) & set(hierarchy.split(","))), "/")
        found = next(filter(writable, (mount_point, _inside(mount_point, root, group))), None)
        if found is None:
            continue
        if kind == "cgroup2":
            tree = tree or found
        for name in filter(None, names):
            controllers.setdefault(name, found)
    return CgroupRoots(tree, tuple(sorted(controllers.items())))


def _inside(mount_point: str, root: str, group: str) -> str:
    """Path of `group` where its hierarchy is mounted from `root` on."""
    relative = os.path.relpath(group, root)
    return mount_point if relative == "." or relative.startswith("..") else f"{mount_point}/{relative}"


def _unescape(word: str) -> str:
    """Space, tab, newline and backslash are octal in mountinfo."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), word)


def _present(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError as refusal:
        return refusal.errno != errno.ENOSYS
    return True


SYSCALLS: Final[dict[str, tuple[Callable[[], object], str]]] = {
    "openat2": (lambda: paths.openat2(-1, "", 0, resolve=0), "5.6"),
    "mount_setattr": (lambda: mounts.mount_setattr(-1, 0, recursive=False), "5.12"),
    "clone3": (lambda: namespaces.clone3(_CLONE_THREAD), "5.3"),
    "pidfd_open": (lambda: os.pidfd_open(-1), "5.3"),
    "close_range": (lambda: processes.close_from(_DESCRIPTOR_MAX), "5.9"),
}
"""System calls that launching needs: an attempt with arguments that can do nothing, and the Linux that brought it.

clone3 with CLONE_THREAD alone is always EINVAL (kernel/fork.c, clone3_args_valid).
"""


def _try_punch_hole(jobs: Path) -> str:
    directory = next(path for path in (jobs, *jobs.parents) if path.is_dir())
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(bytes(2 * 4096))
            file.flush()
            files.punch_hole(file.fileno(), 0, 4096)
    except OSError as cause:
        return f"{directory}: {os.strerror(cause.errno or 0)}"
    return ""
