"""What the drivers would write, over a directory tree that stands in for the kernel's."""

from pathlib import Path

import pytest

from common.config.settings import Joblet, Jobs, Settings
from common.errors import JobletError, Reason
from common.identifiers import JobId
from common.messages.jobs import Limits, Usage
from common.messages.logs import StoreMetric
from services.executor.cgroups.disks import Disk, disks_behind
from services.executor.cgroups.driver import CgroupPlan, Meter, Reading, Write
from services.executor.cgroups.select import job_disks, parent_name, select_driver
from services.executor.cgroups.v1 import V1Driver
from services.executor.cgroups.v2 import V2Driver
from services.executor.host import HostFacts

JOB = JobId("09db054f-e9b3-4c23-8c82-33cb44bc6bd8")
ALL = Limits(
    cpu_percent=150,
    cpu_weight=50,
    cpu_cores="0-1",
    memory_bytes=100 * 2**20,
    pids=30,
    read_bytes_per_s=10_000_000,
    write_ops_per_s=300,
)
DISKS = (Disk("254:0", "vda"), Disk("8:16", "sdb"))
V2_CONTROLLERS = "cpuset cpu io memory pids"
V2_FILES = [
    *("cgroup.procs", "cpu.max", "cpu.stat", "cpu.weight", "cpuset.cpus", "io.stat", "pids.current", "pids.max"),
    *("memory.current", "memory.max", "memory.oom.group", "memory.peak", "memory.swap.max"),
    *("io.max", "io.weight", "io.bfq.weight"),
]
V1_FILES = {
    "cpu": "cpu.cfs_period_us cpu.cfs_quota_us cpu.shares",
    "cpuacct": "cpuacct.usage",
    "memory": "memory.limit_in_bytes memory.memsw.limit_in_bytes memory.usage_in_bytes memory.swappiness "
    "memory.oom_control cgroup.event_control",
    "pids": "pids.max pids.current",
    "blkio": "blkio.throttle.io_service_bytes blkio.throttle.io_serviced blkio.bfq.weight "
    "blkio.throttle.read_bps_device blkio.throttle.write_bps_device "
    "blkio.throttle.read_iops_device blkio.throttle.write_iops_device",
    "cpuset": "cpuset.cpus cpuset.mems cgroup.clone_children",
    "freezer": "freezer.state",
}


