"""A disk that fails: nothing stored is damaged, only what is durable is acknowledged, it goes on by itself."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.identifiers import new_job_id
from common.messages.envelope import Body, Message
from common.messages.logs import EndOfJob, Resend, Stored, StoreRecords
from common.records import Stream
from services.persist.changes import Changes
from services.persist.disk import HostDisk
from services.persist.ingest import Ingest
from services.persist.machine import Limits
from services.persist.samples import Samples
from services.persist.segment import AbandonedSegment
from services.persist.store import Store
from tests.unit.test_persist_journal import joined, make_store, output, query, run_program, write
from tests.waiting import SLOWNESS, await_for

JOB = new_job_id()


class FaultyDisk:
    """A real disk that takes so many bytes, fails to synchronize when told, and keeps a diary."""

    def __init__(self, *, room_bytes: int = 2**40, write_bytes: int = 2**30) -> None:
        self._disk = HostDisk()
        self.room_bytes = room_bytes
        self.write_bytes = write_bytes
        self.sync_error: int | None = None
        self.truncate_error: int | None = None
        self.diary: list[str] = []

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        """See Disk.write; short at the end of the room."""
        if self.room_bytes <= 0:
            self.diary.append("full")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = self._disk.write(descriptor, data[: min(self.room_bytes, self.write_bytes)], offset)
        self.room_bytes -= taken
        self.diary.append("write")
        return taken

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        """See Disk.truncate."""
        self.diary.append("truncate")
        if self.truncate_error is not None:
            raise OSError(self.truncate_error, os.strerror(self.truncate_error))
        self._disk.truncate(descriptor, size_bytes)

    def sync(self, descriptor: int) -> None:
        """See Disk.sync."""
        self.diary.append("sync")
        if self.sync_error is not None:
            raise OSError(self.sync_error, os.strerror(self.sync_error))
        self._disk.sync(descriptor)


class Script:
    """Messages that a test sends, in place of a socket."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Body] = asyncio.Queue()

    def send(self, *bodies: Body) -> None:
        """Have them arrive."""
        for body in bodies:
            self._queue.put_nowait(body)

    async def messages(self) -> AsyncIterator[Message]:
        """See Source.messages."""
        while True:
            body = await self._queue.get()
            yield Message(id="", cause_id="", sent_at_ns=0, reply_to="", body=body)


def ingesting(store: Store, scenario: Callable[[Script, list[Body]], object]) -> None:
    """Run a scenario against an Ingest on `store`: what it sends, what it is answered."""

    async def main() -> None:
        script, answers = Script(), list[Body]()
        with ThreadPoolExecutor(2) as pool:
            ingest = Ingest(
                source=script,
                answer=answers.append,
                store=store,
                samples=Samples(store),
                changes=Changes(),
                limits=Limits(flush_bytes=65536, flush_ms=5, retry_ms=50),
                pool=pool,
            )
            running = asyncio.create_task(ingest.run())
            async with asyncio.timeout(20 * SLOWNESS):
                await scenario(script, answers)  # type: ignore[misc]
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await ingest.settle()

    asyncio.run(main())


def batch(*encoded: bytes, number: int = 0, epoch: int = 1) -> StoreRecords:
    """A batch of JOB."""
    return StoreRecords(job=JOB, epoch=epoch, batch=number, records=b"".join(encoded))


def log_file(base: Path) -> Path:
    """The stdout file of JOB."""
    return base / "logs" / JOB / "stdout.log.gz"


def test_nothing_is_acknowledged_before_it_is_synchronized(tmp_path: Path) -> None:
    """With durability fsync: write, fdatasync, fsync of the directories, and only then the acknowledgement."""
    disk = FaultyDisk()
    store = make_store(tmp_path, disk=disk, durability="fsync")

    async def scenario(script: Script, answers: list[Body]) -> None:
        script.send(batch(output(b"a\n", 1)))
        await await_for(lambda: answers, what="the acknowledgement")
        assert disk.diary == ["sync", "write", "sync", "sync"], "logs directory, file, file's data, job directory"
        script.send(batch(output(b"b\n", 2), number=1))
        await await_for(lambda: len(answers) == 2, what="the second one")
        assert disk.diary[4:] == ["write", "sync"]

    ingesting(store, scenario)


