"""The real persist process and retention: killed between any two steps, on a full disk, asked by the operator."""

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import yaml

from cli.joblet.main import run
from cli.joblet.storedlog import verify_job
from common.failpoints import VARIABLE
from common.identifiers import JobId, new_job_id
from common.records import Stream
from proto.joblet.v1 import persist_pb2 as pb
from proto.joblet.v1.persist_pb2_grpc import PersistServiceStub
from services.persist.clockfile import CLOCK_FILE
from services.persist.retention import DAY_NS
from tests.fault.test_persist_disk import small_filesystem
from tests.fault.test_persist_process import Sender, Service, base, numbers, transport_of
from tests.leaks import paths_below
from tests.unit.test_persist_journal import output, records
from tests.waiting import SLOWNESS, wait_for

__all__ = ["base"]  # the fixture

HOUR_MS = 3_600_000


@pytest.fixture
def failpoints(base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory in which a test arms places of the persist process, which is another user."""
    directory = base / "failpoints"
    directory.mkdir()
    directory.chmod(0o777)
    monkeypatch.setenv(VARIABLE, str(directory))
    return directory


@pytest.fixture
def service(base: Path) -> Iterator[Service]:
    """Processes on `base`, none of which outlives the test."""
    service = Service(base)
    yield service
    if service.process is not None and service.process.poll() is None:
        service.kill()


def arm(failpoints: Path, place: str) -> None:
    """The next passing of `place` is the last."""
    (failpoints / place).write_text("1")
    (failpoints / place).chmod(0o666)


def configure(base: Path, *, store: Path | None = None, interval_ms: int = 200, **rules: int) -> None:
    """Write the node's configuration."""
    local = {"retention": {"interval_ms": interval_ms, **rules}}
    storage = {"local": local} | ({"base_dir": str(store)} if store else {})
    (base / "joblet-config.yml").write_text(yaml.safe_dump({"version": "3.0", "persist": {"storage": storage}}))


def audited(base: Path) -> list[dict[str, object]]:
    """The lines of persist's audit file."""
    try:
        return [json.loads(line) for line in (base / "audit" / "persist" / "audit.jsonl").read_text().splitlines()]
    except FileNotFoundError:
        return []


def begin(base: Path, service: Service) -> None:
    """Start a process whose first round has looked at what is stored: it knows the clock, and not what comes now."""

    def known() -> int:
        return max((path.stat().st_mtime_ns for path in paths_below(base) if path.name == CLOCK_FILE), default=0)

    before = known()
    service.start()
    wait_for(lambda: known() != before, what="the round at the start")


def names(directory: Path) -> set[str]:
    """What is in it, but what the service itself keeps there."""
    return {path.name for path in directory.iterdir()} - {".clock.json"}


def random_lines(count: int, size_bytes: int, *, both: bool = False) -> list[bytes]:
    """Records of one line each that do not compress; with `both` every third on stderr."""
    return [
        output(
            os.urandom(size_bytes).replace(b"\n", b"x") + b"\n",
            number,
            stream=Stream.STDERR if both and number % 3 == 0 else Stream.STDOUT,
        )
        for number in range(1, count + 1)
    ]


@asynccontextmanager
async def sending(base: Path, job: JobId, encoded: list[bytes], *, days: float) -> AsyncIterator[Sender]:
    """An executor that sends a job which ended so many days ago."""
    async with transport_of(base) as transport, asyncio.timeout(60 * SLOWNESS):
        yield Sender(transport, job, encoded, owner="ann", ended_at_ns=time.time_ns() - int(days * DAY_NS))


def store(base: Path, service: Service, *jobs: tuple[JobId, list[bytes], float]) -> None:
    """Have a process without rules store jobs, and end it."""

    async def send_all() -> None:
        for job, encoded, days in jobs:
            async with sending(base, job, encoded, days=days) as sender:
                await sender.run()

    begin(base, service)
    asyncio.run(send_all())
    assert service.kill(signal.SIGTERM) == 0


def batches_of(base: Path, job: JobId) -> list[pb.LogBatch]:
    """All that the running process has of a job."""
    with grpc.insecure_channel(f"unix:{base}/run/persist-grpc.sock") as channel:
        request = pb.LogBatchQueryRequest(query=pb.LogQueryRequest(job_id=job))
        answers = PersistServiceStub(channel).QueryLogBatches(request, timeout=20 * SLOWNESS, wait_for_ready=True)
        return [batch for answer in answers for batch in answer.batches]


def data_of(base: Path, job: JobId) -> dict[int, bytes]:
    """The bytes of each stream."""
    batches = batches_of(base, job)
    streams = (pb.STDOUT, pb.STDERR)
    return {stream: b"".join(batch.data for batch in batches if batch.stream == stream) for stream in streams}


def start_and_die(service: Service) -> None:
    """A process that comes to an armed place."""
    service.start()
    assert service.process is not None
    assert service.process.wait(30 * SLOWNESS) == -signal.SIGKILL, service.log.read_text()


@pytest.mark.threat("F02")
@pytest.mark.requirement("S0.73")
@pytest.mark.parametrize("place", ["persist.chosen", "persist.logs_removed"])
def test_killed_while_it_removes_a_job(base: Path, failpoints: Path, service: Service, place: str) -> None:
    """The job is there as a whole or for no one; the next process removes the rest, tells it, and nothing else goes."""
    old, young = new_job_id(), new_job_id()
    encoded, expected = numbers(count=20)
    configure(base, interval_ms=HOUR_MS)
    store(base, service, (old, encoded, 30), (young, encoded, 1))
    samples = base / "metrics" / old
    samples.mkdir()
    (samples / "metrics.jsonl.gz").write_bytes(b"x" * 100)
    os.chown(samples, (base / "metrics").stat().st_uid, -1)
    configure(base, age_days=7)
    arm(failpoints, place)
    start_and_die(service)
    if place == "persist.chosen":
        assert verify_job(base / "logs" / old).findings == []
        assert old in names(base / "logs")
    else:
        assert old not in names(base / "logs")
        assert old in names(base / "metrics")
    assert audited(base) == [], "nothing is told before it is done"
    service.start()
    wait_for(lambda: names(base / "logs") == {young} and names(base / "metrics") == set(), what="the rest to go")
    lines = wait_for(lambda: audited(base), what="it to be told")  # which is done after it
    assert {(line["object"], line["outcome"]) for line in lines} == {(old, "removed")}
    assert {line["who"] for line in lines} == {"joblet-persist"}
    assert data_of(base, young) == expected
    assert batches_of(base, old) == []


@pytest.mark.threat("F02")
@pytest.mark.requirement("S0.73")
@pytest.mark.parametrize("place", ["persist.chosen", "persist.trimmed", "persist.half_trimmed"])
def test_killed_while_it_trims_a_job(base: Path, failpoints: Path, service: Service, place: str) -> None:
    """Old or new for whoever asks the next process; it ends up trimmed, with every sequence in an entry or the gap."""
    job = new_job_id()
    encoded = random_lines(60, 2000, both=True)
    configure(base, interval_ms=HOUR_MS)
    store(base, service, (job, encoded, 1))
    directory = base / "logs" / job
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    configure(base, job_bytes=50_000)
    arm(failpoints, place)
    start_and_die(service)
    after = {path.name: path.read_bytes() for path in directory.iterdir()}
    if place != "persist.half_trimmed":
        assert {name: after[name] for name in before} == before
    service.start()
    wait_for(lambda: audited(base) or place == "persist.half_trimmed", what="the trim to be told")
    wait_for(lambda: names(directory) == set(before), what="leftovers to go")
    report = verify_job(directory)
    assert report.findings == []
    assert report.last_sequence == 60
    assert report.gap_entries > 0
    assert sum(path.stat().st_size for path in directory.iterdir()) <= 50_000
    assert (directory / "job.json").read_bytes() == before["job.json"]
    gap, *rest = batches_of(base, job)
    assert (gap.first_sequence, gap.lines, gap.gap_reason) == (1, report.gap_entries, "retention")
    assert [batch.first_sequence for batch in rest] == list(range(gap.lines + 1, 61))
    assert [batch.data for batch in rest] == [record.payload for record in records(*encoded)][gap.lines :]


@pytest.mark.threat("F02")
@pytest.mark.threat("F06")
@pytest.mark.requirement("S0.73")
def test_killed_between_the_end_of_a_job_and_its_summary(base: Path, failpoints: Path, service: Service) -> None:
    """The end was not acknowledged, so it comes again: owner and time are known then, and no line is there twice."""
    job = new_job_id()
    encoded, expected = numbers(count=20)
    configure(base, interval_ms=HOUR_MS)
    arm(failpoints, "persist.ended")

    async def scenario() -> None:
        async with sending(base, job, encoded, days=1) as sender:
            service.start()
            running = asyncio.create_task(sender.run())
            assert service.process is not None
            assert await asyncio.to_thread(service.process.wait, 30 * SLOWNESS) == -signal.SIGKILL
            assert not sender.ended
            assert not (base / "logs" / job / "job.json").exists()
            service.start()
            await running

    asyncio.run(scenario())
    summary = json.loads((base / "logs" / job / "job.json").read_text())
    assert (summary["job"], summary["owner"]) == (job, "ann")
    assert verify_job(base / "logs" / job).findings == []
    assert data_of(base, job) == expected


@pytest.mark.threat("F13")
@pytest.mark.requirement("S0.73")
@pytest.mark.requirement("S4.5")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_flood_that_fills_the_disk_pushes_out_old_jobs(base: Path, service: Service) -> None:
    """ENOSPC starts retention long before its time: the oldest ended jobs go, the flood is stored to its last line."""
    place = base / "small"
    with small_filesystem(place):
        configure(base, store=place, interval_ms=HOUR_MS)
        old = [new_job_id() for _ in range(6)]
        store(base, service, *((job, random_lines(20, 2000), 10 - number) for number, job in enumerate(old)))
        configure(base, store=place, interval_ms=HOUR_MS, free_bytes=120_000)
        service.start()
        flood = new_job_id()

        async def scenario() -> None:
            async with sending(base, flood, random_lines(150, 2000), days=0) as sender:
                await sender.run()
                assert sender.acknowledged == 150

        asyncio.run(scenario())
        assert service.kill(signal.SIGTERM) == 0, "else it may be at the last of them"
        stored_jobs = names(place / "logs")
        assert flood in stored_jobs
        gone = [job for job in old if job not in stored_jobs]
        assert 0 < len(gone) < 6
        assert gone == old[: len(gone)], "the oldest first"
        assert verify_job(place / "logs" / flood).findings == []
        assert "no room" in service.log.read_text(), "the disk was really full"
        assert {line["object"] for line in audited(base)} == set(gone)
        assert {line["rule"] for line in audited(base)} == {"free_bytes"}


@pytest.mark.requirement("S0.73")
def test_an_operator_asks(base: Path, service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    """`joblet retention`: a dry run, then for good; as text and as JSON; without persist one line of what to do."""
    old, young = new_job_id(), new_job_id()
    encoded, _ = numbers(count=3)
    configure(base, interval_ms=HOUR_MS, age_days=7)
    store(base, service, (young, encoded, 1))
    where = ["--base-dir", str(base)]
    assert run(["retention", *where]) == 5
    assert "persist does not" in capsys.readouterr().err

    async def send_old() -> None:
        async with sending(base, old, encoded, days=30) as sender:
            await sender.run()

    begin(base, service)
    asyncio.run(send_old())
    assert run(["retention", "--dry-run", "--json", *where]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    told = json.loads(line)
    assert set(told) == {"job", "owner", "ended_at", "bytes", "why", "through_sequence"}
    assert (told["job"], told["owner"], told["why"]) == (old, "ann", "age")
    assert names(base / "logs") == {old, young}
    assert run(["retention", *where]) == 0
    head, row, total = capsys.readouterr().out.splitlines()
    assert head.split() == ["JOB", "ENDED", "SIZE", "WHY", "OWNER"]
    assert row.split()[0] == old
    assert row.split()[-2:] == ["age", "ann"]
    assert total.endswith("of 1 job removed")
    assert names(base / "logs") == {young}
    assert run(["retention", "--dry-run", *where]) == 0
    assert capsys.readouterr().out == "0 B of 0 jobs would be removed\n"
    assert service.kill() == -signal.SIGKILL
    assert run(["retention", *where]) == 5, "its socket is there still"
    assert "persist does not answer" in capsys.readouterr().err


@pytest.mark.requirement("S0.64")
@pytest.mark.threat("A32")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can drop privileges")
def test_each_service_has_an_audit_file_of_its_own(base: Path, service: Service) -> None:
    """The persist service writes to its own and has no way to that of api."""
    old = new_job_id()
    configure(base, interval_ms=HOUR_MS, age_days=7)
    begin(base, service)

    async def scenario() -> None:
        async with sending(base, old, numbers(count=3)[0], days=30) as sender:
            await sender.run()

    asyncio.run(scenario())
    calls = base / "audit" / "audit.jsonl"
    calls.write_text("{}\n")
    os.chown(calls, (base / "audit").stat().st_uid, 0)
    calls.chmod(0o600)
    assert run(["retention", "--base-dir", str(base)]) == 0
    own = base / "audit" / "persist" / "audit.jsonl"
    status = own.stat()
    assert status.st_uid == (base / "logs").stat().st_uid != calls.stat().st_uid
    assert status.st_mode & 0o777 == 0o600
    assert (base / "audit").stat().st_mode & 0o077 == 0
    for path in (calls, own):
        done = subprocess.run(["cat", str(path)], user=status.st_uid, group=status.st_gid, check=False, timeout=10)
        assert done.returncode != 0, "by its path persist reaches neither; its own it has by a descriptor"
    (line,) = audited(base)
    assert (line["method"], line["object"], line["owner"], line["rule"]) == ("retention", old, "ann", "age")
