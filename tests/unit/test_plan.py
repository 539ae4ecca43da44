"""The launch plan: pure, printable, and refusing what it cannot do."""

from pathlib import Path
from typing import Any

import pytest

from common.config.layout import layout_of
from common.config.settings import Joblet, Jobs, Journal, Settings
from common.errors import JobletError, Reason
from common.identifiers import JobId, VolumeId
from common.messages.jobs import JobRecord, JobSpec, Limits, OnFull, State, Upload, VolumeMount
from common.messages.volumes import PreparedVolume
from services.executor.cgroups.driver import CgroupPlan, Meter, Reading, Write
from services.executor.identity import JobIdentity
from services.executor.launcher.operations import EnterRoot, MountTmpfs, SealRoot, decode_operation, encode_operation
from services.executor.launcher.volumes import OpenVolume, PlaceVolume
from services.executor.plan import Launch, NetworkPlan, plan_launch
from services.executor.rootfs import Rootfs

JOB = JobId("6fa459ea-ee8a-4ca4-894e-db77e160355e")
GROUPS = CgroupPlan(
    directories=("/cg/joblet/job",),
    writes=(Write("/cg/joblet/job/pids.max", "10"),),
    join=("/cg1/pids/joblet/job/cgroup.procs",),
    clone_into="/cg/joblet/job",
    usage=(Meter("cpu_time_us", (Reading("/cg/joblet/job/cpu.stat", "usage_usec"),)),),
    oom_watch="",
)


def plan(settings: Settings | None = None, *, prepared: tuple[PreparedVolume, ...] = (), **spec: Any) -> Launch:
    """The launch of a job with this spec."""
    settings = settings or Settings(joblet=Joblet(base_dir="/base"))
    job = JobRecord(
        id=JOB,
        owner="alice",
        node_id="n",
        state=State.STARTING,
        spec=JobSpec(**{"command": "true", **spec}),
        created_at_ns=0,
    )
    identity = JobIdentity(101_000, 101_000, 100_000)
    return plan_launch(
        job,
        identity=identity,
        cgroup=GROUPS,
        settings=settings,
        layout=layout_of(settings),
        rootfs=Rootfs(settings.joblet.jobs).parts(identity.range_first),
        network=NetworkPlan(),
        volumes=prepared,
    )


def tmpfs(launch: Launch, path: str) -> MountTmpfs:
    """The plan's tmpfs at `path`."""
    (found,) = (step for step in launch.task.operations if isinstance(step, MountTmpfs) and step.path == path)
    return found


@pytest.mark.requirement("S1.10")
def test_the_plan_tells_every_step_and_no_value() -> None:
    """The description names groups, limits, credentials and the command, and the environment's names only."""
    launch = plan(command="cat", args=("-n", "x y"), environment={"TOKEN": "hunter2"})
    text = "\n".join(launch.describe())
    for expected in (
        "make cgroup /cg/joblet/job",
        "write 10 to /cg/joblet/job/pids.max",
        "in cgroup /cg/joblet/job",
        "place it by /cg1/pids/joblet/job/cgroup.procs",
        "bind /usr of the host read-only",
        "pivot_root",
        "limit RLIMIT_CORE to 1",
        "enter a new user namespace, whose ids 0 to 65535 are 100000 and up on the host",
        "become uid 1000 gid 1000: no groups, no capabilities, no new privileges",
        "load the system call filter",
        "TOKEN",
        "execute cat -n x y",
    ):
        assert expected in text
    assert "hunter2" not in text
    assert all("\n" not in line for line in launch.describe())


def test_the_plan_is_pure() -> None:
    """The same job gives the same plan, and the host is not looked at: its base directory does not exist."""
    assert plan() == plan()
    assert plan().task.job_dir == f"/base/jobs/{JOB}"
    assert not Path("/base").exists()


@pytest.mark.requirement("S1.14")
def test_work_grows_with_uploads_only_by_default() -> None:
    """/work is as large as asked for; else the default, and room for every uploaded byte and entry."""
    upload = Upload(id="u", bytes=10 * 2**20, entries=3)
    assert tmpfs(plan(), "/work").size_bytes == 2**20
    assert tmpfs(plan(uploads=(upload,)), "/work").size_bytes == 2**20 + 10 * 2**20 + 3 * 4096
    assert tmpfs(plan(uploads=(upload,), work_bytes=5), "/work").size_bytes == 5
    assert tmpfs(plan(), "/work")[4:6] == (101_000, 101_000)
    assert plan(uploads=(upload,)).task.uploads == ("/base/uploads/u.tar",)


def test_what_happens_without_room_is_in_the_plan() -> None:
    """As the job says, else as the node does; the description says which."""
    dropping = Settings(joblet=Joblet(base_dir="/base", journal=Journal(on_full="drop")))
    for settings, on_full, drops in [
        (None, None, False),
        (dropping, None, True),
        (None, OnFull.DROP, True),
        (dropping, OnFull.BLOCK, False),
    ]:
        launch = plan(settings, on_full=on_full)
        assert launch.task.journal.drop_when_full is drops
        words = "(drops output when full)" if drops else "(makes the job wait when full)"
        assert any(words in line for line in launch.describe())


