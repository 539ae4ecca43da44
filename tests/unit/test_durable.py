"""The durable cursor by itself: windows, epochs, acknowledgements, and the journal's reader under it."""

from pathlib import Path

import pytest

from common.identifiers import new_job_id
from common.messages.logs import StoreRecords
from common.records import RecordType, Stream, encode
from services.executor.durable import PATIENCE_NS, Outbox, Position
from services.executor.job_store import Cursor
from services.executor.journal import Journal, Slice, scan

SECOND_NS = 10**9


def line(sequence: int, text: bytes = b"x\n") -> bytes:
    """An OUTPUT record of one line."""
    return encode(RecordType.OUTPUT, text, time_ns=1, sequence=sequence, lines=1, stream=Stream.STDOUT)


def outbox(**fields: int) -> Outbox:
    """A fresh outbox at time 100."""
    return Outbox(Cursor(job=new_job_id(), **fields), now_ns=100)


def send(box: Outbox, lines: int, *, now_ns: int = 100) -> StoreRecords:
    """Send the next `lines` lines."""
    sequence = box.sent.sequence
    records = b"".join(line(sequence + n + 1) for n in range(lines))
    box.grown(box.sent.offset + len(records))
    piece = Slice(box.sent.offset, box.sent.offset + len(records), records, sequence + lines)
    return box.send_records(piece, now_ns=now_ns)


def test_batches_are_numbered_within_an_epoch() -> None:
    """From 0; the end of the job is one of them."""
    box = outbox()
    assert [send(box, 2).batch, send(box, 1).batch] == [0, 1]
    box.ended(3)
    end = box.send_end(now_ns=100)
    assert (end.batch, end.last_sequence) == (2, 3)
    assert not box.end_is_due()


def test_an_acknowledgement_frees_whole_batches_only() -> None:
    """The place to go back to is always between two records."""
    box = outbox()
    first = len(send(box, 2).records)
    send(box, 2)
    assert box.stored(3, ended=False, now_ns=200)
    assert box.acknowledged == Position(first, 2)
    assert box.in_flight_bytes == first
    assert not box.stored(3, ended=False, now_ns=200), "no progress"


def test_the_start_record_waits_for_no_acknowledgement() -> None:
    """It has no entry that persist could name."""
    box = outbox()
    start = encode(RecordType.START, b"{}", time_ns=1, sequence=1)
    box.grown(len(start))
    box.send_records(Slice(0, len(start), start, 0), now_ns=1)
    assert not box.waiting
    assert box.acknowledged.offset == len(start)


def test_going_back_begins_a_higher_epoch_at_what_was_acknowledged() -> None:
    """Also across restarts, and also when the clock went back."""
    box = outbox(epoch=5000)
    first = send(box, 1)
    assert first.epoch > 5000
    send(box, 1)
    box.stored(1, ended=False, now_ns=100)
    assert box.missing(first.epoch, now_ns=1)
    assert not box.missing(first.epoch, now_ns=1), "a second word about the old epoch changes nothing"
    again = send(box, 1)
    assert (again.batch, again.epoch > first.epoch, box.sent.sequence) == (0, True, 2)
    restarted = Outbox(box.cursor, now_ns=1)
    assert send(restarted, 1).epoch > again.epoch


def test_an_acknowledgement_of_an_older_epoch_counts() -> None:
    """What is durable stays so: the repeat waits for nothing."""
    box = outbox()
    old = send(box, 3)
    box.missing(old.epoch, now_ns=200)
    assert box.stored(3, ended=False, now_ns=300)
    box.send_records(Slice(0, len(old.records), old.records, 3), now_ns=300)
    assert not box.waiting
    assert box.acknowledged.sequence == 3


@pytest.mark.threat("E05")
def test_more_than_was_sent_is_not_acknowledged() -> None:
    """A wrong word of persist's cannot make the executor give output away."""
    box = outbox()
    send(box, 2)
    box.stored(2**62, ended=True, now_ns=100)
    assert box.acknowledged.sequence == 2
    assert not box.delivered, "the job has not ended"
    send(box, 1)
    assert box.waiting


def test_the_end_counts_only_when_all_is_stored() -> None:
    """`ended` with less than the last sequence is not the end."""
    box = outbox()
    send(box, 2)
    box.ended(2)
    box.send_end(now_ns=100)
    box.stored(1, ended=True, now_ns=100)
    assert not box.delivered
    box.stored(2, ended=True, now_ns=100)
    assert box.delivered
    assert not box.waiting


