"""ApplyRetention and GetStore: what operators and the api rely on. The rig is test_persist_service's."""

import asyncio
import contextlib
import shutil
from collections.abc import Awaitable, Callable
from itertools import accumulate
from pathlib import Path

import grpc
import pytest

from common.audit import AuditFile
from common.config.settings import Retention
from common.identifiers import JobId, new_job_id
from common.messages.logs import EndOfJob, Stored, StoreMetric, StoreRecords
from proto.joblet.v1 import node_pb2
from proto.joblet.v1 import persist_pb2 as pb
from services.persist import clock, clockfile
from services.persist.clock import Watched
from services.persist.keeping import Line
from services.persist.retention import DAY_NS
from tests.contract.test_persist_service import JOB, Rig, batches, each, run, store_records, stored
from tests.fault.test_persist_disk import small_filesystem
from tests.unit.test_persist_journal import output
from tests.waiting import await_for

RECORD_BYTES = 101 * 10_000
LARGE = b"".join(b"%d\n" % (number * 7919 % 1_000_003) for number in range(3000))


def ago(days: float) -> int:
    """Unix nanoseconds of so many days ago."""
    return clock.read().wall_ns - int(days * DAY_NS)


async def finished(rig: Rig, *, days: float, owner: str = "ann", payload: bytes = b"line\n") -> JobId:
    """A job with output and a sample, that ended so many days ago. More than RECORD_BYTES: lines of 101 bytes."""
    job, lines = new_job_id(), payload.count(b"\n")
    pieces = [payload[start : start + RECORD_BYTES] for start in range(0, len(payload), RECORD_BYTES)]
    firsts = accumulate((piece.count(b"\n") for piece in pieces), initial=1)
    encoded = [output(piece, first) for piece, first in zip(pieces, firsts, strict=False)]
    end = EndOfJob(job=job, epoch=1, batch=len(encoded), last_sequence=lines, owner=owner, ended_at_ns=ago(days))
    await rig.send(
        StoreMetric(job=job, time_ns=1, cpu_percent=1.0, memory_bytes=1),
        *(StoreRecords(job=job, epoch=1, batch=number, records=record) for number, record in enumerate(encoded)),
        end,
    )
    await rig.answered(Stored(job=job, epoch=1, last_sequence=lines, ended=True))
    return job


async def apply(rig: Rig, *, dry_run: bool = False) -> list[pb.Removal]:
    """What ApplyRetention answers."""
    return [removal async for removal in rig.stub.ApplyRetention(pb.ApplyRetentionRequest(dry_run=dry_run))]


def run_settled(base: Path, scenario: Callable[[Rig], Awaitable[None]], **rules: int) -> None:
    """Run a scenario on a node whose clock was looked at before, and is believed."""
    (base / "logs").mkdir(exist_ok=True)
    clockfile.save(base / "logs", Watched(last=clock.read(), unsettled_ns=0))
    run(base, scenario, retention=Retention(**rules))


def contents(base: Path) -> list[Path]:
    """Every path below it."""
    return sorted(base.rglob("*"))


def directories(base: Path) -> set[str]:
    """Jobs of which there are logs."""
    return {path.name for path in (base / "logs").iterdir() if not path.name.startswith(".")}


@pytest.mark.requirement("S0.73")
@pytest.mark.requirement("S4.5")
def test_a_dry_run_tells_what_the_run_then_does(tmp_path: Path) -> None:
    """The same list, the oldest first; the dry run changes nothing; running and young jobs stay."""

    async def scenario(rig: Rig) -> None:
        old, older, young = [await finished(rig, days=days) for days in (8, 30, 1)]
        await rig.send(store_records(output(b"a\n", 1)))
        await rig.answered(stored(1))
        before = contents(tmp_path)
        told = await apply(rig, dry_run=True)
        assert [(removal.job_id, removal.owner, removal.why) for removal in told] == [
            (older, "ann", "age"),
            (old, "ann", "age"),
        ]
        assert contents(tmp_path) == before
        assert rig.audit.lines == []
        assert await apply(rig) == told
        assert directories(tmp_path) == {young, JOB}
        assert [(line.object, line.bytes) for line in rig.audit.lines] == [
            (removal.job_id, removal.bytes) for removal in told
        ]
        assert await apply(rig) == []

    run_settled(tmp_path, scenario, age_days=7)


