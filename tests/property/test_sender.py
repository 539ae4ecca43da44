"""The sender against a persist that loses, forgets and refuses; for jobs whose journals are full: none waits for ever.

Where everything goes well in the end, everything is stored once and in order, all space is given back, and the cursor
that is saved says so. All chance comes from a seed.
"""

import asyncio
import random
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.bus import codec
from common.config.settings import Journal as JournalSettings
from common.identifiers import JobId, new_job_id
from common.messages.jobs import JobRecord, JobSpec, State
from common.messages.logs import EndOfJob, PersistStarted, Resend, Stored, StoreRecords
from common.messages.topics import PERSIST_IPC
from common.records import RecordType, Stream, decode_all, encode
from services.executor.job_store import Cursor
from services.executor.journal import Journal
from services.executor.sender import LEAP_MAX, Sender

KIB: Final = 1024
LIMITS: Final = JournalSettings(
    bytes_max=64 * KIB, unacknowledged_bytes_max=24 * KIB, unacknowledged_total_bytes_max=48 * KIB, reserve_bytes=0
)
GIVEN_BACK_FROM: Final = LIMITS.bytes_max // 4
BLOCK: Final = 4 * KIB
STEPS: Final = 250
CALM_STEPS_MAX: Final = 4000

Word = Stored | Resend | PersistStarted


