"""A part of the v2 hierarchy that was given to us: where it begins, and leaving its root free of processes.

No process may be in a group whose controllers are passed on to its children, the hierarchy's root excepted
(Documentation/admin-guide/cgroup-v2.rst, "No Internal Process Constraint"). systemd with Delegate=yes starts a service
in the very group that it gives away, with DelegateSubgroup= (systemd 254) in one below it; a container's first process
is in the root of what the container sees. systemd marks what it gives away by an extended attribute
(systemd.resource-control(5), Delegate=).

Why root outside of a subgroup stays at the hierarchy's root: systemd could not start the service again while jobs run,
as the group that it starts it in would have its controllers passed on (EBUSY).
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from services.executor.cgroups import control_files

LEAF: Final = "services"
"""Of our own processes, below a group that was given to us."""

PASSES_MAX: Final = 10
"""A process may fork while its family is moved."""

_MARKS: Final = ("user.delegate", "trusted.delegate")


class Family(NamedTuple):
    """Parents of processes, by process id."""

    parents: dict[int, int]

    def below(self, pid: int) -> frozenset[int]:
        """`pid` and all its descendants."""
        found = {pid}
        while more := {child for child, parent in self.parents.items() if parent in found} - found:
            found |= more
        return frozenset(found)


def jobs_root(tree: Path, *, own_groups: str, marked: Callable[[Path], bool], writable: Callable[[Path], bool]) -> Path:
    """Below which group of the v2 hierarchy jobs have theirs. `tree`: a writable one, as HostFacts.cgroup_tree.

    It is the group above our own when that was given away with us in a subgroup, else `tree`. `own_groups`: the text
    of /proc/self/cgroup; `marked`: whether systemd gave a group away.
    """
    relative = next((line[3:] for line in own_groups.splitlines() if line.startswith("0::/")), "/")
    is_own = str(tree).endswith(relative)  # where the hierarchy's root cannot be written
    own = tree if is_own else tree / relative.lstrip("/")
    if (own.name == LEAF or marked(own.parent)) and writable(own.parent):
        return own.parent
    return tree


def is_marked(group: Path) -> bool:
    """Whether systemd gave `group` away."""
    return any(_mark(group, name) == b"1" for name in _MARKS)


def is_writable(group: Path) -> bool:
    """Whether groups can be made in `group`, and processes moved there."""
    return os.access(group, os.W_OK | os.X_OK) and os.access(group / "cgroup.procs", os.W_OK)


def _mark(group: Path, name: str) -> bytes:
    try:
        return os.getxattr(group, name)
    except OSError:
        return b""


def make_room(group: str) -> None:
    """Move us out of `group` into a leaf below it. Nothing where we are not in it, or where it is the real root.

    We are: this process with its descendants, and its parent (the supervisor) with its own, as far as they are in
    `group` themselves. Who else is there stays there, and keeps the controllers from being passed on: that is told
    where they are enabled. Raises OSError when the leaf cannot be made.
    """
    if not Path(group, "cgroup.type").exists():  # the root of the whole hierarchy, where processes may be
        return
    for _ in range(PASSES_MAX):
        moving = to_move(os.getpid(), control_files.read_processes(f"{group}/cgroup.procs"), read_family())
        if not moving:
            return
        os.makedirs(f"{group}/{LEAF}", 0o755, exist_ok=True)  # noqa: PTH103
        for pid in moving:
            _move(pid, f"{group}/{LEAF}/cgroup.procs")


def to_move(own: int, members: frozenset[int], family: Family) -> frozenset[int]:
    """Those of `members` that are `own` and its kin, see make_room; none when `own` is no member."""
    if own not in members:
        return frozenset()
    parent = family.parents.get(own, 0)
    return members & (family.below(parent) if parent in members else family.below(own))


def read_family() -> Family:
    """Of all processes that can be seen."""
    found = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208
        if entry.isdigit():
            try:
                status = Path("/proc", entry, "stat").read_text(encoding="ascii", errors="replace")
            except OSError:  # it has ended
                continue
            found[int(entry)] = int(status.rpartition(")")[2].split()[1])
    return Family(found)


def describe(pids: Iterable[int], *, most: int = 3) -> str:
    """Processes in words, such as "1 (init), 77 (bash) and 2 more"; "" for none."""
    shown = sorted(pids)
    words = ", ".join(f"{pid} ({_name(pid)})" for pid in shown[:most])
    return f"{words} and {len(shown) - most} more" if len(shown) > most else words


def _move(pid: int, procs: str) -> None:
    try:
        control_files.put(procs, str(pid))
    except (ProcessLookupError, PermissionError):  # it has ended; or it stays, and is told about
        return


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "gone"