def fill(directory: Path, files: dict[str, str]) -> Path:
    """A directory with these files."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name).write_text(text)
    return directory


def v2_driver(root: Path, *, files: list[str] | None = None, disks: tuple[Disk, ...] = DISKS) -> V2Driver:
    """A prepared driver of a v2 host with two CPUs."""
    controllers = {"cgroup.controllers": V2_CONTROLLERS, "cgroup.subtree_control": V2_CONTROLLERS}
    fill(root, controllers)
    fill(root / "joblet", {**dict.fromkeys(files or V2_FILES, ""), **controllers})
    driver = V2Driver(root, parent="joblet", cpus=frozenset({0, 1}), disks=disks)
    driver.prepare()
    return driver


def v1_driver(
    root: Path,
    *,
    tree: bool,
    lacking: tuple[str, ...] = (),
    together: bool = False,
    disks: tuple[Disk, ...] = DISKS,
) -> V1Driver:
    """A prepared driver of a v1 or hybrid host with two CPUs; `together`: cpu and cpuacct are one mount.

    `lacking`: controllers and files that the host does not have.
    """
    roots = {}
    for name, files in V1_FILES.items():
        if name not in lacking:
            roots[name] = root / ("cpu,cpuacct" if together and name in {"cpu", "cpuacct"} else name)
            fill(roots[name] / "joblet", {file: "0" for file in files.split() if file not in lacking})
    unified = root / "unified" if tree else None
    driver = V1Driver(roots, tree=unified, parent="joblet", cpus=frozenset({0, 1}), disks=disks)
    driver.prepare()
    return driver


def readings(plan: CgroupPlan) -> dict[str, tuple[Reading, ...]]:
    """Where each field of the usage is read."""
    return dict(plan.usage)


@pytest.mark.requirement("S2.31")
def test_v2_plan(tmp_path: Path) -> None:
    """One leaf named by the job, every limit in the file and the unit of cgroup-v2.rst, no swap, killed as a whole."""
    leaf = f"{tmp_path}/joblet/{JOB}"
    plan = v2_driver(tmp_path).plan(JOB, ALL)
    assert plan.directories == (leaf,)
    assert plan.writes == (
        Write(f"{leaf}/cgroup.max.descendants", "0"),
        Write(f"{leaf}/memory.max", "104857600"),
        Write(f"{leaf}/memory.swap.max", "0"),
        Write(f"{leaf}/memory.oom.group", "1"),
        Write(f"{leaf}/cpu.max", "150000 100000"),
        Write(f"{leaf}/cpu.weight", "50"),
        Write(f"{leaf}/cpuset.cpus", "0-1"),
        Write(f"{leaf}/pids.max", "30"),
        Write(f"{leaf}/io.max", "254:0 rbps=10000000 wbps=max riops=max wiops=300"),
        Write(f"{leaf}/io.max", "8:16 rbps=10000000 wbps=max riops=max wiops=300"),
    )
    assert plan.join == ()
    assert plan.clone_into == leaf
    assert plan.oom_watch == ""
    assert plan.lift == (
        Write(f"{leaf}/io.max", "254:0 rbps=max wbps=max riops=max wiops=max"),
        Write(f"{leaf}/io.max", "8:16 rbps=max wbps=max riops=max wiops=max"),
    )
    assert plan.usage == (
        Meter("cpu_time_us", (Reading(f"{leaf}/cpu.stat", "usage_usec"),)),
        Meter("memory_peak_bytes", (Reading(f"{leaf}/memory.peak"),)),
        Meter("oom_kills", (Reading(f"{leaf}/memory.events", "oom_kill"),)),
        Meter("io_read_bytes", (Reading(f"{leaf}/io.stat", "rbytes="),)),
        Meter("io_write_bytes", (Reading(f"{leaf}/io.stat", "wbytes="),)),
        Meter("io_read_ops", (Reading(f"{leaf}/io.stat", "rios="),)),
        Meter("io_write_ops", (Reading(f"{leaf}/io.stat", "wios="),)),
    )


def test_hybrid_plan(tmp_path: Path) -> None:
    """Limits in v1's files and units, each hierarchy once; the process is cloned into the v2 tree."""
    plan = v1_driver(tmp_path, tree=True).plan(JOB, ALL)
    names = ("unified", "cpu", "memory", "pids", "blkio", "cpuset")
    assert plan.directories == tuple(f"{tmp_path}/{name}/joblet/{JOB}" for name in names)
    blkio = f"{tmp_path}/blkio/joblet/{JOB}"
    assert plan.writes[-4:] == (
        Write(f"{blkio}/blkio.throttle.read_bps_device", "254:0 10000000"),
        Write(f"{blkio}/blkio.throttle.read_bps_device", "8:16 10000000"),
        Write(f"{blkio}/blkio.throttle.write_iops_device", "254:0 300"),
        Write(f"{blkio}/blkio.throttle.write_iops_device", "8:16 300"),
    )
    assert plan.lift == tuple(
        Write(f"{blkio}/blkio.throttle.{file}_device", f"{disk.device} 0")
        for file in ("read_bps", "write_iops")
        for disk in DISKS
    )
    assert {write.path.removeprefix(f"{tmp_path}/"): write.value for write in plan.writes[:-4]} == {
        f"unified/joblet/{JOB}/cgroup.max.descendants": "0",
        f"memory/joblet/{JOB}/memory.limit_in_bytes": "104857600",
        f"memory/joblet/{JOB}/memory.memsw.limit_in_bytes": "104857600",
        f"cpu/joblet/{JOB}/cpu.cfs_period_us": "100000",
        f"cpu/joblet/{JOB}/cpu.cfs_quota_us": "150000",
        f"cpu/joblet/{JOB}/cpu.shares": "512",
        f"cpuset/joblet/{JOB}/cpuset.cpus": "0-1",
        f"pids/joblet/{JOB}/pids.max": "30",
    }
    assert plan.clone_into == f"{tmp_path}/unified/joblet/{JOB}"
    assert plan.join == tuple(f"{tmp_path}/{name}/joblet/{JOB}/tasks" for name in names[1:])
    memory = f"{tmp_path}/memory/joblet/{JOB}"
    assert plan.oom_watch == memory
    assert plan.usage == (
        Meter("cpu_time_us", (Reading(f"{tmp_path}/unified/joblet/{JOB}/cpu.stat", "usage_usec"),)),
        Meter("memory_peak_bytes", (Reading(f"{memory}/memory.max_usage_in_bytes"),)),
        Meter("oom_kills", (Reading(f"{memory}/memory.oom_control", "oom_kill"),)),
        Meter("io_read_bytes", (Reading(f"{blkio}/blkio.throttle.io_service_bytes", "* Read"),)),
        Meter("io_write_bytes", (Reading(f"{blkio}/blkio.throttle.io_service_bytes", "* Write"),)),
        Meter("io_read_ops", (Reading(f"{blkio}/blkio.throttle.io_serviced", "* Read"),)),
        Meter("io_write_ops", (Reading(f"{blkio}/blkio.throttle.io_serviced", "* Write"),)),
    )


