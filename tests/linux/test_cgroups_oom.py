"""That the launcher is told when a v1 memory group has lost a process for want of memory, and not without reason."""

import os
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.messages.jobs import Limits
from services.executor.cgroups.driver import CgroupDriver, CgroupPlan
from services.executor.host import probe_host
from services.executor.launcher.oomwatch import oom_killed, open_oom_watch
from tests.linux.test_cgroups_contract import created, make, own_settings, start
from tests.linux.test_cgroups_enforcement import BOMB, MIB, end
from tests.waiting import SLOWNESS, wait_for

BOMB_IN_A_CHILD = f"""
import os, signal
if os.fork() == 0:
    exec({BOMB!r})
    os._exit(0)
print(os.wait()[1], flush=True)
signal.pause()
"""


@pytest.fixture(name="driver")
def make_driver(tmp_path: Path) -> Iterator[CgroupDriver]:
    """A v1 driver; nothing of it is left."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    settings = own_settings(tmp_path)
    driver = make("v1 with the freezer", probe_host(settings), settings)
    yield driver
    for job in driver.present():
        end(driver, job)
    driver.release()


@pytest.fixture(name="opened")
def opened_watches() -> Iterator[list[int]]:
    """Watches to be closed."""
    watches: list[int] = []
    yield watches
    for watch in watches:
        os.close(watch)


def told(watch: int, timeout_s: float = 0) -> bool:
    """Whether the watch is readable within the time."""
    poll = select.poll()
    poll.register(watch, select.POLLIN)
    return bool(poll.poll(timeout_s * SLOWNESS * 1000))


def run(plan: CgroupPlan, script: str) -> int:
    """The wait status of a script that ends by itself."""
    process = start(plan, sys.executable, "-I", "-S", "-c", script)
    process.communicate(timeout=30 * SLOWNESS)
    return process.returncode


@pytest.mark.threat("C03")
def test_a_child_that_is_killed_is_told(driver: CgroupDriver, opened: list[int]) -> None:
    """The kernel kills the child only; the watch becomes readable, the kill is counted, and the rest can be killed."""
    job, plan = created(driver, Limits(memory_bytes=64 * MIB))
    assert plan.oom_watch
    watch = open_oom_watch(plan.oom_watch)
    opened.append(watch)
    assert (told(watch), oom_killed(plan.oom_watch)) == (False, False)
    process = start(plan, sys.executable, "-I", "-S", "-c", BOMB_IN_A_CHILD)
    assert told(watch, 10)
    assert os.eventfd_read(watch) >= 1
    wait_for(lambda: oom_killed(plan.oom_watch), what="the kill to be counted")
    assert process.stdout is not None
    assert process.stdout.readline() == b"9\n"
    assert process.poll() is None, "the kernel killed the parent, too"
    driver.kill(job)
    assert process.wait(timeout=10 * SLOWNESS) == -signal.SIGKILL
    process.communicate()
    end(driver, job)


def test_without_want_nothing_is_told(driver: CgroupDriver, opened: list[int]) -> None:
    """A job that stays below its limit: the positive control. The descriptor does not block."""
    job, plan = created(driver, Limits(memory_bytes=64 * MIB))
    watch = open_oom_watch(plan.oom_watch)
    opened.append(watch)
    assert run(plan, "bytearray(b'x') * 2**23") == 0
    assert (told(watch), oom_killed(plan.oom_watch)) == (False, False)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(watch)
    end(driver, job)


def test_want_of_memory_above_is_no_reason(driver: CgroupDriver, opened: list[int]) -> None:
    """A limit of the group above tells every group below it; counted is the kill in the group of the victim only."""
    hog, hog_plan = created(driver)
    other, plan = created(driver)
    watches = [open_oom_watch(each.oom_watch) for each in (plan, hog_plan)]
    opened.extend(watches)
    parent = Path(plan.oom_watch).parent
    for file in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"):
        if (parent / file).exists():
            (parent / file).write_text(str(64 * MIB))
    assert run(hog_plan, BOMB) == -signal.SIGKILL
    assert all(told(watch, 10) for watch in watches)
    assert oom_killed(hog_plan.oom_watch)
    assert not oom_killed(plan.oom_watch)
    for job in (hog, other):
        end(driver, job)


def test_a_group_that_is_removed(driver: CgroupDriver, opened: list[int]) -> None:
    """Its removal is an event as well, and no kill."""
    job, plan = created(driver, Limits(memory_bytes=64 * MIB))
    watch = open_oom_watch(plan.oom_watch)
    opened.append(watch)
    end(driver, job)
    assert told(watch, 10)
    assert not oom_killed(plan.oom_watch)


def test_where_there_is_no_such_group(tmp_path: Path) -> None:
    """An error that names what is missing, and no descriptor left open."""
    before = set(Path("/proc/self/fd").iterdir())
    (tmp_path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 0\n")
    with pytest.raises(FileNotFoundError, match=r"cgroup\.event_control"):
        open_oom_watch(str(tmp_path))
    assert set(Path("/proc/self/fd").iterdir()) <= before
    assert not oom_killed(str(tmp_path))
    (tmp_path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 1\noom_kill 12\n")
    assert oom_killed(str(tmp_path))
