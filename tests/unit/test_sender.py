"""The sender around turns and cursors: floods, a persist that is silent or stopped, and what is sent again."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from common.bus import codec
from common.config.settings import Journal as JournalSettings
from common.identifiers import JobId, new_job_id
from common.messages.logs import EndOfJob, PersistStarted, Resend, Stored, StoreRecords
from common.messages.topics import PERSIST_IPC
from common.records import HEADER_BYTES, RecordType, Stream, encode
from services.executor.durable import PATIENCE_NS
from services.executor.job_store import Cursor
from services.executor.journal import Journal
from services.executor.sender import PROBE_NS, Sender
from tests.waiting import await_for

MIB = 2**20
SETTINGS = JournalSettings(bytes_max=4 * MIB, unacknowledged_bytes_max=2 * MIB, unacknowledged_total_bytes_max=8 * MIB)


class Persist:
    """A PUSH socket into nothing that notes what was sent, and never answers by itself."""

    def __init__(self) -> None:
        self.messages: list[StoreRecords | EndOfJob] = []
        self.open = asyncio.Event()
        self.open.set()

    async def send(self, payload: bytes) -> None:
        """See PushSocket.send; waits while `open` is not set, as it does when nobody reads."""
        await self.open.wait()
        body = codec.decode(payload, PERSIST_IPC).body
        assert isinstance(body, StoreRecords | EndOfJob)
        self.messages.append(body)

    def try_send(self, payload: bytes) -> bool:
        """See PushSocket.try_send."""
        raise NotImplementedError

    def close(self) -> None:
        """See PushSocket.close."""

    def bytes_of(self, job: JobId) -> int:
        """Records of the job that were sent, in bytes."""
        return sum(len(sent.records) for sent in self.messages if isinstance(sent, StoreRecords) and sent.job == job)


class Keeper:
    """Keeps nothing."""

    def cursor_moved(self, cursor: Cursor) -> None:
        """See Keeper."""

    def save_cursors(self) -> bool:
        """See Keeper."""
        return True

    def space_freed(self, job: JobId) -> None:
        """See Keeper."""

    def damaged(self, job: JobId, problem: str) -> None:
        """See Keeper."""
        raise AssertionError(job, problem)

    def delivered(self, job: JobId) -> None:
        """See Keeper."""


class Rig:
    """A sender on a clock that the test moves, and journals on disk."""

    def __init__(self, tmp_path: Path, keeper: Keeper) -> None:
        self.persist = Persist()
        self.now_ns = 10**12
        self.turns = 0
        self.sender = Sender(self.persist, keeper, SETTINGS, now_ns=self._clock, wall_ns=lambda: 0)
        self._tmp_path = tmp_path
        self._journals: list[Journal] = []

    def _clock(self) -> int:
        self.turns += 1
        return self.now_ns

    def job(self, *sizes: int) -> JobId:
        """A job whose journal has one record of each size."""
        job = new_job_id()
        content = b"".join(
            encode(RecordType.OUTPUT, b"x" * (size - 1) + b"\n", time_ns=1, sequence=n, lines=1, stream=Stream.STDOUT)
            for n, size in enumerate(sizes, 1)
        )
        path = self._tmp_path / job
        path.write_bytes(content)
        self._journals.append(Journal(path))
        self.sender.add(Cursor(job=job), self._journals[-1])
        self.sender.grown(job, len(content))
        return job

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """With the sender's loop."""
        running = asyncio.create_task(self.sender.run())
        try:
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def at_rest(self) -> None:
        """Wait until a hundred turns of the event loop bring no more messages."""
        before = -1
        while before != len(self.persist.messages):
            before = len(self.persist.messages)
            for _ in range(100):
                await asyncio.sleep(0)

    def close(self) -> None:
        """Close the journals."""
        for journal in self._journals:
            journal.close()


@contextmanager
def rig(tmp_path: Path, keeper: Keeper | None = None) -> Iterator[Rig]:
    """One whose journals are closed at the end."""
    made = Rig(tmp_path, keeper or Keeper())
    try:
        yield made
    finally:
        made.close()


