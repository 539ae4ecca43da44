"""Real jobs for tests: a launcher, monitors and sandboxes below a temporary base directory, without the executor.

Belongs here: starting jobs with an empty cgroup plan (or a given one), reading their journals, ending what a test left
running. Does not belong here: anything about one test's subject.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import select
import shutil
import signal
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from common import records
from common.config.layout import layout_of
from common.config.settings import Joblet, Journal, Settings
from common.identifiers import new_job_id, new_volume_id
from common.messages.jobs import JobRecord, JobSpec, Limits, State, Upload, VolumeMount
from common.messages.volumes import PreparedVolume
from common.records import Record, RecordType, Stream
from services.executor.cgroups.driver import CgroupPlan
from services.executor.identity import JobIdentity
from services.executor.launching import LauncherProcess
from services.executor.linux.processes import pidfd_send_signal
from services.executor.monitors import monitor_pid, open_monitor
from services.executor.plan import Launch, NetworkPlan, plan_launch
from services.executor.rootfs import Rootfs
from services.executor.seccomp.compile import compile_filter
from tests.leaks import OWN_MARK
from tests.waiting import SLOWNESS, wait_for

NO_GROUPS: Final = CgroupPlan((), (), (), "", (), "")
IDENTITY: Final = JobIdentity(uid=701_000, gid=701_000, range_first=700_000)
JOB_S_MAX: Final = 20.0


class Result(NamedTuple):
    """What a journal tells when its monitor has ended."""

    records: tuple[Record, ...]
    exit: Mapping[str, Any]

    @property
    def stdout(self) -> bytes:
        """All that the job wrote to its standard output."""
        return self.output(Stream.STDOUT)

    @property
    def stderr(self) -> bytes:
        """All that the job wrote to its standard error."""
        return self.output(Stream.STDERR)

    def output(self, stream: Stream) -> bytes:
        """All that the job wrote to `stream`."""
        return b"".join(r.payload for r in self.records if r.type == RecordType.OUTPUT and r.stream == stream)

    def of(self, kind: RecordType) -> list[Record]:
        """The records of one type."""
        return [record for record in self.records if record.type == kind]


class Launched:
    """A job whose monitor was started."""

    def __init__(self, directory: Path, monitor: int) -> None:
        self.directory = directory
        self.monitor = monitor
        self.pidfd = open_monitor(directory)

    def records(self) -> list[Record]:
        """The whole records that the journal has now."""
        content = memoryview((self.directory / "journal").read_bytes())
        found, offset = [], 0
        while (decoded := records.decode(content, offset)) is not None:
            record, offset = decoded
            found.append(record)
        return found

    def output(self, stream: Stream = Stream.STDOUT) -> bytes:
        """What the job has written so far."""
        return Result(tuple(self.records()), {}).output(stream)

    def wait_for_output(self, text: bytes) -> bytes:
        """The standard output as soon as it contains `text`."""
        return wait_for(
            lambda: (out := self.output()) if text in self.output() else None,
            timeout_s=JOB_S_MAX,
            what=f"{text!r} in the output {self.output()[-200:]!r}",
        )

    def main_pid(self) -> int:
        """The host's pid of the main process, as the START record tells it."""

        def started() -> int | None:
            found = [r for r in self.records() if r.type in (RecordType.START, RecordType.EXIT)]
            return json.loads(bytes(found[0].payload)).get("pid") if found else None

        return wait_for(started, timeout_s=JOB_S_MAX, what="the START record")

    def ended(self, timeout_s: float = JOB_S_MAX * SLOWNESS) -> bool:
        """Whether the monitor ends within `timeout_s`."""
        if self.pidfd is None:
            return True
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def result(self, timeout_s: float = JOB_S_MAX * SLOWNESS) -> Result:
        """The journal when the monitor has ended."""
        assert self.ended(timeout_s), f"the monitor still runs; records: {[r[:6] for r in self.records()]}"
        crash = self.directory / "monitor.crash"
        assert not crash.exists(), crash.read_text()
        assert monitor_pid(self.directory) is None
        found = tuple(self.records())
        assert found, "the journal is empty"
        assert found[-1].type == RecordType.EXIT
        return Result(found, json.loads(bytes(found[-1].payload)))

    def close(self) -> None:
        """End it, whatever it does, and remove its directory."""
        if self.pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                pidfd_send_signal(self.pidfd, signal.SIGKILL)
            assert self.ended()
            os.close(self.pidfd)
            self.pidfd = None
        shutil.rmtree(self.directory, ignore_errors=True)


