"""Who the service users are, whose directories are whose, and that a drop is a drop.

The drop itself happens in a process of its own: nothing brings privileges back.
"""

import os
import pwd
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.config.layout import Layout, layout_of
from common.config.settings import Joblet, Settings, Users
from common.errors import JobletError, Reason
from common.privileges import ServiceUsers, prepare_directories, resolve_users

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

MISSING = Users(api="no-such-api", persist="no-such-persist", group="no-such-group")


@pytest.fixture
def base() -> Iterator[Path]:
    """A base directory that other users can reach; pytest's own are closed to them."""
    with tempfile.TemporaryDirectory(prefix="joblet-test-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory) / "node"


def layout_below(base: Path) -> Layout:
    """The layout of a node there."""
    return layout_of(Settings(joblet=Joblet(base_dir=str(base))))


def modes(layout: Layout) -> dict[str, tuple[int, int, int]]:
    """Name → permission bits, uid, gid of each directory."""
    names = (
        "base",
        "run",
        "streams",
        "jobs",
        "state",
        "certs",
        "uploads",
        "audit",
        "audit_persist",
        "logs",
        "metrics",
        "volumes",
    )
    found = {name: getattr(layout, name).stat() for name in names}
    return {name: (stat.S_IMODE(each.st_mode), each.st_uid, each.st_gid) for name, each in found.items()}


@needs_root
@pytest.mark.requirement("S0.64")
@pytest.mark.threat("B01")
def test_directories_have_the_documented_modes_and_owners(base: Path) -> None:
    """Only the service that works in a directory can open it."""
    layout = layout_below(base)
    prepare_directories(layout, ServiceUsers(api_uid=901, persist_uid=902, gid=903))
    assert modes(layout) == {
        "base": (0o755, 0, 0),
        "run": (0o750, 0, 903),
        "streams": (0o700, 901, 903),
        "jobs": (0o700, 0, 903),
        "state": (0o700, 0, 903),
        "certs": (0o700, 0, 903),
        "uploads": (0o700, 901, 903),
        "audit": (0o700, 901, 903),
        "audit_persist": (0o700, 902, 903),
        "logs": (0o700, 902, 903),
        "metrics": (0o700, 902, 903),
        "volumes": (0o700, 0, 903),
    }


@needs_root
def test_modes_are_repaired_at_the_next_start(base: Path) -> None:
    """A directory that was opened up is closed again."""
    layout, users = layout_below(base), ServiceUsers(api_uid=901, persist_uid=902, gid=903)
    prepare_directories(layout, users)
    before = modes(layout)
    layout.logs.chmod(0o777)
    prepare_directories(layout, users)
    assert modes(layout) == before


@needs_root
def test_missing_accounts_get_unused_system_ids_that_stay_the_same(base: Path) -> None:
    """Two services and a group: unused, below 1000, different, and read back from the directories' owners."""
    layout = layout_below(base)
    first = resolve_users(MISSING, layout)
    assert all(100 <= each <= 999 for each in first)
    assert first.api_uid != first.persist_uid
    taken = {each.pw_uid for each in pwd.getpwall()}
    assert not taken & {first.api_uid, first.persist_uid}
    prepare_directories(layout, first._replace(api_uid=777 if 777 not in taken else 778))
    assert resolve_users(MISSING, layout).api_uid in {777, 778}
    assert resolve_users(MISSING, layout).persist_uid == first.persist_uid


@needs_root
def test_accounts_that_exist_are_taken_by_name_and_root_is_refused(base: Path) -> None:
    """A name decides; root would be no drop at all."""
    layout = layout_below(base)
    users = resolve_users(Users(api="daemon", persist="bin", group="daemon"), layout)
    assert (users.api_uid, users.persist_uid) == (pwd.getpwnam("daemon").pw_uid, pwd.getpwnam("bin").pw_uid)
    for bad in (Users(api="root"), Users(persist="root"), Users(group="root")):
        with pytest.raises(JobletError) as caught:
            resolve_users(bad, layout)
        assert caught.value.reason is Reason.INVALID


@needs_root
def test_an_id_that_became_somebodys_account_is_not_used_on(base: Path) -> None:
    """Otherwise that account would own the stored logs."""
    layout = layout_below(base)
    prepare_directories(layout, ServiceUsers(api_uid=901, persist_uid=pwd.getpwnam("daemon").pw_uid, gid=903))
    with pytest.raises(JobletError, match="an account of its own"):
        resolve_users(MISSING, layout)


@needs_root
def test_links_strangers_and_open_directories_are_refused(base: Path) -> None:
    """What another user could steer is no place for a root service."""
    layout, users = layout_below(base), ServiceUsers(api_uid=901, persist_uid=902, gid=903)
    prepare_directories(layout, users)
    layout.logs.rmdir()
    layout.logs.symlink_to("/etc")
    with pytest.raises(JobletError, match="symbolic link"):
        prepare_directories(layout, users)
    assert Path("/etc").stat().st_uid == 0
    layout.logs.unlink()
    layout.logs.mkdir()
    os.chown(layout.logs, 55555, 0)
    with pytest.raises(JobletError, match="chown -R 902:903"):
        prepare_directories(layout, users)
    layout.logs.rmdir()
    base.chmod(0o777)
    with pytest.raises(JobletError, match="written by others"):
        prepare_directories(layout, users)
    with pytest.raises(JobletError, match="written by others"):
        prepare_directories(layout_below(Path("/tmp")), users)
    assert stat.S_IMODE(Path("/tmp").stat().st_mode) & 0o1777 == 0o1777


@needs_root
def test_a_store_that_service_users_cannot_reach_is_refused(base: Path) -> None:
    """A store elsewhere needs a way to it; what is below the base directory does not, however closed its parents."""
    base.parent.chmod(0o700)
    users = ServiceUsers(api_uid=901, persist_uid=902, gid=903)
    prepare_directories(layout_below(base), users)
    elsewhere = layout_below(base)._replace(logs=base.parent / "elsewhere" / "logs")
    with pytest.raises(JobletError, match=r"chmod o\+x"):
        prepare_directories(elsewhere, users)
    base.parent.chmod(0o755)
    prepare_directories(elsewhere, users)


DROP = """
import os, threading, sys
from common.prctl import renounce_new_privileges
from common.privileges import drop
renounce_new_privileges()
stay = threading.Event()
threading.Thread(target=stay.wait, daemon=True).start()
drop(901, 903)
status = open("/proc/self/status").read()
for field in ("Uid", "Gid", "Groups", "CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb", "NoNewPrivs"):
    print(next(line for line in status.splitlines() if line.startswith(field + ":")).split(":")[1].split())
try:
    os.setuid(0)
    print("root again")
except PermissionError:
    print("refused")
"""

FORGOTTEN = """
from common.privileges import drop
drop(901, 903)
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    """The result of this program in an interpreter of its own."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)


@needs_root
@pytest.mark.threat("A32")
def test_after_the_drop_nothing_of_root_is_left_in_any_thread() -> None:
    """Ids, groups, all five capability sets, no_new_privs; and there is no way back."""
    result = run(DROP)
    assert result.returncode == 0, result.stderr
    nothing = ["0000000000000000"]
    expected = [["901"] * 4, ["903"] * 4, [], *[nothing] * 5, ["1"], "refused"]
    assert result.stdout.splitlines() == [str(each) for each in expected]


@needs_root
def test_a_drop_that_leaves_something_is_an_error() -> None:
    """Without the first half the bounding set stays full, and drop() notices."""
    result = run(FORGOTTEN)
    assert result.returncode != 0
    assert "privileges are left" in result.stderr
    assert "CapBnd" in result.stderr
