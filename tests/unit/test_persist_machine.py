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
