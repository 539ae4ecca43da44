"""The executor's middle as a whole: commands in, journals of fake monitors, messages out."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from common.bus.events import Subscriber
from common.bus.memory import Memory
from common.config.layout import layout_of
from common.config.settings import Jobs as JobSettings
from common.config.settings import Journal as JournalSettings
from common.config.settings import Persist
from common.errors import JobletError, Reason
from common.identifiers import JobId, new_job_id
from common.messages.jobs import (
    CancelJob,
    DeleteJob,
    GetJob,
    GetNode,
    JobAccepted,
    JobChanged,
    JobDeleted,
    JobFound,
    JobPage,
    JobPlan,
    JobRecord,
    JobSpec,
    ListJobs,
    LogSynced,
    NodeFacts,
    PlanJob,
    RunJob,
    State,
    StopJob,
    SyncLog,
    Upload,
)
from common.messages.logs import LogMarker, LogRecords, PersistStarted
from common.records import decode_all
from services.executor.events import Job
from services.executor.job_store import JobStore
from tests.unit.executor_fakes import FakeHost, FakeMonitor, FakePersist, Node, node_settings, running_node
from tests.waiting import await_for


def test_a_job_runs_from_command_to_durable_end(tmp_path: Path) -> None:
    """RunJob → launched → RUNNING → live records → EXIT → COMPLETED, all of it delivered and the journal gone."""

    async def scenario() -> None:
        transport = Memory()
        persist = FakePersist(transport)
        storing = asyncio.create_task(persist.run())
        followed = Subscriber(transport)
        followed.subscribe("log.")
        followed.subscribe("job.")
        async with running_node(node_settings(tmp_path), transport) as node:
            accepted = await node.ask.request(RunJob(owner="ann", spec=JobSpec(command="true")), JobAccepted)
            job = accepted.job.id
            await await_for(lambda: job in node.host.monitors, what="the launch")
            monitor = node.host.monitors[job]
            monitor.start(pid=42)
            monitor.output(b"one\ntwo\n")
            await await_for(lambda: persist.last.get(job) == 2, what="two lines with persist")
            found = await node.ask.request(GetJob(job=job[:8], visible_owner="ann"), JobFound)
            assert (found.job.state, found.job.pid, found.job.last_sequence) == (State.RUNNING, 42, 2)
            monitor.output(b"three\n")
            monitor.exit()
            await await_for(lambda: not node.executor.layout.job_dir(job).exists(), what="the journal's removal")
            ended = (await node.ask.request(GetJob(job=job, visible_owner=None), JobFound)).job
            assert (ended.state, ended.exit_code, ended.last_sequence) == (State.COMPLETED, 0, 3)
            assert persist.output(job) == b"one\ntwo\nthree\n"
            assert persist.ended[job] == 3
            seen: list[State | bytes] = []
            messages = followed.messages()
            while not seen or seen[-1] is not State.COMPLETED:
                _, message = await anext(messages)
                if isinstance(message.body, JobChanged):
                    seen.append(message.body.job.state)
                elif isinstance(message.body, LogRecords):
                    seen += [bytes(r.payload) for r in decode_all(message.body.records) if r.lines]
            states = [item for item in seen if isinstance(item, State)]
            assert states == [State.STARTING, State.RUNNING, State.COMPLETED]
            assert [item for item in seen if isinstance(item, bytes)] == [b"one\ntwo\n", b"three\n"]
            assert node.host.cleaned == [job]
        storing.cancel()

    asyncio.run(scenario())


async def launched(node: Node, **request: Any) -> tuple[JobId, FakeMonitor]:
    """A job that was launched, and its monitor."""
    asked = RunJob(**{"owner": "ann", "spec": JobSpec(command="true"), **request})
    job = (await node.ask.request(asked, JobAccepted)).job.id
    await await_for(lambda: job in node.host.monitors, what="the launch")
    return job, node.host.monitors[job]


async def got(node: Node, job: JobId) -> JobRecord:
    """The job's record."""
    return (await node.ask.request(GetJob(job=job, visible_owner=None), JobFound)).job