def test_a_file_found_at_the_start_is_synchronized_before_its_repeats_are_acknowledged(tmp_path: Path) -> None:
    """It may only have been in the page cache when the process before was killed."""
    write(make_store(tmp_path), JOB, output(b"a\n", 1))
    disk = FaultyDisk()
    store = make_store(tmp_path, disk=disk, durability="fsync")
    write(store, JOB, output(b"a\n", 1))
    assert disk.diary == ["sync"] * 3, "logs directory, the file's data, job directory"
    write(store, JOB, output(b"a\n", 1))
    assert disk.diary == ["sync"] * 3, "once is enough"


def test_a_directory_that_a_killed_process_made_is_synchronized(tmp_path: Path) -> None:
    """It may have died between making the directory of a job and synchronizing its entry."""
    disk = FaultyDisk()
    store = make_store(tmp_path, disk=disk, durability="fsync")
    (tmp_path / "logs" / JOB).mkdir()
    write(store, JOB, output(b"a\n", 1))
    assert disk.diary == ["sync", "write", "sync", "sync"], "logs directory, file, file's data, job directory"


@pytest.mark.threat("F16")
def test_the_entry_of_a_job_that_cannot_be_synchronized_is_not_tried_again(tmp_path: Path) -> None:
    """A second fsync would succeed, whatever the first has lost: nothing of the job is acknowledged."""
    disk = FaultyDisk()
    disk.sync_error = errno.EIO
    store = make_store(tmp_path, disk=disk, durability="fsync")
    for error in (errno.EIO, None):
        disk.sync_error = error
        with pytest.raises(AbandonedSegment):
            write(store, JOB, output(b"a\n", 1))
    other = new_job_id()
    write(store, other, output(b"x\n", 1))
    assert joined(query(store, other), Stream.STDOUT) == b"x\n"


@pytest.mark.threat("F13")
def test_no_room_is_not_acknowledged_and_resumes_by_itself(tmp_path: Path) -> None:
    """ENOSPC in the middle of a member: it is taken back, asked for again, and stored when there is room."""
    disk = FaultyDisk()
    store = make_store(tmp_path, disk=disk)

    async def scenario(script: Script, answers: list[Body]) -> None:
        script.send(batch(output(b"a\n", 1)))
        await await_for(lambda: answers, what="the first acknowledgement")
        size = log_file(tmp_path).stat().st_size
        disk.room_bytes = 30
        script.send(batch(output(b"b\n", 2), number=1), batch(output(b"c\n", 3), number=2))
        await await_for(lambda: Resend(job=JOB, epoch=1) in answers, what="Resend")
        assert log_file(tmp_path).stat().st_size == size
        script.send(batch(output(b"b\n", 2), epoch=2))
        await await_for(lambda: Resend(job=JOB, epoch=2) in answers, what="Resend while there is no room")
        assert [answer.last_sequence for answer in answers if isinstance(answer, Stored)] == [1]
        disk.room_bytes = 2**40
        script.send(
            batch(output(b"b\n", 2), output(b"c\n", 3), epoch=3), EndOfJob(job=JOB, epoch=3, batch=1, last_sequence=3)
        )
        await await_for(lambda: Stored(job=JOB, epoch=3, last_sequence=3, ended=True) in answers, what="the end")

    ingesting(store, scenario)
    assert joined(query(make_store(tmp_path), JOB), Stream.STDOUT) == b"a\nb\nc\n"
    run_program("gzip", "-t", str(log_file(tmp_path)))


@pytest.mark.threat("F13")
@pytest.mark.parametrize("room", range(0, 280, 7))
def test_no_room_at_any_byte_damages_nothing(tmp_path: Path, room: int) -> None:
    """Both streams, the disk full after any number of bytes: the files stay readable, sending again completes them."""
    encoded = [output(b"a\nb\n", 1), output(b"c\n", 3, stream=Stream.STDERR), output(b"d\n", 4)]
    disk = FaultyDisk(room_bytes=room, write_bytes=50)
    store = make_store(tmp_path, disk=disk)
    with pytest.raises(OSError, match="No space"):
        write(store, JOB, *encoded)
    for path in (tmp_path / "logs" / JOB).iterdir():
        if path.stat().st_size:
            run_program("gzip", "-t", str(path))
    disk.room_bytes = 2**40
    write(store, JOB, *encoded)
    for reopened in (store, make_store(tmp_path)):
        runs = query(reopened, JOB)
        assert [(run.first, run.data) for run in runs] == [(1, b"a\nb\n"), (3, b"c\n"), (4, b"d\n")]


