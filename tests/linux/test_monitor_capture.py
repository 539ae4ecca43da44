"""The monitor's pure parts: splitting into entries, numbering, what happens when the journal takes no more."""

import json
import random
import socket
from typing import Final

import pytest

from common import records
from common.records import Record, RecordType, Stream
from services.executor.events import Ended
from services.executor.journal import Note
from services.executor.launcher.capture import LineSplitter, Piece
from services.executor.launcher.commands import Command, Verb, decode_commands, encode_command
from services.executor.launcher.ending import Ending, exit_payload, read_first
from services.executor.launcher.handshake import MESSAGE_BYTES_MAX, Failure, Kind, failure_of, parse, send
from services.executor.launcher.journal import Recorder
from services.executor.launcher.task import Groups, JournalLimits, Meter, Reading
from services.executor.notes import parse_note

PIECE: Final = 16


class FakeJournal:
    """A journal in memory with as much room as the test gives it."""

    def __init__(self, room_bytes: int) -> None:
        self.room_bytes = room_bytes
        self.freed_bytes = 0
        self.content = b""

    def append(self, record: bytes) -> bool:
        """As the real one at ENOSPC: the whole record or nothing."""
        if len(record) > self.room_bytes:
            return False
        self.room_bytes -= len(record)
        self.content += record
        return True

    def used_bytes(self) -> int:
        """What is written and not given back."""
        return len(self.content) - self.freed_bytes

    def records(self) -> list[Record]:
        """What was written."""
        return list(records.decode_all(self.content))


def line(text: bytes) -> list[Piece]:
    """One whole line."""
    return [Piece(text + b"\n", 1, partial=False)]


def assert_whole(found: list[Record]) -> None:
    """No hole and no repeat in the sequence."""
    expected = 1
    for record in found:
        assert record.sequence == expected
        expected += record.lines


def test_every_split_of_every_output_is_exact() -> None:
    """However the bytes arrive, the pieces join to them; lines and partial pieces are what they claim to be."""
    seed = random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)  # noqa: S311  # a test's input
    for _ in range(500):
        data = bytes(chance.choice(b"ab\n" if chance.random() < 0.5 else b"abcdefgh\n") for _ in range(200))
        splitter, pieces, position = LineSplitter(PIECE), [], 0
        while position < len(data):
            size = chance.randrange(1, 60)
            pieces += splitter.feed(data[position : position + size])
            assert len(splitter.held) < PIECE, f"seed {seed}"
            if chance.random() < 0.1:
                pieces += splitter.flush()
            position += size
        pieces += splitter.flush()
        assert b"".join(piece.payload for piece in pieces) == data, f"seed {seed}"
        for piece in pieces:
            if piece.partial:
                assert piece.lines == 1, f"seed {seed}"
                assert 0 < len(piece.payload) <= PIECE, f"seed {seed}"
                assert b"\n" not in piece.payload, f"seed {seed}"
            else:
                assert piece.payload.endswith(b"\n"), f"seed {seed}"
                assert piece.lines == piece.payload.count(b"\n"), f"seed {seed}"
                assert all(len(each) < PIECE for each in piece.payload.split(b"\n")), f"seed {seed}"


def test_a_line_at_the_limit_stays_whole() -> None:
    """With its line end a line may be as long as a piece; one byte more and it is cut."""
    assert LineSplitter(PIECE).feed(b"x" * 15 + b"\n") == [Piece(b"x" * 15 + b"\n", 1, partial=False)]
    assert LineSplitter(PIECE).feed(b"x" * 16 + b"\n") == [
        Piece(b"x" * 16, 1, partial=True),
        Piece(b"\n", 1, partial=False),
    ]


def test_blocking_holds_back_and_loses_nothing() -> None:
    """Without room records wait in their order, no more output is accepted, and later all of it is written."""
    journal = FakeJournal(100)
    recorder = Recorder(journal, JournalLimits(10_000, drop_when_full=False, silence_ms=100))
    for number in range(5):
        recorder.output(Stream.STDOUT, line(b"line %d" % number), 1)
    recorder.event(RecordType.EXIT, b"{}", 2)
    assert not recorder.accepts_output()
    assert not recorder.settled
    written = len(journal.records())
    journal.room_bytes = 10_000
    assert recorder.retry(3)
    assert written < len(journal.records()) == 6
    assert_whole(journal.records())
    assert journal.records()[-1].type == RecordType.EXIT


