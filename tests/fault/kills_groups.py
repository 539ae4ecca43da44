"""A control group of a test's own, into which it puts a service: a bound of memory or of processes, v1 or v2.

Not here: the groups of jobs, which the node makes. memory.txt, pids.txt and cgroup-v2.txt of the kernel's admin guide.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.leaks import CGROUP_ROOT, OWN_MARK
from tests.waiting import wait_for

MEMORY_FILES: Final = ("memory.limit_in_bytes", "memory.max")
PIDS_FILES: Final = ("pids.max",)
SWAP_FILES: Final = ("memory.memsw.limit_in_bytes", "memory.swap.max")


class Group:
    """A group that exists; `controller` is the v1 tree that it is in, or the only one."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def bound(self, files: tuple[str, ...], value: int) -> None:
        """Write `value` to the one of `files` that this kernel has."""
        (file,) = (self._path / name for name in files if (self._path / name).exists())
        file.write_text(str(value))

    def add(self, pid: int) -> None:
        """Move a process in. What it occupies already stays charged where it was."""
        (self._path / "cgroup.procs").write_text(str(pid))

    @property
    def oom_kills(self) -> int:
        """How many of its processes the kernel killed for want of memory."""
        for name in ("memory.oom_control", "memory.events"):
            if (self._path / name).exists():
                words = (line.split() for line in (self._path / name).read_text().splitlines())
                return next(int(value) for key, value in words if key == "oom_kill")
        raise AssertionError(f"nothing in {self._path} tells of victims")

    def empty(self) -> bool:
        """Whether no process is in it."""
        return not (self._path / "cgroup.procs").read_text().split()


@contextlib.contextmanager
def group(controller: str, files: tuple[str, ...]) -> Iterator[Group]:
    """A fresh group that has one of `files`; its processes are back in the root afterwards."""
    own_tree = CGROUP_ROOT / controller
    root = own_tree if own_tree.is_dir() else CGROUP_ROOT
    path = root / f"{OWN_MARK}-bound-{controller}"
    path.mkdir()
    try:
        if not any((path / name).exists() for name in files):
            pytest.skip(f"needs cgroups v2 with the {controller} controller on for children of the root, or v1")
        yield Group(path)
    finally:
        for pid in (path / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                (root / "cgroup.procs").write_text(pid)
        wait_for(lambda: _removed(path), what=f"{path} to be removed")


def _removed(path: Path) -> bool:
    with contextlib.suppress(OSError):  # EBUSY while a dead process is not collected
        path.rmdir()
    return not path.exists()