def test_a_cut_that_fails_is_made_up_for(tmp_path: Path) -> None:
    """Neither room nor truncation: readers do not see the rest, and the next write cuts it first."""
    disk = FaultyDisk()
    store = make_store(tmp_path, disk=disk)
    write(store, JOB, output(b"a\n", 1))
    disk.room_bytes, disk.truncate_error = 40, errno.EIO
    with pytest.raises(OSError, match="No space"):
        write(store, JOB, output(b"b\n", 2))
    assert joined(query(store, JOB), Stream.STDOUT) == b"a\n"
    disk.room_bytes, disk.truncate_error = 2**40, None
    write(store, JOB, output(b"b\n", 2))
    assert joined(query(make_store(tmp_path), JOB), Stream.STDOUT) == b"a\nb\n"


@pytest.mark.threat("F16")
def test_a_failed_fsync_is_never_tried_again(tmp_path: Path) -> None:
    """EIO: not acknowledged, cut back to what is safe, abandoned; other jobs go on; a new process takes it up."""
    disk = FaultyDisk()
    store = make_store(tmp_path, disk=disk, durability="fsync")

    async def scenario(script: Script, answers: list[Body]) -> None:
        script.send(batch(output(b"a\n", 1)))
        await await_for(lambda: answers, what="the first acknowledgement")
        disk.sync_error = errno.EIO
        before = disk.diary.count("sync")
        script.send(batch(output(b"b\n", 2), number=1))
        await await_for(lambda: disk.diary[-1] == "truncate", what="the file to be cut back")
        disk.sync_error = None
        script.send(batch(output(b"b\n", 2), epoch=2), batch(output(b"b\n", 2), epoch=3))
        other = new_job_id()
        script.send(StoreRecords(job=other, epoch=1, batch=0, records=output(b"x\n", 1)))
        await await_for(
            lambda: Stored(job=other, epoch=1, last_sequence=1) in answers, what="the other job's acknowledgement"
        )
        assert disk.diary.count("sync") == before + 1 + 3, "one that failed, three of the other job"
        assert len(answers) == 2

    ingesting(store, scenario)
    with pytest.raises(AbandonedSegment):
        write(store, JOB, output(b"b\n", 2))
    again = make_store(tmp_path, durability="fsync")
    assert joined(query(again, JOB), Stream.STDOUT) == b"a\n"
    write(again, JOB, output(b"b\n", 2))
    assert joined(query(again, JOB), Stream.STDOUT) == b"a\nb\n"


@contextmanager
def small_filesystem(where: Path) -> Iterator[None]:
    """A tmpfs of 512 KiB at `where`."""
    where.mkdir()
    mounted = os.system(f"mount -t tmpfs -o size=512k joblet-test {where} 2>/dev/null") == 0  # noqa: S605  # our path
    if not mounted:
        pytest.skip("this host does not let us mount a tmpfs")
    try:
        yield
    finally:
        run_program("umount", str(where))


@pytest.mark.threat("F13")
@pytest.mark.threat("F17")
def test_a_full_file_system(tmp_path: Path) -> None:
    """The real thing: random output until the kernel says ENOSPC, then room, then the rest."""
    base = tmp_path / "small"
    with small_filesystem(base):
        store = make_store(base, durability="fsync")
        sent: list[bytes] = []

        def fill() -> None:
            for number in range(1, 100):
                sent.append(os.urandom(20_000).replace(b"\n", b"x") + b"\n")
                write(store, JOB, output(sent[-1], number))

        with pytest.raises(OSError, match="No space"):
            fill()
        assert 5 < len(sent) < 99
        run_program("gzip", "-t", str(log_file(base)))
        assert joined(query(store, JOB), Stream.STDOUT) == b"".join(sent[:-1])
        run_program("mount", "-o", "remount,size=4m", str(base))
        write(store, JOB, *(output(line, number) for number, line in enumerate(sent, 1)))
        assert joined(query(make_store(base), JOB), Stream.STDOUT) == b"".join(sent)
        run_program("mount", "-o", "remount,ro", str(base))
        with pytest.raises(OSError, match="Read-only"):
            write(store, JOB, output(b"no\n", len(sent) + 1))
        assert joined(query(store, JOB), Stream.STDOUT) == b"".join(sent)