class Sandboxes:
    """A launcher and the jobs that it was given; as a context manager it leaves nothing behind."""

    def __init__(self, base: Path, identity: JobIdentity = IDENTITY, **journal: Any) -> None:
        self.identity = identity
        self.settings = Settings(joblet=Joblet(base_dir=str(base), journal=Journal(**journal)))
        self.layout = layout_of(self.settings)
        self.layout.jobs.mkdir()
        self.layout.uploads.mkdir()
        self.launcher = LauncherProcess(compile_filter())
        self.jobs: list[Launched] = []

    def __enter__(self) -> Self:
        asyncio.run(self.launcher.start())
        return self

    def __exit__(self, *_: object) -> None:
        for job in self.jobs:
            job.close()
        asyncio.run(self.launcher.close())

    def plan(
        self,
        *argv: str,
        cgroup: CgroupPlan = NO_GROUPS,
        timeout_ms: int | None = None,
        prepared: tuple[PreparedVolume, ...] = (),
        **spec: Any,
    ) -> Launch:
        """The launch of a command. `prepared`: its volumes."""
        spec = {"volumes": tuple(each.mount for each in prepared), **spec}
        record = JobRecord(
            id=new_job_id(),
            owner="alice",
            node_id="node",
            state=State.STARTING,
            spec=JobSpec(command=argv[0], args=argv[1:], limits=Limits(timeout_ms=timeout_ms), **spec),
            created_at_ns=0,
        )
        return plan_launch(
            record,
            identity=self.identity,
            cgroup=cgroup,
            settings=self.settings,
            layout=self.layout,
            rootfs=Rootfs(self.settings.joblet.jobs).parts(self.identity.range_first),
            network=NetworkPlan(),
            volumes=prepared,
        )

    def start(self, *argv: str, **options: Any) -> Launched:
        """Start a command; the monitor's files exist when it returns."""
        return self.start_launch(self.plan(*argv, **options))

    def start_launch(self, launch: Launch) -> Launched:
        """Start a launch."""
        directory = Path(launch.task.job_dir)
        monitor = asyncio.run(self.launch(launch))
        job = Launched(directory, monitor)
        self.jobs.append(job)
        return job

    async def launch(self, launch: Launch) -> int:
        """What the executor does with a launch; the monitor's pid."""
        return await self.launcher.finish(await self.launcher.begin(launch.task), launch.task)

    def run(self, *argv: str, **options: Any) -> Result:
        """Start a command and wait for its end."""
        return self.start(*argv, **options).result()

    def shell(self, script: str, **options: Any) -> Result:
        """Run a shell script as the job, and wait for its end."""
        return self.run("sh", "-c", script, **options)

    def stage(self, archive: bytes, *, entries: int = 1) -> Upload:
        """Stage a tar archive as api does."""
        upload = Upload(id=new_job_id(), bytes=len(archive), entries=entries)
        self.layout.upload(upload.id).write_bytes(archive)
        return upload


def prepared(directory: Path, path: str, *, read_only: bool = False, name: str = "") -> PreparedVolume:
    """`directory` as a volume of the job's at `path`, as the volumes service would tell of it."""
    found = directory.stat()
    return PreparedVolume(
        id=new_volume_id(),
        mount=VolumeMount(name=name or directory.name, path=path, read_only=read_only),
        source=str(directory),
        root=f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}:{found.st_ino}",
        device="",
    )


def with_task(launch: Launch, **changes: Any) -> Launch:
    """The launch with fields of its task replaced."""
    return launch._replace(task=launch.task._replace(**changes))


def sha256(content: bytes) -> str:
    """For comparing what is too large to print."""
    return hashlib.sha256(content).hexdigest()


def fields(status: bytes) -> dict[str, str]:
    """The lines of a /proc/…/status file."""
    return {key: value.strip() for key, _, value in (line.partition(":") for line in status.decode().splitlines())}


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def host_mounts() -> list[str]:
    """The host's mounts, as this process sees them, but those of tests that run at the same time in other processes."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if not _is_of_another_worker(line)]


def _is_of_another_worker(line: str) -> bool:
    """All of them mount below the directory for temporary files only, where ours have our name in their path."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    ours = OWN_MARK in line or f"/popen-{worker}/" in line
    temporary = line.split()[4].startswith(f"{tempfile.gettempdir()}/")
    return not ours and (temporary if worker else "/joblet-test-" in line)


def processes_of(job: Launched) -> set[int]:
    """Every process that the host sees in the PID namespace of the job's main process."""
    namespace = Path(f"/proc/{job.main_pid()}/ns/pid").readlink()
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "ns" / "pid").readlink() == namespace:
                    found.add(int(entry.name))
            except (FileNotFoundError, ProcessLookupError, PermissionError):  # gone, or more privileged than we
                continue
    return found


def names_of(job: Launched) -> set[str]:
    """The names of the job's processes; one that ends between the listing and the look has none."""
    names = set()
    for pid in processes_of(job):
        with suppress(FileNotFoundError, ProcessLookupError):
            names.add(Path(f"/proc/{pid}/comm").read_text().strip())
    return names
