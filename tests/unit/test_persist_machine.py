"""The ingest state machine: go-back-N, flushing, failing. No I/O and no clock."""

import random

import pytest

from common.identifiers import new_job_id
from services.persist import machine as machine_module
from services.persist.events import (
    Answer,
    AskResend,
    BatchArrived,
    BatchRefused,
    Flush,
    Flushed,
    FlushFailed,
    Instruction,
    JobDeleted,
    Tick,
)
from services.persist.machine import Limits, Machine

JOB, OTHER = new_job_id(), new_job_id()
LIMITS = Limits(flush_bytes=100, flush_ms=200, turn_bytes=1000, retry_ms=1000, small_bytes=50)


def batch(
    number: int, *, epoch: int = 1, size: int = 10, through: int = 0, end: int | None = None, at: int = 0, job: str = ""
) -> BatchArrived:
    """A batch of `size` bytes that reaches `through`."""
    return BatchArrived(job or JOB, epoch, number, (), size, through or number + 1, end, at)  # type: ignore[arg-type]


def flushed(flush: Instruction, *, ended: bool = False, at: int = 0) -> Flushed:
    """The success of a flush."""
    assert isinstance(flush, Flush)
    return Flushed(flush.job, flush.epoch, max(b.through for b in flush.batches), ended, at)


def test_batches_wait_for_enough_bytes_or_for_time() -> None:
    """Nothing is written before there are flush_bytes or the oldest batch is flush_ms old."""
    machine = Machine(LIMITS)
    assert machine.handle(batch(0, at=0)) == []
    assert machine.handle(Tick(199)) == []
    (flush,) = machine.handle(Tick(200))
    assert isinstance(flush, Flush)
    assert not machine.handle(batch(1, size=100, at=300)), "one flush of a job at a time"
    answer, following = machine.handle(flushed(flush))
    assert answer == Answer(JOB, 1, 1, ended=False)
    assert isinstance(following, Flush)


def test_nothing_is_answered_before_it_is_flushed() -> None:
    """An Answer comes from Flushed only, and reaches as far as what was flushed."""
    machine = Machine(LIMITS)
    (flush,) = machine.handle(batch(0, size=100, through=7))
    assert isinstance(flush, Flush)
    assert machine.handle(batch(1, through=9)) == []
    assert machine.handle(flushed(flush))[0] == Answer(JOB, 1, 7, ended=False)


@pytest.mark.threat("E05")
@pytest.mark.parametrize("wrong", [batch(2), batch(0), batch(1, epoch=0), batch(1, epoch=2), batch(-1)])
def test_a_batch_out_of_its_turn_is_dropped_and_asked_for_again(wrong: BatchArrived) -> None:
    """Not the next batch, not of the present epoch, not the first of a newer one: Resend, of the highest epoch."""
    machine = Machine(LIMITS)
    machine.handle(batch(0))
    assert machine.handle(wrong) == [AskResend(JOB, max(wrong.epoch, 1))]
    assert machine.held_bytes == 10


def test_a_new_epoch_replaces_what_waits() -> None:
    """What waited of the old epoch comes again in the new one, so it is dropped."""
    machine = Machine(LIMITS)
    machine.handle(batch(0, size=60))
    assert machine.handle(batch(0, epoch=2, size=60)) == []
    assert machine.held_bytes == 60
    (flush,) = machine.handle(batch(1, epoch=2, size=60))
    assert isinstance(flush, Flush)
    assert [taken.epoch for taken in flush.batches] == [2, 2]


def test_an_unknown_job_begins_with_batch_0() -> None:
    """After a restart the sender must begin a new epoch."""
    assert Machine(LIMITS).handle(batch(3, epoch=9)) == [AskResend(JOB, 9)]


def test_a_corrupt_batch_is_as_if_it_had_not_come() -> None:
    """It is asked for again, and the next one is out of turn."""
    machine = Machine(LIMITS)
    machine.handle(batch(0))
    assert machine.handle(BatchRefused(JOB, 1)) == [AskResend(JOB, 1)]
    assert machine.handle(batch(2)) == [AskResend(JOB, 1)]


@pytest.mark.threat("F13")
def test_a_failed_flush_is_answered_later_and_by_resend_only() -> None:
    """No room: nothing is acknowledged, what waits is dropped, and the sender is asked again after a while."""
    machine = Machine(LIMITS)
    machine.handle(batch(0, size=100))
    machine.handle(batch(1))
    assert machine.handle(FlushFailed(JOB, abandoned=False, now_ms=50)) == []
    assert machine.held_bytes == 0
    assert machine.handle(batch(2, at=60)) == [], "the answer to this comes with the delayed one"
    assert machine.handle(Tick(1049)) == []
    assert machine.handle(Tick(1050)) == [AskResend(JOB, 1)]
    assert not machine.needs_ticks
    (flush,) = machine.handle(batch(0, epoch=2, size=100))
    assert isinstance(flush, Flush)