async def in_state(node: Node, job: JobId, state: State) -> JobRecord:
    """The job's record as soon as it is in `state`."""

    async def there() -> JobRecord | None:
        record = await got(node, job)
        return record if record.state is state else None

    found = await await_for(there, what=f"state {state}")
    assert found is not None
    return found


def numbered(first: int, last: int) -> bytes:
    """Lines of numbers."""
    return b"".join(b"%d\n" % n for n in range(first, last + 1))


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


@pytest.mark.threat("F05")
def test_a_job_that_was_recorded_but_not_launched_is_failed_and_never_launched(tmp_path: Path) -> None:
    """Killed between the record and the launch: the next executor does not guess."""

    async def scenario() -> None:
        transport = Memory()
        settings = node_settings(tmp_path)
        jobs = []
        store = JobStore(tmp_path / "state" / "jobs.db", now_ns=1)
        for state in (State.PENDING, State.STARTING):
            record = JobRecord(
                id=new_job_id(), owner="a", node_id="n", state=state, spec=JobSpec(command="x"), created_at_ns=1
            )
            store.insert(Job(record=record), "")
            jobs.append(record.id)
        store.close()
        async with running_node(settings, transport) as node:
            for job in jobs:
                record = await got(node, job)
                assert record.state is State.FAILED
                assert "could not be started" in record.reason
            assert node.host.launched == []
            assert node.host.swept == (frozenset(), frozenset(jobs))

    asyncio.run(scenario())


def test_a_launch_that_fails_is_told_with_its_reason(tmp_path: Path) -> None:
    """And what was staged for the job is removed."""

    async def scenario() -> None:
        settings = node_settings(tmp_path)
        upload = Upload(id="6fa459ea-ee8a-4ca4-894e-db77e160355e", bytes=3, entries=1)
        staged = layout_of(settings).upload(upload.id)
        staged.write_bytes(b"tar")
        async with running_node(settings, Memory()) as node:
            node.host.fail_launch = OSError(11, "fork: Resource temporarily unavailable")
            spec = JobSpec(command="x", uploads=(upload,))
            job = (await node.ask.request(RunJob(owner="a", spec=spec), JobAccepted)).job.id
            record = await in_state(node, job, State.FAILED)
            assert "could not be started: [Errno 11] fork" in record.reason
            await await_for(lambda: not staged.exists(), what="the upload's removal")

    asyncio.run(scenario())


@pytest.mark.threat("D23")
def test_the_same_key_is_the_same_job(tmp_path: Path) -> None:
    """Asked at once, asked later, asked after a restart; another owner's key is his own."""

    async def scenario() -> None:
        transport, settings = Memory(), node_settings(tmp_path)
        asked = RunJob(owner="ann", spec=JobSpec(command="true"), idempotency_key="k")
        async with running_node(settings, transport) as node:
            answers = await asyncio.gather(*(node.ask.request(asked, JobAccepted) for _ in range(20)))
            assert len({answer.job.id for answer in answers}) == 1
            assert [answer.existing for answer in answers].count(False) == 1
            other = await node.ask.request(replace(asked, owner="bob"), JobAccepted)
            assert not other.existing
            await await_for(lambda: len(node.host.launched) == 2, what="both launches")
        async with running_node(settings, transport, node.host) as node:
            again = await node.ask.request(asked, JobAccepted)
            assert (again.existing, again.job.id) == (True, answers[0].job.id)
            assert len(node.host.launched) == 2

    asyncio.run(scenario())