def test_v1_plan_without_a_v2_tree(tmp_path: Path) -> None:
    """The freezer is joined for killing and cpuacct for counting; a mount of two controllers is joined once."""
    driver = v1_driver(tmp_path, tree=False, together=True)
    plan = driver.plan(JOB, Limits())
    assert driver.version == "v1"
    assert plan.clone_into == ""
    assert plan.directories == tuple(
        f"{tmp_path}/{name}/joblet/{JOB}" for name in ("cpu,cpuacct", "memory", "pids", "blkio", "freezer")
    )
    assert readings(plan)["cpu_time_us"] == (Reading(f"{tmp_path}/cpu,cpuacct/joblet/{JOB}/cpuacct.usage", "", 1000),)
    assert plan.writes == ()


@pytest.mark.parametrize("kind", ["v1", "hybrid", "v2"])
def test_none_is_not_set(kind: str, tmp_path: Path) -> None:
    """Without limits nothing is limited, and nothing is unsupported."""
    driver = v2_driver(tmp_path) if kind == "v2" else v1_driver(tmp_path, tree=kind == "hybrid")
    assert driver.version == kind
    assert driver.unsupported(Limits()) == ()
    assert driver.unsupported(ALL) == ()
    written = {Path(write.path).name for write in driver.plan(JOB, Limits()).writes}
    assert written <= {"cgroup.max.descendants", "memory.oom.group"}
    assert driver.plan(JOB, Limits()).lift == ()


def test_usage_is_named_as_the_message_has_it(tmp_path: Path) -> None:
    """Every meter is a field of Usage, in both versions the same ones."""
    two = readings(v2_driver(tmp_path / "2").plan(JOB, Limits()))
    one = readings(v1_driver(tmp_path / "1", tree=True).plan(JOB, Limits()))
    assert list(two) == list(one)
    assert set(two) <= set(Usage.__struct_fields__)


def test_devices_of_a_job_are_limited_too(tmp_path: Path) -> None:
    """A disk that only this job sees has the job's limits as well, each disk once."""
    for driver in (v2_driver(tmp_path / "2"), v1_driver(tmp_path / "1", tree=False)):
        plan = driver.plan(JOB, Limits(write_bytes_per_s=4096), devices=("7:3", "254:0"))
        assert [write.value.split()[0] for write in plan.writes if ":" in write.value] == ["254:0", "8:16", "7:3"]
        assert [write.value.split()[0] for write in plan.lift] == ["254:0", "8:16", "7:3"]


def test_weights(tmp_path: Path) -> None:
    """A weight goes to each file that shares disks out; BFQ knows none above 1000."""
    leaf = f"{tmp_path}/2/joblet/{JOB}"
    two, one = v2_driver(tmp_path / "2"), v1_driver(tmp_path / "1", tree=True)
    assert two.plan(JOB, Limits(io_weight=500)).writes[-2:] == (
        Write(f"{leaf}/io.weight", "default 500"),
        Write(f"{leaf}/io.bfq.weight", "default 500"),
    )
    assert two.plan(JOB, Limits(io_weight=1001)).writes[-1] == Write(f"{leaf}/io.weight", "default 1001")
    assert one.plan(JOB, Limits(io_weight=500)).writes[-1] == Write(
        f"{tmp_path}/1/blkio/joblet/{JOB}/blkio.bfq.weight", "500"
    )


