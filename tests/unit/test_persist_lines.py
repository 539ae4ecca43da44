"""JSON lines: what the job wrote, byte for byte, as docs/storage-format.md says."""

import json
from itertools import pairwise

import pytest

from common.records import Record, RecordType, Stream, encode
from services.persist import lines
from services.persist.lines import RefusedRecord
from tests.unit.test_persist_journal import gap, output, records


def text_of(encoded: bytes, skip: int = 0) -> bytes:
    """The JSON lines of one record."""
    return b"".join(chunk.text for chunk in lines.encode(records(encoded)[0], skip=skip))


@pytest.mark.requirement("S0.10")
def test_lines_are_those_of_the_format() -> None:
    """Keys, their order and their values are fixed."""
    assert text_of(output(b'one\ntw"o\n', 5, time_ns=17)) == (
        b'{"timestamp":17,"sequence":5,"stream":"stdout","content":"one"}\n'
        b'{"timestamp":17,"sequence":6,"stream":"stdout","content":"tw\\"o"}\n'
    )
    assert text_of(output(b"piece", 1, stream=Stream.STDERR, time_ns=17)) == (
        b'{"timestamp":17,"sequence":1,"stream":"stderr","content":"piece","partial":true}\n'
    )
    assert text_of(output(b"\xff\n", 1, time_ns=17)) == (
        b'{"timestamp":17,"sequence":1,"stream":"stdout","content_b64":"/w=="}\n'
    )
    assert text_of(gap(3, 4)).endswith(
        b',"sequence":3,"stream":"stdout","gap":4,"gap_bytes":400,"reason":"journal full"}\n'
    )


@pytest.mark.threat("C19")
@pytest.mark.parametrize("content", ["a\r", "\u2028\u2029\x85\x0b\x0c\x1c", "\0", '"\\/', "", "\U0001f600", "\ufeff"])
def test_only_a_newline_ends_a_line(content: str) -> None:
    """Whatever else some call a line end stays inside the line, and comes back."""
    text = text_of(output(content.encode() + b"\nnext\n", 1))
    assert [json.loads(line)["content"] for line in text.split(b"\n")[:-1]] == [content, "next"]
    assert [entry.raw for entry in lines.decode(text)] == [content.encode(), b"next"]


@pytest.mark.threat("C21")
def test_a_forged_line_stays_content() -> None:
    """A job that prints a JSON record forges nothing."""
    forged = b'{"timestamp":1,"sequence":99,"stream":"stderr","content":"x"}'
    (entry,) = lines.decode(text_of(output(forged + b"\n", 1)))
    assert (entry.sequence, entry.raw) == (1, forged)


def test_lines_that_are_not_utf8_do_not_spoil_the_others() -> None:
    """In one record, each line is text where it can be."""
    text = text_of(output(b"good\n\xc3\n\xc3\xbc\n", 1))
    assert [sorted(json.loads(line))[0] for line in text.splitlines()] == ["content", "content_b64", "content"]
    assert [entry.raw for entry in lines.decode(text)] == [b"good", b"\xc3", b"\xc3\xbc"]


def test_chunks_are_bounded_and_skip_counts_entries() -> None:
    """Many lines come in several chunks whose spans follow each other; skip leaves the first ones out."""
    record = records(output(b"\n" * 10_000, 1))[0]
    spans = [chunk.span for chunk in lines.encode(record, skip=10)]
    assert spans[0].first_sequence == 11
    assert spans[-1].last_sequence == 10_000
    assert all(span.lines <= lines.CHUNK_LINES for span in spans)
    assert all(after.first_sequence == before.last_sequence + 1 for before, after in pairwise(spans))


@pytest.mark.parametrize(
    "record",
    [
        Record(RecordType.OUTPUT, 1, 0, 1, 1, 2, memoryview(b"one line\n")),
        Record(RecordType.OUTPUT, 1, 0, 1, 1, 1, memoryview(b"no end")),
        Record(RecordType.OUTPUT, 1, 1, 1, 1, 1, memoryview(b"partial with an end\n")),
        Record(RecordType.OUTPUT, 1, 1, 1, 1, 2, memoryview(b"partial of two")),
        Record(RecordType.OUTPUT, 0, 0, 1, 1, 1, memoryview(b"x\n")),
        Record(RecordType.OUTPUT, 3, 0, 1, 1, 1, memoryview(b"x\n")),
        Record(RecordType.OUTPUT, 1, 0, 1, 0, 1, memoryview(b"x\n")),
        Record(RecordType.OUTPUT, 1, 0, 1, 2**63, 1, memoryview(b"x\n")),
        Record(RecordType.OUTPUT, 1, 0, 2**63, 1, 1, memoryview(b"x\n")),
        Record(RecordType.GAP, 1, 0, 1, 1, 0, memoryview(b"{}")),
        Record(RecordType.START, 0, 0, 1, 1, 1, memoryview(b"{}")),
        Record(9, 1, 0, 1, 1, 1, memoryview(b"x\n")),
    ],
)
def test_a_record_that_cannot_be_meant_is_refused(record: Record) -> None:
    """A checksum that holds does not make sense of nonsense."""
    with pytest.raises(RefusedRecord):
        lines.check(record)


@pytest.mark.parametrize(
    "payload", [b"", b"not json", b'{"bytes":-5,"reason":7}', b'{"bytes":99999999999999999999}', b"\xff"]
)
def test_a_gap_whose_detail_is_unreadable_is_still_a_gap(payload: bytes) -> None:
    """How many entries are missing is in the header; the rest is courtesy."""
    encoded = encode(RecordType.GAP, payload, time_ns=1, sequence=4, lines=2, stream=Stream.STDOUT)
    (entry,) = lines.decode(text_of(encoded))
    assert (entry.sequence, entry.gap) == (4, 2)
    assert entry.gap_bytes >= 0
    assert entry.reason


@pytest.mark.parametrize(
    "text",
    [
        b'{"timestamp":1,"sequence":1,"stream":"stdout","content":"a","partial":true}\n',
        b'{"timestamp":1,"sequence":1,"stream":"stdout","gap":1,"gap_bytes":0,"reason":"journal full"}\n',
        b'{"timestamp":1,"sequence":1,"stream":"stdout","content":"a"}\n' * 2,
        b'{"timestamp":1,"sequence":1,"stream":"stdout","content_b64":"not base64"}\n',
        b"not json\n",
        b"",
    ],
)
def test_only_a_text_of_whole_lines_is_read_by_content_alone(text: bytes) -> None:
    """A piece, a gap, another number of lines than was said, and nonsense are left to the careful way."""
    assert lines.decode_data(text, count=1) is None


def test_content_alone_is_what_the_job_wrote() -> None:
    """Lines that are text and lines that are not, what looks like a mark of ours included."""
    written = b'plain\n\xff\x00\n{"gap":1,"partial":true}\n\n'
    assert lines.decode_data(text_of(output(written, 1)), count=4) == written
