"""How a worker ends, in good order or not, and how the next one on its directory takes up what is there."""

import asyncio
import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.bus.zeromq import ZeroMQ
from common.linux import mounts
from common.messages.topics import EVENTS
from services.executor.wiring import wired
from tests.leaks import OWN_MARK
from tests.linux.worker_library import nothing_left, output, running, sh, text, worker
from tests.waiting import await_for, wait_for
from worker import Command, JobId, JobletError, Reason, State, Status, Worker
from worker.inside import Changes, InProcess
from worker.place import prepared
from worker.session import Session

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

STUBBORN = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
COUNTING = "i=0; while :; do i=$((i + 1)); echo $i; sleep 0.02; done"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def temporary(tmp_path: Path) -> Iterator[Path]:
    """Where temporary directories are made; nothing stays there."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    with nothing_left(directory):
        yield directory


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A directory that is to stay."""
    return tmp_path / "base"


async def ready(our: Worker, command: Command) -> tuple[JobId, Status]:
    """A job that has printed something, and its status then."""
    job = await our.start(command)
    async with contextlib.aclosing(our.stream(job)) as pieces:
        await anext(pieces)
    return job, await running(our, job)


def gone(pid: int) -> bool:
    """Whether no such process is there."""
    return not Path(f"/proc/{pid}").exists()


@pytest.mark.usefixtures("temporary")
def test_closing_ends_running_jobs() -> None:
    """One that hears the stop signal, one that does not, one that has just been started: nothing of them is left."""

    async def scenario() -> list[Status]:
        async with worker() as our:
            _, polite = await ready(our, sh("echo ready; exec sleep 1000"))
            _, stubborn = await ready(our, sh(STUBBORN, grace_s=0.3))
            await our.start(Command("sleep", ["1000"]))
        return [polite, stubborn]

    for status in asyncio.run(scenario()):
        assert gone(status.pid)


@pytest.mark.usefixtures("temporary")
def test_an_error_in_the_body_comes_out_as_it_is() -> None:
    """And the jobs are ended all the same."""

    async def scenario() -> None:
        async with worker() as our:
            pids.append((await ready(our, sh("echo ready; exec sleep 1000")))[1].pid)
            raise ZeroDivisionError

    pids: list[int] = []
    with pytest.raises(ZeroDivisionError):
        asyncio.run(scenario())
    assert all(map(gone, pids))


@pytest.mark.usefixtures("temporary")
def test_a_cancelled_task_closes_its_worker() -> None:
    """It waited for a job; the job is ended before the task is."""

    async def body(begun: "asyncio.Future[Status]") -> None:
        async with worker() as our:
            job, status = await ready(our, sh("echo ready; exec sleep 1000"))
            begun.set_result(status)
            await our.wait(job)

    async def scenario() -> None:
        begun: asyncio.Future[Status] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(body(begun))
        status = await begun
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert gone(status.pid)

    asyncio.run(scenario())


@pytest.mark.usefixtures("temporary")
def test_a_cancellation_while_it_closes_ends_every_grace() -> None:
    """A job that would use its ten minutes is killed; the task ends as cancelled, and nothing is left."""

    async def body(begun: "asyncio.Future[Status]", closing: asyncio.Event) -> None:
        async with worker() as our:
            _, status = await ready(our, sh(STUBBORN, grace_s=600))
            begun.set_result(status)
            await closing.wait()

    async def scenario() -> None:
        begun: asyncio.Future[Status] = asyncio.get_running_loop().create_future()
        closing = asyncio.Event()
        task = asyncio.create_task(body(begun, closing))
        status = await begun
        closing.set()
        for _ in range(3):  # it is in the middle of closing
            await asyncio.sleep(0)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert gone(status.pid)

    asyncio.run(scenario())


@pytest.mark.usefixtures("temporary")
def test_a_cancelled_start_leaves_no_running_job() -> None:
    """At whatever moment it is cancelled: whoever does not learn the id could not stop it."""

    async def scenario() -> None:
        async with worker() as our:
            for turns in range(12):
                task = asyncio.create_task(our.start(Command("sleep", ["1000"])))
                for _ in range(turns):
                    await asyncio.sleep(0)
                if task.done():
                    await our.stop(task.result(), signal=9)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

            async def all_ended() -> bool:
                return all(job.status.exited for job in await our.jobs())

            await await_for(all_ended, timeout_s=30, what="the jobs to end")

    asyncio.run(scenario())


