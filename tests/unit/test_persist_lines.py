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


def reference(payload: bytes, sequence: int, *, stream: str = "stdout", time_ns: int = 17) -> bytes:
    """The JSON lines of whole lines of UTF-8, one at a time by an ordinary encoder."""
    contents = [json.dumps(line, ensure_ascii=False) for line in payload.decode().split("\n")[:-1]]
    return "".join(
        f'{{"timestamp":{time_ns},"sequence":{number},"stream":"{stream}","content":{content}}}\n'
        for number, content in enumerate(contents, sequence)
    ).encode()


@pytest.mark.parametrize("stream", [Stream.STDOUT, Stream.STDERR])
@pytest.mark.parametrize("first", [1, 2, 990, 999, 1000, 1001, 1999, 999_990, 10**15 - 3])
def test_lines_that_stand_as_they_are_are_numbered_right(first: int, stream: Stream) -> None:
    """Nothing in them is escaped, so they are put together in blocks: at every border the numbers go on."""
    payload = b"".join(b"plain %d \xc3\xbc\n" % number for number in range(2500))
    expected = reference(payload, first, stream=stream.name.lower())
    assert text_of(output(payload, first, stream=stream, time_ns=17)) == expected
    skipped = b"".join(payload.splitlines(keepends=True)[1234:])
    assert text_of(output(payload, first, stream=stream, time_ns=17), skip=1234) == reference(
        skipped, first + 1234, stream=stream.name.lower()
    )


@pytest.mark.parametrize("odd", [*map(chr, [*range(9), *range(11, 32), 127, 0x85, 0x2028]), '"', "\\", "/", "<"])
def test_one_odd_character_among_plain_lines_is_escaped(odd: str) -> None:
    """Wherever it is: a piece with it is encoded another way, and means the same."""
    for place in (0, 700, 1499):
        contents = [f"line {number}" for number in range(1500)]
        contents[place] += odd
        payload = "".join(f"{content}\n" for content in contents).encode()
        found = text_of(output(payload, 1, time_ns=17))
        assert [json.loads(line)["content"] for line in found.split(b"\n")[:-1]] == contents
        assert [entry.sequence for entry in lines.decode(found)] == list(range(1, 1501))


def test_a_line_that_is_not_utf8_slows_its_piece_only() -> None:
    """And sequences go on over pieces, whatever is in them."""
    rows = [b"x" * 99] * 5000
    rows[2500] = b"\xff"
    chunks = list(lines.encode(records(output(b"".join(row + b"\n" for row in rows), 7))[0]))
    assert len(chunks) > 3
    assert [chunk.span.first_sequence for chunk in chunks[1:]] == [
        chunk.span.last_sequence + 1 for chunk in chunks[:-1]
    ]
    assert [entry.raw for chunk in chunks for entry in lines.decode(chunk.text)] == rows
    assert sum(b"content_b64" in chunk.text for chunk in chunks) == 1


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
    "payload",
    [
        b"",
        b"not json",
        b'{"bytes":-5,"reason":7}',
        b'{"bytes":99999999999999999999}',
        b"\xff",
        b'{"reason":"\xff"}',
        b'{"else":' + b"[" * 100_000,
    ],
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
