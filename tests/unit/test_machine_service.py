"""The executor's middle as a whole: commands in, journals of fake monitors, messages out."""

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import pytest
from msgspec.structs import replace

from common.bus.events import Subscriber
from common.bus.memory import Memory
from common.config.layout import layout_of
from common.config.settings import Jobs as JobSettings
from common.errors import JobletError, Reason
from common.identifiers import JobId
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
    JobSpec,
    ListJobs,
    NodeFacts,
    PlanJob,
    RunJob,
    State,
    StopJob,
    Upload,
)
from common.messages.logs import LogRecords
from common.records import decode_all
from tests.unit.executor_asking import got, in_state, launched, numbered
from tests.unit.executor_fakes import FakePersist, node_settings, running_node
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


@pytest.mark.threat("C25")
def test_more_jobs_than_the_node_takes_are_refused(tmp_path: Path) -> None:
    """With no place to wait: EXHAUSTED and retryable; an ended job makes room."""

    async def scenario() -> None:
        full = JobSettings(running_max=2, queued_max=0)
        async with running_node(node_settings(tmp_path, jobs=full), Memory()) as node:
            _, monitor = await launched(node)
            await launched(node)
            with pytest.raises(JobletError, match="Max capacity reached") as refused:
                await launched(node)
            assert (refused.value.reason, refused.value.retryable) == (Reason.EXHAUSTED, True)
            assert refused.value.retry_after_s
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


@pytest.mark.threat("F13")
def test_a_deletion_that_the_disk_does_not_take_is_told_and_done_later(tmp_path: Path) -> None:
    """Who deletes jobs because the disk is full must not keep every place that requests have, for as long as it is."""

    async def scenario() -> None:
        settings = node_settings(tmp_path)
        async with running_node(settings, Memory()) as node:
            job, monitor = await launched(node)
            monitor.start()
            monitor.exit()
            await in_state(node, job, State.COMPLETED)
            node.executor.store.connection.execute("PRAGMA busy_timeout=0")
            with contextlib.closing(
                sqlite3.connect(node.executor.layout.state / "jobs.db", isolation_level=None)
            ) as other:
                other.execute("BEGIN IMMEDIATE")
                with pytest.raises(JobletError) as refused:
                    await node.ask.request(DeleteJob(job=job), JobDeleted)
                assert refused.value.reason is Reason.UNAVAILABLE
                assert "is not deleted yet" in refused.value.message
                other.execute("ROLLBACK")
            await await_for(lambda: not node.executor.layout.job_dir(job).exists(), what="the deletion")
            with pytest.raises(JobletError) as gone:
                await got(node, job)
            assert gone.value.reason is Reason.NOT_FOUND

    asyncio.run(scenario())