def test_stop_reaches_the_monitor_and_its_end_is_stopped(tmp_path: Path) -> None:
    """Once; after the end a stop is refused with the state's name."""

    async def scenario() -> None:
        async with running_node(node_settings(tmp_path), Memory()) as node:
            job, monitor = await launched(node)
            monitor.start()
            await in_state(node, job, State.RUNNING)
            stopping = await node.ask.request(StopJob(job=job, grace_ms=500), JobFound)
            assert stopping.job.stop_requested_at_ns
            assert monitor.commands == [("stop", 15, 500)]
            monitor.exit(outcome="signaled", exit_code=None, signal=15, ended_by="client")
            await in_state(node, job, State.STOPPED)
            with pytest.raises(JobletError, match="is stopped") as refused:
                await node.ask.request(StopJob(job=job), JobFound)
            assert refused.value.reason is Reason.PRECONDITION

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


def test_delete_takes_the_record_and_the_journal(tmp_path: Path) -> None:
    """Only of an ended job; afterwards it does not exist, and subscribers were told."""

    async def scenario() -> None:
        transport = Memory()
        followed = Subscriber(transport)
        followed.subscribe("job.")
        async with running_node(node_settings(tmp_path), transport) as node:
            job, monitor = await launched(node)
            monitor.start()
            with pytest.raises(JobletError, match="only ended jobs can be deleted"):
                await node.ask.request(DeleteJob(job=job), JobDeleted)
            monitor.exit()
            await in_state(node, job, State.COMPLETED)
            await node.ask.request(DeleteJob(job=job), JobDeleted)
            assert not node.executor.layout.job_dir(job).exists()
            for request, answer in ((GetJob(job=job, visible_owner=None), JobFound), (DeleteJob(job=job), JobDeleted)):
                with pytest.raises(JobletError) as gone:
                    await node.ask.request(request, answer)
                assert gone.value.reason is Reason.NOT_FOUND
            async for _, message in followed.messages():
                if isinstance(message.body, JobChanged) and message.body.deleted:
                    break

    asyncio.run(scenario())


def test_a_damaged_journal_ends_the_output_and_not_the_job(tmp_path: Path) -> None:
    """What is before the damage is live and durable; the record says what is missing; the executor goes on."""

    async def scenario() -> None:
        transport = Memory()
        persist = FakePersist(transport)
        storing = asyncio.create_task(persist.run())
        async with running_node(node_settings(tmp_path), transport) as node:
            job, monitor = await launched(node)
            monitor.start()
            monitor.output(numbered(1, 3))
            monitor.append(b"garbage" * 100)
            monitor.output(numbered(4, 5))
            await await_for(lambda: node.executor.output.follower.corrupt_journals == 1, what="the damage")
            assert "part of its output is lost" in (await in_state(node, job, State.RUNNING)).reason
            monitor.exit()
            record = await in_state(node, job, State.LOST)
            assert "magic" in record.reason
            await await_for(lambda: persist.ended.get(job) == 3, what="the end with persist")
            assert persist.output(job) == numbered(1, 3)
            other, _ = await launched(node)
            assert (await got(node, other)).state is State.STARTING
        storing.cancel()

    asyncio.run(scenario())


def test_output_with_a_wrong_checksum_is_kept_from_persist(tmp_path: Path) -> None:
    """The durable cursor stops before it; the job has its true end."""

    async def scenario() -> None:
        transport = Memory()
        persist = FakePersist(transport)
        storing = asyncio.create_task(persist.run())
        async with running_node(node_settings(tmp_path), transport) as node:
            job, monitor = await launched(node)
            monitor.start()
            monitor.output(numbered(1, 3))
            monitor.append(monitor.record(b"changed\n")[:-2] + b"!\n")
            monitor.output(numbered(5, 6))
            monitor.exit()
            record = await in_state(node, job, State.COMPLETED)
            assert record.last_sequence == 6
            await await_for(lambda: persist.ended.get(job) == 3, what="the end with persist")
            assert persist.output(job) == numbered(1, 3)
        storing.cancel()

    asyncio.run(scenario())


