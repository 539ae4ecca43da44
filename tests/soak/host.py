"""What the jobs of one node occupy on the host: processes, groups, mounts, namespaces, interfaces, files.

Belongs here: reading it, and the difference of two readings in words. Does not belong here: cleaning up, and judging
what may remain. Only what is this node's counts, because the host is shared: its groups carry OWN_MARK, its files lie
below its base directory, its interfaces carry its groups. See proc(5), cgroups(7), namespaces(7).
"""

import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from services.executor.network import presence
from services.executor.network.names import names_of
from tests.e2e.node import Node
from tests.leaks import OWN_MARK, command_of, mounts_below, own_groups, paths_below, spare_ids
from tests.waiting import NeverHappened, wait_for

UNTIL_GONE_S: Final = 30.0
OPEN_FILES_NOISE: Final = 2_500
"""By so many the host's count of open files may differ for reasons that are not the job's."""

_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Occupied(NamedTuple):
    """What existed at one moment, each thing in words."""

    jobs: frozenset[str]  # ids that a process, a control group or a directory carries; spare sandboxes' are not here
    mounts: frozenset[str]
    namespaces: frozenset[str]
    interfaces: frozenset[str]
    loops: frozenset[str]

    def beyond(self, before: "Occupied") -> list[str]:
        """One line for each thing that is here and was not `before`."""
        pairs = zip(self._fields, self, before, strict=True)
        return [f"{kind}: {each}" for kind, now, then in pairs for each in sorted(now - then)]


def occupied(node: Node) -> Occupied:
    """Everything that the node's jobs hold now."""
    names = names_of(str(node.base))
    return Occupied(
        jobs=job_ids(node) - spare_ids(),
        mounts=mounts_below(node.base),
        namespaces=_held_namespaces(node),
        interfaces=frozenset((*(port.name for port in presence.ports(names)), *presence.owner_bridges(names))),
        loops=_loops(node.base),
    )


def job_ids(node: Node) -> frozenset[str]:
    """Ids that a process carries in the path of its group, or a control group or a directory in its name."""
    groups = {Path(group).name for group in own_groups()}
    directories = {each.name for each in (node.base / "jobs").iterdir()}
    paths = "".join(_read(Path(f"/proc/{pid}/cgroup")) for pid in processes_in_groups())
    return frozenset(filter(_ID.fullmatch, groups | directories)) | frozenset(_ID.findall(paths))


def processes_in_groups(mark: str = OWN_MARK) -> frozenset[int]:
    """Processes, zombies included, that live in a control group whose path contains `mark`."""
    return frozenset(pid for pid in pids() if mark in _read(Path(f"/proc/{pid}/cgroup")))


def processes_of(uids: range) -> frozenset[int]:
    """Processes whose real, effective, saved or file system uid is one of `uids`, wherever they are."""
    found = set()
    for pid in pids():
        lines = _read(Path(f"/proc/{pid}/status")).splitlines()
        words = next((line.split()[1:] for line in lines if line.startswith("Uid:")), [])
        if any(int(word) in uids for word in words):
            found.add(pid)
    return frozenset(found)


def pids() -> list[int]:
    """Every process id of the host."""
    return [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit()]


def open_files() -> int:
    """Files open on the whole host: first number of /proc/sys/fs/file-nr."""
    return int(Path("/proc/sys/fs/file-nr").read_text().split()[0])


def special_files(base: Path) -> list[str]:
    """FIFOs and sockets below `base`."""
    found = []
    for each in paths_below(base):
        with suppress(FileNotFoundError):
            mode = each.lstat().st_mode
            if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
                found.append(str(each.relative_to(base)))
    return sorted(found)


@contextmanager
def unharmed(node: Node) -> Iterator[None]:
    """After the block nothing is left of the jobs that began in it, and the host has as many open files as before."""
    before, files = occupied(node), open_files()
    yield
    until(lambda: not occupied(node).beyond(before), lambda: "\n".join(occupied(node).beyond(before)))
    until(lambda: open_files() < files + OPEN_FILES_NOISE, lambda: f"{open_files()} files are open, {files} were")


def until(condition: Callable[[], bool], otherwise: Callable[[], str]) -> None:
    """Wait for `condition`; when it does not come true, fail with the words of `otherwise`."""
    try:
        wait_for(condition, timeout_s=UNTIL_GONE_S, what="the host to be as before")
    except NeverHappened as cause:
        raise AssertionError(f"left behind:\n{otherwise()}") from cause


def _held_namespaces(node: Node) -> frozenset[str]:
    """Namespaces that a process of the node keeps by a descriptor."""
    found = set()
    for pid in node.processes():
        with suppress(FileNotFoundError, ProcessLookupError):
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(FileNotFoundError):
                    target = str(entry.readlink())
                    if target.startswith(("net:[", "mnt:[", "user:[", "pid:[")):
                        found.add(f"{command_of(pid)} holds {target}")
    return frozenset(found)


def _loops(base: Path) -> frozenset[str]:
    """Loop devices whose file lies below `base`."""
    files = Path("/sys/block").glob("loop*/loop/backing_file")
    return frozenset(str(each.parts[3]) for each in files if _read(each).startswith(f"{base}/"))


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