@pytest.mark.usefixtures("temporary")
def test_whoever_waits_when_it_is_closed_is_told() -> None:
    """A wait and a stream that go on while the worker closes see the end of the job; later ones are refused."""

    async def scenario() -> None:
        async with worker() as our:
            job, _ = await ready(our, sh("trap 'echo bye; exit 4' TERM; echo ready; while :; do sleep 0.05; done"))
            waiting = asyncio.create_task(our.wait(job))
            reading = asyncio.create_task(output(our, job))
            paused = our.stream(job)
            await anext(paused)
        assert (await waiting).exit_code == 4
        assert text(await reading) == b"ready\nbye\n"
        with pytest.raises(JobletError) as caught:
            async for _ in paused:
                pass
        assert caught.value.reason is Reason.UNAVAILABLE
        await paused.aclose()

    asyncio.run(scenario())


@pytest.mark.requirement("S4.3")
def test_a_directory_keeps_statuses_and_output(base: Path) -> None:
    """The next worker on it knows how jobs ended and what they printed, those ended by the closing included."""

    async def scenario() -> None:
        async with worker(base) as our:
            done = await our.start(sh("echo done; exit 7"))
            await our.wait(done)
            cut, _ = await ready(our, sh("echo cut; exec sleep 1000"))
        async with worker(base) as our:
            assert [job.id for job in await our.jobs()] == [cut, done]
            assert (await our.query(done)).exit_code == 7
            assert text(await output(our, done)) == b"done\n"
            assert (await our.wait(cut)).state is State.STOPPED
            assert text(await output(our, cut)) == b"cut\n"
            for job in (cut, done):
                await our.delete(job)
        assert not any((base / "jobs").iterdir())

    asyncio.run(scenario())


def test_kept_jobs_go_on_and_are_taken_up(base: Path, tmp_path: Path) -> None:
    """Not a line is missing of what a job wrote while there was no worker, in the stream and in its log file."""

    async def scenario() -> None:
        logs = tmp_path / "logs"
        async with worker(base, keep_jobs=True, log_directory=logs) as our:
            job, status = await ready(our, sh(COUNTING))
        assert not gone(status.pid)
        size = (logs / f"{job}.log").stat().st_size
        async with worker(base, log_directory=logs) as our:
            assert (await our.query(job)).pid == status.pid
            await await_for(lambda: (logs / f"{job}.log").stat().st_size > size + 20, what="the log file to go on")
            await our.stop(job)
            await our.wait(job)
            printed = text(await output(our, job))
        assert (logs / f"{job}.log").read_bytes() == printed
        numbers = [int(line) for line in printed.splitlines()]
        assert numbers == list(range(1, len(numbers) + 1))

    asyncio.run(scenario())


def test_a_launch_under_way_is_not_cut_off(base: Path) -> None:
    """Jobs that were started just before the closing, and are to go on, do."""

    async def scenario() -> None:
        async with worker(base, keep_jobs=True) as our:
            jobs = await asyncio.gather(*(our.start(Command("sleep", ["1000"])) for _ in range(40)))
        async with worker(base) as our:
            for job in jobs:
                await running(our, job)

    asyncio.run(scenario())


def test_what_was_mounted_below_a_job_goes_first(temporary: Path) -> None:
    """Not ours, but in our place: it is taken away before the directory is removed."""

    def mount_over(job: JobId) -> Path:
        (place,) = temporary.glob(f"*/jobs/{job}")
        mounts.mount("none", str(place), "tmpfs", 0, "")
        return place

    async def scenario() -> Path:
        async with worker() as our:
            job = await our.start(Command("true"))
            await our.wait(job)
            return mount_over(job)

    place = asyncio.run(scenario())
    try:
        assert str(place) not in Path("/proc/self/mountinfo").read_text()
    finally:
        with contextlib.suppress(OSError):
            mounts.umount2(str(place), mounts.MNT_DETACH)