class Job:
    """A monitor that writes `records` as far as its journal has room, and its end when it is told to."""

    def __init__(self, directory: Path, chance: random.Random) -> None:
        self.id = new_job_id()
        self.path = directory / self.id
        self.path.write_bytes(encode(RecordType.START, b"{}", time_ns=1, sequence=1))
        self.to_write = chance.randrange(0, 40)
        self.written = 0
        self.ended = False
        self.chance = chance

    def used_bytes(self) -> int:
        """On the disk."""
        return self.path.stat().st_blocks * 512

    def write(self) -> None:
        """One record, unless the journal is full."""
        if self.to_write and self.used_bytes() < LIMITS.bytes_max:
            self.to_write -= 1
            self.written += 1
            text = b"%d " % self.written + b"x" * self.chance.randrange(0, 9 * KIB) + b"\n"
            self._append(
                encode(RecordType.OUTPUT, text, time_ns=1, sequence=self.written, lines=1, stream=Stream.STDOUT)
            )

    def end(self) -> None:
        """The EXIT."""
        assert not self.to_write
        self.ended = True
        self._append(encode(RecordType.EXIT, b"{}", time_ns=1, sequence=self.written + 1))

    @property
    def record(self) -> JobRecord:
        """As the executor has it at the end."""
        return JobRecord(
            id=self.id,
            owner="ann",
            node_id="n",
            state=State.COMPLETED,
            spec=JobSpec(command="true"),
            created_at_ns=1,
            ended_at_ns=2,
            last_sequence=self.written,
        )

    def _append(self, record: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(record)


class Persist:
    """Its rules as common/messages/logs.py states them. What is stored survives a restart, all else does not."""

    def __init__(self) -> None:
        self.stored: dict[JobId, int] = {}
        self.ended: set[JobId] = set()
        self.restart()

    def restart(self) -> None:
        """Forget what is in memory only."""
        self._present: dict[JobId, tuple[int, int]] = {}
        self._waiting: dict[JobId, list[StoreRecords | EndOfJob]] = {}

    def take(self, message: StoreRecords | EndOfJob) -> Word | None:
        """A batch has come; it is written later."""
        epoch, expected = self._present.get(message.job, (-1, 0))
        if message.batch == 0 and message.epoch > epoch:
            self._waiting.pop(message.job, None)
        elif (message.epoch, message.batch) != (epoch, expected):
            return Resend(job=message.job, epoch=max(epoch, message.epoch))
        self._present[message.job] = message.epoch, message.batch + 1
        self._waiting.setdefault(message.job, []).append(message)
        return None

    def flush(self, job: JobId, *, fails: bool) -> Word | None:
        """What waits of the job is on the disk, or the disk has refused it."""
        waiting = self._waiting.pop(job, [])
        if not waiting:
            return None
        epoch = waiting[0].epoch
        if fails:
            self._present[job] = epoch, -1
            return Resend(job=job, epoch=epoch)
        for message in waiting:
            if isinstance(message, EndOfJob):
                assert message.last_sequence == self.stored.get(job, 0), "the end came before the last line"
                self.ended.add(job)
                continue
            for record in decode_all(message.records):
                if record.lines and record.sequence > self.stored.get(job, 0):
                    assert record.sequence == self.stored.get(job, 0) + 1, "a hole reached persist"
                    assert bytes(record.payload).startswith(b"%d " % record.sequence)
                    self.stored[job] = record.sequence
        return Stored(
            job=job, epoch=epoch, last_sequence=self.stored.get(job, 0), ended=isinstance(waiting[-1], EndOfJob)
        )

    @property
    def busy(self) -> list[JobId]:
        """Of whom something waits to be written."""
        return list(self._waiting)


class World:
    """A sender, a persist, what is on the way between them, and a database that may refuse."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311  # a simulation
        self.calm = False
        self.now_ns = 10**12
        self.persist = Persist()
        self.to_persist: deque[StoreRecords | EndOfJob] = deque()
        self.to_sender: deque[Word] = deque()
        self.jobs = {job.id: job for job in (Job(directory, self.chance) for _ in range(self.chance.randrange(1, 5)))}
        self.saved = {job: Cursor(job=job) for job in self.jobs}
        self.moved: dict[JobId, Cursor] = {}
        self.journals: dict[JobId, Journal] = {}
        self.running: asyncio.Task[None] | None = None
        self.start_sender()

    # The process that dies and comes back

    def start_sender(self) -> None:
        """Only what was saved is known."""
        self.close()
        self.dying = False
        self.moved.clear()
        wall_ns = self.now_ns - self.chance.choice([0, 10**12])  # it may have been set back since the process before
        self.sender = Sender(
            self,
            self,
            LIMITS,
            now_ns=lambda: self.now_ns,
            wall_ns=lambda: wall_ns,
            leap=lambda: self.chance.randrange(LEAP_MAX),
        )
        for job_id, cursor in self.saved.items():
            job = self.jobs[job_id]
            self.journals[job_id] = Journal(job.path)
            self.sender.add(cursor, self.journals[job_id])
            self.sender.grown(job_id, job.path.stat().st_size)
            if job.ended:
                self.sender.ended(job.record)
        self.running = asyncio.create_task(self.sender.run())

    def close(self) -> None:
        """End the process."""
        if self.running is not None:
            self.running.cancel()
        for journal in self.journals.values():
            journal.close()
        self.journals.clear()

    # See PushSocket

    async def send(self, payload: bytes) -> None:
        """Into the queue."""
        message = codec.decode(payload, PERSIST_IPC).body
        assert isinstance(message, StoreRecords | EndOfJob)
        self.to_persist.append(message)

    def try_send(self, payload: bytes) -> bool:
        """Not for records."""
        raise NotImplementedError

    # See Keeper

    def cursor_moved(self, cursor: Cursor) -> None:
        """To be saved soon."""
        self.moved[cursor.job] = cursor

    def save_cursors(self) -> bool:
        """Unless the disk refuses."""
        if self.happens(0.5):
            return False
        self.saved |= self.moved
        self.moved.clear()
        return True

    def space_freed(self, job: JobId) -> None:
        """Monitors look for themselves."""

    def damaged(self, job: JobId, problem: str) -> None:
        """None is."""
        raise AssertionError(job, problem)

    def delivered(self, job: JobId) -> None:
        """The cursor goes, unless the process dies before."""
        assert job in self.persist.ended
        self.journals.pop(job).close()
        self.moved.pop(job, None)
        if self.happens(0.3):
            self.dying = True
        else:
            del self.saved[job]

    # What happens

    def happens(self, likelihood: float) -> bool:
        """A fault, which none is when all goes well."""
        return not self.calm and self.chance.random() < likelihood

    async def step(self) -> None:
        """One thing happens, and the sender does what it can."""
        if self.dying or self.happens(0.02):
            self.start_sender()
        elif self.happens(0.03):
            self.persist.restart()
            self.tell(PersistStarted(instance="new"))
        job = self.chance.choice(list(self.jobs.values()))
        match self.chance.randrange(6):
            case 0:
                job.write()
                self.sender.grown(job.id, job.path.stat().st_size)
            case 1 | 2 if self.to_persist:
                message = self.to_persist.popleft()
                if not self.happens(0.1):
                    self.tell(self.persist.take(message))
            case 3 if self.persist.busy:
                self.tell(self.persist.flush(self.chance.choice(self.persist.busy), fails=self.happens(0.1)))
            case 4 if self.to_sender:
                word = self.to_sender.popleft()
                if not self.happens(0.1):
                    self.sender.heard(word)
            case 5:
                self.now_ns += self.chance.choice([10**6, 500 * 10**6])
                self.save_cursors()
                self.sender.look_for_overdue()
        for _ in range(4):
            await asyncio.sleep(0)
        assert self.running is not None
        assert not self.running.done(), self.running.exception()

    def tell(self, word: Word | None) -> None:
        """Persist says something."""
        if word is not None:
            self.to_sender.append(word)

    def end_all(self) -> None:
        """Every job that has written all has an end."""
        for job in self.jobs.values():
            if not job.ended:
                job.end()
                self.sender.grown(job.id, job.path.stat().st_size)
                self.sender.ended(job.record)

    def is_stored(self) -> bool:
        """Whether all jobs could write all, persist has it, and space and cursors tell so."""
        return (
            not any(job.to_write for job in self.jobs.values())
            and all(self.persist.stored.get(job.id, 0) == job.written for job in self.jobs.values())
            and all(self.saved[job.id].acknowledged_sequence == job.written for job in self.jobs.values())
            and all(job.used_bytes() <= GIVEN_BACK_FROM + BLOCK for job in self.jobs.values())
            and self.sender.unacknowledged_bytes == 0
        )


async def until(world: World, done: str) -> None:
    """Let all go well until the world is `done`."""
    world.calm = True
    for _ in range(CALM_STEPS_MAX):
        if world.is_stored() if done == "stored" else not world.saved:
            return
        await world.step()
    told = {job.id: (job.to_write, job.written, job.used_bytes()) for job in world.jobs.values()}
    raise AssertionError(f"never {done}: {told}, with persist {world.persist.stored}, saved {world.saved}")


@contextmanager
def world_of(seed: int) -> Iterator[World]:
    """One whose files are gone afterwards."""
    with tempfile.TemporaryDirectory() as directory:
        world = World(Path(directory), seed)
        try:
            yield world
        finally:
            world.close()


@pytest.mark.threat("E05")
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_in_the_end_all_is_stored_and_all_space_is_given_back(seed: int) -> None:
    """Twice: while the jobs run, and with their ends."""

    async def scenario() -> None:
        with world_of(seed) as world:
            for _ in range(STEPS):
                await world.step()
            await until(world, "stored")
            world.calm = False
            world.end_all()
            for _ in range(STEPS):
                await world.step()
            await until(world, "delivered")
            assert world.persist.ended == world.jobs.keys()
            assert world.sender.unacknowledged_bytes == 0

    asyncio.run(scenario())
