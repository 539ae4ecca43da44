"""What a new executor makes of the jobs of the one before it."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from common.bus.memory import Memory
from common.identifiers import JobId, new_job_id
from common.messages.jobs import (
    JobFound,
    JobRecord,
    JobSpec,
    State,
    StopJob,
)
from services.executor.events import Bounds, Job
from services.executor.job_store import JobStore
from tests.unit.executor_asking import got, in_state, launched, numbered
from tests.unit.executor_fakes import BOOT, FakeHost, FakePersist, node_settings, running_node
from tests.waiting import await_for


@pytest.mark.threat("F01")
def test_a_job_goes_on_under_a_new_executor(tmp_path: Path) -> None:
    """Same pid, every line stored once, the true end; what persist had is not lost and not doubled."""

    async def scenario() -> None:
        transport = Memory()
        persist = FakePersist(transport)
        storing = asyncio.create_task(persist.run())
        settings = node_settings(tmp_path)
        async with running_node(settings, transport) as first:
            job, monitor = await launched(first)
            monitor.start(pid=42)
            monitor.output(numbered(1, 100))
            await await_for(lambda: persist.last.get(job) == 100, what="the first lines")
        monitor.output(numbered(101, 200))
        async with running_node(settings, transport, first.host) as second:
            assert (await in_state(second, job, State.RUNNING)).pid == 42
            assert second.host.launched == [job]
            monitor.output(numbered(201, 300))
            monitor.exit(exit_code=3)
            record = await in_state(second, job, State.FAILED)
            assert (record.exit_code, record.last_sequence) == (3, 300)
            await await_for(lambda: persist.ended.get(job) == 300, what="the end with persist")
        assert persist.output(job) == numbered(1, 300)
        storing.cancel()

    asyncio.run(scenario())


@pytest.mark.threat("F07")
def test_a_job_that_ended_without_an_executor_has_its_true_end(tmp_path: Path) -> None:
    """Code and time are those of the journal, and the output is delivered."""

    async def scenario() -> None:
        transport = Memory()
        settings = node_settings(tmp_path)
        async with running_node(settings, transport) as first:
            job, monitor = await launched(first)
            monitor.start()
            await in_state(first, job, State.RUNNING)
        monitor.output(numbered(1, 10))
        monitor.exit(outcome="signaled", exit_code=None, signal=6)
        persist = FakePersist(transport)
        storing = asyncio.create_task(persist.run())
        async with running_node(settings, transport, first.host) as second:
            record = await got(second, job)
            assert (record.state, record.signal, record.last_sequence) == (State.FAILED, 6, 10)
            assert second.host.cleaned == [job]
            await await_for(lambda: persist.ended.get(job) == 10, what="the end with persist")
            await await_for(lambda: not second.executor.layout.job_dir(job).exists(), what="the journal's removal")
        assert persist.output(job) == numbered(1, 10)
        async with running_node(settings, transport, first.host) as third:
            assert (await got(third, job)) == record
            assert third.executor.store.cursors() == []
        storing.cancel()

    asyncio.run(scenario())


@pytest.mark.threat("F03")
@pytest.mark.parametrize("restart", [False, True])
def test_a_monitor_that_dies_without_exit_means_lost(tmp_path: Path, *, restart: bool) -> None:
    """At once, or found at the next start; the torn record at the tail is ignored, the whole ones are delivered."""

    async def scenario() -> None:
        transport = Memory()
        persist = FakePersist(transport)
        storing = asyncio.create_task(persist.run())
        settings = node_settings(tmp_path)
        host: FakeHost | None = None
        async with running_node(settings, transport) as first:
            host = first.host
            job, monitor = await launched(first)
            monitor.start()
            monitor.output(numbered(1, 5))
            await in_state(first, job, State.RUNNING)
            if not restart:
                monitor.append(monitor.record(b"torn\n")[:-2])
                monitor.die()
                record = await in_state(first, job, State.LOST)
        if restart:
            monitor.append(monitor.record(b"torn\n")[:-2])
            monitor.die()
        async with running_node(settings, transport, host) as second:
            record = await in_state(second, job, State.LOST)
            await await_for(lambda: persist.ended.get(job) == 5, what="the end with persist")
        assert record.last_sequence == 5
        assert persist.output(job) == numbered(1, 5)
        storing.cancel()

    asyncio.run(scenario())


def stored(base: Path, *jobs: Job) -> list[JobId]:
    """Jobs as an executor left them in the database; their ids."""
    store = JobStore(base / "state" / "jobs.db", now_ns=1)
    for job in jobs:
        store.insert(job, "")
    store.close()
    return [job.record.id for job in jobs]


def unended(state: State, *, start_at_ns: int = 0, **fields: Any) -> Job:
    """A job of ann's that has not ended."""
    spec = JobSpec(command="x", start_at_ns=start_at_ns)
    record = JobRecord(id=new_job_id(), owner="ann", node_id="n", state=state, spec=spec, created_at_ns=1)
    return Job(**{"record": record, "bounds": Bounds(), **fields})