def test_settings_reach_the_plan() -> None:
    """Limits, journal and directories come from the configuration."""
    settings = Settings(
        joblet=Joblet(
            base_dir="/b",
            journal=Journal(bytes_max=7, on_full="drop", silence_ms=9),
            jobs=Jobs(tmp_bytes=4096, read_only_paths=("/opt/tools",)),
        )
    )
    launch = plan(settings, limits=Limits(timeout_ms=5), grace_ms=6, stop_signal=2)
    assert launch.task.journal == (7, True, 9)
    assert (launch.task.timeout_ms, launch.task.grace_ms, launch.task.stop_signal) == (5, 6, 2)
    assert tmpfs(launch, "/tmp").size_bytes == 4096
    text = "\n".join(launch.describe())
    assert "bind /opt/tools" in text
    assert "bind /usr of" not in text


def volume(name: str, path: str, *, read_only: bool = False) -> PreparedVolume:
    """As the volumes service prepares it."""
    mount = VolumeMount(name=name, path=path, read_only=read_only)
    return PreparedVolume(id=VolumeId("v"), mount=mount, source=f"/host/{name}", root="7:0:2", device="7:0")


def with_volumes(*volumes: PreparedVolume, **spec: Any) -> Launch:
    """The launch of a job that has these."""
    return plan(volumes=tuple(each.mount for each in volumes), prepared=volumes, **spec)


@pytest.mark.requirement("S1.6")
def test_volumes_are_taken_before_the_change_of_root_and_placed_last() -> None:
    """Who holds another's mount point comes first; made directories belong to whoever has what is around them."""
    launch = with_volumes(volume("c", "/data/c"), volume("b", "/work/b"), volume("a", "/data", read_only=True))
    *_, first, second, third, last = launch.task.preparation
    assert (first, second, third, last) == (
        OpenVolume("a", "/host/a", "7:0:2", read_only=True),
        OpenVolume("c", "/host/c", "7:0:2", read_only=False),
        OpenVolume("b", "/host/b", "7:0:2", read_only=False),
        EnterRoot(),
    )
    assert launch.task.operations[-4:] == (
        PlaceVolume("a", "/data", 100_000, 100_000, inside=False),
        PlaceVolume("c", "/data/c", 100_000, 100_000, inside=True),
        PlaceVolume("b", "/work/b", 101_000, 101_000, inside=False),
        SealRoot(),
    )
    for step in (first, launch.task.operations[-3]):
        assert decode_operation(encode_operation(step)) == step


@pytest.mark.requirement("S1.14")
def test_a_volume_at_work_or_tmp_takes_the_place_of_the_tmpfs() -> None:
    """Only there, not below."""
    places = [step.path for step in with_volumes(volume("a", "/work")).task.operations if isinstance(step, MountTmpfs)]
    assert places == ["/dev/shm", "/volumes", "/tmp"]
    places = [step.path for step in with_volumes(volume("a", "/tmp")).task.operations if isinstance(step, MountTmpfs)]
    assert places == ["/dev/shm", "/volumes", "/work"]
    assert tmpfs(with_volumes(volume("a", "/work/a")), "/work").size_bytes == 2**20


def test_volumes_can_be_described_before_they_are_prepared() -> None:
    """In the same words, and without the host's path; such a launch has no source, and so cannot succeed."""
    prepared = with_volumes(volume("a", "/data"))
    unprepared = plan(volumes=(VolumeMount(name="a", path="/data"),))
    assert unprepared.describe() == prepared.describe()
    text = "\n".join(prepared.describe())
    assert "take volume a of the host (nosuid nodev)" in text
    assert "bind volume a on /data" in text
    assert "/host/a" not in text
    assert [step.source for step in unprepared.task.preparation if isinstance(step, OpenVolume)] == [""]


def test_a_volume_that_cannot_be_is_refused_by_the_plan_as_well() -> None:
    """Also of a job that another release admitted."""
    with pytest.raises(JobletError) as raised:
        plan(volumes=(VolumeMount(name="a", path="/etc"),))
    assert raised.value.reason is Reason.INVALID


@pytest.mark.threat("A02")
@pytest.mark.parametrize(
    "spec",
    [
        {"workdir": "/proc/self/fd/7"},
        {"workdir": "/proc/self/cwd/.."},
        {"workdir": "/proc/1/root"},
        {"workdir": "//proc/1/root"},
        {"workdir": "/./proc/1/root"},
        {"workdir": "/work/../etc"},
        {"workdir": "work"},
        {"workdir": ""},
        {"workdir": "/work\0"},
        {"command": ""},
        {"command": "a\0b"},
        {"args": ("a\0b",)},
        {"environment": {"A": "b\0"}},
        {"environment": {"": "b"}},
        {"environment": {"A=B": "c"}},
    ],
)
def test_malformed_specs_are_refused(spec: dict[str, Any]) -> None:
    """What the kernel would cut, follow or mistake is refused before anything starts."""
    with pytest.raises(JobletError) as raised:
        plan(**spec)
    assert raised.value.reason is Reason.INVALID