def test_an_epoch_is_over_after_a_failed_flush() -> None:
    """Its later batches are not taken, though their number would fit: those before them are lost."""
    machine = Machine(LIMITS)
    machine.handle(batch(0, size=100))
    machine.handle(FlushFailed(JOB, abandoned=False, now_ms=0))
    machine.handle(Tick(1000))
    assert machine.handle(batch(1)) == [AskResend(JOB, 1)]
    assert machine.handle(batch(-1)) == [AskResend(JOB, 1)]


@pytest.mark.threat("F16")
def test_an_abandoned_job_is_not_taken_any_more() -> None:
    """After a failed fsync nothing of the job is taken or answered, and others go on."""
    machine = Machine(LIMITS)
    machine.handle(batch(0, size=100))
    assert machine.handle(FlushFailed(JOB, abandoned=True, now_ms=0)) == []
    assert machine.handle(batch(0, epoch=2, size=100)) == []
    assert machine.handle(BatchRefused(JOB, 2)) == []
    assert machine.handle(batch(0, size=100, job=OTHER))
    machine.handle(JobDeleted(JOB))
    assert machine.handle(batch(0, epoch=3, size=100)), "deleting the data clears it"


def test_the_end_is_flushed_at_once_and_forgets_the_job() -> None:
    """EndOfJob does not wait for more, and its answer says ended."""
    machine = Machine(LIMITS)
    machine.handle(batch(0))
    (flush,) = machine.handle(batch(1, size=0, through=5, end=5))
    assert machine.handle(flushed(flush, ended=True)) == [Answer(JOB, 1, 5, ended=True)]
    assert machine.handle(batch(2)) == [AskResend(JOB, 1)]
    (again,) = machine.handle(batch(0, epoch=2, size=0, through=5, end=5))
    assert machine.handle(flushed(again, ended=True)) == [Answer(JOB, 2, 5, ended=True)]


def test_a_flush_takes_a_turn_and_not_more() -> None:
    """A job that floods writes turn_bytes at a time, at least one batch."""
    machine = Machine(LIMITS)
    (first,) = machine.handle(batch(0, size=5000))
    for number in range(1, 6):
        machine.handle(batch(number, size=400))
    assert isinstance(first, Flush)
    _, second = machine.handle(flushed(first))
    assert isinstance(second, Flush)
    assert [taken.batch for taken in second.batches] == [1, 2]


def test_the_number_of_jobs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest idle job is forgotten; one that waits is not."""
    monkeypatch.setattr(machine_module, "JOBS_MAX", 2)
    machine = Machine(LIMITS)
    machine.handle(batch(0))
    machine.handle(flushed(machine.handle(batch(0, job=OTHER, size=100))[0]))
    machine.handle(batch(0, job=new_job_id()))
    assert machine.handle(batch(1, job=OTHER)) == [AskResend(OTHER, 1)]
    assert machine.handle(batch(1)) == []


def test_who_is_owed_a_resend_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has nothing to send until it hears that; on a full disk all jobs are owed one, and a new one comes."""
    monkeypatch.setattr(machine_module, "JOBS_MAX", 1)
    machine = Machine(LIMITS)
    machine.handle(batch(0, size=100))
    machine.handle(FlushFailed(JOB, abandoned=False, now_ms=0))
    machine.handle(batch(0, job=OTHER))
    assert machine.handle(Tick(1000))[0] == AskResend(JOB, 1)


def test_a_small_flush_does_not_wait_for_large_ones() -> None:
    """Both places for large ones are taken and more wait: what is small begins at once."""
    machine = Machine(LIMITS)
    floods = [machine.handle(batch(0, size=100, job=new_job_id())) for _ in range(5)]
    assert [len(begun) for begun in floods] == [1, 1, 0, 0, 0]
    machine.handle(batch(0, size=50, at=0))
    (quiet,) = machine.handle(Tick(200))
    assert isinstance(quiet, Flush)
    assert quiet.job == JOB


def test_a_turn_is_smaller_when_more_wait() -> None:
    """So that a round through all of them stays as long as it was; never less than is flushed anyway."""
    limits = LIMITS._replace(large_places=1, round_bytes=1600)
    for waiting, batches in ((1, 10), (4, 4), (100, 1)):
        machine = Machine(limits)
        (running,) = machine.handle(batch(0, size=100, job=new_job_id()))
        for _ in range(waiting):
            job = new_job_id()
            for number in range(20):
                machine.handle(batch(number, size=100, job=job))
        _, begun = machine.handle(flushed(running))
        assert isinstance(begun, Flush)
        assert len(begun.batches) == batches


def test_what_is_dropped_leaves_its_line() -> None:
    """A new epoch, or a deletion, of a job that was due and not begun: nothing of it is flushed."""
    machine = Machine(LIMITS)
    running = [machine.handle(batch(0, size=100, job=new_job_id()))[0] for _ in range(2)]
    machine.handle(batch(0, size=100))
    machine.handle(batch(0, size=100, job=OTHER))
    machine.handle(JobDeleted(JOB))
    assert machine.handle(batch(0, size=10, epoch=2, job=OTHER, at=5)) == []
    assert len(machine.handle(flushed(running[0]))) == 1, "the answer, and no flush"
    (begun,) = machine.handle(Tick(205))
    assert isinstance(begun, Flush)
    assert (begun.job, begun.epoch) == (OTHER, 2)


