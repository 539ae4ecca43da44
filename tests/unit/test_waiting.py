"""Jobs that wait, around the queue: bounds, the timer under a clock that jumps, and an executor with few slots."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from common.bus.events import Subscriber
from common.bus.memory import Memory
from common.config.layout import layout_of
from common.config.settings import Jobs as JobSettings
from common.config.settings import Settings
from common.config.settings import Uploads as UploadSettings
from common.errors import JobletError, Reason
from common.identifiers import JobId, new_job_id
from common.messages.jobs import (
    CancelJob,
    GetNode,
    JobAccepted,
    JobChanged,
    JobFound,
    JobPage,
    JobRecord,
    JobSpec,
    ListJobs,
    NodeFacts,
    RunJob,
    State,
    StopJob,
    Upload,
)
from services.executor.events import Bounds, Job
from services.executor.jobs import PLACED_OWNERS_MAX
from services.executor.registry import Registry
from services.executor.waiting import DUE_AT_ONCE_MAX, Place, Waiting, WaitingLimits
from tests.unit.executor_asking import got, in_state
from tests.unit.executor_fakes import FakePersist, Node, node_settings, running_node
from tests.waiting import await_for

SECOND_NS = 10**9
NOON_NS = 1_800_000_000 * SECOND_NS


def settings_of(base: Path, *, running_max: int = 1, queued_max: int = 100, **joblet: Any) -> Settings:
    """A node with few slots."""
    return node_settings(base, jobs=JobSettings(running_max=running_max, queued_max=queued_max), **joblet)


async def submitted(node: Node, owner: str = "ann", *, priority: int = 0, **request: Any) -> JobRecord:
    """The record of a new job, as its client sees it."""
    spec = JobSpec(command="true", priority=priority, start_at_ns=request.pop("start_at_ns", 0))
    return (await node.ask.request(RunJob(**{"owner": owner, "spec": spec, **request}), JobAccepted)).job


async def next_one(node: Node) -> JobId:
    """Let the job end that was launched last, and give the one that is launched then."""
    before = len(node.host.launched)
    node.host.monitors[node.host.launched[-1]].exit()
    await await_for(lambda: len(node.host.launched) == before + 1, what="the next launch")
    await await_for(lambda: node.host.launched[-1] in node.host.monitors, what="its monitor")
    return node.host.launched[-1]


def registry_of(node: Node) -> Registry:
    """Which records are in memory."""
    return node.executor.commands.registry


def has_ended(persist: FakePersist, node: Node, job: JobId) -> bool:
    """Whether persist has the end of a job that printed nothing, and the executor knows."""
    return persist.ended.get(job) == 0 and not node.executor.store.has_cursor(job)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    """Run one."""
    asyncio.run(scenario())  # type: ignore[arg-type]  # every scenario is a coroutine function


def test_what_finds_no_slot_waits_its_turn(tmp_path: Path) -> None:
    """PENDING with a position; started in order when slots become free; subscribers see each state."""

    async def scenario() -> None:
        transport = Memory()
        followed = Subscriber(transport)
        followed.subscribe("job.")
        async with running_node(settings_of(tmp_path), transport) as node:
            first = await submitted(node)
            assert (first.state, first.queue_position) == (State.STARTING, 0)
            rest = [await submitted(node) for _ in range(3)]
            assert [(one.state, one.queue_position) for one in rest] == [(State.PENDING, n) for n in (1, 2, 3)]
            page = await node.ask.request(ListJobs(visible_owner=None, states=(State.PENDING,)), JobPage)
            assert [(one.id, one.queue_position) for one in page.jobs] == [(rest[n].id, n + 1) for n in (2, 1, 0)]
            facts = await node.ask.request(GetNode(), NodeFacts)
            assert (facts.running_jobs, facts.queued_jobs, facts.running_max) == (1, 3, 1)
            await await_for(lambda: first.id in node.host.monitors, what="the first launch")
            assert await next_one(node) == rest[0].id
            assert (await got(node, rest[2].id)).queue_position == 2
            assert [await next_one(node), await next_one(node)] == [rest[1].id, rest[2].id]
            node.host.monitors[rest[2].id].exit()
            await in_state(node, rest[2].id, State.COMPLETED)
        states = []
        async for _, message in followed.messages():
            if isinstance(message.body, JobChanged) and message.body.job.id == rest[2].id:
                states.append(message.body.job.state)
                if states[-1] is State.COMPLETED:
                    break
        assert states == [State.PENDING, State.STARTING, State.COMPLETED]

    run(scenario)


def test_owners_take_turns_and_priority_counts_within_one(tmp_path: Path) -> None:
    """Who came with many waits no longer than who came with few; nobody's priority is felt by others."""

    async def scenario() -> None:
        async with running_node(settings_of(tmp_path), Memory()) as node:
            first = await submitted(node, "ann")
            ann = [(await submitted(node, "ann", priority=priority)).id for priority in (100, 0, 50)]
            bob = [(await submitted(node, "bob", priority=priority)).id for priority in (-100, -50)]
            await await_for(lambda: first.id in node.host.monitors, what="the first launch")
            order = [await next_one(node) for _ in range(5)]
            assert order == [ann[0], bob[1], ann[2], bob[0], ann[1]]

    run(scenario)


