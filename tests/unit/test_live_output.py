"""Output on its two ways: live to followers, durably to a persist that may be slow, deaf or absent."""

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from common.bus.events import Subscriber
from common.bus.memory import Memory
from common.config.settings import Journal as JournalSettings
from common.config.settings import Persist
from common.errors import JobletError
from common.identifiers import new_job_id
from common.messages.jobs import (
    LogSynced,
    State,
    SyncLog,
)
from common.messages.logs import LogMarker, LogRecords, PersistStarted
from common.records import decode_all
from tests.unit.executor_asking import got, in_state, launched, numbered
from tests.unit.executor_fakes import FakePersist, node_settings, running_node
from tests.waiting import await_for


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
