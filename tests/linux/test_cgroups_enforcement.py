"""That the kernel really enforces what a plan says: each limit is run into from inside, on this host's hierarchies."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from common.errors import JobletError, Reason
from common.identifiers import JobId, new_job_id
from common.messages.jobs import Limits
from common.messages.logs import StoreMetric
from services.executor.cgroups import control_files
from services.executor.cgroups.driver import CgroupDriver, CgroupPlan, Write
from services.executor.host import probe_host
from services.executor.launcher.ending import read_first
from services.executor.launcher.oomwatch import oom_killed
from services.executor.launcher.task import Reading as TaskReading
from tests.linux.test_cgroups_contract import FORKING, created, make, own_settings, start
from tests.waiting import SLOWNESS, wait_for

MIB = 2**20
BOMB = "b=[]\nfor _ in range(128): b.append(bytearray(b'x') * 2**20)\nprint('survived')"
FORK_UNTIL_REFUSED = """
import os, signal, time
forked = 0
while forked < 200:
    try:
        pid = os.fork()
    except BlockingIOError:
        break
    if pid == 0:
        signal.pause()
    forked += 1
print(forked, flush=True)
"""


@pytest.fixture(params=["selected", "v1 with the freezer"])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CgroupDriver]:
    """The drivers that limit; nothing of theirs is left."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    settings = own_settings(tmp_path)
    made = make(request.param, probe_host(settings), settings)
    yield made
    for job in made.present():
        end(made, job)
    made.release()


def end(driver: CgroupDriver, job: JobId) -> None:
    """Kill and remove."""
    driver.kill(job)
    wait_for(lambda: driver.remove(job), what="the job's groups to go")


def run(plan: CgroupPlan, script: str) -> tuple[int, bytes]:
    """Exit status and output of a Python script in the groups of `plan`."""
    process = start(plan, sys.executable, "-I", "-S", "-c", script)
    output, _ = process.communicate(timeout=30 * SLOWNESS)
    return process.returncode, output


def used(plan: CgroupPlan, name: str) -> int:
    """A field of the usage, as the monitor reads it at the end."""
    return read_first(tuple(TaskReading(*reading) for reading in dict(plan.usage)[name]))


def periods(plan: CgroupPlan) -> tuple[int, int]:
    """In how many periods the job was limited to its share so far, and in how many of them it wanted more."""
    for directory in plan.directories:
        if (stat := Path(directory, "cpu.stat")).exists():
            table = control_files.read_table(str(stat))
            if "nr_periods" in table:
                return table["nr_periods"], table["nr_throttled"]
    raise AssertionError("no group counts periods")


@pytest.mark.requirement("S2.31")
@pytest.mark.threat("C10")
def test_cpu_share(driver: CgroupDriver) -> None:
    """Two busy loops limited to 50 % of a core get 45 to 55 % over 5 s, and cpu_percent says so.

    Less than that only where the kernel counts periods in which they did not even want their share: the machine was
    busy with others. Seconds in which it stood still say nothing, and other ones are waited for.
    """
    job, plan = created(driver, Limits(cpu_percent=50))
    process = start(plan, sys.executable, "-I", "-S", "-c", "import os\nos.fork()\nprint(flush=True)\nwhile True: pass")
    assert process.stdout is not None
    process.stdout.readline()
    share = wait_for(lambda: share_in_five_seconds(driver, job, plan), what="5 s without a standstill", timeout_s=60)
    end(driver, job)
    process.communicate(timeout=10 * SLOWNESS)
    assert share.percent <= 55.0
    assert share.percent >= 45.0 or share.starved


class Share(NamedTuple):
    """What a job got of a core, and whether it did not want more in each tenth period or oftener."""

    percent: float
    starved: bool


def share_in_five_seconds(driver: CgroupDriver, job: JobId, plan: CgroupPlan) -> Share | None:
    """None: this process was kept for more than 0.2 s from looking, and so perhaps the loops, or the kernel's clock."""
    seen_s = time.monotonic()
    before, first = periods(plan), driver.sample(job, previous=None, now_ns=time.time_ns())
    while time.monotonic() - seen_s <= 0.2:
        after = periods(plan)
        if after[0] - before[0] >= 50:
            second = driver.sample(job, previous=first, now_ns=time.time_ns())
            assert second is not None
            starved = after[1] - before[1] < 0.9 * (after[0] - before[0])
            return Share(second.cpu_percent, starved) if time.monotonic() - seen_s <= 0.2 else None
        seen_s = time.monotonic()
        time.sleep(0.01)
    return None