def test_blocking_looks_at_the_disk() -> None:
    """At its limit no output is accepted; what is given back makes room again."""
    journal = FakeJournal(10_000)
    recorder = Recorder(journal, JournalLimits(300, drop_when_full=False, silence_ms=100))
    while recorder.accepts_output():
        recorder.output(Stream.STDOUT, line(b"x" * 50), 1)
    assert 300 <= journal.used_bytes() < 400
    journal.freed_bytes = 200
    assert recorder.accepts_output()


def test_dropping_leaves_an_exact_gap() -> None:
    """What was dropped is one GAP in its place, with its entries and bytes; the numbering goes on without a hole."""
    journal = FakeJournal(10_000)
    recorder = Recorder(journal, JournalLimits(200, drop_when_full=True, silence_ms=100))
    for number in range(20):
        assert recorder.accepts_output()
        recorder.output(Stream.STDOUT, line(b"line %02d" % number), 1)
    kept = len(journal.records())
    assert 0 < kept < 20
    journal.freed_bytes = journal.used_bytes()
    recorder.output(Stream.STDERR, line(b"again"), 5)
    *_, gap, again = journal.records()
    assert gap.type == RecordType.GAP
    assert (gap.sequence, gap.lines) == (kept + 1, 20 - kept)
    assert json.loads(bytes(gap.payload)) == {"reason": "journal_full", "bytes": 8 * (20 - kept)}
    assert bytes(again.payload) == b"again\n"
    assert_whole(journal.records())


def test_an_end_during_a_gap_is_behind_it() -> None:
    """EXIT is never dropped, and the GAP before it is written first, even over the limit."""
    journal = FakeJournal(10_000)
    recorder = Recorder(journal, JournalLimits(100, drop_when_full=True, silence_ms=100))
    for _ in range(10):
        recorder.output(Stream.STDOUT, line(b"x" * 40), 1)
    recorder.event(RecordType.EXIT, b"{}", 2)
    assert [record.type for record in journal.records()[-2:]] == [RecordType.GAP, RecordType.EXIT]
    assert recorder.settled
    assert_whole(journal.records())


def test_dropping_at_enospc_counts_on() -> None:
    """A GAP that cannot be written waits; what comes meanwhile is a gap behind it, and nothing is counted twice."""
    journal = FakeJournal(60)
    recorder = Recorder(journal, JournalLimits(10_000, drop_when_full=True, silence_ms=100))
    for number in range(6):
        recorder.output(Stream.STDOUT, line(b"line %d" % number), 1)
    journal.room_bytes = 10_000
    assert recorder.retry(2)
    recorder.output(Stream.STDOUT, line(b"last"), 3)
    found = journal.records()
    assert_whole(found)
    assert sum(record.lines for record in found) == 7
    assert sum(json.loads(bytes(r.payload))["bytes"] for r in found if r.type == RecordType.GAP) == 5 * 7


@pytest.mark.threat("F29")
def test_order_is_by_sequence_whatever_the_clock_does() -> None:
    """Back an hour, to 1970, ahead a year: sequences and bytes are in the order of the writing, times as they were."""
    journal = FakeJournal(10_000)
    recorder = Recorder(journal, JournalLimits(10_000, drop_when_full=False, silence_ms=100))
    times = [7200 * 10**9, 3600 * 10**9, 0, 10**18, 1]
    recorder.event(RecordType.START, b"{}", 7200 * 10**9)
    for number, time_ns in enumerate(times):
        recorder.output(Stream.STDOUT, line(b"%d" % number), time_ns)
    recorder.event(RecordType.EXIT, b"{}", 5)
    found = journal.records()
    assert_whole(found)
    assert [record.time_ns for record in found[1:-1]] == times
    assert b"".join(record.payload for record in found[1:-1]) == b"0\n1\n2\n3\n4\n"