@pytest.mark.threat("F23")
def test_two_hundred_thousand_lines_survive_a_channel_that_loses(tmp_path: Path) -> None:
    """Every seventh message is lost, windows are small: all lines are stored, once and in order."""

    async def scenario() -> None:
        transport = Memory()
        persist = FakePersist(transport, lose=lambda number: number % 7 == 3)
        storing = asyncio.create_task(persist.run())
        journal = JournalSettings(unacknowledged_bytes_max=2**18, unacknowledged_total_bytes_max=2**19)
        async with running_node(node_settings(tmp_path, journal=journal), transport) as node:
            jobs = [await launched(node) for _ in range(2)]
            for _, monitor in jobs:
                monitor.start()
            for first in range(1, 100_001, 1000):
                for _, monitor in jobs:
                    monitor.output(numbered(first, first + 999))
                assert node.executor.output.sender.unacknowledged_bytes <= 2**19 + 2**18
            for _, monitor in jobs:
                monitor.exit()
            await await_for(lambda: len(persist.ended) == 2, timeout_s=30, what="both ends with persist")
            for job, _ in jobs:
                assert persist.output(job) == numbered(1, 100_000)
        storing.cancel()

    asyncio.run(scenario())


def test_acknowledged_space_is_given_back_and_the_monitor_is_told(tmp_path: Path) -> None:
    """A job that prints more than its journal may hold goes on: the hole grows behind what persist has."""

    async def scenario() -> None:
        transport = Memory()
        persist = FakePersist(transport)
        storing = asyncio.create_task(persist.run())
        settings = node_settings(tmp_path, journal=JournalSettings(bytes_max=2**20))
        async with running_node(settings, transport) as node:
            job, monitor = await launched(node)
            monitor.start()
            for first in range(1, 300_001, 10_000):
                monitor.output(numbered(first, first + 9999))
            await await_for(lambda: persist.last.get(job) == 300_000, what="all lines with persist")
            await await_for(lambda: monitor.journal.stat().st_blocks * 512 < 2**20, what="the hole")
            assert monitor.journal.stat().st_size > 1_800_000
            assert job in node.host.freed
        async with running_node(settings, transport, node.host) as node:
            monitor.output(numbered(300_001, 300_002))
            monitor.exit()
            await await_for(lambda: persist.ended.get(job) == 300_002, what="the end with persist")
            assert persist.output(job) == numbered(1, 300_002)
        storing.cancel()

    asyncio.run(scenario())


@pytest.mark.threat("F02")
def test_live_output_does_not_wait_for_persist(tmp_path: Path) -> None:
    """Nobody stores, and followers see every line; when persist comes, it gets all of them."""

    async def scenario() -> None:
        transport = Memory()
        followed = Subscriber(transport)
        followed.subscribe("log.")
        settings = node_settings(tmp_path, journal=JournalSettings(unacknowledged_bytes_max=2**16))
        async with running_node(settings, transport) as node:
            job, monitor = await launched(node)
            monitor.start()
            for first in range(1, 100_001, 1000):
                monitor.output(numbered(first, first + 999))
            seen = 0
            async for _, message in followed.messages():
                assert isinstance(message.body, LogRecords)
                seen = max([seen, *(record.last_sequence for record in decode_all(message.body.records))])
                if seen == 100_000:
                    break
            assert node.executor.output.sender.unacknowledged_bytes <= 2**16
            persist = FakePersist(transport)
            storing = asyncio.create_task(persist.run())
            await persist.say(PersistStarted(instance="new"))
            await await_for(lambda: persist.last.get(job) == 100_000, what="all lines with persist")
            assert persist.output(job) == numbered(1, 100_000)
            storing.cancel()

    asyncio.run(scenario())