@pytest.mark.requirement("T.5")
def test_cpu_percent_without_a_limit(driver: CgroupDriver) -> None:
    """The positive control: the same loop without a limit is well above 20 %, counted from the job's start."""
    job, plan = created(driver)
    at_start = StoreMetric(job=job, time_ns=time.time_ns(), cpu_percent=0.0, memory_bytes=0)
    process = start(plan, sys.executable, "-I", "-S", "-c", "while True: pass")

    def busy() -> bool:
        sample = driver.sample(job, previous=at_start, now_ns=time.time_ns())
        return sample is not None and sample.cpu_percent > 30

    wait_for(busy, what="the loop to use more than 30 % of a core", timeout_s=30)
    end(driver, job)
    process.communicate(timeout=10 * SLOWNESS)


@pytest.mark.requirement("S2.31")
@pytest.mark.threat("C02")
def test_memory_bomb_is_killed_and_counted(driver: CgroupDriver) -> None:
    """A process that takes more than its memory limit is killed with signal 9 and counted; the peak is the limit."""
    job, plan = created(driver, Limits(memory_bytes=64 * MIB))
    status, output = run(plan, BOMB)
    assert (status, output) == (-signal.SIGKILL, b"")
    assert used(plan, "oom_kills") >= 1
    assert 32 * MIB < used(plan, "memory_peak_bytes") <= 64 * MIB
    assert used(plan, "cpu_time_us") > 0
    end(driver, job)


TOUCHING = """
import mmap, sys
print("ready", flush=True)
held = []
for line in sys.stdin:
    part = mmap.mmap(-1, int(line))
    for offset in range(0, len(part), 4096):
        part[offset] = 1
    held.append(part)
    print("touched", flush=True)
"""