def test_what_is_left_when_all_writers_are_dead_is_read_over_the_bound() -> None:
    """The end of a job that filled its journal waits for the disk only, not for persist."""
    journal = FakeJournal(10_000)
    recorder = Recorder(journal, JournalLimits(100, drop_when_full=False, silence_ms=100))
    recorder.output(Stream.STDOUT, line(b"x" * 200), 1)
    assert not recorder.accepts_output()
    assert recorder.accepts_rest()
    recorder.output(Stream.STDOUT, line(b"rest"), 2)
    recorder.event(RecordType.EXIT, b"{}", 3)
    assert recorder.settled
    journal.room_bytes = 0
    recorder.output(Stream.STDOUT, line(b"more"), 4)
    assert not recorder.accepts_rest()


def test_commands_survive_the_wire() -> None:
    """A command is 16 bytes and comes back; what is none is passed over."""
    stop, freed = Command(Verb.STOP, 15, 10_000), Command(Verb.SPACE_FREED)
    wire = encode_command(stop) + b"X" * 16 + encode_command(freed) + b"JLC1\x09" + bytes(11) + b"short"
    assert len(encode_command(stop)) == 16
    assert encode_command(stop) == b"JLC1\x01\x00\x0f\x00\x10\x27" + bytes(6)
    assert list(decode_commands(wire)) == [stop, freed]


def test_readings_are_found_by_their_key(tmp_path_factory: object) -> None:
    """The first reading that can be read counts, by its word or alone in the file, divided; else zero."""
    assert tmp_path_factory is not None
    assert read_first((Reading("/proc/self/no-such-file", "", 1),)) == 0
    assert read_first((Reading("/no-such", "", 1), Reading("/proc/sys/kernel/pid_max", "", 2))) > 0
    assert read_first((Reading("/proc/self/status", "Threads:", 1), Reading("/proc/sys/kernel/pid_max", "", 1))) > 1


def test_the_end_is_told_in_full() -> None:
    """The EXIT payload has every field of the contract, whatever the end was."""
    none = Groups((), "", (Meter("cpu_time_us", (Reading("/proc/self/no-such-file", "", 1),)),), "", ())
    exited = json.loads(exit_payload(Ending(7 << 8, "", None), none))
    killed = json.loads(exit_payload(Ending(9, "client", None), none))
    failed = json.loads(exit_payload(Ending(None, "", Failure("exec", "x", 2, "no x")), none))
    assert (exited["outcome"], exited["exit_code"], exited["signal"]) == ("exited", 7, None)
    assert (killed["outcome"], killed["exit_code"], killed["signal"], killed["ended_by"]) == (
        "signaled",
        None,
        9,
        "client",
    )
    assert failed["outcome"] == "not_started"
    assert failed["failure"] == {"step": "exec", "path": "x", "errno": 2, "message": "no x"}
    assert set(exited) == set(killed) == set(failed)
    assert exited["cpu_time_us"] == 0


def test_a_failure_keeps_errno_and_path() -> None:
    """An OSError becomes a failure with its number, its path and its words; any other error with its name."""
    told = failure_of("mount", OSError(13, "mount: Permission denied", "/work"))
    assert told == Failure("mount", "/work", 13, "mount: Permission denied")
    assert failure_of("init", ValueError("x")).message == "ValueError: x"
    assert len(set(Kind)) == 6


@pytest.mark.parametrize("name", ["\N{GRINNING FACE}" * 4000, "x" * 4000, "caf\udce9" * 500, "\ud800"])
def test_a_failure_reaches_the_record_whatever_is_in_its_words(name: str) -> None:
    """Names of commands and in archives are the client's: long, of any alphabet, and bytes that are no text at all."""
    said = Failure("exec", name, 36, f"command {name!r} {name} cannot be executed")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        send(ours, Kind.FAILED, failure=said)
        heard = parse(theirs.recv(MESSAGE_BYTES_MAX)).failure
    assert heard is not None
    assert (heard.step, heard.errno) == ("exec", 36)
    payload = exit_payload(Ending(None, "", heard), Groups((), "", (), "", ()))
    ended = parse_note(Note(RecordType.EXIT, 1, payload, 0))
    assert isinstance(ended, Ended)
    assert ended.failure is not None
    assert ended.failure.path.startswith(name.encode(errors="backslashreplace").decode()[:100])