class _Fairness:
    """What must hold at every step of a run with many jobs, from outside: by its events and instructions alone."""

    def __init__(self, limits: Limits, jobs: list[str], quiet: str) -> None:
        self.machine = Machine(limits)
        self._limits, self._quiet = limits, quiet
        self.sent = dict.fromkeys(jobs, 0)
        self.begun = dict.fromkeys(jobs, 0)
        self.under_way: list[Flush] = []
        self._overtaken = dict.fromkeys(jobs, 0)
        """Flushes of other jobs that began since the job's last one ended, while some of it waited and was due."""

    def send(self, job: str, size: int, now_ms: int) -> None:
        """One more batch."""
        self.sent[job] += 1
        self._do(self.machine.handle(batch(self.sent[job] - 1, size=size, job=job, at=now_ms)))

    def end(self, flush: Flush, now_ms: int) -> None:
        """A flush is durable."""
        self.under_way.remove(flush)
        self._do(self.machine.handle(flushed(flush, at=now_ms)))

    def tick(self, now_ms: int) -> None:
        """Time passed, and everything that waits is due."""
        self._do(self.machine.handle(Tick(now_ms)))
        flushing = {flush.job for flush in self.under_way}
        waiting = {job for job, sent in self.sent.items() if sent > self.begun[job]} - flushing
        assert not waiting or len(flushing) >= self._limits.large_places, "a place is empty and somebody is due"
        assert self._quiet not in waiting, "the only small one waits"

    def _do(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Flush(job=job, batches=batches):
                    assert job not in {flush.job for flush in self.under_way}, "two flushes of a job"
                    assert [one.batch for one in batches] == [*range(self.begun[job], self.begun[job] + len(batches))]
                    self.begun[job] += len(batches)
                    self.under_way.append(instruction)
                    self._count(job)
                case AskResend():
                    raise AssertionError(instruction)
                case Answer():
                    pass
        assert len(self.under_way) <= self._limits.places

    def _count(self, begun: str) -> None:
        self._overtaken[begun] = 0
        if begun == self._quiet:
            return
        flushing = {flush.job for flush in self.under_way}
        for job in self.sent:
            if job not in flushing and self.sent[job] > self.begun[job]:
                self._overtaken[job] += 1
                assert self._overtaken[job] <= 2 * len(self.sent), "somebody starves"


@pytest.mark.threat("C17")
@pytest.mark.parametrize("seed", range(20))
def test_however_many_flood_nobody_starves_and_what_is_small_begins_at_once(seed: int) -> None:
    """Random floods and one quiet job: order, one flush a job, no empty place, and a bounded wait in turns."""
    source = random.Random(seed)  # noqa: S311  # no secret
    jobs = [str(new_job_id()) for _ in range(source.randrange(2, 40))]
    quiet, limits = jobs[0], LIMITS._replace(round_bytes=4000, small_places=source.randrange(1, 4))
    run, now = _Fairness(limits, jobs, quiet), 0
    for _ in range(1500):
        now += source.randrange(30)
        match source.randrange(8):
            case 0:
                if run.sent[quiet] == run.begun[quiet]:
                    run.send(quiet, 10, now)
            case 1 | 2 | 3 | 4:
                run.send(source.choice(jobs[1:]), source.randrange(60, 400), now)
            case _ if run.under_way:
                run.end(source.choice(run.under_way), now)
        run.tick(now := now + limits.flush_ms)
    while run.under_way:
        run.end(source.choice(run.under_way), now)
    assert run.machine.held_bytes == 0


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_answers_cover_only_what_was_flushed(seed: int) -> None:
    """Random events: no answer beyond the flushed, no second flush of a job at once, and the bytes add up."""
    source = random.Random(seed)  # noqa: S311  # no secret
    machine, now, epoch, number = Machine(LIMITS), 0, 1, 0
    flushing: Flush | None = None
    durable = sent = 0
    for _ in range(500):
        now += source.randrange(100)
        found: list[Instruction] = []
        match source.randrange(5):
            case 0 | 1:
                found = machine.handle(batch(number, epoch=epoch, size=source.randrange(80), through=sent + 1, at=now))
                number, sent = number + 1, sent + 1
            case 2:
                found = machine.handle(Tick(now))
            case 3 if flushing is not None:
                durable = max(durable, *(b.through for b in flushing.batches))
                done, flushing = flushed(flushing, at=now), None
                found = machine.handle(done)
            case 4 if flushing is not None and source.random() < 0.3:
                flushing = None
                found = machine.handle(FlushFailed(JOB, abandoned=False, now_ms=now))
        for instruction in found:
            match instruction:
                case Flush():
                    assert flushing is None
                    flushing = instruction
                case Answer():
                    assert instruction.last_sequence <= durable
                case AskResend():
                    epoch, number, sent = epoch + 1, 0, durable
        assert machine.held_bytes >= 0