@pytest.mark.requirement("S2.31")
@pytest.mark.threat("C02")
def test_memory_to_the_limit_and_a_page_more(driver: CgroupDriver) -> None:
    """Memory just below the limit is given, and what goes a page beyond it is killed and counted.

    The kernel takes memory for a group in portions of 64 pages a CPU, so "just below" leaves it a megabyte.
    """
    limit, spare = 64 * MIB, MIB
    job, plan = created(driver, Limits(memory_bytes=limit))
    process = start(plan, sys.executable, "-I", "-S", "-c", TOUCHING, stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    sample = driver.sample(job, previous=None, now_ns=time.time_ns())
    assert sample is not None
    rest = (limit - spare - sample.memory_bytes) // 4096 * 4096
    process.stdin.write(b"%d\n" % rest)
    process.stdin.flush()
    assert process.stdout.readline() == b"touched\n"
    assert used(plan, "oom_kills") == 0
    # What it read from files can be given back to it, so a page more may still be had; not much more.
    process.stdin.write(b"%d\n" % (spare + 8 * MIB))
    process.stdin.flush()
    assert process.stdout.readline() == b""
    assert process.wait(timeout=10 * SLOWNESS) == -signal.SIGKILL
    process.communicate()
    assert used(plan, "oom_kills") >= 1  # killed as a group, v2 counts its victim twice
    assert limit - spare < used(plan, "memory_peak_bytes") <= limit
    end(driver, job)


@pytest.mark.threat("C02")
@pytest.mark.threat("C03")
def test_out_of_memory_ends_the_whole_job_or_names_who_must_end_it(driver: CgroupDriver) -> None:
    """A child takes too much: v2 kills its parent too; v1 kills the child only, and the plan has the monitor watch."""
    job, plan = created(driver, Limits(memory_bytes=64 * MIB))
    bomb_in_a_child = f"import os\nif os.fork() == 0:\n    exec({BOMB!r})\n    os._exit(0)\nprint(os.wait()[1])"
    status, output = run(plan, bomb_in_a_child)
    if plan.oom_watch:
        assert (status, output) == (0, b"9\n")
        assert oom_killed(plan.oom_watch)
    else:
        assert (status, output) == (-signal.SIGKILL, b"")
        assert "memory_bytes" not in dict(driver.restrictions())
    assert used(plan, "oom_kills") >= 1
    end(driver, job)


def test_memory_bomb_without_a_limit_survives(driver: CgroupDriver) -> None:
    """The positive control: the same process lives without a limit, and no kill is counted."""
    job, plan = created(driver)
    assert run(plan, BOMB) == (0, b"survived\n")
    assert used(plan, "oom_kills") == 0
    assert used(plan, "memory_peak_bytes") > 128 * MIB
    end(driver, job)


@pytest.mark.threat("C04")
def test_memory_limit_counts_swap(driver: CgroupDriver) -> None:
    """Memory and swap together are limited to what memory is: there is no way round through swap."""
    job, plan = created(driver, Limits(memory_bytes=64 * MIB))
    swap = {Path(write.path).name: write.value for write in plan.writes if "sw" in Path(write.path).name}
    assert swap in (
        {"memory.memsw.limit_in_bytes": str(64 * MIB)},
        {"memory.swap.max": "0"},
        {"memory.swappiness": "0"},
    )
    for write in plan.writes:
        assert control_files.means_the_same(write.value, control_files.read(write.path).strip()), write
    end(driver, job)


@pytest.mark.threat("C01")
def test_fork_bomb_is_stopped(driver: CgroupDriver) -> None:
    """With pids 30 a process can fork 29 times, and the 30th is refused by EAGAIN; a sample counts them."""
    job, plan = created(driver, Limits(pids=30))
    process = start(plan, sys.executable, "-I", "-S", "-c", FORK_UNTIL_REFUSED + "signal.pause()")
    assert process.stdout is not None
    assert process.stdout.readline() == b"29\n"
    sample = driver.sample(job, previous=None, now_ns=time.time_ns())
    assert sample is not None
    assert sample.pids == 30
    end(driver, job)
    process.communicate(timeout=10 * SLOWNESS)


@pytest.mark.threat("C01")
@pytest.mark.threat("C30")
def test_kill_ends_processes_that_fork_all_the_time(driver: CgroupDriver) -> None:
    """Double forks with setsid that go on while kill() works do not get away; two seconds later nothing is left."""
    job, plan = created(driver, Limits(pids=200))
    process = start(plan, sys.executable, "-I", "-S", "-c", FORKING)
    procs = f"{plan.directories[0]}/cgroup.procs"
    wait_for(lambda: len(control_files.read_processes(procs)) > 100, what="a hundred processes")
    with contextlib.ExitStack() as held:
        seen = [os.pidfd_open(pid) for pid in control_files.read_processes(procs)]  # none of them ends by itself
        for each in seen:
            held.callback(os.close, each)
        driver.kill(job)
        process.communicate(timeout=2 * SLOWNESS)
        wait_for(lambda: driver.remove(job), timeout_s=2, what="the job's groups to go")
        assert not any(Path(directory).exists() for directory in plan.directories)
        for each in seen:
            # Not the number: each fork that is refused takes one, so that they come round in seconds.
            assert select.select([each], [], [], 2 * SLOWNESS)[0], "a process is left"


def test_cpuset(driver: CgroupDriver) -> None:
    """A job that asks for CPU 0 runs there only."""
    job, plan = created(driver, Limits(cpu_cores="0"))
    status, output = run(plan, "import os; print(sorted(os.sched_getaffinity(0)))")
    assert (status, output) == (0, b"[0]\n")
    end(driver, job)


def test_cpu_weight(driver: CgroupDriver) -> None:
    """A weight is written as the version has it, and read back."""
    job, plan = created(driver, Limits(cpu_weight=50))
    name = {Path(write.path).name: write.value for write in plan.writes}
    assert name.get("cpu.shares") == "512" or name.get("cpu.weight") == "50"
    end(driver, job)


def test_a_refused_value_leaves_nothing(driver: CgroupDriver) -> None:
    """When the kernel refuses a write the error names path and value, and the groups made so far are gone again."""
    job = new_job_id()
    plan = driver.plan(job, Limits(pids=10))
    broken = plan._replace(writes=(*plan.writes, Write(f"{plan.directories[-1]}/cgroup.procs", "none")))
    with pytest.raises(JobletError, match=r"cannot set cgroup.procs to 'none': Invalid argument") as caught:
        driver.create(broken)
    assert caught.value.reason is Reason.PRECONDITION
    assert job not in driver.present()


def test_create_makes_the_parent_again(driver: CgroupDriver) -> None:
    """An operator who removes the empty parent group harms nobody."""
    driver.release()
    job, plan = created(driver, Limits(pids=10))
    assert all(Path(directory).is_dir() for directory in plan.directories)
    assert driver.remove(job)


def test_the_plan_is_plain(driver: CgroupDriver) -> None:
    """A plan survives JSON, in which it travels to the launcher."""
    plan = driver.plan(new_job_id(), Limits(cpu_percent=50, memory_bytes=64 * MIB, pids=10))
    assert msgspec.json.decode(msgspec.json.encode(plan), type=CgroupPlan) == plan


def test_joining_by_tasks_is_quick(driver: CgroupDriver) -> None:
    """The way a job joins its v1 groups does not wait for an RCU grace period (see driver.CgroupPlan).

    Who waits for one sleeps. Other tests' changes of groups may be waited for, too, but not at every time.
    """
    job, plan = created(driver)
    assert all(path.endswith("/tasks") for path in plan.join)
    script = f"""
import os, resource
sleeps = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
before = sleeps()
for path in {json.dumps(plan.join)}:
    descriptor = os.open(path, os.O_WRONLY)
    os.write(descriptor, b"0")
    os.close(descriptor)
print(sleeps() - before)
"""

    def without_a_sleep() -> bool:
        done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, check=True)
        return int(done.stdout) == 0

    wait_for(without_a_sleep, what="a process to join without a sleep")
    end(driver, job)