def test_without_event_control_the_job_is_not_watched(tmp_path: Path) -> None:
    """A v1 kernel that cannot tell of OOM keeps the restriction, and the plan says that nobody watches."""
    watched, blind = (
        v1_driver(tmp_path / "a", tree=True),
        v1_driver(tmp_path / "b", tree=True, lacking=("cgroup.event_control",)),
    )
    assert "monitor kills the others" in dict(watched.restrictions())["memory_bytes"]
    assert blind.plan(JOB, Limits(memory_bytes=2**20)).oom_watch == ""
    assert "not all of them" in dict(blind.restrictions())["memory_bytes"]


def test_v2_names_what_the_parent_does_not_pass_on(tmp_path: Path) -> None:
    """A limit whose controller cannot be enabled is refused by name, with the reason and the repair."""
    fill(tmp_path, {"cgroup.controllers": "cpu pids", "cgroup.subtree_control": "cpu pids"})
    fill(tmp_path / "joblet", {"cgroup.controllers": "cpu pids", "cgroup.subtree_control": "cpu pids"})
    fill(tmp_path / "joblet", {"cpu.max": "", "cpu.weight": "", "pids.max": ""})
    driver = V2Driver(tmp_path, parent="joblet", cpus=frozenset({0}))
    driver.prepare()
    refused = dict(driver.unsupported(Limits(memory_bytes=1, cpu_percent=1, cpu_cores="0")))
    assert set(refused) == {"memory_bytes", "cpu_cores"}
    assert refused["memory_bytes"].startswith(f"the memory controller is not given to {tmp_path}: enable it in its")
    assert "Delegate=" in refused["memory_bytes"]


def test_v2_without_swap_accounting(tmp_path: Path) -> None:
    """A kernel that cannot swap has no memory.swap.max: the file is not written."""
    driver = v2_driver(tmp_path, files=[name for name in V2_FILES if "swap" not in name])
    written = {Path(write.path).name for write in driver.plan(JOB, Limits(memory_bytes=2**20)).writes}
    assert written == {"cgroup.max.descendants", "memory.max", "memory.oom.group"}


def test_v1_names_what_is_not_mounted(tmp_path: Path) -> None:
    """A limit whose controller is not mounted is refused by name with the repair."""
    driver = v1_driver(tmp_path, tree=True, lacking=("cpu", "cpuset"))
    assert dict(driver.unsupported(ALL)) == {
        "cpu_percent": "mount the v1 cpu controller, or boot with v2",
        "cpu_weight": "mount the v1 cpu controller, or boot with v2",
        "cpu_cores": "mount the v1 cpuset controller, or boot with v2",
    }


IO_LIMITS = {"io_weight", "read_bytes_per_s", "write_bytes_per_s", "read_ops_per_s", "write_ops_per_s"}
EVERY_IO_LIMIT = Limits(
    io_weight=100, read_bytes_per_s=4096, write_bytes_per_s=4096, read_ops_per_s=1, write_ops_per_s=1
)


def test_io_limits_without_a_disk_are_refused(tmp_path: Path) -> None:
    """With nothing to limit they are refused by name, by both drivers, never ignored."""
    for driver in (v2_driver(tmp_path / "2", disks=()), v1_driver(tmp_path / "1", tree=True, disks=())):
        refused = dict(driver.unsupported(EVERY_IO_LIMIT))
        assert set(refused) == IO_LIMITS
        assert all("put joblet.base_dir on a local disk" in repair for repair in refused.values())


def test_io_limits_without_the_controller_are_refused(tmp_path: Path) -> None:
    """As any other limit whose controller is missing."""
    v2_files = [name for name in V2_FILES if not name.startswith("io.")]
    drivers = (v2_driver(tmp_path / "2", files=v2_files), v1_driver(tmp_path / "1", tree=True, lacking=("blkio",)))
    for driver in drivers:
        assert set(dict(driver.unsupported(EVERY_IO_LIMIT))) == IO_LIMITS


