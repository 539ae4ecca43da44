"""Output on its two ways: live to followers, durably to a persist that may be slow, deaf or absent."""

import asyncio
import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from common.bus.events import Subscriber
from common.bus.memory import Memory
from common.config.settings import Journal as JournalSettings
from common.config.settings import Persist
from common.errors import JobletError
from common.identifiers import JobId, new_job_id
from common.messages.jobs import (
    GetJob,
    GetNode,
    JobFound,
    JobPage,
    ListJobs,
    LogSynced,
    NodeFacts,
    State,
    SyncLog,
)
from common.messages.logs import LogMarker, LogRecords, PersistStarted
from common.records import Record, RecordType, decode_all
from tests.unit.executor_asking import flipped, got, in_state, launched, numbered
from tests.unit.executor_fakes import FakePersist, Node, node_settings, running_node
from tests.waiting import await_for


def lost(persist: FakePersist, job: JobId) -> list[tuple[int, int, str, int]]:
    """First, lines, reason and bytes of each stored gap."""
    gaps = [record for record in persist.stored.get(job, []) if record.type == RecordType.GAP]
    told = [json.loads(bytes(gap.payload)) for gap in gaps]
    return [(gap.sequence, gap.lines, each["reason"], each["bytes"]) for gap, each in zip(gaps, told, strict=True)]


def lines_of(persist: FakePersist, job: JobId) -> bytes:
    """All stored output of the job."""
    return b"".join(bytes(r.payload) for r in persist.stored.get(job, []) if r.type == RecordType.OUTPUT)


async def counters(node: Node) -> dict[str, int]:
    """What the node has counted."""
    return (await node.ask.request(GetNode(), NodeFacts)).counters


@pytest.mark.threat("F12")
def test_a_damaged_stretch_is_a_gap_and_the_rest_is_read(tmp_path: Path) -> None:
    """Live and durable readers get what is behind it as soon as it is there; record and node count what is missing."""

    async def scenario() -> None:
        transport = Memory()
        persist = FakePersist(transport)
        storing = asyncio.create_task(persist.run())
        async with running_node(node_settings(tmp_path), transport) as node:
            job, monitor = await launched(node)
            monitor.start()
            monitor.output(numbered(1, 3))
            record = monitor.record(numbered(4, 6))
            monitor.append(b"garbage" + record[7:])
            await in_state(node, job, State.RUNNING)
            assert (await counters(node))["journals_damaged"] == 0, "it may still be being written"
            monitor.output(numbered(7, 8))
            await await_for(lambda: persist.last.get(job) == 8, what="what is behind the damage")
            running = await in_state(node, job, State.RUNNING)
            assert (running.lost_entries, running.lost_bytes, running.last_sequence) == (3, len(record), 8)
            assert "its journal is damaged: corrupt record at byte" in running.reason
            page = await node.ask.request(ListJobs(visible_owner=None), JobPage)
            assert [(each.lost_entries, each.lost_bytes) for each in page.jobs] == [(3, len(record))]
            monitor.exit(exit_code=4)
            ended = await in_state(node, job, State.FAILED)
            assert (ended.exit_code, ended.last_sequence, ended.lost_entries) == (4, 8, 3)
            await await_for(lambda: persist.ended.get(job) == 8, what="the end with persist")
            assert lost(persist, job) == [(4, 3, "journal_damaged", len(record))]
            assert lines_of(persist, job) == numbered(1, 3) + numbered(7, 8)
            counts = await counters(node)
            assert (counts["journals_damaged"], counts["journals_torn"]) == (1, 0)
            assert (counts["lost_entries"], counts["lost_bytes"]) == (3, len(record))
        storing.cancel()

    asyncio.run(scenario())