@pytest.mark.parametrize("dry_run", [True, False])
def test_who_does_not_read_on_holds_up_nothing(tmp_path: Path, dry_run: bool) -> None:  # noqa: FBT001
    """An operator with a pager has seen the first removal of many: the rules are applied meanwhile."""

    async def scenario(rig: Rig) -> None:
        for days in (8, 9, 10):
            await finished(rig, days=days)
        async with contextlib.aclosing(rig.keeper.apply(dry_run=dry_run)) as told:
            await anext(told)
            assert len(await apply(rig)) == (3 if dry_run else 0)
            assert directories(tmp_path) == set()
            assert len([one async for one in told]) == 2, "it is told the rest when it reads on"

    run_settled(tmp_path, scenario, age_days=7)


@pytest.mark.requirement("S0.73")
def test_without_rules_nothing_is_removed(tmp_path: Path) -> None:
    """That is the default."""

    async def scenario(rig: Rig) -> None:
        job = await finished(rig, days=5000)
        assert await apply(rig) == []
        assert directories(tmp_path) == {job}

    run(tmp_path, scenario)


@pytest.mark.requirement("S0.73")
def test_a_trim_is_told_with_the_entries_that_go(tmp_path: Path) -> None:
    """The dry run names the same last entry; readers see a gap up to there, and the rest."""

    async def scenario(rig: Rig) -> None:
        job = await finished(rig, days=1, payload=LARGE * 10)
        (told,) = await apply(rig, dry_run=True)
        assert (told.job_id, told.why) == (job, "job_bytes")
        assert 0 < told.through_sequence < 30_000
        (done,) = await apply(rig)
        assert done == told
        query = pb.LogBatchQueryRequest(query=pb.LogQueryRequest(job_id=job))
        found = [batch async for batch in each(rig.stub.QueryLogBatches(query))]
        gap = found[0]
        assert (gap.first_sequence, gap.lines, gap.gap_reason) == (1, told.through_sequence, "retention")
        rest = b"".join(batch.data for batch in found)
        assert len(rest) + gap.gap_bytes == len(LARGE) * 10
        assert (LARGE * 10).endswith(rest)
        assert sum(path.stat().st_size for path in (tmp_path / "logs" / job).iterdir()) <= 60_000
        (line,) = rig.audit.lines
        assert (line.outcome, line.rule, line.through) == ("trimmed", "job_bytes", told.through_sequence)
        assert line.bytes >= told.bytes
        assert await apply(rig) == []

    run_settled(tmp_path, scenario, job_bytes=60_000)


@pytest.mark.requirement("S0.73")
def test_a_query_that_is_half_read_goes_on_behind_a_trim(tmp_path: Path) -> None:
    """What it had not read yet and is gone is a gap; every sequence comes once, and the bytes behind it are right."""
    payload = b"".join(b"%0100x\n" % (number * 0x9E3779B97F4A7C15 % 2**400) for number in range(200_000))

    async def scenario(rig: Rig) -> None:
        job = await finished(rig, days=1, payload=payload)
        query = pb.LogBatchQueryRequest(query=pb.LogQueryRequest(job_id=job))
        call = rig.stub.QueryLogBatches(query)
        found = list((await call.read()).batches)
        (told,) = await apply(rig)
        assert told.through_sequence > found[-1].first_sequence + found[-1].lines
        while (message := await call.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]  # missing in the stubs
            found += message.batches
        expected = 1
        for batch in found:
            assert batch.first_sequence == expected
            expected += batch.lines
        assert expected == 200_001
        (gap,) = [batch for batch in found if batch.gap_reason]
        assert gap.gap_reason == "retention"
        before = b"".join(batch.data for batch in found if batch.first_sequence < gap.first_sequence)
        behind = b"".join(batch.data for batch in found if batch.first_sequence > gap.first_sequence)
        assert payload.startswith(before)
        assert payload.endswith(behind)
        assert len(before) == (gap.first_sequence - 1) * 101
        assert len(behind) == (200_000 - told.through_sequence) * 101

    run_settled(tmp_path, scenario, job_bytes=300_000)


