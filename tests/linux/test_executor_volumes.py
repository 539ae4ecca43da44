"""A real executor and volumes, over real sockets: whose they are while either of both processes comes and goes.

The volumes service is the test's own: it answers with directories, and remembers who has them. What a volume is made
of is not told here.
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from common.bus.requests import Handler, Responder
from common.bus.zeromq import ZeroMQ
from common.errors import JobletError, not_found, precondition
from common.identifiers import JobId
from common.messages.envelope import Body
from common.messages.jobs import JobAccepted, JobSpec, Limits, RunJob, State, VolumeMount
from common.messages.topics import API_REPLIES, EXECUTOR_REPLIES, VOLUME_COMMANDS, VOLUMES_COMMANDS
from common.messages.volumes import (
    CheckVolumes,
    PreparedVolume,
    PrepareVolumes,
    ReleaseVolumes,
    SyncVolumes,
    VolumesChecked,
    VolumesPrepared,
    VolumesReleased,
)
from tests.linux.executor_process import Asker, ExecutorProcess, asking
from tests.linux.sandboxes import prepared
from tests.waiting import await_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

DATA = VolumeMount(name="data", path="/volumes/data")
FOR_A_WHILE = "until test -e /volumes/data/end; do sleep 0.05; done; echo done >/volumes/data/f"


class Service:
    """Keeps one directory a volume; one writer at a time. Its memory outlives its process, as records do."""

    def __init__(self, run_dir: Path, directory: Path, device: str = "") -> None:
        self._run_dir = run_dir
        self._directory = directory
        self._device = device
        self.users: set[JobId] = set()
        self.asked: list[Body] = []
        self.shared = False

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """A process of its own, as far as the executor can tell."""
        transport = ZeroMQ(self._run_dir)
        handlers: Mapping[type[Body], Handler] = dict.fromkeys(VOLUME_COMMANDS, self._answer)
        responder = Responder(transport, VOLUMES_COMMANDS, API_REPLIES, handlers, also=(EXECUTOR_REPLIES,))
        running = asyncio.create_task(responder.run())
        try:
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await responder.close()
            transport.close()

    async def _answer(self, body: Body) -> Body:
        self.asked.append(body)
        match body:
            case CheckVolumes():
                self._check(None, body.mounts)
                return VolumesChecked()
            case PrepareVolumes():
                self._check(body.job, body.mounts)
                self.users.add(body.job)
                os.chown(self._directory, body.uid, body.gid)
                return VolumesPrepared(volumes=tuple(map(self._prepared, body.mounts)))
            case ReleaseVolumes():
                self.users.discard(body.job)
            case SyncVolumes():
                self.users &= set(body.jobs)
        return VolumesReleased()

    def _check(self, job: JobId | None, mounts: tuple[VolumeMount, ...]) -> None:
        for mount in mounts:
            if mount.name != "data":
                raise not_found(f"there is no volume {mount.name}", "see: rnx volume list")
            if self.users - {job} and not self.shared:
                raise precondition(f"volume data is in use by job {min(self.users)}", "wait for its end")

    def _prepared(self, mount: VolumeMount) -> PreparedVolume:
        found = prepared(self._directory, mount.path, name=mount.name)
        return PreparedVolume(id=found.id, mount=mount, source=found.source, root=found.root, device=self._device)


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[ExecutorProcess]:
    """A process that is started by the test."""
    base = tmp_path / "base"
    base.mkdir()
    process = ExecutorProcess(base)
    yield process
    process.close()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The volume."""
    made = tmp_path / "data"
    made.mkdir()
    return made


async def run(asker: Asker, script: str) -> JobId:
    """A job with the volume, which runs."""
    job = await asker.run(script, volumes=(DATA,))
    await asker.until(job, State.RUNNING)
    return job


@pytest.mark.requirement("S1.6")
@pytest.mark.requirement("S1.7")
@pytest.mark.requirement("S1.49")
def test_a_volume_is_its_jobs_until_it_ends(executor: ExecutorProcess, directory: Path) -> None:
    """It is written to; another job is refused at once, naming the first; afterwards others can have it, at once."""

    async def scenario() -> None:
        service = Service(executor.base / "run", directory)
        async with service.serving(), asking(executor.base) as asker:
            first = await run(asker, FOR_A_WHILE)
            with pytest.raises(JobletError, match=f"in use by job {first}"):
                await asker.run("true", volumes=(DATA,))
            with pytest.raises(JobletError, match="no volume other"):
                await asker.run("true", volumes=(VolumeMount(name="other", path="/other"),))
            (directory / "end").touch()
            await asker.until(first, State.COMPLETED)
            for number in range(10):  # each as soon as it can be known that the one before has ended
                job = await asker.run(f"echo {number} >>/volumes/data/f", volumes=(DATA,))
                await asker.until(job, State.COMPLETED)
            await await_for(lambda: not service.users, what="the release")
            assert (directory / "f").read_text() == "done\n" + "".join(f"{number}\n" for number in range(10))

    executor.start()
    asyncio.run(scenario())