@pytest.mark.requirement("S2.13")
def test_an_owner_at_his_bound_waits_while_others_start(tmp_path: Path) -> None:
    """The bound of his newest job counts for all of them, also for those that wait already."""

    async def scenario() -> None:
        async with running_node(settings_of(tmp_path, running_max=3), Memory()) as node:
            await submitted(node, "ann", running_max=1)
            waits = await submitted(node, "ann", running_max=1)
            assert (waits.state, waits.queue_position) == (State.PENDING, 1)
            assert (await submitted(node, "bob")).state is State.STARTING
            third = await submitted(node, "ann", running_max=2)
            assert ((await got(node, waits.id)).state, third.state) == (State.STARTING, State.PENDING)
            assert node.executor.jobs.waiting.running_jobs == 3

    run(scenario)


@pytest.mark.threat("C25")
@pytest.mark.requirement("S2.13")
def test_who_can_start_is_never_refused_and_who_waits_is_bounded(tmp_path: Path) -> None:
    """By his own bound and by the node's; scheduled jobs count; words, reason and when to ask again."""

    async def scenario() -> None:
        async with running_node(settings_of(tmp_path, running_max=2, queued_max=3), Memory()) as node:
            assert (await submitted(node, "ann", queued_max=0)).state is State.STARTING
            await submitted(node, "bob", queued_max=0)
            with pytest.raises(JobletError, match=r"0 of your jobs wait.*Max capacity reached") as refused:
                await submitted(node, "ann", queued_max=0)
            assert (refused.value.reason, refused.value.retryable) == (Reason.EXHAUSTED, True)
            assert refused.value.retry_after_s == 5.0
            later_ns = time.time_ns() + 3600 * SECOND_NS
            scheduled = await submitted(node, "ann", queued_max=2, start_at_ns=later_ns)
            await submitted(node, "ann", queued_max=2)
            with pytest.raises(JobletError, match="2 of your jobs wait"):
                await submitted(node, "ann", queued_max=2)
            await submitted(node, "bob", queued_max=2)
            with pytest.raises(JobletError, match="3 jobs wait on this node: Max capacity reached"):
                await submitted(node, "cat")
            await node.ask.request(CancelJob(job=scheduled.id), JobFound)
            assert (await submitted(node, "cat")).state is State.PENDING

    run(scenario)