@pytest.mark.requirement("S0.73")
def test_what_was_removed_is_counted_and_audited(tmp_path: Path) -> None:
    """GetStore: how much is stored, as it was measured last, less what went; every counter is there, also at 0."""

    async def scenario(rig: Rig) -> None:
        assert (await rig.stub.GetStore(pb.GetStoreRequest())).measured_at == 0
        old = await finished(rig, days=9, owner="bob")
        await finished(rig, days=1)
        (removal,) = await apply(rig)
        info = await rig.stub.GetStore(pb.GetStoreRequest())
        assert info.jobs == 1
        files = [path for name in ("logs", "metrics") for path in (tmp_path / name).glob("*-*/*")]
        assert info.log_bytes + info.metric_bytes == sum(path.stat().st_size for path in files)
        assert info.free_bytes > 0
        assert abs(info.measured_at - ago(0)) < DAY_NS
        assert set(info.counters) == {
            *("entries_repeated", "entries_missing", "records_corrupt", "messages_refused", "flushes_failed"),
            *("members_damaged", "resends_asked", "jobs_removed", "bytes_removed"),
        }
        assert (info.counters["jobs_removed"], info.counters["bytes_removed"]) == (1, removal.bytes)
        (line,) = rig.audit.lines
        assert (line.who, line.method, line.object, line.owner) == ("joblet-persist", "retention", old, "bob")
        assert (line.bytes, line.rule, line.outcome, line.through) == (removal.bytes, "age", "removed", 0)

    run_settled(tmp_path, scenario, age_days=7)


@pytest.mark.requirement("S0.73")
def test_what_cannot_be_removed_is_audited_and_holds_up_nothing(tmp_path: Path) -> None:
    """One job's directory resists: the line says failed and why, the other one goes. Later it can be done."""
    jobs: list[JobId] = []

    async def filling(rig: Rig) -> None:
        jobs.extend([await finished(rig, days=30), await finished(rig, days=20)])

    async def resisting(rig: Rig) -> None:
        assert [removal.job_id for removal in await apply(rig)] == [jobs[1]]
        failed, removed = rig.audit.lines
        assert (failed.object, failed.rule, failed.outcome, removed.outcome) == (jobs[0], "age", "failed", "removed")
        assert "busy" in failed.why
        assert directories(tmp_path) == set(), "readers know nothing of it"

    async def yielding(rig: Rig) -> None:
        assert await apply(rig) == []
        (line,) = rig.audit.lines
        assert (line.object, line.rule, line.outcome) == (jobs[0], "unfinished", "removed")

    run_settled(tmp_path, filling)
    with small_filesystem(tmp_path / "logs" / jobs[0] / "mounted"):
        run_settled(tmp_path, resisting, age_days=7)
        aside = tmp_path / "logs" / f".removed-{jobs[0]}"
        aside.rename(tmp_path / "logs" / jobs[0])  # for umount
    (tmp_path / "logs" / jobs[0]).rename(aside)
    run_settled(tmp_path, yielding, age_days=7)
    assert list((tmp_path / "metrics").iterdir()) == []


@pytest.mark.requirement("S0.73")
def test_who_waits_for_more_of_a_removed_job_is_told(tmp_path: Path) -> None:
    """A follower is not left hanging; a query of an ended job ends by itself, so it waits for a later one."""

    async def scenario(rig: Rig) -> None:
        job = await finished(rig, days=9)
        await apply(rig)
        query = pb.LogQueryRequest(job_id=job)
        assert [b async for b in each(rig.stub.QueryLogBatches(pb.LogBatchQueryRequest(query=query)))] == []
        waiting = rig.stub.QueryLogBatches(pb.LogBatchQueryRequest(query=query, wait=True))
        reading = asyncio.ensure_future(waiting.read())
        # It waits for a job of which nothing is stored; stored anew and removed again, it ends.
        await rig.send(StoreRecords(job=job, epoch=5, batch=0, records=output(b"x\n", 1)))
        await rig.answered(Stored(job=job, epoch=5, last_sequence=1))
        assert (await reading).batches[0].data == b"x\n"
        await rig.stub.DeleteJobData(pb.DeleteJobDataRequest(job_id=job))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await waiting.read()
        assert error.value.code() is grpc.StatusCode.NOT_FOUND

    run_settled(tmp_path, scenario, age_days=7)


