"""What goes into the worker library and comes out of it, without a job."""

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from common.identifiers import new_job_id
from common.messages.jobs import JobRecord, JobSpec
from services.executor import __main__ as service
from tests.unit.executor_fakes import FakeMonitor
from worker import Command, JobId, JobletError, Output, Reason, Resources, State, Stream, session
from worker.inside import Changes
from worker.logfiles import LogFiles
from worker.reading import Reader
from worker.values import job_of, status_of

TIME_NS = 1_790_000_000_000_000_000


def record(state: State, *, exit_code: int | None = None, signal: int | None = None, pid: int = 0) -> JobRecord:
    """A job that is, or ended, so."""
    return JobRecord(
        id=new_job_id(),
        owner="ann",
        node_id="node-1",
        state=state,
        spec=JobSpec(command="true"),
        created_at_ns=TIME_NS,
        exit_code=exit_code,
        signal=signal,
        pid=pid,
    )


@pytest.mark.requirement("S4.8")
@pytest.mark.requirement("X8")
@pytest.mark.parametrize(
    ("of", "exit_code", "exited", "word", "sentence"),
    [
        (record(State.PENDING), -1, False, "pending", "pending"),
        (record(State.STARTING), -1, False, "starting", "starting"),
        (record(State.RUNNING, pid=7), -1, False, "running", "running"),
        (record(State.COMPLETED, exit_code=0), 0, True, "exited", "finished (exit code: 0)"),
        (record(State.FAILED, exit_code=3), 3, True, "exited", "finished (exit code: 3)"),
        (record(State.FAILED, signal=11), -1, True, "signaled", "stopped (signal: 11)"),
        (record(State.STOPPED, signal=9), -1, True, "signaled", "stopped (signal: 9)"),
        (record(State.STOPPED, exit_code=0), 0, True, "exited", "finished (exit code: 0)"),
        (record(State.TIMED_OUT, signal=9), -1, True, "signaled", "stopped (signal: 9)"),
        (record(State.FAILED), -1, True, "failed", "failed"),
        (record(State.CANCELED), -1, True, "canceled", "canceled"),
        (record(State.LOST), -1, True, "lost", "lost"),
    ],
)
def test_a_status_in_the_words_of_three_sources(
    of: JobRecord, exit_code: int, *, exited: bool, word: str, sentence: str
) -> None:
    """Numbers as S4.8 has them, a word as S2.3, a sentence as S3.8; the state stays beside them."""
    status = status_of(of)
    assert (status.exit_code, status.exited, status.word, status.sentence) == (exit_code, exited, word, sentence)
    assert (status.state, status.signal, status.pid) == (of.state, of.signal, of.pid)


def test_a_command_goes_in_and_comes_out_the_same() -> None:
    """Every field of it."""
    command = Command(
        "/bin/true",
        ("a", "b"),
        Resources(memory_bytes=2**26, cpu_percent=50),
        environment={"A": "b"},
        workdir="/tmp",
        work_bytes=8192,
        stop_signal=2,
        grace_s=1.5,
    )
    spec = command.spec()
    assert (spec.command, spec.args, spec.grace_ms) == ("/bin/true", ("a", "b"), 1500)
    shown = JobRecord(id=new_job_id(), owner="o", node_id="", state=State.PENDING, spec=spec, created_at_ns=TIME_NS)
    assert job_of(shown).command == command


@pytest.mark.parametrize(
    "wrong",
    [
        Command(5),  # type: ignore[arg-type]
        Command("true", "abc"),
        Command("true", (b"a",)),  # type: ignore[arg-type]
        Command("true", environment={"A": 1}),  # type: ignore[dict-item]
        Command("true", resources=Resources(memory_bytes="much")),  # type: ignore[arg-type]
        Command("true", network="everything"),  # type: ignore[arg-type]
        Command("true", grace_s=float("inf")),
        Command("true", grace_s="soon"),  # type: ignore[arg-type]
    ],
)
def test_a_command_of_wrong_types_is_refused(wrong: Command) -> None:
    """With a reason, before it meets an executor that takes types for granted."""
    with pytest.raises(JobletError) as caught:
        wrong.spec()
    assert caught.value.reason is Reason.INVALID


@pytest.fixture
def journal(tmp_path: Path) -> FakeMonitor:
    """What a monitor writes; the file is not there yet."""
    return FakeMonitor(tmp_path)


