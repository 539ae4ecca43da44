"""Watches that miss events, or are too slow for them."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

from common.bus.events import Subscriber
from common.bus.memory import Memory
from common.bus.requests import Requester
from common.bus.zeromq import ZeroMQ
from common.messages import jobs, topics
from proto.joblet.v1 import job_pb2
from services.api.followers.hub import Hub
from services.api.process import remove_stale_replies
from services.api.watch import CHANGES_QUEUED_MAX, Watch
from tests.api_executor import FakeExecutor
from tests.api_persist import FakePersist
from tests.waiting import SLOWNESS

EVERYTHING = jobs.ListJobs(visible_owner=None, page_size=1000)


@asynccontextmanager
async def watching(silence_s: float) -> AsyncIterator[tuple[FakeExecutor, Watch]]:
    """A watch over a fake executor."""
    transport = Memory()
    executor = FakeExecutor(transport, FakePersist())
    requester = Requester(
        transport, commands=topics.EXECUTOR_COMMANDS, replies=topics.API_REPLIES, reply_file="api-replies-1.sock"
    )
    hub = Hub(Subscriber(transport))
    tasks = [asyncio.create_task(one) for one in (executor.run(), requester.run(), hub.run())]
    try:
        yield executor, Watch(hub, requester, silence_s=silence_s)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await executor.close()


def test_a_change_whose_event_was_lost_is_told_after_a_silence() -> None:
    """An end and a new job that nobody published are found; what is known already is not told again."""

    async def scenario() -> None:
        async with watching(0.05) as (executor, watch):
            job = executor.add("ann").id
            async with aclosing(watch.changes(EVERYTHING)) as changes:
                assert (await anext(changes)).initial
                executor.change(job, announce=False, state=jobs.State.FAILED)
                new = executor.add("ann").id
                told = [await anext(changes) for _ in range(2)]
                assert {(one.job.id, one.initial) for one in told} == {(job, False), (new, False)}

    asyncio.run(scenario())


def test_a_lost_change_is_told_while_others_go_on_changing() -> None:
    """A busy node is never silent: what was lost is looked for all the same, and nothing is told twice for it."""

    async def scenario() -> None:
        async with watching(0.5) as (executor, watch):
            lost, busy = executor.add("ann").id, executor.add("ann").id

            async def go_on() -> None:
                for number in range(10**6):
                    executor.change(busy, pid=number)
                    await asyncio.sleep(0.005)

            changing = asyncio.create_task(go_on())
            try:
                async with aclosing(watch.changes(EVERYTHING)) as changes:
                    assert {(await anext(changes)).job.id for _ in range(2)} == {lost, busy}
                    executor.change(lost, announce=False, state=jobs.State.FAILED)
                    pids = []
                    async with asyncio.timeout(10 * SLOWNESS):
                        while (told := (await anext(changes)).job).id != lost:
                            pids.append(told.pid)
                    assert told.state == job_pb2.FAILED
                    assert pids == sorted(set(pids))
            finally:
                changing.cancel()

    asyncio.run(scenario())


def test_a_removal_that_nobody_told_hides_nothing_else() -> None:
    """A job is deleted while events are lost: its watchers learn it, and go on learning what else they missed."""

    async def scenario() -> None:
        async with watching(0.05) as (executor, watch):
            gone, stays = executor.add("ann").id, executor.add("ann").id
            async with aclosing(watch.changes(EVERYTHING)) as changes:
                assert {(await anext(changes)).job.id for _ in range(2)} == {gone, stays}
                del executor.jobs[gone]
                executor.change(stays, announce=False, state=jobs.State.FAILED)
                async with asyncio.timeout(10 * SLOWNESS):
                    told = [await anext(changes) for _ in range(2)]
                assert {(one.job.id, one.deleted) for one in told} == {(gone, True), (stays, False)}

    asyncio.run(scenario())


def test_a_watcher_that_is_too_slow_begins_anew() -> None:
    """More changes than its queue holds: memory is bounded, and it gets the jobs as they are, marked initial."""

    async def scenario() -> None:
        async with watching(10) as (executor, watch):
            job = executor.add("ann").id
            async with aclosing(watch.changes(EVERYTHING)) as changes:
                assert (await anext(changes)).initial
                executor.change(job, pid=-1)
                assert (await anext(changes)).job.pid == -1
                for number in range(CHANGES_QUEUED_MAX + 10):
                    executor.change(job, pid=number)
                    await asyncio.sleep(0)
                await asyncio.sleep(0)
                latest = await anext(changes)
                assert (latest.initial, latest.job.pid) == (True, CHANGES_QUEUED_MAX + 9)

    asyncio.run(scenario())


def test_reply_sockets_of_killed_processes_are_removed(tmp_path: Path) -> None:
    """The lock tells whose process is gone; the socket of one that lives stays."""

    async def scenario() -> None:
        transport = ZeroMQ(tmp_path)
        living = transport.pull(topics.API_REPLIES, "api-replies-1.sock")
        for name in ("api-replies-2.sock", "api-replies-2.sock.lock", "events.sock", "events.sock.lock"):
            (tmp_path / name).touch()
        remove_stale_replies(tmp_path)
        left = await asyncio.to_thread(os.listdir, tmp_path)
        assert set(left) == {"api-replies-1.sock", "api-replies-1.sock.lock", "events.sock", "events.sock.lock"}
        living.close()
        transport.close()

    asyncio.run(scenario())
