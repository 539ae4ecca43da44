"""Below which group jobs go, and who is moved out of a group that was given to us."""

import os
from pathlib import Path

import pytest

from services.executor.cgroups import delegation
from services.executor.cgroups.delegation import Family, jobs_root, to_move

MOUNT = Path("/sys/fs/cgroup")
UNIT = MOUNT / "system.slice/joblet.service"


def root(own: str, *, tree: Path = MOUNT, marked: tuple[Path, ...] = (), writable: bool = True) -> Path:
    """Where jobs go for a process in the group `own`."""
    return jobs_root(
        tree, own_groups=f"1:name=systemd:/x\n0::{own}\n", marked=marked.__contains__, writable=lambda _: writable
    )


def test_at_the_root_of_the_hierarchy() -> None:
    """Root, not in a subgroup of something delegated, stays at the root: systemd can start the service again."""
    assert root("/") == MOUNT
    assert root("/system.slice/joblet.service") == MOUNT
    assert root("/system.slice/joblet.service", marked=(UNIT,)) == MOUNT


def test_in_a_subgroup_of_what_was_given_away() -> None:
    """With DelegateSubgroup= the jobs stay in the unit; our own leaf counts without systemd's mark as well."""
    assert root("/system.slice/joblet.service/main", marked=(UNIT,)) == UNIT
    assert root(f"/system.slice/joblet.service/{delegation.LEAF}") == UNIT
    assert root("/system.slice/joblet.service/main", marked=(UNIT,), writable=False) == MOUNT


def test_an_ordinary_user() -> None:
    """Who cannot write at the root has his own group, or the one above it when he was started in a subgroup."""
    own = "/user.slice/user-1000.slice/user@1000.service/app.slice/joblet.service"
    tree = MOUNT / own[1:]
    assert root(own, tree=tree) == tree
    below = f"{own}/{delegation.LEAF}"
    assert root(below, tree=MOUNT / below[1:]) == tree


def test_without_a_v2_line() -> None:
    """A host without the v2 hierarchy in /proc/self/cgroup changes nothing."""
    assert jobs_root(MOUNT, own_groups="1:cpu:/a\n", marked=lambda _: False, writable=lambda _: True) == MOUNT


FAMILY = Family({1: 0, 10: 1, 20: 10, 21: 10, 30: 20, 31: 30, 40: 1})
"""1 init, 10 a supervisor with the executor 20 and another service 21; 30 and 31 below the executor; 40 a stranger."""


@pytest.mark.parametrize(
    ("members", "moved"),
    [
        ({10, 20, 21, 30, 31, 40}, {10, 20, 21, 30, 31}),  # the supervisor and all its services, not the stranger
        ({20, 30, 40}, {20, 30}),  # the parent is elsewhere: only we and ours
        ({20, 21}, {20}),
        ({10, 21, 40}, set()),  # we are not in it
        (set(), set()),
    ],
)
def test_who_is_moved(members: set[int], moved: set[int]) -> None:
    """We, our descendants, and the parent that is in the group too with its own: nobody else."""
    assert to_move(20, frozenset(members), FAMILY) == moved


def test_the_family_of_this_process() -> None:
    """Parents as the kernel tells them."""
    family = delegation.read_family()
    assert family.parents[os.getpid()] == os.getppid()
    assert os.getpid() in family.below(os.getppid())


def test_processes_in_words() -> None:
    """A few by name, the others by number."""
    assert delegation.describe([]) == ""
    assert delegation.describe([os.getpid()]).startswith(f"{os.getpid()} (")
    assert delegation.describe(range(2**22 + 1, 2**22 + 6)).endswith(" (gone) and 2 more")


def test_a_root_is_left_as_it_is(tmp_path: Path) -> None:
    """The root of the hierarchy, which has no cgroup.type, may hold processes: nobody is moved."""
    (tmp_path / "cgroup.procs").write_text(f"{os.getpid()}\n")
    delegation.make_room(str(tmp_path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["cgroup.procs"]


def test_marks(tmp_path: Path) -> None:
    """A directory without the attribute was not given away; writing needs the group and its list of processes."""
    assert not delegation.is_marked(tmp_path)
    assert not delegation.is_marked(tmp_path / "missing")
    assert not delegation.is_writable(tmp_path)
    (tmp_path / "cgroup.procs").touch()
    assert delegation.is_writable(tmp_path)
