"""The worker library with real jobs: start, stop, query, stream, wait, delete, and what it refuses."""

import asyncio
import contextlib
import os
import tracemalloc
from collections.abc import Awaitable, Iterator
from pathlib import Path

import pytest

from tests.linux.worker_library import nothing_left, output, running, sh, text, work_of, worker
from tests.waiting import await_for, wait_for
from worker import Command, Job, JobId, JobletError, OnFull, Reason, Resources, State, Status, Stream, Worker

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

UNKNOWN = JobId("6fa459ea-ee8a-4ca4-894e-db77e160355e")
MIB = 2**20


@pytest.fixture(autouse=True)
def clean(tmp_path: Path) -> Iterator[None]:
    """Every worker here has a temporary directory, of which nothing stays."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    with nothing_left(directory):
        yield


@pytest.mark.requirement("T.1")
@pytest.mark.requirement("S4.2")
@pytest.mark.requirement("S4.7")
@pytest.mark.requirement("S4.8")
@pytest.mark.requirement("S4.10")
@pytest.mark.requirement("S3.11")
def test_a_command_runs_prints_and_ends() -> None:
    """Both streams arrive, in one numbering; the exit code is the program's; it ran in a sandbox of its own."""

    async def scenario() -> None:
        async with worker() as our:
            job = await our.start(sh("echo $$; id -u; printf 'a\\0\\377' >&2; exit 3"))
            pieces = await output(our, job)
            assert text(pieces) == b"2\n1000\n"
            assert text(pieces, Stream.STDERR) == b"a\0\xff"
            assert pieces[0].sequence == 1
            assert sum(piece.entries for piece in pieces) == 3
            status = await our.wait(job)
            assert (status.exit_code, status.exited, status.state) == (3, True, State.FAILED)
            assert status.pid > 1
            assert status == await our.query(job)
            assert status.sentence == "finished (exit code: 3)"

    asyncio.run(scenario())


@pytest.mark.requirement("S4.8")
@pytest.mark.requirement("X8")
def test_a_running_job_and_one_that_a_signal_ended_have_no_exit_code() -> None:
    """-1 in both cases, and the words of all three sources."""

    async def scenario() -> None:
        async with worker() as our:
            job = await our.start(Command("sleep", ["1000"]))
            status = await running(our, job)
            assert (status.exit_code, status.exited, status.word, status.sentence) == (-1, False, "running", "running")
            assert name_of(status.pid) == "sleep"
            await our.stop(job, signal=9)
            ended = await our.wait(job)
            assert (ended.exit_code, ended.exited, ended.signal) == (-1, True, 9)
            assert (ended.word, ended.sentence, ended.state) == ("signaled", "stopped (signal: 9)", State.STOPPED)
            assert name_of(status.pid) == ""

    asyncio.run(scenario())


def test_a_job_that_ignores_the_stop_signal_is_killed_after_the_grace() -> None:
    """TERM reaches the program; when it goes on, all of the job is killed.

    It is stopped for good when it was heard to hear: a second stop may shorten the grace.
    """

    async def scenario() -> None:
        async with worker() as our:
            once = "trap 'trap \"\" TERM; echo heard' TERM"
            job = await our.start(sh(f"{once}; echo ready; while :; do sleep 0.1; done"))
            async with contextlib.aclosing(our.stream(job)) as pieces:
                await anext(pieces)
                await our.stop(job, grace_s=600)
                await anext(pieces)
                await our.stop(job, grace_s=0.5)
            ended = await our.wait(job)
            assert ended.signal == 9
            assert text(await output(our, job)) == b"ready\nheard\n"

    asyncio.run(scenario())


@pytest.mark.requirement("S4.10")
def test_a_stream_is_live() -> None:
    """What a job writes arrives while it runs: it waits for a stop that is sent only because its line was read."""

    async def scenario() -> None:
        async with worker() as our:
            job = await our.start(sh("trap 'echo bye; exit 0' TERM; echo one; while :; do sleep 0.05; done"))
            seen = []
            async for piece in our.stream(job):
                seen.append(piece)
                if text(seen) == b"one\n" and len(seen) == 1:
                    assert not (await our.query(job)).exited
                    await our.stop(job)
            assert text(seen) == b"one\nbye\n"
            assert (await our.wait(job)).exit_code == 0

    asyncio.run(scenario())


