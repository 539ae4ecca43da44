"""Journals under a real executor with real jobs: damage, full disks, and space that is given back or cannot be."""

import asyncio
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from common import records
from common.errors import JobletError, Reason
from common.identifiers import JobId
from common.linux import mounts
from common.messages.jobs import GetNode, NodeFacts, OnFull, State
from common.records import HEADER_BYTES, Record, RecordType
from tests.linux.executor_process import Asker, ExecutorProcess, asking, root_of, wait_until_bound
from tests.linux.test_executor_process import monitor_of
from tests.unit.executor_asking import flipped
from tests.unit.executor_fakes import FakePersist
from tests.waiting import await_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

MIB: Final = 2**20
NEW_FILES: Final = 10  # inodes that a job needs


@contextmanager
def executor_on(file_system: str = "", options: str = "", *, journal: str = "") -> Iterator[ExecutorProcess]:
    """A running executor whose jobs directory is of this file system; killed in the end."""
    with tempfile.TemporaryDirectory(prefix="joblet-test-") as name:
        base = Path(name)
        base.chmod(0o755)
        jobs = base / "jobs"
        if file_system:
            jobs.mkdir()
            mounts.mount(file_system, str(jobs), file_system, 0, options)
        process = ExecutorProcess(base, journal=journal)
        try:
            process.start()
            wait_until_bound(base)
            yield process
        finally:
            process.close()
            if file_system:
                mounts.umount2(str(jobs), mounts.MNT_DETACH)


@contextmanager
def storing(asker: Asker) -> Iterator[FakePersist]:
    """A persist that takes everything, in the running loop."""
    persist = FakePersist(asker.transport)  # type: ignore[arg-type]  # the same verbs on real sockets
    task = asyncio.create_task(persist.run())
    try:
        yield persist
    finally:
        task.cancel()
        persist.close()


def journal_of(executor: ExecutorProcess, job: JobId) -> Path:
    """The job's journal."""
    return executor.base / "jobs" / job / "journal"


def placed(content: bytes) -> list[tuple[int, Record]]:
    """Offset and record, one after the other."""
    found, offset = [], 0
    while (decoded := records.decode(memoryview(content), offset)) is not None:
        found.append((offset, decoded[0]))
        offset = decoded[1]
    return found


@pytest.mark.threat("F12")
@pytest.mark.threat("F01")
def test_a_flipped_byte_costs_its_record_and_nothing_else() -> None:
    """Found by an executor that begins anew: a gap for exactly those lines, and the job goes on to its true end."""

    async def scenario(executor: ExecutorProcess) -> None:
        async with asking(executor.base) as asker:
            wait = "while [ ! -e /work/go ]; do sleep 0.05; done; echo last; exit 3"
            job, journal = await nine_lines(asker, executor, wait)
            executor.end(signal.SIGKILL)
            content = journal.read_bytes()
            offset, lost = placed(content)[3]
            with journal.open("r+b") as file:
                file.write(flipped(content, offset + HEADER_BYTES))
            executor.start()

            async def counted() -> bool:
                return (await asker.get(job)).lost_entries == lost.lines

            await await_for(counted, what="the gap")
            running = await asker.get(job)
            assert running.state is State.RUNNING
            (root_of(running.pid) / "work/go").touch()
            with storing(asker) as persist:
                ended = await asker.until(job, State.FAILED)
                assert (ended.exit_code, ended.lost_entries, ended.last_sequence) == (3, lost.lines, 10)
                assert f"corrupt record at byte {offset}" in ended.reason
                await await_for(lambda: job in persist.ended, timeout_s=30, what="the end with persist")
                (gap,) = (each for each in persist.stored[job] if each.type == RecordType.GAP)
                assert (gap.sequence, gap.lines) == (lost.sequence, lost.lines)
                rest = b"".join(bytes(e.payload) for e in persist.stored[job] if e.type == RecordType.OUTPUT)
                assert rest == b"1\n2\n3\n4\n5\n6\n7\n8\n9\nlast\n".replace(bytes(lost.payload), b"")
            counters = (await asker.ask(GetNode(), NodeFacts)).counters
            assert (counters["journals_damaged"], counters["lost_entries"]) == (1, lost.lines)
            (line,) = (line for line in executor.log().splitlines() if "journal damaged" in line)
            assert job in line
            assert str(journal) in line
            assert f"offset={offset}" in line

    with executor_on() as executor:
        asyncio.run(scenario(executor))


@pytest.mark.threat("F03")
@pytest.mark.threat("F12")
def test_damage_and_a_torn_tail_of_a_killed_monitor() -> None:
    """Killed in the middle of a record, with a flipped byte before: LOST, and only those two records are missing."""

    async def scenario(executor: ExecutorProcess) -> None:
        async with asking(executor.base) as asker:
            job, journal = await nine_lines(asker, executor, "exec sleep 100")
            executor.end(signal.SIGKILL)
            os.kill(monitor_of(executor.base, job), signal.SIGKILL)
            content = journal.read_bytes()
            found = placed(content)
            damaged, lost = found[2]
            torn, unfinished = found[-1]
            journal.write_bytes(flipped(content, damaged + 20)[: torn + HEADER_BYTES + 1])
            executor.start()
            record = await asker.until(job, State.LOST)
            assert record.last_sequence == unfinished.sequence - 1
            assert record.lost_entries == lost.lines
            assert record.lost_bytes == found[3][0] - damaged + HEADER_BYTES + 1
            counters = (await asker.ask(GetNode(), NodeFacts)).counters
            assert (counters["journals_damaged"], counters["journals_torn"]) == (1, 1)

    with executor_on() as executor:
        asyncio.run(scenario(executor))


