"""What a test may leave behind: nothing. A snapshot before, a snapshot after, and the difference in words.

Belongs here: reading what exists (descriptors, children, mounts, control groups, directories) and comparing. Does not
belong here: cleaning up; a test that needs that has found a bug. See proc(5), cgroups(7).

A node keeps spare sandboxes, which come and go; what belongs to one whose monitor lives is not left behind.

Only what can be ours counts, because the host is shared: children of this process, its own descriptors, and mounts, job
directories and groups whose path carries `OWN_MARK` or lies below pytest's base directory.
"""

import os
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

OWN_MARK: Final = f"joblet-test-{os.getpid()}"
"""Name of the cgroup parent, and beginning of the names of base directories, that tests configure.

The process id keeps two test runs on one host apart.
"""

SPARE_TITLE: Final = "joblet-spare "
CGROUP_ROOT: Final = Path("/sys/fs/cgroup")
CGROUP_DEPTH_MAX: Final = 3
"""How deep below the root our parent can be: a hybrid host has one tree a controller."""

_RUNTIME_DESCRIPTORS: Final = ("anon_inode:", "/dev/null", "/dev/urandom", "/memfd:")
"""Descriptors that event loops, gRPC and the interpreter keep for the life of the process."""


class Snapshot(NamedTuple):
    """What existed at one moment."""

    descriptors: frozenset[str]
    children: frozenset[int]
    mounts: frozenset[str]
    groups: frozenset[str]
    directories: frozenset[str]
    working_directory: str


def snapshot(base: Path) -> Snapshot:
    """Everything that a test could leave behind now; `base` is pytest's base directory."""
    spares = spare_ids()
    return Snapshot(
        descriptors=_descriptors(),
        children=children_of(os.getpid()),
        mounts=mounts_below(base),
        groups=frozenset(group for group in own_groups() if Path(group).name not in spares),
        directories=frozenset(each for each in _directories(base) if Path(each).name not in spares),
        working_directory=str(Path.cwd()),
    )


def left_behind(before: Snapshot, after: Snapshot) -> list[str]:
    """One line for each thing that is there now and was not before; empty when the test was clean."""
    return [
        *(f"descriptor {each}" for each in sorted(after.descriptors - before.descriptors)),
        *(f"child process {each} ({command_of(each)})" for each in sorted(after.children - before.children)),
        *(f"mount {each}" for each in sorted(after.mounts - before.mounts)),
        *(f"control group {each}" for each in sorted(after.groups - before.groups)),
        *(f"directory {each}" for each in sorted(after.directories - before.directories)),
        *([f"working directory {moved}"] if (moved := after.working_directory) != before.working_directory else []),
    ]


def paths_below(base: Path) -> list[Path]:
    """Everything below `base`, of which anything may go meanwhile: Path.rglob stops at a directory that has gone."""
    return [Path(top, name) for top, directories, files in os.walk(base) for name in (*directories, *files)]


def spare_ids() -> frozenset[str]:
    """Job ids of the spare sandboxes on this host: their monitors tell them in their titles."""
    titles = (command_of(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return frozenset(title.removeprefix(SPARE_TITLE) for title in titles if title.startswith(SPARE_TITLE))


def children_of(pid: int) -> frozenset[int]:
    """Process ids of the direct children of `pid`, zombies included; empty when it is gone."""
    found: set[int] = set()
    for task in _listing(Path(f"/proc/{pid}/task")):
        try:
            found.update(int(each) for each in (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return frozenset(found)


def descendants_of(pid: int) -> frozenset[int]:
    """Process ids of everything below `pid`."""
    found: set[int] = set()
    pending = [pid]
    while pending:
        below = children_of(pending.pop()) - found
        found |= below
        pending.extend(below)
    return frozenset(found)


def command_of(pid: int) -> str:
    """The command line of a process for people; "gone" when there is none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip() or "?"
    except (FileNotFoundError, ProcessLookupError):
        return "gone"


def mounts_below(base: Path) -> frozenset[str]:
    """Mount points of this mount namespace (field 5 of mountinfo) below `base`, or that carry OWN_MARK."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return frozenset(point for point in points if OWN_MARK in point or Path(base) in Path(point).parents)


def own_parents() -> frozenset[Path]:
    """Parents of jobs' groups that carry OWN_MARK, one for each tree and base directory."""
    found: set[Path] = set()
    for directory, below, _ in os.walk(CGROUP_ROOT):  # which bears that groups of others come and go
        found.update(Path(directory, each) for each in below if each.startswith(OWN_MARK))
        if len(Path(directory).relative_to(CGROUP_ROOT).parts) >= CGROUP_DEPTH_MAX - 1:
            below.clear()
    return frozenset(found)


def own_groups(mark: str = OWN_MARK) -> frozenset[str]:
    """Control groups below a parent whose name contains `mark`, not the parent itself, in every mounted tree."""
    found: set[str] = set()
    for directory, below, _ in os.walk(CGROUP_ROOT):
        depth = len(Path(directory).relative_to(CGROUP_ROOT).parts)
        inside = mark in directory
        if inside:
            found.update(f"{directory}/{each}" for each in below)
        elif depth >= CGROUP_DEPTH_MAX:
            below.clear()
    return frozenset(found)


def _descriptors() -> frozenset[str]:
    found: set[str] = set()
    for entry in _listing(Path("/proc/self/fd")):
        try:
            target = str(entry.readlink())
        except FileNotFoundError:  # the descriptor of this very listing
            continue
        if not target.startswith(_RUNTIME_DESCRIPTORS):
            found.add(f"{entry.name} → {target}")
    return frozenset(each for each in found if "/proc/" not in each)


def _directories(base: Path) -> frozenset[str]:
    """Job directories below any base directory of the session: `<base directory>/jobs/<id>`."""
    own = Path(tempfile.gettempdir()).glob(f"{OWN_MARK}-*/jobs/*")
    return frozenset(str(each) for each in (*base.glob("*/jobs/*"), *own) if each.is_dir())


def _listing(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return []
