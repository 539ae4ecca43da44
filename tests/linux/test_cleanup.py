"""That nothing of an ended job is left on the host, and that nothing else is touched."""

import asyncio
import ctypes
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from common.config.layout import Layout, layout_of
from common.config.settings import Joblet, Settings
from common.errors import JobletError
from common.identifiers import JobId, new_job_id
from common.linux import mountinfo, mounts
from common.messages.jobs import Limits
from services.executor import cleanup as cleanup_module
from services.executor.cgroups.memory import MemoryDriver
from services.executor.cleanup import Cleanup
from services.executor.host import probe_host
from tests.linux.test_cgroups_contract import FORKING, make, own_settings, start
from tests.waiting import SLOWNESS, wait_for

MS_BIND = 4096
MNT_DETACH = 2


@pytest.fixture(name="layout")
def make_layout(tmp_path: Path) -> Layout:
    """A node's paths with an empty jobs directory."""
    layout = layout_of(Settings(joblet=Joblet(base_dir=str(tmp_path / "node"))))
    layout.jobs.mkdir(parents=True)
    return layout


def directory_of(layout: Layout, job: JobId) -> Path:
    """A job's directory as an ended job leaves it."""
    directory = layout.job_dir(job)
    (directory / "root").mkdir(parents=True)
    (directory / "journal").write_bytes(b"records")
    (directory / "lock").touch()
    os.mkfifo(directory / "control", 0o600)
    return directory


def names(directory: Path) -> set[str]:
    """What is in a directory."""
    return {entry.name for entry in directory.iterdir()}


@pytest.mark.requirement("S2.34")
def test_end_removes_all_but_the_journal(layout: Layout) -> None:
    """Groups, root and control go; the journal stays for those who still read it; twice is once."""
    driver = MemoryDriver(dying_removals=3)
    job = new_job_id()
    driver.create(driver.plan(job, Limits()))
    driver.occupy(job)
    directory = directory_of(layout, job)
    cleanup = Cleanup(driver, layout)
    assert asyncio.run(cleanup.end(job))
    assert driver.present() == frozenset()
    assert names(directory) == {"journal", "lock"}
    assert asyncio.run(cleanup.end(job))
    assert cleanup.unfinished == frozenset()


@pytest.mark.threat("F32")
def test_a_group_that_stays_busy_is_kept_on_the_sweep_list(layout: Layout) -> None:
    """When the time is up end() says so, the job's directory is cleared all the same, and retry() succeeds later."""
    driver = MemoryDriver(dying_removals=100)
    job = new_job_id()
    driver.create(driver.plan(job, Limits()))
    driver.occupy(job)
    directory = directory_of(layout, job)
    cleanup = Cleanup(driver, layout, give_up_ms=20)
    with capture_logs() as logs:
        assert not asyncio.run(cleanup.end(job))
    assert [entry["log_level"] for entry in logs] == ["error"]
    assert cleanup.unfinished == {job}
    assert names(directory) == {"journal", "lock"}

    async def retry_until_gone() -> int:
        tries = 1
        while await cleanup.retry():
            tries += 1
        return tries

    assert asyncio.run(retry_until_gone()) <= 100
    assert driver.present() == frozenset()