@pytest.mark.threat("C17")
def test_space_of_acknowledged_output_is_given_back_while_the_job_runs() -> None:
    """64 MiB later the journal occupies less than 8 MiB, and the job still runs."""

    async def scenario(executor: ExecutorProcess) -> None:
        async with asking(executor.base) as asker:
            with storing(asker) as persist:
                job = await asker.run("yes 'a line of some length' | head -c 67108864; exec sleep 100")
                journal = journal_of(executor, job)
                await await_for(
                    lambda: journal.exists() and journal.stat().st_size > 64 * MIB, timeout_s=60, what="64 MiB"
                )
                await await_for(lambda: journal.stat().st_blocks * 512 < 8 * MIB, timeout_s=60, what="the hole")
                assert (await asker.get(job)).state is State.RUNNING
                await asker.stop(job)
                await asker.until(job, State.STOPPED)
                await await_for(lambda: job in persist.ended, timeout_s=30, what="the end with persist")
                assert len(persist.output(job)) == 64 * MIB

    with executor_on() as executor:
        asyncio.run(scenario(executor))


@pytest.mark.threat("C17")
def test_a_file_system_that_gives_nothing_back_says_so_once() -> None:
    """ramfs: the journal works until it is full, and a job that filled it can be stopped and has a true end."""

    async def scenario(executor: ExecutorProcess) -> None:
        async with asking(executor.base) as asker:
            with storing(asker) as persist:
                job = await asker.run("yes 'a line of some length'")
                journal = journal_of(executor, job)
                await await_for(
                    lambda: journal.exists() and journal.stat().st_blocks * 512 >= 16 * MIB,
                    timeout_s=30,
                    what="a full one",
                )
                await asker.stop(job)
                record = await asker.until(job, State.STOPPED)
                await await_for(lambda: job in persist.ended, timeout_s=30, what="the end with persist")
                assert record.lost_entries == 0
                stored = persist.output(job)
                assert stored.startswith(b"a line of some length\n" * 500_000)
                assert executor.log().count("journal space cannot be given back") == 1

    with executor_on("ramfs", journal="bytes_max: 16777216") as executor:
        asyncio.run(scenario(executor))


@pytest.mark.threat("F13")
@pytest.mark.threat("F17")
@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_below_the_reserve_no_job_is_taken_and_none_is_harmed(what: str) -> None:
    """EXHAUSTED, saying what to free; the running job prints on; with room again jobs are taken."""

    async def scenario(executor: ExecutorProcess) -> None:
        async with asking(executor.base) as asker:
            running = await asker.run("i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done")
            await asker.until(running, State.RUNNING)
            fillers = []
            if what == "bytes":
                fillers = [executor.base / "jobs" / "filler"]
                fillers[0].write_bytes(bytes(7 * MIB))
            else:
                free = os.statvfs(executor.base / "jobs").f_favail
                fillers = [executor.base / "jobs" / f"filler-{number}" for number in range(free - NEW_FILES)]
                for filler in fillers:
                    filler.touch()
            with pytest.raises(JobletError, match=f"{what} are free on the disk of the jobs' output") as refused:
                await asker.run("true")
            assert (refused.value.reason, refused.value.retryable) == (Reason.EXHAUSTED, True)
            assert "free some" in refused.value.detail
            before = (await asker.get(running)).last_sequence

            async def goes_on() -> bool:
                return (await asker.get(running)).last_sequence > before + 3

            await await_for(goes_on, what="more lines of the running job")
            for filler in fillers:
                filler.unlink()
            job = await asker.run("echo fine")
            assert (await asker.until(job, State.COMPLETED)).spec.on_full is OnFull.BLOCK
            await asker.stop(running)
            await asker.until(running, State.STOPPED)

    with executor_on("tmpfs", "size=12m,nr_inodes=200", journal="reserve_bytes: 6291456") as executor:
        asyncio.run(scenario(executor))


async def nine_lines(asker: Asker, executor: ExecutorProcess, script: str) -> tuple[JobId, Path]:
    """A job that has printed the lines 1 to 9, each a record, and goes on with `script`; and its journal.

    It prints none before the one before it is recorded: a slow monitor would make one record of several.
    """
    wait = "until [ -e /work/$i ]; do sleep 0.01; done"
    job = await asker.run(f"i=0; while [ $i -lt 9 ]; do i=$((i+1)); echo $i; {wait}; done; {script}")
    work = root_of((await asker.until(job, State.RUNNING)).pid) / "work"
    journal = executor.base / "jobs" / job / "journal"

    def printed() -> list[bytes]:
        return [bytes(record.payload) for _, record in placed(journal.read_bytes()) if record.type == RecordType.OUTPUT]

    for number in range(1, 10):
        lines = [b"%d\n" % each for each in range(1, number + 1)]
        await await_for(lambda lines=lines: printed() == lines, what=f"line {number}")  # type: ignore[misc]
        (work / str(number)).touch()
    return job, journal