@pytest.mark.parametrize(
    ("cores", "text"),
    [
        ("2", "CPU 2 is not usable here; use some of 0-1"),
        ("0-3", "CPU 2-3 is not usable"),
        ("a", "no list"),
        ("", "no"),
    ],
)
def test_cores_that_are_not_there(cores: str, text: str, tmp_path: Path) -> None:
    """A list of CPUs with one that is not usable, or that is no list, is refused and told what there is."""
    ((name, repair),) = v2_driver(tmp_path).unsupported(Limits(cpu_cores=cores))
    assert name == "cpu_cores"
    assert text in repair


def test_v2_sample(tmp_path: Path) -> None:
    """A sample adds up all devices, and CPU time becomes a share of one core since the sample before."""
    driver = v2_driver(tmp_path)
    leaf = tmp_path / "joblet" / JOB
    fill(leaf, {"memory.current": "4096\n", "pids.current": "3\n", "cpu.stat": "usage_usec 1000000\nuser_usec 1\n"})
    fill(
        leaf,
        {"io.stat": "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=5\n8:16 rbytes=1 wbytes=2 rios=3 wios=4\n7:0 \n"},
    )
    first = driver.sample(JOB, previous=None, now_ns=10**9)
    assert first == StoreMetric(
        job=JOB,
        time_ns=10**9,
        cpu_percent=0.0,
        memory_bytes=4096,
        io_read_bytes=11,
        io_write_bytes=22,
        io_read_ops=4,
        io_write_ops=6,
        pids=3,
    )
    assert first.cpu_pressure == 0.0  # this kernel has no PSI
    (leaf / "cpu.stat").write_text("usage_usec 1500000\n")
    second = driver.sample(JOB, previous=first, now_ns=3 * 10**9)
    assert second is not None
    assert second.cpu_percent == 25.0


def test_v1_sample(tmp_path: Path) -> None:
    """The same sample from v1's files; the line with the total is not counted again."""
    driver = v1_driver(tmp_path, tree=False)
    for name, files in {
        "memory": {"memory.usage_in_bytes": "8192"},
        "pids": {"pids.current": "2"},
        "cpuacct": {"cpuacct.usage": "500000000"},
        "blkio": {
            "blkio.throttle.io_service_bytes": "8:0 Read 10\n8:0 Write 20\n8:16 Read 5\nTotal 35\n",
            "blkio.throttle.io_serviced": "8:0 Read 1\n8:0 Write 2\nTotal 3\n",
        },
    }.items():
        fill(tmp_path / name / "joblet" / JOB, files)
    started = StoreMetric(job=JOB, time_ns=10**9, cpu_percent=0.0, memory_bytes=0)
    assert driver.sample(JOB, previous=started, now_ns=2 * 10**9) == StoreMetric(
        job=JOB,
        time_ns=2 * 10**9,
        cpu_percent=50.0,
        memory_bytes=8192,
        io_read_bytes=15,
        io_write_bytes=20,
        io_read_ops=1,
        io_write_ops=2,
        pids=2,
    )


@pytest.mark.parametrize("kind", ["hybrid", "v2"])
def test_pressure_is_sampled(kind: str, tmp_path: Path) -> None:
    """PSI of the job's v2 group goes into the sample: the share of the last 10 s in which some task waited."""
    parent = tmp_path / ("unified/joblet" if kind == "hybrid" else "joblet")
    told = {f"{what}.pressure": PSI.format(number) for what, number in (("cpu", 12.5), ("memory", 0.25), ("io", 100))}
    fill(parent, told)
    driver = v2_driver(tmp_path) if kind == "v2" else v1_driver(tmp_path, tree=True)
    plan = driver.plan(JOB, Limits())
    for directory in plan.directories:
        fill(Path(directory), {**dict.fromkeys([*V2_FILES, *" ".join(V1_FILES.values()).split()], "0"), **told})
        fill(Path(directory), {"cpu.stat": "usage_usec 1\n"})
    sample = driver.sample(JOB, previous=None, now_ns=1)
    assert sample is not None
    assert (sample.cpu_pressure, sample.memory_pressure, sample.io_pressure) == (12.5, 0.25, 100.0)