@pytest.mark.threat("C25")
def test_a_flood_of_one_owner_ends_at_his_bound_and_costs_little_memory(tmp_path: Path) -> None:
    """Of what waits only ids and owners are in memory, whatever its specs hold; the others' jobs are not delayed."""

    async def scenario() -> None:
        async with running_node(settings_of(tmp_path, queued_max=1000), Memory()) as node:
            await submitted(node, "eve", queued_max=40)
            spec = JobSpec(command="true", args=("x" * 100_000,))
            asked = [RunJob(owner="eve", spec=spec, queued_max=40) for _ in range(300)]
            answers = await asyncio.gather(
                *(node.ask.request(one, JobAccepted) for one in asked), return_exceptions=True
            )
            refused = [one for one in answers if isinstance(one, JobletError)]
            assert {one.reason for one in refused} == {Reason.EXHAUSTED}
            assert len(answers) - len(refused) == 40
            assert (len(registry_of(node).active), len(node.executor.jobs.active)) == (1, 41)
            assert (await submitted(node, "ann")).queue_position == 1

    run(scenario)


@pytest.mark.parametrize("ask", [lambda job: CancelJob(job=job), lambda job: StopJob(job=job)], ids=["cancel", "stop"])
def test_what_waits_can_be_withdrawn(tmp_path: Path, ask: Callable[[JobId], CancelJob | StopJob]) -> None:
    """PENDING or SCHEDULED: CANCELED at once, never launched, and persist is told of its end."""

    async def scenario() -> None:
        transport = Memory()
        persist = FakePersist(transport)
        storing = asyncio.create_task(persist.run())
        async with running_node(settings_of(tmp_path), transport) as node:
            first = await submitted(node)
            pending = await submitted(node)
            scheduled = await submitted(node, start_at_ns=time.time_ns() + 3600 * SECOND_NS)
            last = await submitted(node)
            for job in (pending.id, scheduled.id):
                record = (await node.ask.request(ask(job), JobFound)).job
                assert (record.state, record.started_at_ns) == (State.CANCELED, 0)
                await await_for(partial(has_ended, persist, node, job), what="its end with persist")
            await await_for(lambda: first.id in node.host.monitors, what="the first launch")
            assert await next_one(node) == last.id
            assert node.host.launched == [first.id, last.id]
        storing.cancel()

    run(scenario)


@pytest.mark.threat("F05")
def test_waiting_jobs_survive_a_restart_in_their_order(tmp_path: Path) -> None:
    """With their bounds and times; each is launched once."""

    async def scenario() -> None:
        transport, settings, now_ns = Memory(), settings_of(tmp_path, running_max=2), time.time_ns()
        async with running_node(settings, transport) as node:
            for _ in range(2):
                await submitted(node, "ann", running_max=2)
            late = await submitted(node, "ann", running_max=2, priority=-1)
            waiting = [await submitted(node, "ann", running_max=1) for _ in range(3)]
            scheduled = await submitted(node, "bob", start_at_ns=now_ns + 3600 * SECOND_NS)
            due = await submitted(node, "bob", start_at_ns=now_ns + 1800 * SECOND_NS)
            await await_for(lambda: len(node.host.monitors) == 2, what="the launches")
        host = node.host
        async with running_node(settings, transport, host, clock_ns=lambda: now_ns + 2000 * SECOND_NS) as node:
            assert (await got(node, scheduled.id)).state is State.SCHEDULED
            assert (await got(node, due.id)).queue_position == 1
            host.monitors[host.launched[0]].exit()
            await await_for(lambda: due.id in host.monitors, what="the launch of what became due meanwhile")
            assert [(await got(node, one.id)).queue_position for one in (*waiting, late)] == [1, 2, 3, 4]
            host.monitors[host.launched[1]].exit()
            await await_for(lambda: waiting[0].id in host.monitors, what="ann's next")
            assert host.launched[2:] == [due.id, waiting[0].id], "ann has one at once since her newest job"

    run(scenario)