@pytest.mark.threat("C17")
def test_a_line_goes_out_while_floods_have_all_that_they_may_have_on_the_way(tmp_path: Path) -> None:
    """Nothing of ten floods is acknowledged: what a quiet job prints is sent at once, its end too."""

    async def scenario() -> None:
        with rig(tmp_path) as made:
            async with made.running():
                floods = [made.job(*[MIB // 2] * 16) for _ in range(10)]
                await made.at_rest()
                assert made.sender.unacknowledged_bytes <= SETTINGS.unacknowledged_total_bytes_max
                assert all(made.persist.bytes_of(job) for job in floods), "none of them has all of it"
                sent = len(made.persist.messages)
                quiet = made.job(100)
                await await_for(lambda: made.persist.bytes_of(quiet), what="the quiet job's line")
                assert len(made.persist.messages) == sent + 1

    asyncio.run(scenario())


@pytest.mark.threat("F19")
def test_a_silent_persist_is_given_a_bounded_amount_and_then_a_batch_now_and_then(tmp_path: Path) -> None:
    """Stopped or gone: the windows fill, what is overdue goes again up to the bound, then one probe in 10 s.

    And in between nothing runs: no turn is taken, the clock is not asked.
    """

    async def scenario() -> None:
        with rig(tmp_path) as made:
            async with made.running():
                jobs = [made.job(*[MIB // 4] * 40) for _ in range(8)]
                await made.at_rest()
                for _ in range(5):
                    made.now_ns += 100 * PATIENCE_NS
                    made.sender.look_for_overdue()
                    await made.at_rest()
                    assert made.sender.unacknowledged_bytes <= SETTINGS.unacknowledged_total_bytes_max
                total = sum(made.persist.bytes_of(job) for job in jobs)
                assert total <= SETTINGS.unacknowledged_total_bytes_max + 5 * MIB, "five probes"
                sent, asked = len(made.persist.messages), made.turns
                await made.at_rest()
                assert made.turns == asked, "something runs although there is nothing to do"
                made.now_ns += PROBE_NS
                made.sender.look_for_overdue()
                await made.at_rest()
                assert len(made.persist.messages) == sent + 1, "a probe"
                assert made.sender.counts["resends"] > 0

    asyncio.run(scenario())


def test_a_queue_that_is_full_holds_the_loop_and_nothing_else(tmp_path: Path) -> None:
    """PUSH does not take more: one batch waits in memory, and it goes on when there is room."""

    async def scenario() -> None:
        with rig(tmp_path) as made:
            async with made.running():
                made.persist.open.clear()
                job = made.job(*[MIB // 4] * 6)
                await made.at_rest()
                assert not made.persist.messages
                assert made.sender.unacknowledged_bytes <= MIB, "one batch"
                made.persist.open.set()
                await await_for(lambda: made.persist.bytes_of(job) > MIB, what="the rest")

    asyncio.run(scenario())


def test_what_is_sent_again_is_counted(tmp_path: Path) -> None:
    """A Resend, a persist that begins anew, and patience that ends: each once; nothing on the way: not counted."""

    async def scenario() -> None:
        with rig(tmp_path) as made:
            async with made.running():
                job = made.job(100)
                await made.at_rest()
                made.sender.heard(Resend(job=job, epoch=made.persist.messages[-1].epoch))
                await made.at_rest()
                assert made.sender.counts["resends"] == 1
                made.sender.heard(PersistStarted(instance="new"))
                await made.at_rest()
                assert made.sender.counts["resends"] == 2
                made.now_ns += PATIENCE_NS
                made.sender.look_for_overdue()
                await made.at_rest()
                assert made.sender.counts["resends"] == 3
                assert [sent.batch for sent in made.persist.messages] == [0, 0, 0, 0]
                made.sender.heard(Stored(job=job, epoch=1, last_sequence=1))
                made.sender.heard(PersistStarted(instance="newer"))
                assert made.sender.counts["resends"] == 3
                assert made.sender.unacknowledged_bytes == 0

    asyncio.run(scenario())


def test_a_removed_job_leaves_nothing_on_the_way(tmp_path: Path) -> None:
    """Also one whose pause is not over."""

    async def scenario() -> None:
        with rig(tmp_path) as made:
            async with made.running():
                job = made.job(MIB, MIB)
                await made.at_rest()
                for _ in range(5):
                    made.sender.heard(Resend(job=job, epoch=made.persist.messages[-1].epoch))
                    await made.at_rest()
                made.sender.remove(job)
                made.now_ns += PATIENCE_NS
                made.sender.look_for_overdue()
                await made.at_rest()
                assert made.sender.unacknowledged_bytes == 0

    asyncio.run(scenario())


def test_what_a_process_before_acknowledged_is_given_back_at_once(tmp_path: Path) -> None:
    """It may have died between saving its cursor and freeing the space, and the job may be waiting for just that."""
    freed: list[JobId] = []

    class Told(Keeper):
        def space_freed(self, job: JobId) -> None:
            freed.append(job)

    job, path = new_job_id(), tmp_path / "journal"
    path.write_bytes(encode(RecordType.OUTPUT, b"x" * (MIB - 1), time_ns=1, sequence=1, lines=1, stream=Stream.STDOUT))
    size, blocks = path.stat().st_size, path.stat().st_blocks
    with contextlib.closing(Journal(path)) as journal:
        sender = Sender(Persist(), Told(), SETTINGS)
        sender.add(Cursor(job=job, acknowledged_offset=size, acknowledged_sequence=1), journal)
        assert freed == [job]
        assert path.stat().st_blocks < blocks / 2
        assert path.stat().st_size == size


def test_what_is_acknowledged_just_after_it_was_taken_back_is_given_back(tmp_path: Path) -> None:
    """Persist answers what the sender is about to send again: no later answer tells anything new of it.

    A job whose journal is full waits for just this space, and prints nothing that would move the cursor once more.
    """
    freed: list[JobId] = []
    cursors: list[Cursor] = []

    class Told(Keeper):
        def cursor_moved(self, cursor: Cursor) -> None:
            cursors.append(cursor)

        def space_freed(self, job: JobId) -> None:
            freed.append(job)

    async def scenario() -> None:
        with rig(tmp_path, Told()) as made:
            async with made.running():
                job = made.job(MIB)
                await made.at_rest()
                sent = made.persist.messages[-1]
                made.sender.heard(PersistStarted(instance="newer"))
                made.sender.heard(Stored(job=job, epoch=sent.epoch, last_sequence=1))
                await made.at_rest()
                made.sender.heard(Stored(job=job, epoch=made.persist.messages[-1].epoch, last_sequence=1))
                assert freed == [job]
                assert cursors[-1].acknowledged_offset == MIB + HEADER_BYTES

    asyncio.run(scenario())
