"""That limits of input and output hold on a real disk, and what is told where they do not.

The disk is that of the directory in the environment variable JOBLET_TEST_DISK, else that of the temporary directory.
Each test moves some 40 MB at most, with O_DIRECT, so that the page cache plays no part.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from common.config.settings import Settings
from common.errors import JobletError
from common.identifiers import JobId
from common.messages.jobs import Limits
from services.executor.cgroups import control_files
from services.executor.cgroups.disks import Disk, disks_behind, scheduler
from services.executor.cgroups.driver import CgroupDriver, CgroupPlan
from services.executor.cgroups.select import job_disks, parent_name
from services.executor.cgroups.v1 import V1Driver
from services.executor.cgroups.v2 import V2Driver
from services.executor.host import HostFacts, probe_host
from tests.leaks import OWN_MARK
from tests.linux.test_cgroups_contract import created, make, own_settings, start
from tests.linux.test_cgroups_enforcement import end, used
from tests.waiting import SLOWNESS, wait_for

MB = 1_000_000
MIB = 2**20
BLOCK = 256 * 1024
SLOW = 100_000
"""Bytes a second, with which what the tests leave to write would take three minutes."""

MOVING = """
import json, mmap, os, sys, time
verb, path, block, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
buffer = mmap.mmap(-1, block)
flags = os.O_RDONLY if verb == "read" else os.O_WRONLY
descriptor = os.open(path, flags | os.O_DIRECT)
moments = [time.monotonic()]
for number in range(count):
    if verb == "read":
        os.preadv(descriptor, [buffer], number * block)
    else:
        os.pwrite(descriptor, buffer, number * block)
    moments.append(time.monotonic())
print(json.dumps(moments))
"""
WRITING_BACK = """
import os, sys
descriptor = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
os.write(descriptor, bytes(int(sys.argv[2])))
print("written", flush=True)
if sys.argv[3] == "fsync":
    os.fsync(descriptor)
"""
"""The file is made by the job: of one that is there the kernel knows, for a while, that it is somebody else's."""


class Moved(NamedTuple):
    """When a block had been moved, each time; the first moment is that of the beginning."""

    moments: list[float]

    @property
    def rate(self) -> float:
        """Blocks a second."""
        return (len(self.moments) - 1) / (self.moments[-1] - self.moments[0])

    @property
    def best_rate(self) -> float:
        """The same for the quickest third: for whoever did not want, or could not, for a moment."""
        length = len(self.moments) // 3
        return max(Moved(self.moments[at : at + length + 1]).rate for at in range(len(self.moments) - length))