@pytest.mark.threat("F29")
def test_a_clock_in_doubt_is_told(tmp_path: Path) -> None:
    """Nothing goes for its age, the trailer says for how long; sizes go on. A restart forgets nothing."""
    jobs: list[JobId] = []

    async def filling(rig: Rig) -> None:
        jobs.extend([await finished(rig, days=days) for days in (30, 9, 1)])

    async def asked(rig: Rig, *, dry_run: bool = False) -> tuple[list[tuple[str, str]], str]:
        call = rig.stub.ApplyRetention(pb.ApplyRetentionRequest(dry_run=dry_run))
        removals = [(removal.job_id, removal.why) async for removal in call]
        return removals, dict(await call.trailing_metadata()).get("joblet-note", "")

    async def doubting(rig: Rig) -> None:
        for dry_run in (True, False):
            removals, note = await asked(rig, dry_run=dry_run)
            assert removals == [(jobs[0], "total_bytes")]
            assert "for another 1d no job is removed" in note or "for another 23h59m no job is removed" in note

    async def doubting_still(rig: Rig) -> None:
        removals, note = await asked(rig)
        assert removals == []
        assert "no job is removed for its age" in note

    async def settled(rig: Rig) -> None:
        assert await asked(rig) == ([(jobs[1], "age")], "")

    run_settled(tmp_path, filling)
    size = sum(path.stat().st_size for path in contents(tmp_path) if path.parent.name in jobs)
    before = clock.Reading(boot="another", steady_ns=1, wall_ns=clock.read().wall_ns - 365 * DAY_NS)
    clockfile.save(tmp_path / "logs", Watched(last=before, unsettled_ns=0))
    run(tmp_path, doubting, retention=Retention(age_days=7, total_bytes=size - 1))
    run(tmp_path, doubting_still, retention=Retention(age_days=7))
    run_settled(tmp_path, settled, age_days=7)


@pytest.mark.requirement("S0.63")
def test_a_directory_removed_by_hand_while_output_comes(tmp_path: Path) -> None:
    """Queries say that nothing is stored; the running job is stored on, with a gap for what went."""

    async def scenario(rig: Rig) -> None:
        await rig.send(store_records(output(b"a\nb\n", 1)))
        await rig.answered(stored(2))
        shutil.rmtree(tmp_path / "logs" / JOB)
        assert [batch async for batch in each(batches(rig))] == []
        await rig.send(store_records(output(b"c\n", 3), batch=1))
        await rig.answered(stored(3))
        found = [(batch.first_sequence, batch.lines, batch.gap_reason) async for batch in each(batches(rig))]
        assert found == [(1, 2, "never_received"), (3, 1, "")]

    run(tmp_path, scenario)


@pytest.mark.requirement("S0.73")
def test_it_happens_by_itself_and_early_when_there_is_no_room(tmp_path: Path) -> None:
    """At the start, and long before the next time when somebody finds the disk full."""

    async def scenario(rig: Rig) -> None:
        first = await finished(rig, days=9)
        running = asyncio.create_task(rig.keeper.run())
        try:
            await await_for(lambda: first not in directories(tmp_path), what="the first to go")
            second = await finished(rig, days=8)
            rig.keeper.hurry(1)
            await await_for(lambda: second not in directories(tmp_path), what="the second to go")
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    run_settled(tmp_path, scenario, age_days=7, interval_ms=3_600_000)


def test_its_audit_log_is_served(tmp_path: Path) -> None:
    """QueryAudit gives the lines of persist's own file: what was removed, of whom and by which rule."""

    async def scenario(rig: Rig) -> None:
        with contextlib.closing(AuditFile(tmp_path)) as audit:
            for outcome, why in (("removed", ""), ("failed", "no such disk")):
                time = "2026-01-02T03:04:05Z"
                audit.record(Line(time=time, object=JOB, owner="ann", bytes=1, rule="age", outcome=outcome, why=why))
        request = node_pb2.QueryAuditRequest(object=JOB[:8], tail=5)
        entries = [entry async for answer in rig.stub.QueryAudit(request) for entry in answer.entries]
        assert [(entry.outcome, entry.why, entry.number) for entry in entries] == [
            ("removed", "age", 1),
            ("failed", "no such disk", 2),
        ]
        assert {(entry.source, entry.object, entry.who) for entry in entries} == {("persist", JOB, "joblet-persist")}
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await rig.stub.QueryAudit(node_pb2.QueryAuditRequest(tail=2**40)).read()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    run(tmp_path, scenario)