@pytest.mark.requirement("S4.10")
def test_the_end_of_a_stream_is_the_end_of_its_job(tmp_path: Path) -> None:
    """A program that is held up finds the end in the journal before its worker has learned it: it is told no sooner."""

    async def scenario() -> None:
        async with worker(tmp_path / "base") as our:
            job = await our.start(sh("echo up; until [ -e /work/go ]; do sleep 0.02; done; exit 3"))
            status = await running(our, job)
            async with contextlib.aclosing(our.stream(job)) as pieces:
                await anext(pieces)
                (work_of(status) / "go").touch()
                journal = tmp_path / "base" / "jobs" / job / "journal"
                wait_for(lambda: b"exit_code" in journal.read_bytes(), what="the end")  # nobody else goes on meanwhile
                assert [piece async for piece in pieces] == []
            assert (await our.query(job)).exit_code == 3

    asyncio.run(scenario())


@pytest.mark.requirement("S4.10")
def test_many_streams_of_one_job_see_the_same() -> None:
    """Some from before its start, some in the middle, some behind its end: each has all from the first byte."""

    async def scenario() -> None:
        async with worker() as our:
            wait = "until [ -e /work/go ]; do sleep 0.02; done"
            job = await our.start(sh(f"for i in $(seq 2000); do echo $i; done; {wait}; seq 2001 4000"))
            early = [asyncio.create_task(output(our, job)) for _ in range(10)]
            status = await running(our, job)
            late = [asyncio.create_task(output(our, job)) for _ in range(10)]
            (work_of(status) / "go").touch()
            await our.wait(job)
            seen = [await output(our, job), *await asyncio.gather(*early, *late)]
            expected = b"".join(b"%d\n" % number for number in range(1, 4001))
            for pieces in seen:
                assert text(pieces) == expected
                assert [piece.sequence for piece in pieces] == [
                    1 + sum(piece.entries for piece in pieces[:index]) for index in range(len(pieces))
                ]

    asyncio.run(scenario())


def test_a_slow_reader_costs_the_memory_of_a_portion() -> None:
    """Twenty who have read one piece of 16 MiB and pause hold a small part of it, and no job waits for them."""

    async def scenario() -> None:
        async with worker() as our:
            job = await our.start(sh("head -c 16777216 /dev/zero | tr '\\0' 'x'"))
            assert (await our.wait(job)).exit_code == 0
            async with contextlib.AsyncExitStack() as stack:
                tracemalloc.start()
                for _ in range(20):
                    pieces = await stack.enter_async_context(contextlib.aclosing(our.stream(job)))
                    await anext(pieces)
                held, _ = tracemalloc.get_traced_memory()
                tracemalloc.stop()
            assert held < 20 * MIB
            assert len(text(await output(our, job))) == 16 * MIB

    asyncio.run(scenario())


@pytest.mark.requirement("X1")
def test_output_beyond_the_journal_is_lost_and_told() -> None:
    """What was kept and what is told as lost are together what the job wrote; it ends by itself.

    It writes whole lines: of one that came in two parts each would count.
    """

    async def scenario() -> None:
        async with worker(journal_bytes_max=256 * 1024) as our:
            job = await our.start(sh("i=0; while [ $i -lt 500000 ]; do i=$((i+1)); echo $i; done"))
            status = await our.wait(job)
            assert status.exit_code == 0
            assert 0 < status.lost_entries < 500_000
            assert status.last_sequence == 500_000
            pieces = await output(our, job)
            assert sum(piece.entries for piece in pieces if piece.lost) == status.lost_entries
            assert sum(piece.entries for piece in pieces) == 500_000
            assert text(pieces).startswith(b"1\n2\n3\n")

    asyncio.run(scenario())