@pytest.mark.threat("F12")
def test_live_and_stored_agree_about_a_wrong_checksum(tmp_path: Path) -> None:
    """One flipped byte of the output: nobody sees it, both see the same gap, and the job has its true end."""

    async def scenario() -> None:
        transport = Memory()
        persist = FakePersist(transport)
        storing = asyncio.create_task(persist.run())
        followed = Subscriber(transport)
        followed.subscribe("log.")
        async with running_node(node_settings(tmp_path), transport) as node:
            job, monitor = await launched(node)
            monitor.start()
            monitor.output(numbered(1, 3))
            monitor.append(monitor.record(b"changed\n")[:-2] + b"!\n")
            monitor.output(numbered(5, 6))
            monitor.exit()
            record = await in_state(node, job, State.COMPLETED)
            assert (record.last_sequence, record.lost_entries) == (6, 1)
            await await_for(lambda: persist.ended.get(job) == 6, what="the end with persist")
            assert lines_of(persist, job) == numbered(1, 3) + numbered(5, 6)
            live: list[Record] = []
            async for _, message in followed.messages():
                assert isinstance(message.body, LogRecords)
                live += [each for each in decode_all(message.body.records) if each.lines]
                if live and live[-1].last_sequence == 6:
                    break
            assert live == persist.stored[job]
        storing.cancel()

    asyncio.run(scenario())


@pytest.mark.threat("F12")
def test_what_is_damaged_between_followers_and_persist_is_told(tmp_path: Path) -> None:
    """Followers had it, the stored log has a gap in its place: record and node say so. Lost for followers it is not."""

    async def scenario() -> None:
        transport = Memory()
        settings = node_settings(tmp_path, journal=JournalSettings(unacknowledged_bytes_max=1))
        async with running_node(settings, transport) as node:  # a record at a time goes to persist: nobody answers
            job, monitor = await launched(node)
            monitor.start()
            monitor.output(numbered(1, 3))
            offset = monitor.journal.stat().st_size
            monitor.output(numbered(4, 5))
            monitor.output(numbered(6, 7))

            async def published() -> bool:
                return (await got(node, job)).last_sequence == 7

            await await_for(published, what="seven lines")
            monitor.journal.write_bytes(flipped(monitor.journal.read_bytes(), offset + 8))
            persist = FakePersist(transport)
            storing = asyncio.create_task(persist.run())
            await await_for(lambda: persist.last.get(job) == 7, what="the rest with persist")
            record = await got(node, job)
            assert (record.lost_entries, record.last_sequence) == (0, 7)
            assert (await counters(node))["journals_damaged"] == 1
            assert f"corrupt record at byte {offset}" in record.reason
            assert [gap[:3] for gap in lost(persist, job)] == [(4, 2, "journal_damaged")]
            assert lines_of(persist, job) == numbered(1, 3) + numbered(6, 7)
            storing.cancel()

    asyncio.run(scenario())


@pytest.mark.threat("F12")
@pytest.mark.parametrize("which", ["start", "exit"])
def test_a_job_whose_start_or_exit_is_damaged_has_an_end(tmp_path: Path, which: str) -> None:
    """Without its START it ends as its EXIT says; without its EXIT it is LOST, with a reason. No output is missing."""

    async def scenario() -> None:
        transport = Memory()
        persist = FakePersist(transport)
        storing = asyncio.create_task(persist.run())
        async with running_node(node_settings(tmp_path), transport) as node:
            job, monitor = await launched(node)
            monitor.start()
            if which == "start":
                monitor.journal.write_bytes(flipped(monitor.journal.read_bytes(), 40))
            monitor.output(numbered(1, 3))
            monitor.append(flipped(monitor.exit_record(), 40) if which == "exit" else monitor.exit_record())
            monitor.die()
            record = await in_state(node, job, State.COMPLETED if which == "start" else State.LOST)
            assert "checksum does not match" in record.reason
            assert (record.last_sequence, record.lost_entries) == (3, 0)
            assert record.lost_bytes == (0 if which == "start" else len(monitor.exit_record()))
            await await_for(lambda: persist.ended.get(job) == 3, what="the end with persist")
            assert persist.output(job) == numbered(1, 3)
            assert (await counters(node))["journals_damaged"] == 1
        storing.cancel()

    asyncio.run(scenario())