def test_a_reader_waits_for_what_is_not_there(journal: FakeMonitor) -> None:
    """No file, a half record: nothing now; what follows comes once, and the end with it."""
    reader = Reader(journal.journal)
    assert reader.read(sealed=False) == ((), False, False)
    journal.start()
    portion = reader.read(sealed=False)
    assert (portion.outputs, portion.advanced, portion.ended) == ((), True, False)
    line = journal.record(b"one\ntwo\n")
    journal.append(line[:20])
    assert not reader.read(sealed=False).advanced
    journal.append(line[20:])
    (piece,) = reader.read(sealed=False).outputs
    assert (piece.sequence, piece.entries, piece.data, piece.stream) == (1, 2, b"one\ntwo\n", Stream.STDOUT)
    assert not reader.read(sealed=False).advanced
    journal.gap(5, lost_bytes=50)
    journal.output(b"eight\n")
    journal.append(journal.exit_record())
    lost, last = (portion := reader.read(sealed=False)).outputs
    assert (lost.lost, lost.sequence, lost.entries, lost.data, lost.stream) == (True, 3, 5, b"", Stream.NONE)
    assert (last.sequence, last.data) == (8, b"eight\n")
    assert portion.ended
    reader.close()


def test_a_reader_of_a_job_without_an_end_stops_at_a_torn_record(journal: FakeMonitor) -> None:
    """Its monitor died while it wrote: nobody will write the rest."""
    journal.start()
    journal.output(b"whole\n")
    journal.append(journal.record(b"torn\n")[:30])
    reader = Reader(journal.journal)
    portion = reader.read(sealed=True)
    assert [piece.data for piece in portion.outputs] == [b"whole\n"]
    assert not portion.ended
    assert not reader.read(sealed=True).advanced
    reader.close()


def test_damage_is_passed_over_and_told(journal: FakeMonitor) -> None:
    """What is missing stands in the stream as lost, and what is behind it comes."""
    journal.start()
    journal.output(b"whole\n")
    journal.append(b"\0" * 50)
    journal.next_sequence += 3
    journal.output(b"after\n")
    reader = Reader(journal.journal)
    pieces: list[Output] = []
    while (portion := reader.read(sealed=True)).advanced:
        pieces += portion.outputs
    assert [(piece.sequence, piece.entries, piece.lost, piece.data) for piece in pieces] == [
        (1, 1, False, b"whole\n"),
        (2, 3, True, b""),
        (5, 1, False, b"after\n"),
    ]
    reader.close()


def test_a_journal_that_cannot_be_read_is_an_error(journal: FakeMonitor) -> None:
    """With the path in its words."""
    journal.journal.mkdir()
    with pytest.raises(JobletError, match=str(journal.journal)) as caught:
        Reader(journal.journal).read(sealed=False)
    assert caught.value.reason is Reason.DATA_LOSS


def test_whoever_waits_for_a_job_is_woken_by_it_only() -> None:
    """Several for one job, and everybody at once; who has left is forgotten."""

    async def scenario() -> None:
        changes = Changes()
        with changes.watched("a") as first, changes.watched("a") as second, changes.watched("b") as other:
            changes.happened("a")
            assert (first.is_set(), second.is_set(), other.is_set()) == (True, True, False)
            changes.happened_to_all()
            assert other.is_set()
        changes.happened("a")

    asyncio.run(scenario())


def written(directory: Path, *pieces: bytes) -> JobId:
    """A job whose output was written to its log file in `directory`, unless something was in the way."""
    job = new_job_id()
    write(directory, job, *pieces)
    return job


def write(directory: Path, job: JobId, *pieces: bytes) -> None:
    """The same, of a job that is known."""

    async def portions(_: JobId) -> AsyncGenerator[tuple[Output, ...], None]:
        for piece in pieces:
            yield (Output(1, Stream.STDOUT, piece),)

    async def scenario() -> None:
        files = LogFiles(directory, portions)
        files.begin(job)
        await files.complete(job)
        await files.close()

    asyncio.run(scenario())


@pytest.mark.requirement("S4.4")
def test_a_log_file_is_gone_on_with(tmp_path: Path) -> None:
    """Behind what it holds, wherever that ends."""
    job = written(tmp_path, b"one\n", b"tw")
    file = tmp_path / f"{job}.log"
    assert file.read_bytes() == b"one\ntw"
    write(tmp_path, job, b"one\n", b"two\n", b"three\n")
    assert file.read_bytes() == b"one\ntwo\nthree\n"


@pytest.mark.requirement("S4.4")
def test_what_a_stranger_put_in_place_of_a_log_file_is_not_written(tmp_path: Path) -> None:
    """A symbolic link, a hard link, a FIFO: as may be found in a directory like /tmp."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"")
    for put in (os.symlink, os.link):
        job = new_job_id()
        put(victim, tmp_path / f"{job}.log")
        write(tmp_path, job, b"secret\n")
        assert victim.read_bytes() == b""
    job = new_job_id()
    os.mkfifo(tmp_path / f"{job}.log")
    write(tmp_path, job, b"secret\n")


@pytest.mark.requirement("S3.9")
def test_a_node_and_the_library_have_one_worker() -> None:
    """The process behind the API, and a program that imports the library, build the same executor by the same code."""
    assert vars(service)["wired"] is vars(session)["wired"]