@pytest.mark.requirement("X1")
def test_a_job_whose_journal_is_full_waits_when_told_to() -> None:
    """Nothing is lost: it cannot write any more, until it is stopped."""

    async def scenario() -> None:
        async with worker(journal_bytes_max=256 * 1024, on_full=OnFull.BLOCK) as our:
            job = await our.start(sh("seq 1 5000000"))
            size = 0
            async with contextlib.aclosing(our.stream(job)) as pieces:
                async for piece in pieces:
                    size += len(piece.data)
                    if size >= 256 * 1024:
                        break
            await our.stop(job, signal=9)
            status = await our.wait(job)
            assert (status.signal, status.lost_entries) == (9, 0)
            assert size <= len(text(await output(our, job))) < 8 * MIB

    asyncio.run(scenario())


@pytest.mark.requirement("S4.4")
def test_output_is_also_written_to_a_file(tmp_path: Path) -> None:
    """The bytes of both streams as they are, whole when the end is known; what a stranger put there is not touched."""

    async def scenario() -> None:
        logs = tmp_path / "logs"
        async with worker(log_directory=logs) as our:
            job = await our.start(sh("printf 'a\\0b\\n'; seq 1 3000000; echo err >&2"))
            await our.wait(job)
            written = (logs / f"{job}.log").read_bytes()
            assert written == b"".join(piece.data for piece in await output(our, job))
            assert len(written) == 4 + 22_888_896 + 4
            assert (logs / f"{job}.log").stat().st_mode & 0o777 == 0o600
            endless = await our.start(sh("echo started; sleep 1000"))
            await await_for(lambda: (logs / f"{endless}.log").read_bytes() == b"started\n", what="the line")
        assert (logs / f"{endless}.log").read_bytes() == b"started\n"
        assert len(list(logs.iterdir())) == 2

    asyncio.run(scenario())


@pytest.mark.requirement("S4.6")
@pytest.mark.requirement("S3.11")
def test_resources_are_limits() -> None:
    """Of memory, and of run time."""

    async def scenario() -> None:
        async with worker() as our:
            hungry = await our.start(
                sh("x=$(head -c 200000000 /dev/zero | tr '\\0' x)", Resources(memory_bytes=16 * MIB))
            )
            slow = await our.start(Command("sleep", ["1000"], Resources(timeout_ms=300)))
            eaten = await our.wait(hungry)
            assert eaten.exited
            assert eaten.oom_killed
            late = await our.wait(slow)
            assert (late.state, late.exit_code) == (State.TIMED_OUT, -1)

    asyncio.run(scenario())


@pytest.mark.requirement("S4.9")
@pytest.mark.requirement("S4.3")
def test_jobs_are_listed_until_they_are_deleted() -> None:
    """Newest first, each with its command and status; deleted, a job is not known any more."""

    async def scenario() -> None:
        async with worker() as our:
            first = await our.start(Command("true"))
            await our.wait(first)
            second = await our.start(Command("sleep", ["1000"], environment={"A": "b"}, grace_s=0.5))
            listed = await our.jobs()
            assert [job.id for job in listed] == [second, first]
            assert listed[0].command.args == ("1000",)
            assert (listed[0].command.environment, listed[0].command.grace_s) == ({"A": "b"}, 0.5)
            assert isinstance(listed[1], Job)
            assert listed[1].status == await our.query(first)
            await our.delete(first)
            assert [job.id for job in await our.jobs()] == [second]
            await refused(our.query(first), Reason.NOT_FOUND)
            await refused(output(our, first), Reason.NOT_FOUND)

    asyncio.run(scenario())