@pytest.mark.requirement("S1.49")
def test_a_killed_executor_forgets_no_volume(executor: ExecutorProcess, directory: Path) -> None:
    """The next one knows that the job has it: nobody gets it meanwhile. One that ended in between is released."""

    async def scenario() -> None:
        service = Service(executor.base / "run", directory)
        async with service.serving(), asking(executor.base) as asker:
            job = await run(asker, FOR_A_WHILE)
            executor.end(signal.SIGKILL)
            del service.asked[:]
            executor.start()
            await await_for(lambda: SyncVolumes(jobs=(job,)) in service.asked, what="the sync")
            assert service.users == {job}
            executor.end(signal.SIGKILL)
            (directory / "end").touch()
            await await_for((directory / "f").exists, what="the end of the job")
            executor.start()
            await await_for(lambda: not service.users, what="the release")
            await asker.until(job, State.COMPLETED)

    executor.start()
    asyncio.run(scenario())


@pytest.mark.requirement("S1.49")
def test_a_service_that_is_started_again_is_waited_for(executor: ExecutorProcess, directory: Path) -> None:
    """A job ends while it is away, and one is to start: the end is told, and the start happens."""

    async def scenario() -> None:
        service = Service(executor.base / "run", directory)
        async with asking(executor.base) as asker:
            async with service.serving():
                job = await run(asker, FOR_A_WHILE)
            (directory / "end").touch()
            await asker.until(job, State.COMPLETED)
            assert service.users == {job}
            service.shared = True  # which of both comes first is not said
            waiting = asyncio.create_task(asker.run("true", volumes=(DATA,)))
            async with service.serving():
                await await_for(lambda: job not in service.users, what="the release")
                await asker.until(await waiting, State.COMPLETED)

    executor.start()
    asyncio.run(scenario())


def test_without_the_service_a_job_is_refused_and_others_run(executor: ExecutorProcess) -> None:
    """UNAVAILABLE, in a few seconds; a job without volumes does not notice."""

    async def scenario() -> None:
        async with asking(executor.base) as asker:
            refused = asyncio.create_task(asker.run("true", volumes=(DATA,)))
            await asker.until(await asker.run("true"), State.COMPLETED)
            with pytest.raises(JobletError, match="did not answer"):
                await refused

    executor.start()
    asyncio.run(scenario())


@pytest.fixture
def image(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A file system of its own on a loop device: where it is mounted, and MAJ:MIN of the device."""
    file, point = tmp_path / "image", tmp_path / "image-mount"
    point.mkdir()
    file.write_bytes(bytes(32 * 2**20))
    subprocess.run(["mkfs.ext4", "-q", str(file)], check=True, env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"})
    found = subprocess.run(["losetup", "--find", "--show", str(file)], check=False, capture_output=True, text=True)
    if found.returncode:
        pytest.skip(f"no loop device: {found.stderr}")
    device = found.stdout.strip()
    try:
        subprocess.run(["mount", device, str(point)], check=True)
        try:
            status = Path(device).stat()
            yield point, f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        finally:
            subprocess.run(["umount", str(point)], check=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@pytest.mark.requirement("S1.17")
@pytest.mark.requirement("S1.37")
def test_limits_of_input_and_output_hold_on_a_volume(executor: ExecutorProcess, image: tuple[Path, str]) -> None:
    """8 MiB at 4 MiB a second take some 2 s on the volume's own device; without a limit they need not."""
    point, device = image
    directory = point / "data"
    directory.mkdir()

    async def scenario() -> None:
        service = Service(executor.base / "run", directory, device)
        async with service.serving(), asking(executor.base) as asker:
            try:
                limited_s = await took(asker, Limits(write_bytes_per_s=4 * 2**20))
            except JobletError as error:
                if "cannot enforce" not in str(error):
                    raise
                pytest.skip(str(error))
            assert limited_s > 1.5

            async def quicker() -> bool:
                return await took(asker, Limits()) < limited_s

            # Anything may take long now and then; the limit does so every time.
            await await_for(quicker, timeout_s=30, what="a job without a limit to be quicker")
            await await_for(lambda: not service.users, what="the release")

    async def took(asker: Asker, limits: Limits) -> float:
        script = "dd if=/dev/zero of=/volumes/data/f bs=256k count=32 oflag=direct conv=notrunc 2>/dev/null"
        spec = JobSpec(command="sh", args=("-c", script), limits=limits, volumes=(DATA,))
        job = (await asker.ask(RunJob(owner="ann", spec=spec), JobAccepted)).job.id
        record = await asker.until(job, State.COMPLETED)
        return (record.ended_at_ns - record.started_at_ns) / 1e9

    executor.start()
    asyncio.run(scenario())