def test_uploads_of_a_waiting_job_are_out_of_the_sweeps_way_until_it_is_launched(tmp_path: Path) -> None:
    """Also over a restart; they are removed when it starts, or is canceled; together they are bounded."""

    async def scenario() -> None:
        transport, settings = Memory(), settings_of(tmp_path, uploads=UploadSettings(staged_bytes_max=100))
        layout = layout_of(settings)
        uploads = [Upload(id=f"{n}" * 32, bytes=40, entries=1) for n in (1, 2, 3)]
        for upload in uploads:
            layout.upload(upload.id).write_bytes(b"tar")

        def asked(upload: Upload) -> RunJob:
            return RunJob(owner="ann", spec=JobSpec(command="true", uploads=(upload,)))

        def held() -> set[str]:
            return {path.name for path in layout.uploads.iterdir()}

        async with running_node(settings, transport) as node:
            first = await submitted(node)
            one, other = [(await node.ask.request(asked(each), JobAccepted)).job for each in uploads[:2]]
            assert held() == {"1" * 32 + ".held", "2" * 32 + ".held", "3" * 32 + ".tar"}
            with pytest.raises(JobletError, match="uploads of waiting jobs"):
                await node.ask.request(asked(uploads[2]), JobAccepted)
            with pytest.raises(JobletError, match="is not staged any more"):
                await node.ask.request(asked(uploads[0]), JobAccepted)
            await node.ask.request(CancelJob(job=other.id), JobFound)
            await await_for(lambda: held() == {"1" * 32 + ".held", "3" * 32 + ".tar"}, what="the removal")
            await await_for(lambda: first.id in node.host.monitors, what="the first launch")
        layout.held_upload("4" * 32).write_bytes(b"of a job that ended while its executor died")
        async with running_node(settings, transport, node.host) as node:
            assert held() == {"1" * 32 + ".held", "3" * 32 + ".tar"}
            assert await next_one(node) == one.id
            assert held() == {"1" * 32 + ".tar", "3" * 32 + ".tar"}
            node.host.monitors[one.id].start()
            await await_for(lambda: held() == {"3" * 32 + ".tar"}, what="the removal")

    run(scenario)


def test_nothing_is_started_onto_a_disk_without_room() -> None:
    """What waits goes on waiting while the journals' disk is below its reserve, and starts when there is room again."""

    async def scenario() -> None:
        chosen: list[JobId] = []
        room = False
        limits = WaitingLimits(running_max=10, queued_max=10, upload_bytes_max=0)
        waiting = Waiting(
            limits, chosen=chosen.append, due=chosen.append, has_room=lambda: room, clock_ns=Clock(), look_s=0.02
        )
        waiting.open()
        jobs = [scheduled(0) for _ in range(3)]
        for job in jobs:
            waiting.keep(job, Place.QUEUE)
            waiting.line_up(job)
        assert waiting.place_for("bob", Bounds(), later=False, upload_bytes=0) is Place.QUEUE, "nobody is passed"
        assert (chosen, waiting.queued_jobs) == ([], 3)
        room = True
        await await_for(lambda: len(chosen) == 3, what="the next look at the disk")
        await await_for(lambda: waiting._timer is None, what="the end of the looks")

    run(scenario)


@pytest.mark.threat("F05")
def test_a_waiting_job_whose_record_is_damaged_holds_up_nobody(tmp_path: Path) -> None:
    """Its row is read when it is its turn: it is told in the log, and the next one has its slot."""

    async def scenario() -> None:
        async with running_node(settings_of(tmp_path), Memory()) as node:
            first, bad, good = [await submitted(node) for _ in range(3)]
            await await_for(lambda: first.id in node.host.monitors, what="the first launch")
            node.executor.store.connection.execute("UPDATE jobs SET data = x'00' WHERE id = ?", (bad.id,))
            assert await next_one(node) == good.id
            assert bad.id not in node.executor.jobs.active

    run(scenario)


class Clock:
    """The wall clock, which somebody sets."""

    def __init__(self) -> None:
        self.now_ns = NOON_NS

    def __call__(self) -> int:
        """Unix nanoseconds."""
        return self.now_ns