def test_a_marker_stands_behind_all_that_was_published(tmp_path: Path) -> None:
    """In-band on the topic, with the last sequence before it; also for an ended job."""

    async def scenario() -> None:
        transport = Memory()
        followed = Subscriber(transport)
        followed.subscribe("log.")
        async with running_node(node_settings(tmp_path), transport) as node:
            job, monitor = await launched(node)
            monitor.start()
            monitor.output(numbered(1, 4))

            async def published() -> bool:
                return (await got(node, job)).last_sequence == 4

            await await_for(published, what="four lines")
            await node.ask.request(SyncLog(job=job, marker="m1"), LogSynced)
            monitor.exit()
            await in_state(node, job, State.COMPLETED)
            await node.ask.request(SyncLog(job=job, marker="m2"), LogSynced)
            last, markers = 0, []
            async for _, message in followed.messages():
                if isinstance(message.body, LogMarker):
                    markers.append((message.body.marker, message.body.last_sequence, last))
                    if len(markers) == 2:
                        break
                elif isinstance(message.body, LogRecords):
                    last = [record.last_sequence for record in decode_all(message.body.records)][-1]
            assert markers == [("m1", 4, 4), ("m2", 4, 4)]
            with pytest.raises(JobletError, match="there is no job"):
                await node.ask.request(SyncLog(job=new_job_id(), marker="m"), LogSynced)

    asyncio.run(scenario())


def test_without_persist_nothing_is_sent_and_journals_stay(tmp_path: Path) -> None:
    """persist.enabled: false."""

    async def scenario() -> None:
        transport = Memory()
        persist = FakePersist(transport)
        storing = asyncio.create_task(persist.run())
        settings = replace(node_settings(tmp_path), persist=Persist(enabled=False))
        async with running_node(settings, transport) as node:
            job, monitor = await launched(node)
            monitor.start()
            monitor.output(numbered(1, 4))
            monitor.exit()
            await in_state(node, job, State.COMPLETED)
        async with running_node(settings, transport, node.host) as node:
            assert (await got(node, job)).last_sequence == 4
            assert monitor.journal.stat().st_size
        assert persist.received == []
        storing.cancel()

    asyncio.run(scenario())


@pytest.mark.threat("C25")
def test_more_jobs_than_the_node_takes_are_refused(tmp_path: Path) -> None:
    """EXHAUSTED and retryable; an ended job makes room."""

    async def scenario() -> None:
        async with running_node(node_settings(tmp_path, jobs=JobSettings(running_max=2)), Memory()) as node:
            _, monitor = await launched(node)
            await launched(node)
            with pytest.raises(JobletError, match="Max capacity reached") as refused:
                await launched(node)
            assert (refused.value.reason, refused.value.retryable) == (Reason.EXHAUSTED, True)
            monitor.exit()
            await await_for(lambda: len(node.executor.jobs.active) == 1, what="the end of one")
            await launched(node)

    asyncio.run(scenario())


def test_the_node_plans_lists_and_tells_of_itself(tmp_path: Path) -> None:
    """PlanJob records nothing; ListJobs shows the state of now; GetNode counts."""

    async def scenario() -> None:
        async with running_node(node_settings(tmp_path), Memory()) as node:
            plan = await node.ask.request(PlanJob(owner="ann", spec=JobSpec(command="ls")), JobPlan)
            assert plan.steps == ("run ls",)
            job, monitor = await launched(node)
            monitor.start()
            monitor.output(numbered(1, 2))
            await in_state(node, job, State.RUNNING)
            page = await node.ask.request(ListJobs(visible_owner="ann"), JobPage)
            assert [(item.id, item.state, item.last_sequence) for item in page.jobs] == [(job, State.RUNNING, 2)]
            assert (await node.ask.request(GetNode(), NodeFacts)).running_jobs == 1
            with pytest.raises(JobletError, match="malformed job id"):
                await node.ask.request(StopJob(job=JobId("../x")), JobFound)
            with pytest.raises(JobletError, match="can be canceled"):
                await node.ask.request(CancelJob(job=job), JobFound)

    asyncio.run(scenario())
