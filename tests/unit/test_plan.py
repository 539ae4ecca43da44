"""The launch plan: pure, printable, and refusing what it cannot do."""

from pathlib import Path
from typing import Any

import pytest

from common.config.layout import layout_of
from common.config.settings import Joblet, Jobs, Journal, Settings
from common.errors import JobletError, Reason
from common.identifiers import JobId
from common.messages.jobs import JobRecord, JobSpec, Limits, OnFull, State, Upload, VolumeMount
from services.executor.cgroups.driver import CgroupPlan, Meter, Reading, Write
from services.executor.identity import JobIdentity
from services.executor.launcher.operations import MountTmpfs
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


def plan(settings: Settings | None = None, **spec: Any) -> Launch:
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


@pytest.mark.parametrize(
    "spec",
    [
        {"volumes": (VolumeMount(name="data", path="/volumes/data"),)},
    ],
)
def test_what_is_not_built_yet_is_refused(spec: dict[str, Any]) -> None:
    """Nothing asked for is left out in silence: volumes are refused by name."""
    with pytest.raises(JobletError) as raised:
        plan(**spec)
    assert raised.value.reason is Reason.UNIMPLEMENTED
    assert raised.value.detail


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