def test_patience_doubles_until_there_is_progress() -> None:
    """5, 10, 20 … s; then 5 s again."""
    box = outbox()
    send(box, 1, now_ns=0)
    assert not box.overdue(PATIENCE_NS - 1)
    assert box.overdue(PATIENCE_NS)
    box.give_up_waiting(now_ns=PATIENCE_NS)
    assert not box.overdue(10 * PATIENCE_NS), "nothing is sent: nothing is overdue"
    box.sent = box.acknowledged
    send(box, 1, now_ns=PATIENCE_NS)
    assert not box.overdue(3 * PATIENCE_NS - 1)
    assert box.overdue(3 * PATIENCE_NS)
    box.stored(1, ended=False, now_ns=3 * PATIENCE_NS)
    send(box, 1, now_ns=3 * PATIENCE_NS)
    assert box.overdue(4 * PATIENCE_NS)


def test_resends_without_progress_are_followed_ever_more_slowly() -> None:
    """A persist that refuses a batch each time is not fed in a tight loop; progress ends the pause."""
    box = outbox()
    waits = []
    for _ in range(12):
        box.sent = box.acknowledged
        box.missing(send(box, 1).epoch, now_ns=1000)
        waits.append(max(0, box.paused_until_ns - 1000) // 10**6)
    assert waits == [0, 0, 0, 100, 200, 400, 800, 1600, 3200, 3200, 3200, 3200]
    box.stored(1, ended=False, now_ns=2000)
    assert box.paused_until_ns == 0


def test_a_damaged_journal_is_delivered_up_to_the_damage() -> None:
    """And the end names the last entry that is whole."""
    box = outbox()
    send(box, 2)
    box.grown(10_000)
    box.unreadable(box.sent)
    box.grown(20_000)
    assert not box.has_records()
    box.ended(500)
    assert box.send_end(now_ns=1).last_sequence == 2


def test_a_slice_ends_at_the_last_whole_record(tmp_path: Path) -> None:
    """At every cut of the last record."""
    whole = line(1) + line(2)
    path = tmp_path / "journal"
    for cut in range(len(line(3))):
        path.write_bytes(whole + line(3)[:cut])
        journal = Journal(path)
        piece = journal.read(0, last_sequence=0, bytes_max=10_000)
        assert (piece.records, piece.end, piece.last_sequence, piece.corrupt) == (whole, len(whole), 2, "")
        journal.close()


def test_a_record_larger_than_the_slice_is_read_whole(tmp_path: Path) -> None:
    """One record at least, whatever its size."""
    record = line(1, b"z" * 100_000 + b"\n")
    path = tmp_path / "journal"
    path.write_bytes(record + line(2))
    journal = Journal(path)
    assert journal.read(0, last_sequence=0, bytes_max=64).records == record
    journal.close()


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda r: b"XXXX" + r[4:], "magic"),
        (lambda r: r[:4] + b"\x09" + r[5:], "type"),
        (lambda r: r[:28] + b"\xff\xff\xff\x7f" + r[32:], "length"),
        (lambda r: r[:-1] + b"?", "checksum"),
        (lambda _: line(7), "sequence is 7 and not 2"),
    ],
)
def test_damage_ends_a_slice_before_it_and_is_named(damage: object, word: str) -> None:
    """What is before is whole; the text says where and what."""
    assert callable(damage)
    piece = scan(line(1) + damage(line(2)), 1000, last_sequence=0)
    assert piece.records == line(1)
    assert word in piece.corrupt
    assert "sequence" in word or f"byte {1000 + len(line(1))}" in piece.corrupt


def test_give_back_frees_disk_and_keeps_offsets(tmp_path: Path) -> None:
    """The hole costs nothing, and what is behind it reads as before."""
    path = tmp_path / "journal"
    first = line(1, b"y" * (4 * 2**20 // 4) + b"\n")
    path.write_bytes(first + line(2))
    journal = Journal(path)
    before = path.stat().st_blocks
    journal.give_back(len(first))
    assert path.stat().st_blocks * 512 < 16 * 1024 < before * 512
    assert journal.read(len(first), last_sequence=1, bytes_max=1000).records == line(2)
    journal.close()


@pytest.mark.threat("F29")
def test_epochs_grow_whatever_the_clock_says() -> None:
    """Patience has a clock that never goes back; epochs only count up, from what was saved or from the floor."""
    saved = Cursor(job=new_job_id(), epoch=50)
    assert Outbox(saved, now_ns=7, epoch_floor=20).cursor.epoch == 51
    box = Outbox(saved, now_ns=7, epoch_floor=90)
    assert box.cursor.epoch == 91
    box.go_back(now_ns=3)
    assert box.cursor.epoch == 92