@pytest.mark.threat("F13")
def test_what_was_dropped_is_counted_once(tmp_path: Path) -> None:
    """GAPs of a full journal count in record and node; a journal that is read again after a restart counts nothing."""

    async def scenario() -> None:
        transport, settings = Memory(), node_settings(tmp_path)
        async with running_node(settings, transport) as first:  # nobody acknowledges: all of it is read again
            job, monitor = await launched(first)
            monitor.start()
            monitor.output(numbered(1, 3))
            monitor.gap(7, lost_bytes=70)
            monitor.output(numbered(11, 12))
            monitor.gap(2, lost_bytes=20)

            async def counted() -> bool:
                return (await got(first, job)).lost_entries == 9

            await await_for(counted, what="both gaps")
            assert (await got(first, job)).lost_bytes == 90
        async with running_node(settings, transport, first.host) as second:
            assert (await in_state(second, job, State.RUNNING)).lost_entries == 9
            monitor.gap(1, lost_bytes=5)
            monitor.exit()
            ended = await in_state(second, job, State.COMPLETED)
            assert (ended.lost_entries, ended.lost_bytes, ended.last_sequence) == (10, 95, 15)
            assert (await counters(second))["lost_entries"] == 1, "since this executor began"
        async with running_node(settings, transport, first.host) as third:
            assert (await got(third, job)).lost_entries == 10
            assert (await counters(third))["lost_bytes"] == 0

    asyncio.run(scenario())


def test_delivered_means_that_persist_has_the_end(tmp_path: Path) -> None:
    """Not while the job runs, not while its end is on the way; also after a restart."""

    async def scenario() -> None:
        transport, settings = Memory(), node_settings(tmp_path)
        async with running_node(settings, transport) as node:
            job, monitor = await launched(node)

            async def delivered() -> bool:
                return (await node.ask.request(GetJob(job=job, visible_owner=None), JobFound)).delivered

            monitor.start()
            monitor.output(numbered(1, 3))
            await in_state(node, job, State.RUNNING)
            assert not await delivered()
            monitor.exit()
            await in_state(node, job, State.COMPLETED)
            assert not await delivered()
            persist = FakePersist(transport)
            storing = asyncio.create_task(persist.run())
            await persist.say(PersistStarted(instance="new"))
            await await_for(delivered, what="the end with persist")
            storing.cancel()
        async with running_node(settings, transport, node.host) as again:
            assert (await again.ask.request(GetJob(job=job, visible_owner=None), JobFound)).delivered

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


@pytest.mark.threat("F12")
def test_damage_just_before_the_exit_does_not_keep_the_end_from_persist(tmp_path: Path) -> None:
    """Found when followers had it all: whether what follows is the true EXIT is known when the monitor is gone."""

    async def scenario() -> None:
        transport = Memory()
        settings = node_settings(tmp_path, journal=JournalSettings(unacknowledged_bytes_max=1))
        async with running_node(settings, transport) as node:  # a record at a time goes to persist: nobody answers
            job, monitor = await launched(node)
            monitor.start()
            monitor.output(numbered(1, 3))
            offset = monitor.journal.stat().st_size
            monitor.output(numbered(4, 5))
            monitor.append(monitor.exit_record())
            await in_state(node, job, State.COMPLETED)
            monitor.journal.write_bytes(flipped(monitor.journal.read_bytes(), offset + 8))
            persist = FakePersist(transport)
            storing = asyncio.create_task(persist.run())
            await await_for(lambda: persist.last.get(job) == 3, what="what is before the damage with persist")
            await asyncio.sleep(0.1)
            assert job not in persist.ended, "the monitor may still write"
            monitor.die()
            await await_for(lambda: persist.ended.get(job) == 5, what="the end with persist")
            assert lines_of(persist, job) == numbered(1, 3)
            assert [gap[:3] for gap in lost(persist, job)] == [(4, 2, "journal_damaged")]
            storing.cancel()

    asyncio.run(scenario())