@pytest.mark.threat("F32")
def test_a_standstill_of_ours_gives_nothing_up(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time went by while this process stood still: the group, which has gone meanwhile, is looked at once more."""
    now_s = 0.0

    class Standing(MemoryDriver):
        def remove(self, job: JobId) -> bool:
            nonlocal now_s
            now_s += 60
            return super().remove(job)

    monkeypatch.setattr(cleanup_module, "time", SimpleNamespace(monotonic=lambda: now_s))
    driver = Standing(dying_removals=1)
    job = new_job_id()
    driver.create(driver.plan(job, Limits()))
    driver.occupy(job)
    directory_of(layout, job)
    assert asyncio.run(Cleanup(driver, layout).end(job))
    assert driver.present() == frozenset()


def test_a_group_that_cannot_be_removed_is_told(layout: Layout) -> None:
    """An error of the kernel for one job is logged and the job stays on the sweep list; others are cleaned."""
    driver = MemoryDriver()
    jobs = [new_job_id(), new_job_id()]
    for job in jobs:
        driver.create(driver.plan(job, Limits()))
    driver.broken = {jobs[0]}
    cleanup = Cleanup(driver, layout, give_up_ms=10)
    asyncio.run(cleanup.sweep(alive=frozenset(), known=frozenset()))
    assert cleanup.unfinished == {jobs[0]}
    assert driver.present() == {jobs[0]}


@pytest.mark.requirement("S2.34")
@pytest.mark.threat("F32")
def test_end_with_real_groups(layout: Layout, tmp_path: Path) -> None:
    """Processes that fork all the time are killed and their groups removed within the time."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    settings = own_settings(tmp_path)
    driver = make("selected", probe_host(settings), settings)
    job = new_job_id()
    plan = driver.plan(job, Limits(pids=100))
    driver.create(plan)
    process = start(plan, "python3", "-I", "-S", "-c", FORKING)
    procs = Path(plan.directories[0], "cgroup.procs")
    wait_for(lambda: len(procs.read_text().split()) > 50, what="fifty processes")
    assert asyncio.run(Cleanup(driver, layout).end(job))
    process.communicate(timeout=10 * SLOWNESS)
    assert driver.present() == frozenset()
    driver.release()


def test_forget_removes_the_whole_directory(layout: Layout) -> None:
    """Everything in the directory goes, nested too; forgetting what is not there is nothing."""
    job = new_job_id()
    directory = directory_of(layout, job)
    (directory / "a" / "b").mkdir(parents=True)
    (directory / "a" / "b" / "c").touch()
    cleanup = Cleanup(MemoryDriver(), layout)
    asyncio.run(cleanup.forget(job))
    asyncio.run(cleanup.forget(job))
    assert names(layout.jobs) == set()


def test_end_and_forget_may_come_together(layout: Layout) -> None:
    """The end of a job and its delivery are cleaned up after in threads of their own; both succeed in either order."""

    async def together() -> None:
        cleanup = Cleanup(MemoryDriver(), layout)
        for _ in range(200):
            job = new_job_id()
            directory_of(layout, job)
            await asyncio.gather(cleanup.end(job), cleanup.forget(job))

    with capture_logs() as logs:
        asyncio.run(together())
    assert logs == []
    assert names(layout.jobs) == set()


@pytest.mark.threat("A03")
def test_forget_follows_no_symbolic_link(layout: Layout, tmp_path: Path) -> None:
    """Links to a file, to a directory and in the place of the whole directory are removed, not what they point to."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    job, other = new_job_id(), new_job_id()
    directory = directory_of(layout, job)
    (directory / "root" / "link").symlink_to(outside)
    (directory / "file").symlink_to(outside / "precious")
    layout.job_dir(other).symlink_to(outside)
    cleanup = Cleanup(MemoryDriver(), layout)
    asyncio.run(cleanup.end(other))
    asyncio.run(cleanup.forget(job))
    asyncio.run(cleanup.forget(other))
    assert names(layout.jobs) == set()
    assert names(outside) == {"precious"}


@pytest.mark.threat("A03")
def test_forget_stops_at_a_mount(layout: Layout, tmp_path: Path) -> None:
    """A host directory that is mounted below a job's directory loses nothing, and the error says what to do."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    job = new_job_id()
    target = directory_of(layout, job) / "root"
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mount(bytes(outside), bytes(target), None, MS_BIND, None) == 0
    try:
        cleanup = Cleanup(MemoryDriver(), layout)
        with pytest.raises(JobletError, match="remove it by hand"):
            asyncio.run(cleanup.forget(job))
        with capture_logs() as logs:
            assert asyncio.run(cleanup.end(job))
        assert [entry["event"] for entry in logs] == ["cannot clear a job's directory"]
    finally:
        assert libc.umount2(bytes(target), MNT_DETACH) == 0
    assert names(outside) == {"precious"}
    asyncio.run(cleanup.forget(job))
    assert names(layout.jobs) == set()


def mount_at(target: Path, *, kind: str = "tmpfs") -> None:
    """An empty tmpfs on a directory."""
    target.mkdir(parents=True, exist_ok=True)
    mounts.mount(kind, str(target), kind, 0, "size=64k")


def mounted_below(directory: Path) -> list[str]:
    """Mount points below a directory."""
    return [mount.point for mount in mountinfo.below(mountinfo.present(), str(directory))]


@pytest.mark.requirement("S2.34")
@pytest.mark.threat("F04")
def test_sweep_unmounts(layout: Layout) -> None:
    """At start nothing stays mounted below the jobs directory, however deep and however often, but what lives.

    What is mounted beside it, below a name that begins alike, is not ours.
    """
    if os.geteuid() != 0:
        pytest.skip("needs root")
    ended, unknown, alive = new_job_id(), new_job_id(), new_job_id()
    beside = layout.jobs.with_name("jobs-of-others")
    targets = [
        layout.job_dir(ended) / "root",
        layout.job_dir(ended) / "root" / "a" / "b",
        layout.job_dir(ended) / "root" / "a" / "b",  # twice
        layout.job_dir(unknown) / "volumes" / "with space",
        layout.job_dir(alive) / "root",
        beside,
    ]
    try:
        for target in targets:
            mount_at(target)
        with capture_logs() as logs:
            cleanup = Cleanup(MemoryDriver(), layout)
            swept = asyncio.run(cleanup.sweep(alive=frozenset({alive}), known=frozenset({ended, alive})))
        assert mounted_below(layout.jobs) == [str(targets[4])]
        assert str(beside) in mounted_below(layout.base)
        assert swept.mounts == tuple(str(targets[number]) for number in (2, 1, 3, 0))
        assert [entry["path"] for entry in logs if entry["event"] == "unmounted"] == list(swept.mounts)
        assert not layout.job_dir(unknown).exists()
    finally:
        for point in reversed(mounted_below(layout.base)):
            mounts.umount2(point, mounts.MNT_DETACH)


def test_forget_does_not_go_on_for_ever(layout: Layout) -> None:
    """A directory that is nested deeper than anything of ours is an error and not a stack overflow."""
    job = new_job_id()
    deep = directory_of(layout, job)
    for _ in range(70):
        deep /= "d"
        deep.mkdir()
    with pytest.raises(JobletError):
        asyncio.run(Cleanup(MemoryDriver(), layout).forget(job))


@pytest.mark.threat("F04")
def test_sweep(layout: Layout) -> None:
    """At start: groups of jobs that are not alive go, directories of unknown jobs go, known ones keep their journal."""
    driver = MemoryDriver()
    alive, ended, unknown, foreign = new_job_id(), new_job_id(), new_job_id(), new_job_id()
    for job in (alive, ended, unknown, foreign):
        driver.create(driver.plan(job, Limits()))
    for job in (alive, ended, unknown):
        directory_of(layout, job)
    (layout.jobs / "notes").mkdir()
    swept = asyncio.run(Cleanup(driver, layout).sweep(alive=frozenset({alive}), known=frozenset({alive, ended})))
    assert driver.present() == {alive}
    assert alive not in driver.killed
    assert names(layout.jobs) == {alive, ended, "notes"}
    assert names(layout.job_dir(alive)) == {"journal", "lock", "control", "root"}
    assert names(layout.job_dir(ended)) == {"journal", "lock"}
    assert swept.groups == {ended, unknown, foreign}
    assert swept.directories == {unknown}


def test_sweep_of_an_empty_node(tmp_path: Path) -> None:
    """On a first start there is nothing, not even the directory."""
    layout = layout_of(Settings(joblet=Joblet(base_dir=str(tmp_path / "new"))))
    swept = asyncio.run(Cleanup(MemoryDriver(), layout).sweep(alive=frozenset(), known=frozenset()))
    assert swept == (frozenset(), frozenset(), ())