@pytest.mark.requirement("S4.2")
def test_errors_have_a_reason() -> None:
    """Unknown and malformed ids, what cannot be meant, what the state does not allow, and a worker that is not open."""

    async def scenario() -> None:
        our = worker()
        await refused(our.query(UNKNOWN), Reason.UNAVAILABLE)
        async with our:
            for call in (our.query, our.stop, our.wait, our.delete):
                await refused(call(UNKNOWN), Reason.NOT_FOUND)
                await refused(call(JobId("nonsense")), Reason.INVALID)
            await refused(output(our, UNKNOWN), Reason.NOT_FOUND)
            await refused(our.start(Command("")), Reason.INVALID)
            await refused(our.start(Command("true", "abc")), Reason.INVALID)
            await refused(our.start(Command("true", [1])), Reason.INVALID)  # type: ignore[list-item]  # on purpose
            await refused(our.start(Command("true", resources=Resources(cpu_percent=-1))), Reason.INVALID)
            await refused(our.start(Command("true", grace_s=float("nan"))), Reason.INVALID)
            job = await our.start(Command("sleep", ["1000"]))
            await refused(our.delete(job), Reason.PRECONDITION)
            await refused(our.stop(job, signal=99), Reason.INVALID)
            await our.stop(job, signal=9)
            await our.wait(job)
            await refused(our.stop(job), Reason.PRECONDITION)
            missing = await our.wait(await our.start(Command("/no/such/program")))
            assert (missing.exited, missing.exit_code, missing.pid, missing.word) == (True, -1, 0, "failed")
            assert "/no/such/program" in missing.reason
        await refused(our.query(job), Reason.UNAVAILABLE)
        with pytest.raises(JobletError, match="was opened before"):
            async with our:
                pass

    asyncio.run(scenario())


def test_more_than_may_run_at_once_are_refused() -> None:
    """The caller hears that there is no room, and that there may be later; when one has ended there is."""

    async def scenario() -> None:
        async with worker(running_max=2) as our:
            first, _ = [await our.start(Command("sleep", ["1000"])) for _ in range(2)]
            with pytest.raises(JobletError, match="2 jobs run") as caught:
                await our.start(Command("true"))
            assert (caught.value.reason, caught.value.retryable) == (Reason.EXHAUSTED, True)
            await our.stop(first, signal=9)
            await our.wait(first)
            assert (await our.wait(await our.start(Command("true")))).exit_code == 0

    asyncio.run(scenario())


def test_fifty_jobs_at_once() -> None:
    """Each has its own output and its own end."""

    async def scenario() -> None:
        async with worker() as our:

            async def one(number: int) -> tuple[bytes, Status]:
                job = await our.start(sh(f"echo {number}; sleep 0.2; echo {number} >&2; exit {number}"))
                pieces = await output(our, job)
                assert text(pieces) == text(pieces, Stream.STDERR)
                return text(pieces), await our.wait(job)

            for number, (printed, status) in enumerate(await asyncio.gather(*map(one, range(50)))):
                assert printed == b"%d\n" % number
                assert status.exit_code == number

    asyncio.run(scenario())


def test_the_host_tells_what_it_can_do() -> None:
    """The same facts as a node's."""

    async def scenario() -> None:
        async with worker() as our:
            levels = {each.name: each.level for each in await our.capabilities()}
            assert levels["seccomp"] == "enforced"
            assert levels["owner.range"] == "enforced"

    asyncio.run(scenario())


def name_of(pid: int) -> str:
    """Of a process of this host; "": there is none."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except FileNotFoundError:
        return ""


async def refused(call: Awaitable[object], reason: Reason) -> None:
    """The call fails for this reason, in words."""
    with pytest.raises(JobletError) as caught:
        await call
    assert caught.value.reason is reason
    assert str(caught.value)


def test_a_worker_is_made_of_sense() -> None:
    """What cannot be meant is refused before anything is opened."""
    with pytest.raises(JobletError, match="keep_jobs without a directory"):
        Worker(keep_jobs=True)
    with pytest.raises(JobletError, match="journal_bytes_max"):
        Worker(journal_bytes_max=0)
    for first in (1000, 2**32):
        with pytest.raises(JobletError, match=f"uid_first is {first}: use 65536 to"):
            Worker(uid_first=first)