@pytest.mark.threat("F05")
def test_a_job_that_was_recorded_but_not_launched_is_launched_once(tmp_path: Path) -> None:
    """Killed between the record and the launch, chosen or not: there is no journal, so the next one launches it."""

    async def scenario() -> None:
        transport, settings = Memory(), node_settings(tmp_path)
        jobs = stored(
            tmp_path,
            unended(State.PENDING),
            unended(State.PENDING, chosen_boot=BOOT),
            unended(State.STARTING, chosen_boot=BOOT),
        )
        async with running_node(settings, transport) as node:
            await await_for(lambda: sorted(node.host.launched) == sorted(jobs), what="the launches")
            assert node.host.swept == (frozenset(), frozenset(jobs))
            for job in jobs:
                node.host.monitors[job].start()
                await in_state(node, job, State.RUNNING)
        async with running_node(settings, transport, node.host) as node:
            assert sorted(node.host.launched) == sorted(jobs)

    asyncio.run(scenario())


@pytest.mark.threat("F05")
@pytest.mark.parametrize(
    ("job", "words"),
    [
        (unended(State.PENDING, bounds=None), "before its command ran"),
        (unended(State.STARTING, bounds=None), "before its command ran"),
        (unended(State.PENDING, chosen_boot="another"), "the machine went down"),
        (unended(State.STARTING, chosen_boot="another"), "the machine went down"),
    ],
)
def test_a_job_that_may_have_been_launched_is_failed_and_never_launched(tmp_path: Path, job: Job, words: str) -> None:
    """Of an older release, or chosen before a power cut: its journal may be lost, so nobody guesses."""

    async def scenario() -> None:
        settings = node_settings(tmp_path)
        (job_id,) = stored(tmp_path, job)
        async with running_node(settings, Memory()) as node:
            record = await got(node, job_id)
            assert record.state is State.FAILED
            assert record.reason.startswith("could not be started: ")
            assert words in record.reason
            assert node.host.launched == []

    asyncio.run(scenario())


@pytest.mark.threat("F05")
def test_a_journal_proves_the_launch_whatever_the_record_says(tmp_path: Path) -> None:
    """An empty one, too: its monitor was there, and died before it wrote."""

    async def scenario() -> None:
        settings = node_settings(tmp_path)
        jobs = stored(tmp_path, unended(State.PENDING, chosen_boot=BOOT), unended(State.STARTING, chosen_boot=BOOT))
        for job in jobs:
            directory = tmp_path / "jobs" / job
            directory.mkdir()
            (directory / "journal").touch()
        async with running_node(settings, Memory()) as node:
            for job in jobs:
                assert (await got(node, job)).state is State.FAILED
            assert node.host.launched == []

    asyncio.run(scenario())


def spoil_an_index(file: Path) -> None:
    """Damage that is seen, and leaves every row readable."""
    with closing(sqlite3.connect(file)) as connection:
        (root,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name='jobs_by_time'").fetchone()
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    content = bytearray(file.read_bytes())
    content[page_bytes * (root - 1) : page_bytes * root] = b"\xff" * page_bytes
    file.write_bytes(content)


@pytest.mark.threat("F05")
def test_nothing_that_comes_out_of_a_damaged_database_is_launched(tmp_path: Path) -> None:
    """A row may be older than what happened: the job may have run, ended and been delivered since."""

    async def scenario() -> None:
        settings = node_settings(tmp_path)
        jobs = stored(tmp_path, unended(State.PENDING), unended(State.SCHEDULED, start_at_ns=2**62))
        spoil_an_index(tmp_path / "state" / "jobs.db")
        async with running_node(settings, Memory()) as node:
            assert node.host.launched == []
            assert node.executor.jobs.waiting.queued_jobs == 0
            for job in jobs:
                record = await got(node, job)
                assert (record.state, "nobody knows" in record.reason) == (State.FAILED, True)

    asyncio.run(scenario())


def test_a_stop_that_was_asked_for_before_the_executor_died_is_not_lost(tmp_path: Path) -> None:
    """The record has it, and the monitor gets it from the next executor, once."""

    async def scenario() -> None:
        transport, settings = Memory(), node_settings(tmp_path)
        async with running_node(settings, transport) as first:
            job, monitor = await launched(first)
            monitor.start()
            await in_state(first, job, State.RUNNING)
            first.host.deaf = True
            await first.ask.request(StopJob(job=job, signal=2, grace_ms=0), JobFound)
            assert monitor.commands == []
        first.host.deaf = False
        for _ in range(2):
            async with running_node(settings, transport, first.host):
                assert monitor.commands == [("stop", 2, 0)]

    asyncio.run(scenario())