def test_a_part_that_fails_is_told_to_all(base: Path) -> None:
    """Whoever waits learns it, and whoever asks; closing ends the jobs all the same."""

    async def fail() -> None:
        await failing.wait()
        raise ZeroDivisionError

    async def scenario() -> None:
        options = worker(base)._options
        with prepared(options) as (settings, layout):
            changes = Changes()
            async with wired(settings, layout, InProcess(layout.run, changes), has_volumes=False) as parts:
                broken = dataclasses.replace(parts, neighbours=(*parts.neighbours, fail))
                session = Session(options, broken, layout, changes)
                await session.begin()
                job = await session.start(Command("sleep", ["1000"]).spec())
                waiting = asyncio.create_task(session.wait(job))
                await asyncio.sleep(0)
                failing.set()
                for call in (waiting, session.record(job), session.start(Command("true").spec())):
                    with pytest.raises(JobletError, match="ZeroDivisionError") as caught:
                        await call
                    assert caught.value.reason is Reason.INTERNAL
                await session.close()
                assert not parts.executor.jobs.active

    failing = asyncio.Event()
    asyncio.run(scenario())


PROGRAM = """
import asyncio, sys
from pathlib import Path
from worker import Command, Worker
async def main():
    async with Worker(Path(sys.argv[1]), cgroup_parent=sys.argv[2]) as worker:
        job = await worker.start(Command("sh", ["-c", sys.argv[3]]))
        async for piece in worker.stream(job):
            print(job, flush=True)
            await asyncio.Event().wait()
asyncio.run(main())
"""


def test_jobs_of_a_killed_program_are_found_again(base: Path) -> None:
    """Kill -9 of the caller ends no job; the next worker on the directory has it, and its closing ends it."""
    command = [sys.executable, "-c", PROGRAM, str(base), OWN_MARK, COUNTING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as program:
        assert program.stdout is not None
        job = JobId(program.stdout.readline().decode().strip())
        program.send_signal(signal.SIGKILL)

    async def scenario() -> Status:
        async with worker(base) as our:
            status = await running(our, job)
            lines = 0
            async with contextlib.aclosing(our.stream(job)) as pieces:
                async for piece in pieces:
                    lines += piece.entries
                    if lines > 20:
                        break
        return status

    status = asyncio.run(scenario())
    wait_for(lambda: gone(status.pid), what="the job to end")


def test_an_interrupted_program_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C: the program ends by it, its job is gone, and so is its directory."""
    script = PROGRAM.replace("Path(sys.argv[1])", "None").replace("print(job", "print((await worker.query(job)).pid")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with nothing_left(temporary):
        command = [sys.executable, "-c", script, "", OWN_MARK, "echo ready; exec sleep 1000"]
        environment = {**os.environ, "TMPDIR": str(temporary)}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=environment
        ) as program:
            assert program.stdout is not None
            pid = int(program.stdout.readline())
            program.send_signal(signal.SIGINT)
            _, errors = program.communicate()
        assert b"KeyboardInterrupt" in errors
        assert gone(pid)


def test_a_directory_has_one_worker(base: Path) -> None:
    """A second one is refused, in this process and beside a node's executor, and the first goes on."""

    async def scenario() -> None:
        async with worker(base) as our:
            with pytest.raises(JobletError) as caught:
                async with worker(base):
                    pass
            assert caught.value.reason is Reason.EXISTS
            assert str(base) in caught.value.message
            assert (await our.wait(await our.start(Command("true")))).exit_code == 0
        node = ZeroMQ(base / "run")
        try:
            node.publisher(EVENTS)
            with pytest.raises(JobletError, match="another worker or node"):
                async with worker(base):
                    pass
        finally:
            node.close()
        async with worker(base) as our:
            assert len(await our.jobs()) == 1

    asyncio.run(scenario())


def test_a_directory_of_somebody_else_is_refused(base: Path) -> None:
    """It is not taken over, and nothing is made in it."""
    base.mkdir()
    os.chown(base, 65534, 65534)

    async def scenario() -> None:
        with pytest.raises(JobletError) as caught:
            async with worker(base):
                pass
        assert caught.value.reason is Reason.PRECONDITION

    asyncio.run(scenario())
    assert not any(base.iterdir())