def waiting_with(clock: Clock, due: list[JobId], chosen: list[JobId]) -> Waiting:
    """Ten slots, and looks a hundred times as often as in a node."""
    limits = WaitingLimits(running_max=10, queued_max=10_000, upload_bytes_max=0)
    return Waiting(limits, chosen=chosen.append, due=due.append, has_room=lambda: True, clock_ns=clock, look_s=0.02)


def scheduled(start_at_ns: int) -> Job:
    """A job for later."""
    spec = JobSpec(command="true", start_at_ns=start_at_ns)
    record = JobRecord(
        id=new_job_id(), owner="ann", node_id="n", state=State.SCHEDULED, spec=spec, created_at_ns=NOON_NS
    )
    return Job(record=record, bounds=Bounds())


@pytest.mark.threat("F29")
def test_a_clock_that_jumps_starts_nothing_early_and_nothing_twice() -> None:
    """Forward: what has become due falls due. Backward: it waits. No timer is of that length, as after a suspend."""

    async def scenario() -> None:
        clock, due = Clock(), list[JobId]()
        waiting = waiting_with(clock, due, [])
        jobs = [scheduled(NOON_NS + seconds * SECOND_NS) for seconds in (3600, 60, 7200)]
        for job in jobs:
            waiting.keep(job, Place.QUEUE)
            waiting.schedule(job)
        waiting.open()
        clock.now_ns = NOON_NS - 10**6 * SECOND_NS
        waiting.schedule(soon := scheduled(clock.now_ns))
        await await_for(lambda: due == [soon.record.id], what="a look at the clock that went back")
        clock.now_ns = NOON_NS + 3600 * SECOND_NS
        await await_for(lambda: len(due) == 3, what="a look at the clock that went forward")
        assert due[1:] == [jobs[1].record.id, jobs[0].record.id]
        clock.now_ns = NOON_NS
        waiting.leave(jobs[2].record.id)
        clock.now_ns = NOON_NS + 10**6 * SECOND_NS
        waiting.schedule(last := scheduled(NOON_NS))
        await await_for(lambda: last.record.id in due, what="one more look")
        assert len(due) == 4, "a canceled one is not due, and none is twice"
        waiting.close()

    run(scenario)


def test_without_scheduled_jobs_there_is_no_timer_and_with_many_there_is_one() -> None:
    """And what it keeps of them is bounded by how many there are."""

    async def scenario() -> None:
        clock, due = Clock(), list[JobId]()
        waiting = waiting_with(clock, due, [])
        waiting.open()
        assert waiting._timer is None
        for _ in range(500):
            job = scheduled(NOON_NS + SECOND_NS)
            waiting.keep(job, Place.QUEUE)
            waiting.schedule(job)
            waiting.leave(job.record.id)
        assert len(waiting._times) <= 65
        many = [scheduled(NOON_NS + SECOND_NS) for _ in range(3 * DUE_AT_ONCE_MAX)]
        for job in many:
            waiting.keep(job, Place.QUEUE)
            waiting.schedule(job)
        assert waiting._timer is not None
        clock.now_ns += SECOND_NS
        await await_for(lambda: bool(due), what="the first of them")
        assert len(due) % DUE_AT_ONCE_MAX == 0, "others have a turn between"
        await await_for(lambda: len(due) == len(many), what="all of them")
        await await_for(lambda: waiting._timer is None, what="the end of the timer")

    run(scenario)


def test_a_submission_does_not_look_at_every_owner(tmp_path: Path) -> None:
    """With very many of them its answer tells no place; who asks for the job is told."""

    async def scenario() -> None:
        async with running_node(settings_of(tmp_path, queued_max=1000), Memory()) as node:
            few = [await submitted(node, f"owner-{number}") for number in range(PLACED_OWNERS_MAX)]
            assert [one.queue_position for one in few] == list(range(PLACED_OWNERS_MAX))
            more = await submitted(node, "one more")
            assert (more.state, more.queue_position) == (State.PENDING, 0)
            assert (await got(node, more.id)).queue_position == PLACED_OWNERS_MAX

    run(scenario)