class Bench(NamedTuple):
    """A driver whose jobs see the disk that `directory` is on."""

    driver: CgroupDriver
    directory: Path

    def file(self, size: int) -> Path:
        """A new file with `size` bytes on the disk."""
        path = self.directory / f"file-{size}"
        with path.open("wb") as file:
            for _ in range(-(-size // MIB)):
                file.write(os.urandom(MIB))
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return path


@pytest.fixture(name="directory")
def on_a_disk() -> Iterator[Path]:
    """An empty directory on a disk."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    directory = Path(tempfile.mkdtemp(prefix=f"{OWN_MARK}-", dir=os.environ.get("JOBLET_TEST_DISK")))
    try:
        if not disks_behind([str(directory)]):
            pytest.skip("needs a disk: set JOBLET_TEST_DISK to a directory on one")
        yield directory
    finally:
        shutil.rmtree(directory)


@pytest.fixture(name="bench", params=["selected", "v1 with the freezer"])
def make_bench(request: pytest.FixtureRequest, directory: Path) -> Iterator[Bench]:
    """The drivers that limit; nothing of theirs is left."""
    settings = own_settings(directory)
    driver = make(request.param, probe_host(settings), settings)
    yield Bench(driver, directory)
    for job in driver.present():
        end(driver, job)
    driver.release()


def move(plan: CgroupPlan, verb: str, path: Path, *, block: int, count: int) -> Moved:
    """Move `count` blocks in the groups of `plan`."""
    words = (verb, str(path), str(block), str(count))
    process = start(plan, sys.executable, "-I", "-S", "-c", MOVING, *words)
    output, _ = process.communicate(timeout=60 * SLOWNESS)
    assert process.returncode == 0
    return Moved(json.loads(output))


@pytest.mark.requirement("S1.17")
@pytest.mark.threat("C12")
@pytest.mark.parametrize("verb", ["read", "write"])
def test_bytes_per_second(bench: Bench, verb: str) -> None:
    """Limited to 10 MB/s, 30 MB move with 10 MB/s, within 15 %; without a limit they are quicker than that.

    No less where nobody stood still. What was moved stands in the usage and in the sample.
    """
    count = 30 * MB // BLOCK
    path = bench.file(32 * MIB)
    unlimited, plan = created(bench.driver)
    free = move(plan, verb, path, block=BLOCK, count=count)
    end(bench.driver, unlimited)
    limits = Limits(read_bytes_per_s=10 * MB) if verb == "read" else Limits(write_bytes_per_s=10 * MB)
    job, plan = created(bench.driver, limits)
    limited = move(plan, verb, path, block=BLOCK, count=count)
    assert free.best_rate * BLOCK > 11.5 * MB, "the disk is too slow for this test to say anything"
    assert limited.rate * BLOCK <= 11.5 * MB
    assert limited.best_rate * BLOCK >= 8.5 * MB
    # The start of the program is in the job, too, and may have come from the disk.
    assert used(plan, f"io_{verb}_bytes") >= count * BLOCK
    assert used(plan, f"io_{verb}_ops") > 0
    sample = bench.driver.sample(job, previous=None, now_ns=time.time_ns())
    assert sample is not None
    assert getattr(sample, f"io_{verb}_bytes") == used(plan, f"io_{verb}_bytes")
    end(bench.driver, job)


@pytest.mark.requirement("S1.17")
@pytest.mark.threat("C12")
@pytest.mark.parametrize("verb", ["read", "write"])
def test_operations_per_second(bench: Bench, verb: str) -> None:
    """Limited to 100 operations a second, 300 of them take 3 s, within 15 %; no longer where nobody stood still."""
    path = bench.file(2 * MIB)
    limits = Limits(read_ops_per_s=100) if verb == "read" else Limits(write_ops_per_s=100)
    job, plan = created(bench.driver, limits)
    moved = move(plan, verb, path, block=4096, count=300)
    end(bench.driver, job)
    assert moved.rate <= 115
    assert moved.best_rate >= 85


@pytest.mark.threat("C12")
def test_one_direction_does_not_limit_the_other(bench: Bench) -> None:
    """A limit of writing leaves reading alone: the positive control of both."""
    path = bench.file(8 * MIB)
    job, plan = created(bench.driver, Limits(write_bytes_per_s=MB))
    assert move(plan, "read", path, block=BLOCK, count=32).best_rate * BLOCK > 2 * MB
    end(bench.driver, job)


@pytest.mark.threat("C12")
def test_what_is_written_later_is_limited_or_it_is_said(bench: Bench) -> None:
    """Written into the page cache and to the disk by somebody else's fsync: v2 still counts it for the job.

    v1 does not, and `restrictions` says so.
    """
    path = bench.directory / "written"
    job, plan = created(bench.driver, Limits(write_bytes_per_s=2 * MB))
    begun = time.monotonic()  # already: the kernel may write before it is asked to
    process = start(plan, sys.executable, "-I", "-S", "-c", WRITING_BACK, str(path), str(8 * MB), "leave")
    process.communicate(timeout=30 * SLOWNESS)
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    took_s = time.monotonic() - begun
    os.close(descriptor)
    written = used(plan, "io_write_bytes")
    end(bench.driver, job)
    if "write_bytes_per_s" in dict(bench.driver.restrictions()):
        assert written == 0
    else:
        assert written >= 8 * MB
        assert took_s > 2.5


@pytest.mark.threat("C12")
@pytest.mark.threat("C27")
def test_a_killed_job_does_not_wait_for_its_limit(bench: Bench) -> None:
    """20 MB in an fsync at 0.1 MB/s: SIGKILL alone does not end it, the plan's `lift` does, at once."""
    job, plan = created(bench.driver, Limits(write_bytes_per_s=SLOW))
    with slow_write(bench, job, plan) as process:
        process.kill()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        for write in plan.lift:
            control_files.put(write.path, write.value)
        assert process.wait(timeout=10 * SLOWNESS) == -signal.SIGKILL
    end(bench.driver, job)


@pytest.mark.threat("C12")
@pytest.mark.threat("C27")
def test_kill_lifts_the_limits(bench: Bench) -> None:
    """What the driver kills ends at once, too."""
    job, plan = created(bench.driver, Limits(write_bytes_per_s=SLOW, write_ops_per_s=10))
    with slow_write(bench, job, plan) as process:
        bench.driver.kill(job)
        assert process.wait(timeout=10 * SLOWNESS) == -signal.SIGKILL
    wait_for(lambda: bench.driver.remove(job), what="the job's groups to go")


@contextlib.contextmanager
def slow_write(bench: Bench, job: JobId, plan: CgroupPlan) -> Iterator[subprocess.Popen[bytes]]:
    """A process that sleeps uninterruptibly in an fsync of 20 MB; it has ended afterwards."""
    words = (str(bench.directory / "written"), str(20 * MB), "fsync")
    process = start(plan, sys.executable, "-I", "-S", "-c", WRITING_BACK, *words)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        wait_for(lambda: "State:\tD" in Path(f"/proc/{process.pid}/status").read_text(), what="it to wait for the disk")
        yield process
    finally:
        bench.driver.kill(job)
        process.communicate(timeout=30 * SLOWNESS)


def test_a_plan_is_read_back(bench: Bench) -> None:
    """All five limits together, as far as the host has them, are in the kernel's files as they were written."""
    asked = Limits(
        io_weight=500, read_bytes_per_s=2**40, write_bytes_per_s=4096, read_ops_per_s=2, write_ops_per_s=2**32 - 2
    )
    refused = dict(bench.driver.unsupported(asked))
    assert set(refused) <= {"io_weight"}
    limits = Limits(**{name: getattr(asked, name) for name in asked.__struct_fields__ if name not in refused})
    job, plan = created(bench.driver, limits)
    for write in plan.writes:
        assert control_files.means_the_same(write.value, control_files.read(write.path).strip()), write
    end(bench.driver, job)


def test_more_operations_than_the_kernel_counts_are_not_believed(bench: Bench) -> None:
    """The v1 kernel cuts numbers to 32 bits without a word; what is read back differs, and the job does not start."""
    limits = Limits(read_ops_per_s=2**32 + 7)
    with pytest.raises(JobletError, match=r"iops|io\.max"):
        created(bench.driver, limits)
    assert bench.driver.present() == frozenset()


def test_a_disk_that_the_kernel_does_not_limit(directory: Path) -> None:
    """A device that is none: refused when it is asked for, with its name and the kernel's word."""
    settings = own_settings(directory)
    driver = on_disks(probe_host(settings), settings, (*job_disks(settings), Disk("511:7", "gone")))
    driver.prepare()
    ((name, repair),) = driver.unsupported(Limits(read_bytes_per_s=4096))
    driver.release()
    assert name == "read_bytes_per_s"
    assert "gone: No such device" in repair


def on_disks(facts: HostFacts, settings: Settings, disks: tuple[Disk, ...]) -> V1Driver | V2Driver:
    """The driver of this host, over other disks; not prepared."""
    parent = parent_name(settings)
    tree = None if facts.cgroup_tree is None else Path(facts.cgroup_tree)
    if facts.cgroup_version == "v2":
        assert tree is not None
        return V2Driver(tree, parent=parent, cpus=facts.cpus, disks=disks)
    roots = {name: Path(root) for name, root in facts.cgroup_controllers}
    return V1Driver(roots, tree=tree, parent=parent, cpus=facts.cpus, disks=disks)


@pytest.fixture(name="loop")
def loop_disk(directory: Path) -> Iterator[Disk]:
    """A loop device of 64 MiB: a disk whose scheduler nobody else needs."""
    image = Bench.file(Bench(None, directory), 64 * MIB)  # type: ignore[arg-type]  # it needs no driver
    attached = subprocess.run(
        ["losetup", "--find", "--show", "--direct-io=on", image], capture_output=True, text=True, check=False
    )
    if attached.returncode != 0:
        pytest.skip(f"needs a loop device: {attached.stderr}")
    device = Path(attached.stdout.strip())
    before = scheduler(Disk("", device.name))
    try:
        number = device.stat().st_rdev
        yield Disk(f"{os.major(number)}:{os.minor(number)}", device.name)
    finally:
        choose_scheduler(device.name, before)
        subprocess.run(["losetup", "--detach", device], check=True)


def choose_scheduler(name: str, word: str) -> bool:
    """Whether the disk has this scheduler now."""
    try:
        control_files.put(f"/sys/block/{name}/queue/scheduler", word)
    except OSError:
        return False
    return True


@pytest.mark.requirement("S2.31")
def test_weight_where_something_shares_by_it(directory: Path, loop: Disk) -> None:
    """Without BFQ a weight is refused with the repair, which works: then it is taken and in the kernel's file.

    How the disk is shared is not measured: that needs a machine on which the disk is slower than the processor. On an
    idle one, weights of 100 and 800 read in 3 s as 1 to 8.
    """
    settings = own_settings(directory)
    driver = on_disks(probe_host(settings), settings, (loop,))
    choose_scheduler(loop.name, "none")
    driver.prepare()
    try:
        ((name, repair),) = driver.unsupported(Limits(io_weight=500))
        assert (name, f"echo bfq > /sys/block/{loop.name}/queue/scheduler" in repair) == ("io_weight", True)
        if not choose_scheduler(loop.name, "bfq"):
            pytest.skip("needs the BFQ scheduler")
        driver.prepare()  # the first disk with BFQ brings the files of its weights
        assert driver.unsupported(Limits(io_weight=500)) == ()
        assert [name for name, _ in driver.unsupported(Limits(io_weight=1001))] == ["io_weight"]
        job, plan = created(driver, Limits(io_weight=500))
        (write,) = [write for write in plan.writes if write.path.endswith(".bfq.weight")]
        assert control_files.read(write.path).split()[-1] == "500"
        end(driver, job)
    finally:
        driver.release()