PSI = "some avg10={} avg60=1.00 avg300=2.00 total=9\nfull avg10=7.00 avg60=0.00 avg300=0.00 total=3\n"


def test_present_names_jobs_only(tmp_path: Path) -> None:
    """What has a name that is no job id is not ours and is left alone; a job in any hierarchy counts."""
    driver = v1_driver(tmp_path, tree=True)
    other = JobId("19db054f-e9b3-4c23-8c82-33cb44bc6bd8")
    for directory in (
        f"memory/joblet/{JOB}",
        f"pids/joblet/{other}",
        "pids/joblet/system.slice",
        "pids/joblet/cpu.max",
    ):
        (tmp_path / directory).mkdir()
    assert driver.present() == {JOB, other}


def facts(**changes: object) -> HostFacts:
    """Facts of a host, changed as told."""
    plain: dict[str, object] = {
        "kernel": "6.1",
        "cgroup_version": "v2",
        "cgroup_tree": None,
        "cgroup_controllers": (),
        "cpus": frozenset({0}),
        "memory_bytes": 2**30,
        "root": True,
        "syscalls": frozenset(),
        "namespaces": frozenset(),
        "punch_hole_failure": "",
    }
    return HostFacts(**{**plain, **changes})  # type: ignore[arg-type]  # a test's shorthand


def test_only_what_a_job_sees_counts(tmp_path: Path) -> None:
    """The disks are those behind the jobs directory and the read-only paths, and a directory that is the root."""
    rootfs = tmp_path / "rootfs"
    rootfs.mkdir()
    asked = Joblet(base_dir=str(tmp_path), jobs=Jobs(read_only_paths=("/proc",), rootfs=str(rootfs)))
    nothing = Joblet(base_dir="/proc", jobs=Jobs(read_only_paths=("/proc",)))
    assert job_disks(Settings(joblet=asked)) == disks_behind([str(tmp_path)])
    assert job_disks(Settings(joblet=nothing)) == ()


def test_select_by_version(tmp_path: Path) -> None:
    """One place chooses by the host's facts; without a writable hierarchy it says what to do."""
    settings = Settings(joblet=Joblet(base_dir=str(tmp_path)))
    fill(tmp_path / "2", {"cgroup.controllers": "", "cgroup.subtree_control": ""})
    fill(tmp_path / "2" / parent_name(settings), {"cgroup.controllers": "", "cgroup.subtree_control": ""})
    assert select_driver(facts(cgroup_tree=str(tmp_path / "2")), settings).version == "v2"
    (tmp_path / "memory").mkdir()
    controllers = (("memory", str(tmp_path / "memory")),)
    hybrid = facts(cgroup_version="hybrid", cgroup_tree=str(tmp_path / "2"), cgroup_controllers=controllers)
    assert select_driver(hybrid, settings).version == "hybrid"
    assert select_driver(facts(cgroup_version="v1", cgroup_controllers=controllers), settings).version == "v1"
    with pytest.raises(JobletError, match="mount -t cgroup2") as caught:
        select_driver(facts(cgroup_version="none"), settings)
    assert caught.value.reason is Reason.PRECONDITION


def test_nodes_of_one_host_have_parents_of_their_own(tmp_path: Path) -> None:
    """Two base directories never share a parent group: each node removes groups of jobs that it does not know."""
    names = {parent_name(Settings(joblet=Joblet(base_dir=str(tmp_path / name)))) for name in ("a", "b")}
    assert len(names) == 2
    assert all(name.startswith("joblet-") for name in names)
    assert parent_name(Settings()) == "joblet"
    assert parent_name(Settings(joblet=Joblet(cgroup_parent="other"))) == "other"


@pytest.mark.parametrize("name", ["..", "a/b", "", "-x", "a b"])
def test_a_parent_that_is_no_name_is_refused(name: str) -> None:
    """The setting never becomes a path of its own."""
    with pytest.raises(JobletError, match="cgroup parent"):
        parent_name(Settings(joblet=Joblet(cgroup_parent=name)))
