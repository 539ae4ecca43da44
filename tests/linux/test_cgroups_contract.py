"""What every cgroup driver promises, over the real ones on this host's hierarchies and over the one of tests."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from common.config.settings import Joblet, Settings
from common.identifiers import JobId, new_job_id
from common.messages.jobs import Limits
from common.messages.logs import StoreMetric
from services.executor.cgroups.driver import CgroupDriver, CgroupPlan
from services.executor.cgroups.memory import MemoryDriver
from services.executor.cgroups.select import job_disks, parent_name, select_driver
from services.executor.cgroups.v1 import V1Driver
from services.executor.cgroups.v2 import V2Driver
from services.executor.host import HostFacts, probe_host
from tests.leaks import OWN_MARK, own_groups
from tests.waiting import SLOWNESS, wait_for

FORKING = """
import os, time
while True:
    try:
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(3600)
    except OSError:
        time.sleep(0.001)
"""


class Host(NamedTuple):
    """A driver, and how to put something into a job's groups."""

    driver: CgroupDriver
    occupy: Callable[[JobId, CgroupPlan], None]


def start(plan: CgroupPlan, *command: str, stdin: int | None = None) -> subprocess.Popen[bytes]:
    """Run `command` in the groups of `plan`, as the job's init joins them: before its first instruction."""
    joins = [*plan.join, *([f"{plan.clone_into}/cgroup.procs"] if plan.clone_into else [])]
    script = 'n=$1; shift; while [ "$n" -gt 0 ]; do echo 0 > "$1" || exit 99; shift; n=$((n-1)); done; exec "$@"'
    words = ["sh", "-c", script, "sh", str(len(joins)), *joins, *command]
    return subprocess.Popen(words, stdin=stdin, stdout=subprocess.PIPE)


def own_settings(tmp_path: Path) -> Settings:
    """Settings whose groups carry the mark that the leak check looks for."""
    return Settings(joblet=Joblet(base_dir=str(tmp_path), cgroup_parent=OWN_MARK))


def make(kind: str, facts: HostFacts, settings: Settings) -> CgroupDriver:
    """The driver of a `kind`, prepared; skips where the host lacks its hierarchies."""
    driver: CgroupDriver
    roots = {name: Path(root) for name, root in facts.cgroup_controllers}
    match kind:
        case "selected":
            return select_driver(facts, settings)
        case "v1 with the freezer":
            if "freezer" not in roots:
                pytest.skip("needs cgroups v1")
            driver = V1Driver(
                roots, tree=None, parent=parent_name(settings), cpus=facts.cpus, disks=job_disks(settings)
            )
        case "v2 tree":
            if facts.cgroup_tree is None:
                pytest.skip("needs cgroups v2")
            driver = V2Driver(Path(facts.cgroup_tree), parent=parent_name(settings), cpus=facts.cpus)
        case _:
            return MemoryDriver(dying_removals=2)
    driver.prepare()
    return driver


@pytest.fixture(params=["selected", "v1 with the freezer", "v2 tree", "memory"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    """Each driver in turn; its processes are waited for and its groups removed."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    settings = own_settings(tmp_path)
    driver = make(request.param, probe_host(settings), settings)
    started: list[subprocess.Popen[bytes]] = []

    def occupy(job: JobId, plan: CgroupPlan) -> None:
        if isinstance(driver, MemoryDriver):
            driver.occupy(job)
            return
        process = start(plan, "sh", "-c", "echo in; exec sleep 3600")
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"in\n"

    yield Host(driver, occupy)
    for job in driver.present():
        driver.kill(job)
    for process in started:
        process.wait(timeout=10 * SLOWNESS)
        assert process.stdout is not None
        process.stdout.close()
    for job in driver.present():
        wait_for(lambda job=job: driver.remove(job), what="the groups to go")  # type: ignore[misc]
    driver.release()
    assert parent_name(settings) not in str(own_groups())


def created(driver: CgroupDriver, limits: Limits | None = None) -> tuple[JobId, CgroupPlan]:
    """A job with its groups."""
    job = new_job_id()
    plan = driver.plan(job, limits or Limits())
    driver.create(plan)
    return job, plan


def test_a_created_job_is_present_until_removed(host: Host) -> None:
    """present() names exactly the jobs that have groups, and remove() of an empty one works at once and twice."""
    first, plan = created(host.driver)
    second, _ = created(host.driver)
    assert host.driver.present() == {first, second}
    assert host.driver.remove(first)
    assert host.driver.remove(first)
    assert host.driver.present() == {second}
    assert not any(Path(directory).exists() for directory in plan.directories)
    assert host.driver.remove(second)
    assert host.driver.present() == frozenset()


def test_an_occupied_group_is_not_removed(host: Host) -> None:
    """While a process lives in it remove() says False and the job stays present; after kill() it goes."""
    job, plan = created(host.driver)
    host.occupy(job, plan)
    assert not host.driver.remove(job)
    assert job in host.driver.present()
    host.driver.kill(job)
    wait_for(lambda: host.driver.remove(job), what="the groups of the killed job to go")
    assert job not in host.driver.present()


def test_kill_and_remove_of_a_job_that_never_was(host: Host) -> None:
    """Both do nothing for a job without groups: a clean-up can be repeated after a crash."""
    job = new_job_id()
    host.driver.kill(job)
    assert host.driver.remove(job)


def test_sample_counts_until_the_group_is_gone(host: Host) -> None:
    """A sample names job and time; without groups there is none."""
    job, plan = created(host.driver)
    host.occupy(job, plan)
    at_start = StoreMetric(job=job, time_ns=time.time_ns() - 1_000_000_000, cpu_percent=0.0, memory_bytes=0)
    sample = host.driver.sample(job, previous=at_start, now_ns=time.time_ns())
    assert sample is not None
    assert sample.job == job
    assert 0 <= sample.cpu_percent < 200
    assert all(0 <= waited <= 100 for waited in (sample.cpu_pressure, sample.memory_pressure, sample.io_pressure))
    host.driver.kill(job)
    wait_for(lambda: host.driver.remove(job), what="the groups of the killed job to go")
    assert host.driver.sample(job, previous=sample, now_ns=time.time_ns()) is None
